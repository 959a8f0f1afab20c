"""Outages longer than a lifetime, and more requests than anybody wants mails: what arrives works."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import datetime

import psycopg
import pytest

from mailroom.consumption import consume
from mailroom.inbox.server import InboxServer
from mailroom.inbox.switches import BY_NAME, turn
from mailroom.tokens import split
from support.processes import KEY
from support.queue_sql import Db, ask_recovery, sign_up_many
from support.runs import UNSETTLED, Start, wait_until

WORKERS = 4
# What failed is tried again within half a second.
BREAKER = "mailroom.sender.breaker.BACK_OFF_S"
SOON = {
    BREAKER: f"dict.fromkeys({BREAKER}, (0.2, 0.5))",
    "mailroom.runner.delivery.BACK_OFF_S": "(0.2, 0.5)",
}
REQUESTS = 1000


def add_active(db: Db, count: int) -> None:
    db.execute(
        "INSERT INTO accounts (email, login, status)"
        " SELECT 'r' || g || '@example.com', 'r' || g, 'active' FROM generate_series(1, %s) g",
        [count],
    )


def mailed(ses: InboxServer, template: str) -> list[tuple[str, str, str]]:
    """The recipients, tokens and codes of the mails of an action, in their order."""
    found = []
    for mail in ses.inbox.mails.find(template=template):
        data = json.loads(mail.default or "{}") | json.loads(mail.own or "{}")
        found.append((mail.recipient, data["secret"], data.get("code", "")))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("switch", ["pause", "unavailable"])
def test_an_outage_longer_than_a_lifetime_leaves_nobody_without_an_activation(
    db: Db, ses: InboxServer, start: Start, switch: str
) -> None:
    db.execute("UPDATE mailroom.actions SET lifetime = '10 seconds'")
    turn(ses.inbox, BY_NAME[switch], True)
    for _ in range(2):
        start(constants=SOON).wait_for_log("run.started")
    add_active(db, 10)
    sign_up_many(db, 30)
    for number in range(1, 11):
        ask_recovery(db, f"r{number}")
    over = "SELECT bool_and(created_at + interval '11 seconds' < clock_timestamp()) FROM tokens"
    wait_until(db, over, True)
    # Each has expired, or was renewed lately, so that its mail has the time to arrive.
    ending = (
        "SELECT count(*) FROM tokens WHERE expires_at BETWEEN clock_timestamp()"
        " AND clock_timestamp() + interval '6 seconds'"
    )
    wait_until(db, ending, 0)
    assert 0 == ses.inbox.counts.accepted
    turn(ses.inbox, BY_NAME[switch], False)
    ses.wait_for(lambda inbox: inbox.counts.accepted >= 30, 90)
    wait_until(db, UNSETTLED, 0)
    arrived = {email: token for email, token, _ in mailed(ses, "activationv1")}
    assert {f"u{number}@example.com" for number in range(1, 31)} == arrived.keys()
    assert [] == mailed(ses, "passwordrecoveryv1")
    ends: dict[str, datetime] = dict(
        db.execute("SELECT email, expires_at FROM tokens WHERE email LIKE 'u%'").fetchall()
    )
    assert [] == [mail for mail in ses.inbox.mails.find() if mail.time >= ends[mail.recipient]]
    # However long the lines above took.
    db.execute("UPDATE tokens SET expires_at = expires_at + interval '1 hour' WHERE email LIKE 'u%'")
    for email, token in arrived.items():
        assert email == consume(db, token, "activation", keys=KEY).email
    assert {1} == set(ses.inbox.counts.by_recipient.values())


@pytest.mark.slow
def test_nobody_is_bombed_by_a_thousand_concurrent_requests(
    db: Db, database: str, ses: InboxServer, start: Start, figures: Callable[[str], None]
) -> None:
    add_active(db, 1)
    for _ in range(WORKERS):
        start().wait_for_log("run.started")

    def ask() -> None:
        with psycopg.connect(database, autocommit=True) as connection:
            for _ in range(REQUESTS // 20):
                ask_recovery(connection, "r1")

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(db, UNSETTLED, 0)
    recoveries = mailed(ses, "passwordrecoveryv1")
    figures(f"{REQUESTS} requests, {len(recoveries)} mails")
    assert 1 <= len(recoveries) <= 5
    row = db.execute(
        "SELECT id, secret FROM tokens"
        " WHERE id = (SELECT max(token) FROM mailroom.deliveries WHERE outcome = 'sent')"
    ).fetchone()
    assert row
    newest, secret = row
    ((token, code),) = [(one, code) for _, one, code in recoveries if split(one)[0] == secret]
    assert newest == consume(db, token, "password_recovery", keys=KEY, code=code).token


@pytest.mark.slow
def test_fifty_requests_while_the_provider_is_away_are_one_mail(
    db: Db, ses: InboxServer, start: Start
) -> None:
    turn(ses.inbox, BY_NAME["pause"], True)
    add_active(db, 1)
    for _ in range(WORKERS):
        start().wait_for_log("run.started")
    for _ in range(50):
        newest = ask_recovery(db, "r1")
    ses.wait_for(lambda inbox: inbox.counts.calls >= WORKERS)
    turn(ses.inbox, BY_NAME["pause"], False)
    ses.wait_for(lambda inbox: inbox.counts.accepted, 90)
    wait_until(db, UNSETTLED, 0)
    ((_, token, code),) = mailed(ses, "passwordrecoveryv1")
    assert newest == consume(db, token, "password_recovery", keys=KEY, code=code).token
