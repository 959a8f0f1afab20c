"""Tokens of an action that renews: what expired before it could be sent gets a new life."""

from __future__ import annotations

import re
from datetime import timedelta

import psycopg

from mailroom.queue.pulse import PULSE, Pulse
from support import commands
from support.processes import environment
from support.queue_sql import Db, claim, claimed_tokens, expire_leases, record, sign_up, sign_up_many
from support.runs import ledger

RENEWED = "renewed: it expired before it was sent"


def let_time_pass(db: Db, minutes: int = 60) -> None:
    """As if all tokens had been requested earlier."""
    for column in ("created_at", "expires_at", "send_at"):
        db.execute(
            f"UPDATE tokens SET {column} = {column} - %s * interval '1 minute'".encode(),
            [minutes],
        )


def life_left(db: Db, token: int) -> timedelta:
    ((left,),) = db.execute(
        "SELECT expires_at - clock_timestamp() FROM tokens WHERE id = %s", [token]
    ).fetchall()
    assert isinstance(left, timedelta)
    return left


def test_a_token_that_expired_while_it_waited_is_renewed(database: str, db: Db) -> None:
    first, second = sign_up(db, "zoe"), sign_up(db, "ann")
    assert [first] == claimed_tokens(db, 1)
    let_time_pass(db)
    ((secret,),) = db.execute("SELECT secret FROM tokens WHERE id = %s", [second]).fetchall()
    rows = db.execute(
        "SELECT tokens, secrets, expires_in_s FROM mailroom.claim('w', 10, 10, 60000)"
    ).fetchall()
    assert [([second], [secret], None)] == rows
    assert timedelta(minutes=14) < life_left(db, second) <= timedelta(minutes=15)
    assert [(second, "retried", RENEWED)] == ledger(db, "token", "outcome", "detail")
    done = commands.run("why", "ann", env=environment(database))
    assert RENEWED in done.stdout


def test_one_in_a_retry_is_renewed_once_in_the_ledger_and_as_often_as_it_takes(db: Db) -> None:
    token = sign_up(db, "zoe")
    (lease,) = claim(db)
    record(db, lease, {token: "transient"})
    for _ in range(3):
        let_time_pass(db)
        expire_leases(db)
        (lease,) = claim(db)
        assert (token,) == lease.tokens
        assert timedelta(minutes=14) < life_left(db, token)
        record(db, lease, {token: "throttled"})
    assert 1 == ledger(db, "detail").count((RENEWED,))
    expire_leases(db)
    (lease,) = claim(db)
    record(db, lease, {token: "sent"})
    let_time_pass(db)
    assert [] == claim(db)


def test_what_was_sent_is_not_renewed(db: Db) -> None:
    token = sign_up(db, "zoe")
    (lease,) = claim(db)
    record(db, lease, {token: "sent"})
    let_time_pass(db)
    assert [] == claim(db)
    db.execute(
        "INSERT INTO mailroom.leases (lane, tokens, worker, generation, due_at)"
        " VALUES ('normal', %s, 'lost', 1, now())",
        [[token]],
    )
    assert [] == claim(db)


def test_other_actions_drop_it(db: Db) -> None:
    db.execute("INSERT INTO accounts (email, login, status) VALUES ('zoe@example.com', 'zoe', 'active')")
    db.execute("INSERT INTO tokens (action, account) SELECT 'password_recovery', id FROM accounts")
    sign_up(db, "first")
    let_time_pass(db)
    ((recovery,),) = db.execute("SELECT id FROM tokens WHERE action = 'password_recovery'").fetchall()
    assert recovery not in claimed_tokens(db)
    db.execute(
        "INSERT INTO tokens (action, account) SELECT 'password_recovery', id FROM accounts WHERE id = 1"
    )
    (lease,) = claim(db)
    record(db, lease, dict.fromkeys(lease.tokens, "transient"))
    let_time_pass(db)
    expire_leases(db)
    assert [] == claim(db)
    assert ("expired", "expired") in ledger(db, "outcome", "detail")


