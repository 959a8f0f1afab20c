"""A claim does not walk what was settled, and yet finds every lease that is due."""

from __future__ import annotations

import time

import psycopg

from support.queue_sql import Db, claim, claimed_tokens, sign_up

SWEEP_S = 10
LATE_COMMIT_S = 1


def next_due(db: Db) -> float | None:
    ((due,),) = db.execute("SELECT mailroom.next_due()").fetchall()
    return None if due is None else float(due)


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
    assert [(True,)] == db.execute("SELECT due_floor > '-infinity' FROM jobs").fetchall()


def test_what_was_settled_is_not_walked_again(database: str, db: Db) -> None:
    with psycopg.connect(database) as holder:
        holder.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        holder.execute("SELECT count(*) FROM accounts")
        before = pages_of_a_claim(db)
        db.execute(
            "INSERT INTO mailroom.leases (tokens, worker, generation, due_at)"
            " SELECT '{1}', 'w', 1, now() - interval '1 minute' FROM generate_series(1, 20000)"
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
    db.execute("UPDATE jobs SET swept_at = swept_at + interval '1 hour', due_floor = 'infinity'")
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
    claim(db, lease_tokens=1, lease_ms=1)
    time.sleep(LATE_COMMIT_S + 0.1)
    found = [token for _ in tokens for lease in claim(db, 1) for token in lease.tokens]
    assert tokens == found
