"""What the queue's SQL promises at its edges: rights, a pause, what was sent, what expired, the pulse."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from mailroom.inbox.server import InboxServer
from mailroom.queue.pulse import PULSE, Pulse
from support import commands
from support.processes import CollectorProcess, environment
from support.queue_sql import Db, Handed, claim, claimed_tokens, expire_leases, settle, sign_up, sign_up_many
from support.runs import UNSETTLED, Start, ledger, wait_until

TRIGGER_FUNCTIONS = ("issue_activation", "after_consumption", "ring")


# Rights


@pytest.fixture
def role(db: Db) -> Iterator[str]:
    """A plain role, as which the connection ``db`` may act."""
    name = f"mailroom_plain_{secrets.token_hex(4)}"
    db.execute(f"CREATE ROLE {name}".encode())
    db.execute(f"GRANT USAGE ON SCHEMA mailroom TO {name}".encode())
    yield name
    db.execute(b"RESET ROLE")
    db.execute(f"REASSIGN OWNED BY {name} TO CURRENT_USER".encode())
    db.execute(f"DROP OWNED BY {name}".encode())
    db.execute(f"DROP ROLE {name}".encode())


def test_nothing_that_runs_with_its_owners_rights_is_anybodys(db: Db) -> None:
    everybodys = db.execute(
        "SELECT p.oid::regprocedure::text FROM pg_proc p"
        " WHERE p.pronamespace = 'mailroom'::regnamespace AND p.prosecdef AND EXISTS ("
        "  SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) WHERE grantee = 0)"
    ).fetchall()
    assert [] == everybodys


@pytest.mark.parametrize("function", TRIGGER_FUNCTIONS)
def test_a_trigger_function_cannot_be_borrowed(db: Db, role: str, function: str) -> None:
    db.execute(f"SET ROLE {role}".encode())
    db.execute("CREATE TEMP TABLE theirs (id bigint, status public.account_status, txid xid8)")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match=rf"function mailroom\.{function}$"):
        db.execute(
            sql.SQL(
                "CREATE TRIGGER borrowed AFTER INSERT ON theirs FOR EACH STATEMENT EXECUTE FUNCTION {}()"
            ).format(sql.Identifier("mailroom", function))
        )


@pytest.mark.parametrize("owns", [False, True])
def test_whoever_may_write_the_tables_fires_their_triggers(db: Db, role: str, owns: bool) -> None:
    for table in ("accounts", "tokens"):
        db.execute(f"GRANT SELECT, INSERT, UPDATE ON {table} TO {role}".encode())
        if owns:
            db.execute(f"GRANT CREATE ON SCHEMA public TO {role}".encode())
            db.execute(f"ALTER TABLE {table} OWNER TO {role}".encode())
    db.execute(f"SET ROLE {role}".encode())
    token = sign_up(db, "zoe")
    db.execute("INSERT INTO tokens (action, account) SELECT 'activation', id FROM accounts")
    db.execute("UPDATE tokens SET consumed_at = clock_timestamp() WHERE id = %s", [token])
    db.execute("RESET ROLE")
    assert [("active",)] == db.execute("SELECT status::text FROM accounts").fetchall()
    assert [(2, 1)] == db.execute(
        "SELECT count(*), count(*) FILTER (WHERE expires_at > clock_timestamp()) FROM tokens"
    ).fetchall()


# A pause


def next_due(db: Db) -> float | None:
    row = db.execute("SELECT mailroom.next_due()").fetchone()
    assert row
    due: float | None = row[0]
    return due


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


# What was sent


def record(db: Db, lease: Handed, results: dict[int, str]) -> bool:
    """Settle a lease as `mailroom run` does; gives back whether it was still this generation's."""
    count = len(results)
    rows = db.execute(
        "SELECT settled FROM mailroom.record(%s, %s, 'w', 'ses', %s, %s, %s, %s, 0, 3)",
        [lease.lease, lease.generation, [*results], [*results.values()], [""] * count, [""] * count],
    ).fetchall()
    return all(row[0] for row in rows)


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
        "INSERT INTO mailroom.deliveries (token, attempt, outcome, at)"
        " SELECT id, 1, 'sent', created_at - interval '1 second' FROM tokens WHERE id = %s",
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


# What expired


def let_expire(db: Db, tokens: list[int]) -> None:
    db.execute(
        "UPDATE tokens SET expires_at = clock_timestamp() + interval '100 milliseconds' WHERE id = ANY (%s)",
        [tokens],
    )
    wait_until(
        db,
        "SELECT count(*) FROM tokens WHERE expires_at BETWEEN clock_timestamp()"
        " AND clock_timestamp() + interval '1 minute'",
        0,
    )


def expired(db: Db) -> list[int]:
    """The tokens that the ledger has as expired."""
    rows = db.execute(
        "SELECT token FROM mailroom.deliveries WHERE outcome = 'expired' ORDER BY id"
    ).fetchall()
    return [row[0] for row in rows]


def why(database: str, who: str) -> str:
    done = commands.run("why", who, env=environment(database))
    assert 0 == done.returncode
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", "T", done.stdout.splitlines()[0])


