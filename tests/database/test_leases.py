"""Leases: who holds what until when, what comes back, and what a claim looks at to find it."""

from __future__ import annotations

import threading
from uuid import UUID

import psycopg
import pytest

from mailroom.queue.client import RENEW
from support import commands
from support.processes import environment
from support.queue_sql import (
    Db,
    claim,
    claimed_tokens,
    expire_leases,
    next_due,
    record,
    settle,
    sign_up,
    sign_up_many,
)
from support.runs import ledger

SWEEP_S = 10


def test_eligibility_is_tested_again_before_a_retry(db: Db) -> None:
    first, second = sign_up(db, "a"), sign_up(db, "b")
    (lease,) = claim(db)
    assert (first, second) == lease.tokens
    db.execute("UPDATE tokens SET consumed_at = now() WHERE id = %s", [first])
    expire_leases(db)
    (again,) = claim(db)
    assert (lease.lease, lease.generation + 1, (second,)) == (again.lease, again.generation, again.tokens)
    db.execute("UPDATE tokens SET consumed_at = now() WHERE id = %s", [second])
    expire_leases(db)
    assert [] == claim(db)
    assert [(0, 0, None)] == db.execute("SELECT * FROM mailroom.backlog()").fetchall()


def test_a_claim_is_cut_into_leases(db: Db) -> None:
    sign_up_many(db, 25)
    assert [7, 7, 6] == [len(lease.tokens) for lease in claim(db, 20, lease_tokens=7)]
    assert [5] == [len(lease.tokens) for lease in claim(db, 20, lease_tokens=7)]


def test_an_expired_lease_comes_back_before_new_tokens(db: Db) -> None:
    old = sign_up(db, "old")
    claim(db)
    new = sign_up(db, "new")
    expire_leases(db)
    assert [(old,), (new,)] == [lease.tokens for lease in claim(db)]


def test_a_lease_that_is_not_over_is_nobody_elses(db: Db) -> None:
    sign_up(db, "a")
    claim(db)
    assert [] == claim(db, worker="other")


def test_settling_names_the_key(db: Db) -> None:
    sign_up(db, "a")
    (stale,) = claim(db)
    expire_leases(db)
    (current,) = claim(db, worker="other")
    assert not settle(db, stale)
    assert [] == db.execute(RENEW, [[stale.lease], [stale.key], 1000]).fetchall()
    assert settle(db, current)
    assert not settle(db, current)


def test_part_of_a_lease_can_be_settled(db: Db) -> None:
    sign_up_many(db, 5)
    (lease,) = claim(db)
    first, second, third, fourth, fifth = lease.tokens
    assert settle(db, lease, [second, fourth])
    expire_leases(db)
    (rest,) = claim(db)
    assert (first, third, fifth) == rest.tokens
    assert settle(db, rest, [first, third, fifth])
    assert not settle(db, rest, [first])


def test_renewing_keeps_a_lease(db: Db) -> None:
    sign_up(db, "a")
    (lease,) = claim(db, lease_ms=1)
    renewed = db.execute(RENEW, [[lease.lease], [lease.key], 60_000]).fetchall()
    assert [(UUID(lease.key),)] == renewed
    assert [] == claim(db, worker="other")


def test_released_leases_are_due_at_once(db: Db) -> None:
    sign_up_many(db, 5)
    kept, freed = claim(db, lease_tokens=3)
    assert [(2,)] == db.execute("SELECT mailroom.release('w', %s::uuid[])", [[kept.key]]).fetchall()
    assert [(0,)] == db.execute("SELECT mailroom.release('other')").fetchall()
    assert [freed.tokens] == [lease.tokens for lease in claim(db, worker="other")]


def test_next_due_is_when_the_first_lease_is_over(db: Db) -> None:
    query = "SELECT mailroom.next_due()"
    assert [(None,)] == db.execute(query).fetchall()
    sign_up(db, "a")
    claim(db, lease_ms=30_000)
    ((due,),) = db.execute(query).fetchall()
    assert 25 < due <= 30
    expire_leases(db)
    assert [(0,)] == db.execute(query).fetchall()


def test_the_reason_of_a_pause_may_be_any_text(database: str, db: Db) -> None:
    done = commands.run("pause", "--reason", "caf\udce9\0 is closed", env=environment(database))
    assert 0 == done.returncode, done.stderr
    assert [("caf\ufffd is closed",)] == db.execute("SELECT pause_reason FROM jobs").fetchall()


