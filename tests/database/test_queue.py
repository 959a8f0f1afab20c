"""The queue's SQL: the exact cursor, and what a claim costs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from support.queue_sql import (
    Db,
    claim,
    claimed_tokens,
    sign_up,
    sign_up_many,
)


def test_late_commit_is_handed_out_when_it_commits(database: str, db: Db) -> None:
    with psycopg.connect(database) as late:
        first = sign_up(late, "late")
        second = sign_up(db, "early")
        assert second > first
        assert [second] == claimed_tokens(db)
        third = sign_up(db, "meanwhile")
        assert [third] == claimed_tokens(db)
        assert [] == claimed_tokens(db)
        late.commit()
    assert [first] == claimed_tokens(db)
    assert [] == claimed_tokens(db)


def test_a_late_transaction_is_drained_in_small_claims(database: str, db: Db) -> None:
    with psycopg.connect(database) as late:
        sign_up_many(late, 25, "late")
        sign_up_many(db, 5, "early")
        assert 5 == len(claimed_tokens(db, 3) + claimed_tokens(db, 3))
        late.commit()
    assert [10, 10, 5, 0] == [len(claimed_tokens(db, 10)) for _ in range(4)]


def test_a_commit_within_a_half_drained_window_is_handed_out_once(database: str, db: Db) -> None:
    with psycopg.connect(database) as first, psycopg.connect(database) as late:
        sign_up_many(first, 3, "first")
        late_token = sign_up(late, "late")
        last_token = sign_up(db, "last")
        first.commit()
        (early,) = claim(db, 1)  # the window now ends behind all three, and late is running in it
        late.commit()
        rest = [token for lease in claim(db, 100) for token in lease.tokens]
    assert sorted([*early.tokens, *rest]) == sorted({*early.tokens, *rest})
    assert {late_token, last_token} < set(rest)
    assert 5 == len(rest) + 1


def test_explicit_ids_below_the_cursor_are_handed_out(db: Db) -> None:
    sign_up_many(db, 10)
    assert 10 == len(claimed_tokens(db))
    account = db.execute("INSERT INTO accounts (email, login) VALUES ('x@y', 'x') RETURNING id").fetchone()
    assert account
    claimed_tokens(db)
    for low in (0, -1, -(2**63)):
        db.execute(
            "INSERT INTO tokens (id, action, account) VALUES (%s, 'activation', %s)", [low, account[0]]
        )
        assert [low] == claimed_tokens(db)


def test_a_caching_sequence_loses_nothing(database: str, db: Db) -> None:
    db.execute("ALTER TABLE tokens ALTER COLUMN id SET CACHE 50")
    with (
        psycopg.connect(database, autocommit=True) as one,
        psycopg.connect(database, autocommit=True) as two,
    ):
        first, second = sign_up(one, "one"), sign_up(two, "two")
        assert {first, second} == set(claimed_tokens(db))
        third, fourth = sign_up(one, "three"), sign_up(two, "four")
        assert third < second  # below what was handed out before
        assert {third, fourth} == set(claimed_tokens(db))


def test_savepoints_are_part_of_their_transaction(database: str, db: Db) -> None:
    with psycopg.connect(database) as writer:
        kept = [sign_up(writer, "before")]
        with writer.transaction():
            kept.append(sign_up(writer, "released"))
        with writer.transaction(force_rollback=True):
            sign_up(writer, "rolled back")
        claimed_tokens(db)
        with writer.transaction():
            kept.append(sign_up(writer, "after"))
        assert [] == claimed_tokens(db)
        writer.commit()
    assert kept == claimed_tokens(db)


def test_tokens_from_before_the_queue_are_pending(empty_database: str) -> None:
    from mailroom.database import migrate, sync

    with sync.connected(empty_database) as connection:
        migrate.up(connection, 1, lambda _: None)
        sign_up_many(connection, 3)
        migrate.up(connection, None, lambda _: None)
        assert 3 == len(claimed_tokens(connection))


def test_what_may_not_be_mailed_is_not_handed_out(db: Db) -> None:
    expired, suspended, consumed, fine = (sign_up(db, name) for name in "abcd")
    db.execute("UPDATE tokens SET expires_at = now() WHERE id = %s", [expired])
    db.execute(
        "UPDATE accounts SET status = 'suspended' WHERE id = (SELECT account FROM tokens WHERE id = %s)",
        [suspended],
    )
    db.execute("UPDATE tokens SET consumed_at = now() WHERE id = %s", [consumed])
    db.execute(
        "INSERT INTO tokens (action, account) SELECT 'password_recovery', account FROM tokens WHERE id = %s",
        [fine],  # whose account is not active yet
    )
    assert [fine] == claimed_tokens(db)


def test_the_backlog_counts_what_waits_and_what_flies(database: str, db: Db) -> None:
    query = "SELECT waiting, in_flight, oldest_age FROM mailroom.backlog()"
    assert [(0, 0, None)] == db.execute(query).fetchall()
    with psycopg.connect(database) as late:
        sign_up_many(late, 2, "late")
        sign_up_many(db, 10)
        claim(db, 4)
        db.execute("UPDATE tokens SET created_at = now() - interval '10 minutes' WHERE id = 3")
        ((waiting, in_flight, age),) = db.execute(query).fetchall()
        assert (6, 4) == (waiting, in_flight)
        assert 600 <= age < 660
        late.commit()
    assert [(8, 4)] == [row[:2] for row in db.execute(query).fetchall()]
    claim(db, 100)
    assert [(0, 12)] == [row[:2] for row in db.execute(query).fetchall()]


def test_a_second_queue_is_refused(db: Db) -> None:
    """Its cursor would hand out the same tokens once more."""
    with pytest.raises(psycopg.errors.UniqueViolation, match="jobs_pkey"):
        db.execute("INSERT INTO jobs (job_type) VALUES ('mailroom')")
    db.execute("ALTER TYPE job_type ADD VALUE 'letters'")
    for second in ("INSERT INTO jobs (job_type) VALUES ('letters')", "UPDATE jobs SET job_type = 'letters'"):
        with pytest.raises(psycopg.errors.CheckViolation, match="jobs_one_queue_per_database"):
            db.execute(second.encode())
    assert [("mailroom",)] == db.execute("SELECT job_type::text FROM jobs").fetchall()


def test_a_lost_cursor_is_an_error(db: Db) -> None:
    db.execute("DELETE FROM jobs")
    with pytest.raises(psycopg.errors.NoDataFound, match="the table jobs has lost its row"):
        claim(db)


def test_a_claim_that_rolls_back_has_moved_nothing(db: Db) -> None:
    token = sign_up(db, "a")
    with db.transaction(force_rollback=True):
        assert [(token,)] == [lease.tokens for lease in claim(db)]
    assert [token] == claimed_tokens(db)


def test_a_token_written_after_a_claim_of_the_same_transaction_is_not_lost(database: str, db: Db) -> None:
    """A snapshot does not list its own transaction as running, though it is."""
    with psycopg.connect(database) as both:
        assert [] == claim(both)
        other = sign_up(db, "other")  # so that the snapshot's end lies behind both's id
        assert [(other,)] == [lease.tokens for lease in claim(both)]
        own = sign_up(both, "own")
        both.commit()
    assert [own] == claimed_tokens(db)
    assert [] == claimed_tokens(db)


def fill(db: Db, count: int) -> None:
    """Make a table with this many settled tokens, and 300 new ones."""
    sign_up_many(db, 1000)
    claimed_tokens(db, 100_000)
    db.execute("ALTER TABLE tokens DISABLE TRIGGER ALL")
    db.execute(
        "INSERT INTO tokens (action, account, email, lane, expires_at, secret, code, txid)"
        " SELECT 'activation', 1 + mod(g, 1000), 'u' || 1 + mod(g, 1000) || '@example.com', 'bulk',"
        " now() + interval '15 minutes', sha256(int8send(g)), '12345', (3 + mod(g, 700))::text::xid8"
        " FROM generate_series(1, %s) g",
        [count],
    )
    db.execute("ALTER TABLE tokens ENABLE TRIGGER ALL")
    sign_up_many(db, 300, "new")


def blocks_of_a_claim(db: Db) -> int:
    """How many blocks the planner's and the executor's work on one claim of ten touches."""
    ((plan,),) = db.execute(
        "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT * FROM mailroom.claim('w', 10, 10, 60000)"
    ).fetchall()
    top = plan[0]["Plan"]
    assert 1 == top["Actual Rows"]  # a lease
    return int(top["Shared Hit Blocks"] + top["Shared Read Blocks"])


@pytest.mark.slow
def test_a_claim_costs_the_same_with_a_million_tokens(db: Db) -> None:
    try:
        db.execute("LOAD 'auto_explain'")
    except psycopg.errors.InsufficientPrivilege:
        pytest.skip("the server's user may not LOAD auto_explain, which shows the plans inside a function")
    plans: list[str] = []
    db.add_notice_handler(lambda notice: plans.append(notice.message_primary or ""))
    fill(db, 1_000_000)
    for statistics in ("SELECT 'none yet'", "ANALYZE"):
        db.execute(statistics.encode())
        # Ten claims: from the sixth on PostgreSQL may choose a plan that does not know the bounds.
        blocks = [blocks_of_a_claim(db) for _ in range(10)]
        # Ten index descents into two tables, and the bookkeeping; the table itself has 14,000.
        # The first one rolls the window: then the position is that of no token at all.
        assert max(blocks) < 1000
        db.execute(
            "SET auto_explain.log_min_duration = 0; SET auto_explain.log_nested_statements = on;"
            " SET auto_explain.log_format = json; SET client_min_messages = log"
        )
        claim(db, 10)
        db.execute("SET client_min_messages = notice")
        scans = [plan[plan.index("{") :] for plan in plans if "pg_visible_in_snapshot(t.txid" in plan]
        assert scans
        for text in scans:
            nodes = list(walk(json.loads(text)["Plan"]))
            (scan,) = [node for node in nodes if node.get("Relation Name") == "tokens"]
            assert ("Index Scan", "tokens_lane_txid_id_idx") == (scan["Node Type"], scan["Index Name"])
            for bound in ("lane = ", r"txid <= ", r"ROW\((t\.)?txid, (t\.)?id\) > ROW"):
                assert re.search(bound, scan["Index Cond"]), scan["Index Cond"]
            assert "Sort" not in {node["Node Type"] for node in nodes}


def walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from walk(child)