def test_what_was_ended_before_its_time_is_not_renewed(db: Db) -> None:
    shortened, moved, done = (sign_up(db, name) for name in "abc")
    (lease,) = claim(db)
    record(db, lease, dict.fromkeys(lease.tokens, "transient"))
    db.execute("UPDATE tokens SET expires_at = clock_timestamp() WHERE id = %s", [shortened])
    db.execute(
        "UPDATE accounts SET email = 'new@example.com' WHERE id = (SELECT account FROM tokens WHERE id = %s)",
        [moved],
    )
    db.execute("UPDATE tokens SET consumed_at = clock_timestamp() WHERE id = %s", [done])
    expire_leases(db)
    ((new,),) = db.execute("SELECT max(id) FROM tokens").fetchall()
    assert [new] == claimed_tokens(db)
    let_time_pass(db)
    assert [] == claim(db)
    assert {"expired", "address changed", "consumed"} <= {row[0] for row in ledger(db, "detail")}


def test_of_several_that_expired_the_newest_is_renewed(db: Db) -> None:
    first = sign_up(db, "zoe")
    again = "INSERT INTO tokens (action, account) SELECT 'activation', id FROM accounts RETURNING id"
    ((second,),) = db.execute(again.encode()).fetchall()
    db.execute("SELECT mailroom.pause('an outage')")
    assert [] == claim(db)
    db.execute("SELECT mailroom.resume('token_insert')")
    # The window opened before, as it does where a worker is at work.
    db.execute("UPDATE mailroom.cursors SET low_at = now() - interval '2 hours', high_at = low_at")
    let_time_pass(db)
    assert [second] == claimed_tokens(db)
    assert {(first, "superseded"), (second, RENEWED)} == set(ledger(db, "token", "detail"))


def test_a_locked_token_holds_up_no_claim_and_comes_soon(database: str, db: Db) -> None:
    locked, free = sign_up(db, "zoe"), sign_up(db, "ann")
    (lease,) = claim(db)
    record(db, lease, dict.fromkeys(lease.tokens, "transient"))
    let_time_pass(db)
    expire_leases(db)
    with psycopg.connect(database) as other:
        other.execute("SELECT FROM tokens WHERE id = %s FOR UPDATE", [locked])
        assert [free] == claimed_tokens(db)
        assert [("", [locked])] == db.execute("SELECT worker, tokens FROM mailroom.leases").fetchall()
    expire_leases(db)
    assert [locked] == claimed_tokens(db)


def test_an_import_that_takes_longer_than_its_tokens_live_is_mailed(database: str, db: Db) -> None:
    sign_up(db, "before")
    claimed_tokens(db)
    with psycopg.connect(database) as late:
        sign_up_many(late, 3)
        let_time_pass(late)
        assert [] == claim(db)
        late.commit()
    assert 3 == len(claimed_tokens(db))
    assert 3 == len(ledger(db, "detail"))


def test_what_waits_for_a_renewal_is_not_called_expired(database: str, db: Db) -> None:
    sign_up(db, "first")
    claimed_tokens(db)
    sign_up(db, "zoe")
    let_time_pass(db)
    seen = Pulse._make(db.execute(PULSE.encode(), [100]).fetchall()[0])
    assert 1 == seen.waiting
    assert 3600 <= (seen.oldest_due_s or 0) < 3700
    assert [(1,)] == db.execute("SELECT waiting FROM mailroom.backlog()").fetchall()
    done = commands.run("why", "zoe", env=environment(database))
    assert re.match("waiting: ", done.stdout)
    assert 1 == len(claimed_tokens(db))


def test_a_lifetime_that_becomes_longer_holds_for_what_expired_unsent(db: Db) -> None:
    sent, ended, waiting = (sign_up(db, name) for name in "abc")
    (lease,) = claim(db)
    record(db, lease, {sent: "sent", ended: "transient", waiting: "transient"})
    db.execute("UPDATE tokens SET expires_at = clock_timestamp() WHERE id = %s", [ended])
    let_time_pass(db)
    db.execute("UPDATE mailroom.actions SET lifetime = '1 day' WHERE action = 'activation'")
    assert timedelta(0) > life_left(db, sent)
    assert timedelta(hours=22) < life_left(db, waiting)
    let_time_pass(db, 60 * 24)
    expire_leases(db)
    (lease,) = claim(db)
    assert (waiting,) == lease.tokens