def test_what_a_claim_puts_off_while_its_action_is_resumed_is_due_at_once(database: str, db: Db) -> None:
    sign_up(db, "zoe")
    db.execute("UPDATE mailroom.actions SET paused_at = now() WHERE action = 'activation'")
    with psycopg.connect(database) as claiming, psycopg.connect(database, autocommit=True) as operator:
        assert [] == claim(claiming)
        resuming = threading.Thread(target=operator.execute, args=("SELECT mailroom.resume('token_insert')",))
        resuming.start()
        while resuming.is_alive() and not db.execute("SELECT FROM pg_locks WHERE NOT granted").fetchall():
            resuming.join(0.01)
        claiming.commit()
        resuming.join()
    assert 0 == next_due(db)
    assert 1 == len(claim(db))


def test_a_paused_queue_has_nothing_due(database: str, db: Db) -> None:
    sign_up(db, "zoe")
    claim(db)
    expire_leases(db)
    assert 0 == next_due(db)
    db.execute("SELECT mailroom.pause('a wrong template')")
    assert next_due(db) is None
    with psycopg.connect(database, autocommit=True) as listener:
        listener.execute("LISTEN token_insert")
        db.execute("SELECT mailroom.resume('token_insert')")
        assert [""] == [note.payload for note in listener.notifies(timeout=30, stop_after=1)]
    assert 0 == next_due(db)


def test_what_was_sent_under_a_lost_lease_is_not_handed_out_again(db: Db) -> None:
    sign_up_many(db, 4)
    (lost,) = claim(db)
    sent, consumed, retried, unknown = lost.tokens
    expire_leases(db)
    claim(db, worker="other")
    results = {sent: "sent", consumed: "sent", retried: "transient", unknown: "unknown"}
    assert not record(db, lost, results)
    db.execute("UPDATE tokens SET consumed_at = clock_timestamp() WHERE id = %s", [consumed])
    expire_leases(db)
    (again,) = claim(db)
    assert (lost.lease, 3, (retried, unknown)) == (again.lease, again.generation, again.tokens)
    written = [(token, 1, result) for token, result in results.items() if result != "transient"]
    assert sorted([*written, (retried, 1, "retried")]) == sorted(ledger(db))  # and nothing else
    assert not record(db, lost, {retried: "sent", unknown: "sent"})
    expire_leases(db)
    assert [] == claim(db)
    assert [(0,)] == db.execute("SELECT count(*) FROM mailroom.leases").fetchall()
    assert 6 == len(ledger(db))


def test_what_nobody_sent_comes_back_whatever_the_ledger_has(db: Db) -> None:
    first, second, third = (sign_up(db, name) for name in "abc")
    claim(db)
    for outcome in ("retried", "unknown", "rejected", "skipped", "expired"):
        db.execute(
            "INSERT INTO mailroom.deliveries (token, attempt, outcome) VALUES (%s, 1, %s)", [first, outcome]
        )
    # The id was another token's, before it was given out anew.
    db.execute(
        "INSERT INTO mailroom.deliveries (token, fingerprint, attempt, outcome)"
        " VALUES (%s, 'another', 1, 'sent')",
        [second],
    )
    expire_leases(db)
    assert [(first, second, third)] == [lease.tokens for lease in claim(db)]


def test_a_dead_letter_is_retried_by_hand_as_before(db: Db) -> None:
    token = sign_up(db, "zoe")
    assert record(db, claim(db)[0], {token: "rejected"})
    outcomes = db.execute(
        "SELECT outcome FROM mailroom.retry_dead('token_insert', %s, false, '', 'somebody')",
        [[token]],
    ).fetchall()
    assert [("retried",)] == outcomes
    assert [(token,)] == [lease.tokens for lease in claim(db)]


# What a claim looks at


def pages_of_a_claim(db: Db) -> int:
    """How many pages a claim looks at that finds nothing, after the walk from the beginning."""
    explain = (
        "EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) SELECT * FROM mailroom.claim('w', 10, 10, 1000)"
    )
    found = []
    for _ in range(4):
        ((answer,),) = db.execute(explain).fetchall()
        plan = answer[0]["Plan"]
        found.append(int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]))
    return min(found)


def let_the_sweep_be_due(db: Db) -> None:
    db.execute("UPDATE jobs SET swept_at = swept_at - %s * interval '1 second'", [SWEEP_S])


def after_a_sweep(db: Db) -> None:
    """Bring the queue to where it is between two sweeps."""
    assert [] == claim(db)
    assert [] == claim(db)
    assert [(True,)] == db.execute(
        "SELECT bool_and(due_floor > '-infinity') FROM mailroom.cursors"
    ).fetchall()