def test_what_expires_in_a_deep_window_is_written_down(database: str, db: Db) -> None:
    tokens = [sign_up(db, f"u{n}") for n in range(10)]
    assert tokens[:1] == claimed_tokens(db, 1)
    let_expire(db, tokens[2:9])
    assert tokens[1:2] == claimed_tokens(db, 1)  # the queue moves on, and they wait
    assert tokens[9:] == claimed_tokens(db)
    assert tokens[2:9] == expired(db)
    assert "not sent: the token expired at T while it waited" == why(database, "u5@example.com")


def test_what_expires_before_its_window_begins_is_written_down(db: Db) -> None:
    tokens = [sign_up(db, f"u{n}") for n in range(3)]
    assert tokens[:1] == claimed_tokens(db, 1)
    behind = sign_up(db, "behind")  # in no window before the first is empty
    let_expire(db, [behind])
    assert tokens[1:2] == claimed_tokens(db, 1)
    assert tokens[2:] == claimed_tokens(db, 1)
    assert [] == claimed_tokens(db)
    assert [behind] == expired(db)


def test_what_had_expired_before_it_was_visible_is_not_written_down(database: str, db: Db) -> None:
    with psycopg.connect(database) as late:
        life = "UPDATE tokens SET expires_at = clock_timestamp() + %s::interval WHERE id = %s"
        stale, fresh = sign_up(late, "stale"), sign_up(late, "fresh")
        late.execute(life, ["0", stale])
        late.execute(life, ["1 hour", fresh])
        assert [] == claimed_tokens(db)
        late.commit()
    let_expire(db, [fresh])
    assert [] == claimed_tokens(db)
    assert [fresh] == expired(db)


def test_what_had_expired_before_the_queue_was_there_is_not_written_down(empty_database: str) -> None:
    from mailroom.database import migrate, sync

    with sync.connected(empty_database) as connection:
        migrate.up(connection, 1, lambda _: None)
        old, waiting, fine = (sign_up(connection, name) for name in "abc")
        let_expire(connection, [old])
        migrate.up(connection, None, lambda _: None)
        let_expire(connection, [waiting])
        assert [fine] == claimed_tokens(connection)
        assert [waiting] == expired(connection)


def test_what_expired_before_an_upgrade_is_written_down_if_it_had_waited(empty_database: str) -> None:
    from mailroom.database import migrate, sync

    with sync.connected(empty_database) as connection:
        migrate.up(connection, 9, lambda _: None)
        old, waiting = sign_up(connection, "old"), sign_up(connection, "waiting")
        let_expire(connection, [old])
        connection.execute("UPDATE jobs SET moved_at = clock_timestamp()")  # all that was known of a window
        let_expire(connection, [waiting])
        migrate.up(connection, None, lambda _: None)
        assert [] == claimed_tokens(connection)
        assert [waiting] == expired(connection)


def test_what_had_expired_before_a_restore_is_not_written_down(db: Db) -> None:
    first, gone, *rest = [sign_up(db, f"u{n}") for n in range(4)]
    assert [first] == claimed_tokens(db, 1)
    let_expire(db, [gone])
    db.execute("UPDATE jobs SET system_identifier = 1")  # as after a restore into another cluster
    # The old one was ahead, so that the next window comes to what it wrote.
    db.execute("UPDATE tokens SET txid = (pg_current_xact_id()::text::bigint + 4)::text::xid8")
    assert {first, *rest} == set(claimed_tokens(db, 1))  # the restored ones, whole; the window stays as it is
    new = [sign_up(db, name) for name in "abcdef"]
    assert new == claimed_tokens(db)
    assert [] == expired(db)


# Much that expired


def drained(db: Db, tokens: int, lease_tokens: int = 100) -> tuple[list[int], list[int]]:
    """Claim for as long as a claim is due: what was handed out, and how many each claim wrote down."""
    handed: list[int] = []
    dropped: list[int] = []
    while next_due(db) == 0 or not dropped:
        before = len(ledger(db))
        handed += [token for lease in claim(db, tokens, lease_tokens=lease_tokens) for token in lease.tokens]
        dropped.append(len(ledger(db)) - before)
    return handed, dropped


@pytest.mark.parametrize("tokens", [10, 1000])
def test_a_claim_drops_a_bounded_number_and_says_that_there_is_more(db: Db, tokens: int) -> None:
    sign_up_many(db, 4500)
    db.execute("UPDATE tokens SET expires_at = clock_timestamp()")
    valid = sign_up(db, "valid")
    handed, dropped = drained(db, tokens)
    assert [valid] == handed
    assert (4500, 1000) == (sum(dropped), max(dropped))
    assert 4500 == len(set(expired(db)))
    due = next_due(db)
    assert due
    assert due > 5  # there is the valid one's lease, and a look from the beginning


def test_leases_are_dropped_in_bounded_numbers_too(db: Db) -> None:
    sign_up_many(db, 2500)
    claim(db, 2500, lease_tokens=50)
    db.execute("UPDATE tokens SET expires_at = clock_timestamp()")
    expire_leases(db)
    valid = sign_up(db, "valid")
    handed, dropped = drained(db, 10)
    assert [valid] == handed
    assert [1000, 1000, 500] == dropped
    assert 2500 == len(set(expired(db)))


