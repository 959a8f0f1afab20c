"""Scheduled mails: they go out when it is time, unless they were cancelled meanwhile."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mailroom.queue.pulse import PULSE, Pulse
from support import commands
from support.processes import environment
from support.queue_sql import Db, claim, claimed_tokens, next_due, sign_up
from support.runs import ledger, wait_until

TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC")


def value(db: Db, query: str, *parameters: object) -> Any:
    ((found,),) = db.execute(query.encode(), parameters).fetchall()
    return found


def schedule(db: Db, who: str, after: str = "1 hour") -> int:
    """Request a recovery for an active account, to be sent later; returns its token."""
    account = value(
        db,
        "INSERT INTO accounts (email, login, status) VALUES (%s, %s, 'active') RETURNING id",
        f"{who}@example.com",
        who,
    )
    return int(
        value(
            db,
            "SELECT mailroom.send('password_recovery', account => %s,"
            " send_at => clock_timestamp() + %s::interval)",
            account,
            after,
        )
    )


def let_it_be_time(db: Db) -> None:
    db.execute(
        "UPDATE tokens SET send_at = now(), expires_at = CASE WHEN expires_at > send_at"
        " THEN expires_at - (send_at - now()) ELSE expires_at END"
    )
    db.execute("UPDATE mailroom.leases SET due_at = clock_timestamp() WHERE worker = 'scheduled'")


def test_a_scheduled_mail_goes_out_when_it_is_time_and_not_before(db: Db) -> None:
    token = schedule(db, "zoe", "1 second")
    assert [] == claimed_tokens(db)
    due = next_due(db)
    assert due is not None
    assert 0 < due <= 1
    wait_until(db, "SELECT count(*) FROM mailroom.leases WHERE due_at > clock_timestamp()", 0)
    assert [token] == claimed_tokens(db)
    assert [] == claimed_tokens(db)
    assert [] == ledger(db, "outcome")


def test_its_life_begins_then(db: Db) -> None:
    token = schedule(db, "zoe", "1 day")
    assert (
        value(db, "SELECT expires_at - send_at = interval '15 minutes' FROM tokens WHERE id = %s", token)
        is True
    )
    claim(db)
    let_it_be_time(db)
    rows = db.execute("SELECT expires_in_s FROM mailroom.claim('w', 10, 10, 60000)").fetchall()
    assert [(None,)] == rows  # the action's lifetime


@pytest.mark.parametrize(
    ("begins", "expires", "lifetime", "seconds"),
    [
        ("2026-03-01 12:00", "2026-03-01 12:15", "15 minutes", None),
        ("2026-03-01 12:00", "2026-03-01 12:15:00.2", "15 minutes", None),
        ("2026-03-01 12:00", "2026-03-01 13:00", "15 minutes", 3600),
        ("2026-03-01 12:00", "2026-03-02 12:00", "1 day", None),
        ("2026-03-28 12:00", "2026-03-29 12:00", "1 day", 82_800),  # the clocks are put forward in between
        ("2026-03-01 12:00", "2026-03-01 11:00", "15 minutes", 1),
        ("2026-03-01 12:00", "2026-03-01 13:00", "100 years", 3600),
        ("2026-03-01 12:00", "2126-03-01 12:00", "100 years", None),
        ("1970-01-01 12:00", "294276-12-31 12:00", "15 minutes", 2_147_483_647),
        ("2026-03-01 12:00", "infinity", "15 minutes", 2_147_483_647),
        ("2026-03-01 12:00", "-infinity", "15 minutes", 1),
    ],
)
def test_a_life_is_told_in_seconds_where_it_is_not_its_action_s(
    db: Db, begins: str, expires: str, lifetime: str, seconds: int | None
) -> None:
    db.execute("SET timezone = 'Europe/Berlin'")
    assert seconds == value(
        db,
        "SELECT mailroom.life_s(%s::timestamptz, %s::timestamptz, %s::interval)",
        begins,
        expires,
        lifetime,
    )


def test_those_of_one_time_share_a_lease_and_a_lane_keeps_its_own(db: Db) -> None:
    accounts = [
        row[0]
        for row in db.execute(
            "INSERT INTO accounts (email, login, status) SELECT g || '@example.com', g, 'active'"
            " FROM generate_series(1, 60) g RETURNING id"
        )
    ]
    db.execute(
        "INSERT INTO tokens (action, account, send_at)"
        " SELECT 'password_recovery', a, now() + interval '1 day' FROM unnest(%s::bigint[]) a",
        [accounts],
    )
    assert [] == claim(db)
    rows = db.execute(
        "SELECT lane::text, cardinality(tokens), worker, generation FROM mailroom.leases ORDER BY lane"
    ).fetchall()
    assert {("urgent", 50, "scheduled", 0), ("bulk", 10, "scheduled", 0)} == set(rows)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("UPDATE tokens SET consumed_at = now() WHERE id = %s", "consumed"),
        ("DELETE FROM tokens WHERE id = %s", "deleted"),
        (
            "UPDATE accounts SET email = 'a@b' WHERE id = (SELECT account FROM tokens WHERE id = %s)",
            "address changed",
        ),
        (
            "UPDATE accounts SET status = 'suspended' WHERE id = (SELECT account FROM tokens WHERE id = %s)",
            "suspended",
        ),
    ],
)
def test_what_ends_it_meanwhile_cancels_it(db: Db, change: str, reason: str) -> None:
    token = schedule(db, "zoe")
    assert [] == claim(db)
    db.execute(change.encode(), [token])
    let_it_be_time(db)
    assert [] == claim(db)
    assert [(token, "skipped", reason)] == ledger(db, "token", "outcome", "detail")
    assert 0 == value(db, "SELECT count(*) FROM mailroom.leases")


def test_a_consumed_sibling_cancels_it_too(db: Db) -> None:
    """A reminder of a link that was used is not sent."""
    reminder = schedule(db, "zoe")
    first = value(
        db,
        "SELECT mailroom.send('password_recovery', account => account) FROM tokens WHERE id = %s",
        reminder,
    )
    assert [first] == claimed_tokens(db)  # not superseded by what goes out later
    secret, code = db.execute("SELECT secret, code FROM tokens WHERE id = %s", [first]).fetchall()[0]
    assert "consumed" == value(
        db, "SELECT outcome FROM mailroom.consume(%s, 'password_recovery', %s)", secret, code
    )
    db.execute("UPDATE mailroom.leases SET due_at = clock_timestamp()")
    db.execute("UPDATE tokens SET send_at = clock_timestamp() WHERE id = %s", [reminder])
    assert [] == claim(db)
    assert [(reminder, "sibling consumed")] == ledger(db, "token", "detail")


def test_a_reminder_goes_out_after_the_mail_that_it_reminds_of(db: Db) -> None:
    token = sign_up(db, "zoe")
    assert [token] == claimed_tokens(db)
    reminder = value(
        db,
        "INSERT INTO tokens (action, account, send_at) SELECT action, account, now() + interval '1 day'"
        " FROM tokens WHERE id = %s RETURNING id",
        token,
    )
    assert [] == claim(db)
    let_it_be_time(db)
    assert [reminder] == claimed_tokens(db)


def test_status_and_why_call_it_scheduled(database: str, db: Db) -> None:
    def said() -> tuple[str, str]:
        why = commands.run("why", "zoe@example.com", env=environment(database))
        status = commands.run("status", env=environment(database))
        assert (0, 0) == (why.returncode, status.returncode)
        return TIME.sub("T", why.stdout.splitlines()[0]), status.stdout

    token = schedule(db, "zoe")
    for _ in range(2):  # before a claim, and after
        why, status = said()
        assert why.startswith("scheduled: for T")
        assert "scheduled  1\n" in status
        assert "waiting    0\n" in status
        assert "in flight  0\n" in status
        assert "retrying   0\n" in status
        assert "oldest     -\n" in status
        seen = Pulse._make(db.execute(PULSE.encode(), [100]).fetchall()[0])
        assert (0, 0, 0, 1) == (seen.waiting, seen.in_flight, seen.retrying, seen.scheduled)
        assert seen.oldest_unsettled_s is None
        assert [(0, 0, None)] == db.execute("SELECT * FROM mailroom.backlog()").fetchall()
        assert [] == claim(db)
    let_it_be_time(db)
    assert said()[0].startswith("waiting: ")
    assert [token] == claimed_tokens(db)


def test_a_restore_keeps_it_scheduled(db: Db) -> None:
    token = schedule(db, "zoe")
    db.execute("UPDATE jobs SET system_identifier = 1")
    assert [] == claim(db)
    assert [] == claim(db)
    assert [("scheduled", [token])] == db.execute("SELECT worker, tokens FROM mailroom.leases").fetchall()
    let_it_be_time(db)
    assert [token] == claimed_tokens(db)