def test_what_was_settled_is_not_walked_again(database: str, db: Db) -> None:
    with psycopg.connect(database) as holder:
        holder.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        holder.execute("SELECT count(*) FROM accounts")
        before = pages_of_a_claim(db)
        db.execute(
            "INSERT INTO mailroom.leases (lane, tokens, worker, generation, due_at)"
            " SELECT 'normal', '{1}', 'w', 1, now() - interval '1 minute' FROM generate_series(1, 20000)"
        )
        db.execute("DELETE FROM mailroom.leases")
        let_the_sweep_be_due(db)
        assert pages_of_a_claim(db) < before + 20


def test_a_lease_that_came_late_is_found(db: Db) -> None:
    """As when its statement took long to commit: it is due before what the last claim looked at."""
    token = sign_up(db, "late")
    (lease,) = claim(db)
    after_a_sweep(db)
    db.execute("UPDATE mailroom.leases SET due_at = due_at - interval '1 hour'")
    assert [] == claim(db)
    due = next_due(db)
    assert due
    assert SWEEP_S - 5 < due <= SWEEP_S
    let_the_sweep_be_due(db)
    assert 0 == next_due(db)
    (again,) = claim(db)
    assert (lease.lease, 2, (token,)) == (again.lease, again.generation, again.tokens)


def test_a_clock_that_was_set_back_hides_no_lease(db: Db) -> None:
    token = sign_up(db, "early")
    claim(db)
    db.execute("UPDATE jobs SET swept_at = swept_at + interval '1 hour'")
    db.execute("UPDATE mailroom.cursors SET due_floor = 'infinity'")
    db.execute("UPDATE mailroom.leases SET due_at = clock_timestamp()")
    assert [token] == claimed_tokens(db)


def test_the_last_look_is_a_whole_one_and_then_there_is_silence(db: Db) -> None:
    sign_up(db, "a")
    claimed_tokens(db)
    after_a_sweep(db)
    due = next_due(db)
    assert due
    assert 0 < due <= SWEEP_S
    let_the_sweep_be_due(db)
    assert [] == claim(db)
    assert next_due(db) is None


def test_leases_that_a_claim_had_no_room_for_are_had_by_the_next(db: Db) -> None:
    tokens = [sign_up(db, f"u{number}") for number in range(5)]
    claim(db, lease_tokens=1)
    expire_leases(db)
    found = [token for _ in tokens for lease in claim(db, 1) for token in lease.tokens]
    assert tokens == found


def test_a_claim_of_new_tokens_leaves_due_leases_to_the_next(db: Db) -> None:
    first = sign_up(db, "first")
    claim(db)
    expire_leases(db)
    second = sign_up(db, "second")
    only_new = "SELECT unnest(tokens) FROM mailroom.claim('w', 10, 10, 60000, true)"
    assert [(second,)] == db.execute(only_new).fetchall()
    assert [] == db.execute(only_new).fetchall()
    assert 0 == next_due(db)
    assert [first] == [token for lease in claim(db) for token in lease.tokens]


@pytest.mark.parametrize(
    ("result", "left_s", "due_s"),
    [
        ("unknown", 60, 10),
        ("unknown", 12, 7),
        ("unknown", 4, 1),
        ("unknown", 0.5, 0.5),
        ("transient", 12, 10),
        ("transient", 8, 8),
    ],
)
def test_a_mail_whose_answer_was_lost_is_due_again_before_it_expires(
    db: Db, result: str, left_s: float, due_s: float
) -> None:
    token = sign_up(db, "ada")
    (lease,) = claim(db)
    query = "UPDATE tokens SET expires_at = clock_timestamp() + %s * interval '1 second' WHERE id = %s"
    db.execute(query, [left_s, token])
    record(db, lease, {token: result}, retry_ms=10_000)
    ((wait_s,),) = db.execute(
        "SELECT extract(epoch FROM due_at - clock_timestamp())::double precision FROM mailroom.leases"
    ).fetchall()
    assert due_s - 0.5 < wait_s <= due_s


def test_a_mail_that_may_go_by_another_transport_is_never_due_early(db: Db) -> None:
    token = sign_up(db, "ada")
    (lease,) = claim(db)
    db.execute("UPDATE tokens SET expires_at = clock_timestamp() + interval '12 seconds'")
    record(db, lease, {token: "unknown"}, retry_ms=10_000, never_early=True)
    ((wait_s,),) = db.execute(
        "SELECT extract(epoch FROM due_at - clock_timestamp())::double precision FROM mailroom.leases"
    ).fetchall()
    assert 9 < wait_s <= 10


def test_each_row_of_the_ledger_names_its_own_transport(db: Db) -> None:
    first, second = sign_up(db, "a"), sign_up(db, "b")
    (lease,) = claim(db)
    record(db, lease, {first: "sent", second: "unknown"}, providers={first: "smtp", second: "ses"})
    assert [(first, "smtp", "sent"), (second, "ses", "unknown")] == ledger(db, "token", "provider", "outcome")
