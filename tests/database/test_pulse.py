"""The pulse: what a worker asks the database for its readiness and its metrics."""

from __future__ import annotations

from mailroom.queue.pulse import PULSE, Pulse
from support.queue_sql import Db, claim, settle, sign_up, sign_up_many


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
    sign_up_many(db, 60, "valid")
    made_ago(db, 10)
    seen = pulse(db, most=100)
    assert 100 == seen.waiting
    assert 600 <= (seen.oldest_due_s or 0) < 660
    assert 600 <= (seen.oldest_unsettled_s or 0) < 660
    made_ago(db, 3, "expires_at > clock_timestamp()")
    seen = pulse(db, most=159)  # the oldest that may be mailed counts, where one was seen
    assert 159 == seen.waiting
    assert 180 <= (seen.oldest_due_s or 0) < 240
    assert 60 == pulse(db, most=161).waiting
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
