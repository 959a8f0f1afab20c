"""Tokens that expire before they are mailed: written down once, never sent, and never in the way."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest

from mailroom.inbox.server import InboxServer
from support import commands
from support.processes import CollectorProcess, environment
from support.queue_sql import (
    Db,
    claim,
    claimed_tokens,
    expire_leases,
    next_due,
    sign_up,
    sign_up_many,
)
from support.runs import UNSETTLED, Start, ledger, wait_until

MUCH = 40_000


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


def fill_with_expired(db: Db) -> None:
    sign_up_many(db, MUCH)
    db.execute("UPDATE tokens SET expires_at = clock_timestamp()")
    sign_up(db, "valid")


EXPIRED = "SELECT count(*) FROM mailroom.deliveries WHERE outcome = 'expired'"


@pytest.mark.slow
def test_run_comes_through_much_that_expired(db: Db, ses: InboxServer, start: Start) -> None:
    """Though it hangs up on an answer that takes too long: here, two seconds, and all at once take five."""
    fill_with_expired(db)
    worker = start(BATCH_TIMEOUT=0, HEALTHCHECK_INTERVAL=6000)
    ses.wait_for(lambda inbox: inbox.counts.accepted == 1)
    wait_until(db, EXPIRED, MUCH)
    wait_until(db, UNSETTLED, 0)
    assert ["valid@example.com"] == list(ses.inbox.counts.by_recipient)
    assert MUCH == len(set(expired(db)))
    assert 0 == worker.stop()
    assert "database.lost" not in worker.log()


@pytest.mark.slow
def test_a_collector_comes_through_much_that_expired(database: str, db: Db, tmp_path: Path) -> None:
    fill_with_expired(db)
    with CollectorProcess(database, log=tmp_path / "log", HEALTHCHECK_INTERVAL=6000) as collector:
        collector.wait_for_messages(1)
        assert ["valid@example.com"] == collector.emails()
        wait_until(db, EXPIRED, MUCH)
        wait_until(db, UNSETTLED, 0)
        assert MUCH == len(set(expired(db)))
        assert 0 == collector.stop()
    assert "database.lost" not in collector.log()
