"""A suppressed address gets nothing from any worker, in any spelling; removed, it does."""

from __future__ import annotations

import pytest

from mailroom.inbox.server import InboxServer
from support import commands
from support.events import hand_out, of, send, tell
from support.processes import environment
from support.queue_sql import Db
from support.runs import Start, wait_until

SPELLINGS = (
    "zoe@bücher.example",
    "ZOE@BÜCHER.example",
    "Zoe@xn--bcher-kva.example",
    "zoe@XN--BCHER-KVA.example.",
    "ｚoe@ｂücher.example",
)


COUNT = "SELECT count(*) FROM mailroom.deliveries WHERE outcome = '{}'"


def recipients(ses: InboxServer) -> list[str]:
    return [mail.recipient for mail in ses.inbox.mails.newest(limit=100)]


def invite(db: Db, address: str) -> None:
    db.execute("SELECT mailroom.send('password_recovery', %s)", [address])


@pytest.mark.slow
def test_all_workers_skip_it_from_the_event_on(db: Db, database: str, start: Start, ses: InboxServer) -> None:
    db.execute("UPDATE mailroom.actions SET account_status = NULL, limit_mails = NULL, limit_within = NULL")
    handed = send(db, hand_out(db))
    workers = [start(), start()]
    for worker in workers:
        worker.wait_for_log("started")
    invite(db, SPELLINGS[0])
    wait_until(db, COUNT.format("sent"), 2)

    tell(db, of(handed, "bounced", type="permanent", recipient=SPELLINGS[2]))
    for number in range(4):  # so that each worker claims some of them
        for spelling in SPELLINGS:
            invite(db, spelling)
        invite(db, f"max{number}@example.com")
        wait_until(db, COUNT.format("suppressed"), (number + 1) * len(SPELLINGS))
        wait_until(db, COUNT.format("sent"), 3 + number)
    assert 1 == sum("cher" in address for address in recipients(ses))
    assert 4 == sum("max" in address for address in recipients(ses))

    removed = commands.run("suppressions", "remove", SPELLINGS[1], env=environment(database))
    assert (0, "removed\n") == (removed.returncode, removed.stdout)
    for spelling in SPELLINGS[:3]:
        invite(db, spelling)
    wait_until(db, COUNT.format("sent"), 9)
    assert 4 == sum("cher" in address for address in recipients(ses))
