"""A worker never claims from itself what it has in hand, or has sent and not settled yet."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest

from mailroom.answers import Answer, Result
from mailroom.database.connection import Database
from mailroom.demo.postgres import PostgresServer
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.server import InboxServer
from mailroom.queue.client import Queue
from mailroom.queue.lease import LEASE_MS, Lease
from support import processes, senders
from support.queue_sql import Db, sign_up, sign_up_many
from support.runs import UNSETTLED, RunProcess, ledger, wait_until


@asynccontextmanager
async def worker(url: str) -> AsyncIterator[Queue]:
    database = Database(url, program="mailroom test", answer_limit_s=30)
    queue = Queue(database, channel="token_insert")
    try:
        yield queue
    finally:
        await queue.close()


async def settle(queue: Queue, lease: Lease) -> None:
    outcomes = {one.token: Answer(Result.SENT, message_id="1") for one in lease.claimed}
    await queue.record(lease, outcomes, provider="test", retry_ms=1000, retry_limit=3)


def test_a_claim_after_a_standstill_renews_first(
    database: str, db: Db, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mailroom.queue.client.LEASE_MS", 200)
    sign_up(db, "zoe")

    async def scenario() -> None:
        async with worker(database) as queue:
            (lease,) = await (await queue.claim(10, 10)).leases()
            time.sleep(0.5)  # noqa: ASYNC251 - the whole process stands still
            assert [] == await (await queue.claim(10, 10)).leases()
            assert queue.holds(lease)
            await settle(queue, lease)

    asyncio.run(scenario())
    assert [(1, "sent")] == ledger(db, "attempt", "outcome")
    assert "lease_lost" not in caplog.text


def test_a_claim_that_waited_for_the_database_renews_first(
    own_server: PostgresServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mailroom.queue.client.LEASE_MS", 500)
    with psycopg.connect(own_server.url(), autocommit=True) as db:
        sign_up(db, "zoe")

    async def scenario() -> None:
        async with worker(own_server.url()) as queue:
            (lease,) = await (await queue.claim(10, 10)).leases()
            await queue.renew()
            own_server.stop()
            claiming = asyncio.create_task(queue.claim(10, 10))
            await asyncio.sleep(1)  # longer than the lease
            own_server.start()
            settling = asyncio.create_task(settle(queue, lease))
            assert 0 == (await claiming).messages
            await settling

    asyncio.run(scenario())
    with psycopg.connect(own_server.url(), autocommit=True) as db:
        assert [(1, "sent")] == ledger(db, "attempt", "outcome")
    assert "lease_lost" not in caplog.text


def test_an_outage_longer_than_a_lease_mails_nobody_twice(own_server: PostgresServer, tmp_path: Path) -> None:
    over = threading.Event()

    def sign_ups() -> None:
        number = 0
        while not over.is_set():
            try:
                with psycopg.connect(own_server.url(), autocommit=True) as connection:
                    while not over.is_set():
                        number += 1
                        sign_up_many(connection, 50, f"n{number}-")
                        time.sleep(0.01)
            except psycopg.Error:
                time.sleep(0.1)

    with InboxServer(inbox=senders.with_templates(Inbox())) as ses:
        variables = (
            processes.environment(own_server.url(), BATCH_TIMEOUT=0)
            | senders.environment(tmp_path / "output", SEND_RATE=10_000, SEND_CONCURRENCY=30)
            | senders.aws(ses.url)
        )
        with RunProcess(variables, tmp_path / "log") as run:
            run.wait_for_log("run.started")
            thread = threading.Thread(target=sign_ups)
            thread.start()
            ses.wait_for(lambda inbox: inbox.counts.accepted > 2000)
            own_server.stop()
            over.set()
            thread.join()
            time.sleep(LEASE_MS / 1000 + 2)
            own_server.start()
            with psycopg.connect(own_server.url(), autocommit=True) as db:
                wait_until(db, UNSETTLED, 0)
                wait_until(db, "SELECT count(*) FROM mailroom.leases", 0)
                twice = "SELECT token FROM mailroom.deliveries GROUP BY token HAVING count(*) > 1"
                assert [] == db.execute(twice).fetchall()
                assert [("sent",)] == db.execute(
                    "SELECT DISTINCT outcome FROM mailroom.deliveries"
                ).fetchall()
            assert 0 == ses.inbox.counts.duplicates
            assert "lease_lost" not in run.log()
            assert 0 == run.stop()