def test_a_claim_that_stopped_at_leases_knows_of_new_tokens(db: Db) -> None:
    sign_up_many(db, 1000)
    claim(db, 1000, lease_tokens=100)
    assert [] == claim(db)  # the window is empty now, and does not have what comes
    db.execute("UPDATE tokens SET expires_at = clock_timestamp()")
    expire_leases(db)
    sign_up_many(db, 30, "new")
    handed, dropped = drained(db, 100, lease_tokens=10)
    assert (30, 1000) == (len(handed), sum(dropped))


def test_nothing_is_due_while_a_window_is_left_by_a_pause(db: Db) -> None:
    sign_up_many(db, 1500)
    db.execute("UPDATE tokens SET expires_at = clock_timestamp()")
    assert [] == claim(db, 10, lease_tokens=10)
    assert 0 == next_due(db)
    db.execute("SELECT mailroom.pause('a test')")
    assert next_due(db) is None


MUCH = 40_000


def fill_with_expired(db: Db) -> None:
    sign_up_many(db, MUCH)
    db.execute("UPDATE tokens SET expires_at = clock_timestamp()")
    sign_up(db, "valid")


def test_run_comes_through_much_that_expired(db: Db, ses: InboxServer, start: Start) -> None:
    """Though it hangs up on an answer that takes too long: here, two thirds of a second."""
    fill_with_expired(db)
    worker = start(BATCH_TIMEOUT=0, HEALTHCHECK_INTERVAL=2000)
    ses.wait_for(lambda inbox: inbox.counts.accepted == 1)
    wait_until(db, UNSETTLED, 0)
    assert ["valid@example.com"] == list(ses.inbox.counts.by_recipient)
    assert MUCH == len(set(expired(db)))
    assert 0 == worker.stop()
    assert "database.lost" not in worker.log()


def test_a_collector_comes_through_much_that_expired(database: str, db: Db, tmp_path: Path) -> None:
    fill_with_expired(db)
    with CollectorProcess(database, log=tmp_path / "log", HEALTHCHECK_INTERVAL=2000) as collector:
        collector.wait_for_messages(1)
        assert ["valid@example.com"] == collector.emails()
        wait_until(db, UNSETTLED, 0)
        assert MUCH == len(set(expired(db)))
        assert 0 == collector.stop()
    assert "database.lost" not in collector.log()


# The pulse


def pulse(db: Db, most: int = 100) -> Pulse:
    (row,) = db.execute(PULSE.encode(), [most]).fetchall()
    return Pulse._make(row)


def made_ago(db: Db, minutes: float, which: str = "true") -> None:
    db.execute(
        f"UPDATE tokens SET created_at = clock_timestamp() - %s * interval '1 minute' WHERE {which}".encode(),
        [minutes],
    )


def test_the_pulse_does_not_call_empty_what_it_did_not_look_at(db: Db) -> None:
    sign_up_many(db, 100)
    db.execute("UPDATE tokens SET expires_at = clock_timestamp()")
    sign_up_many(db, 50, "valid")
    made_ago(db, 10)
    seen = pulse(db, most=100)
    assert 100 == seen.waiting
    assert 600 <= (seen.oldest_due_s or 0) < 660
    assert 600 <= (seen.oldest_unsettled_s or 0) < 660
    made_ago(db, 3, "expires_at > clock_timestamp()")
    seen = pulse(db, most=149)  # the oldest that may be mailed counts, where one was seen
    assert 149 == seen.waiting
    assert 180 <= (seen.oldest_due_s or 0) < 240
    assert 50 == pulse(db, most=151).waiting
    claim(db)
    assert 0 == pulse(db, most=100).waiting


def test_the_pulse_tells_of_what_is_not_settled(db: Db) -> None:
    assert pulse(db).oldest_unsettled_s is None
    retried, consumed, waiting = (sign_up(db, name) for name in "abc")
    made_ago(db, 1, f"id = {waiting}")
    made_ago(db, 5, f"id = {retried}")
    made_ago(db, 9, f"id = {consumed}")
    claim(db, 2)  # due in a minute: nothing of it could be on its way
    seen = pulse(db)
    assert 60 <= (seen.oldest_due_s or 0) < 120
    assert 540 <= (seen.oldest_unsettled_s or 0) < 600
    db.execute("UPDATE tokens SET consumed_at = clock_timestamp() WHERE id = %s", [consumed])
    assert 300 <= (pulse(db).oldest_unsettled_s or 0) < 360
    db.execute("SELECT mailroom.pause('a test')")
    assert 300 <= (pulse(db).oldest_unsettled_s or 0) < 360
    db.execute("SELECT mailroom.resume('token_insert')")
    db.execute("UPDATE tokens SET expires_at = clock_timestamp() WHERE id = %s", [retried])
    assert 60 <= (pulse(db).oldest_unsettled_s or 0) < 120
    (lease,) = claim(db)
    assert settle(db, lease)
    assert pulse(db).oldest_unsettled_s is None
