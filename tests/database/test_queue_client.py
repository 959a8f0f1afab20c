"""The queue as one worker sees it: what it holds, and what an answer that never came does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from mailroom.answers import Answer, Result
from mailroom.database.connection import Database
from mailroom.demo.postgres import PostgresServer
from mailroom.errors import DatabaseError
from mailroom.queue.client import Queue
from mailroom.queue.lease import LEASE_MS, Lease
from mailroom.runner.ledger import record
from support.proxy import Proxy
from support.queue_sql import Db, expire_leases, sign_up, sign_up_many
from support.runs import ledger


@asynccontextmanager
async def worker(url: str, answer_limit_s: float = 30) -> AsyncIterator[Queue]:
    database = Database(url, program="mailroom test", answer_limit_s=answer_limit_s)
    queue = Queue(database, channel="token_insert")
    try:
        yield queue
    finally:
        await queue.close()


def test_a_later_generation_of_a_lease_is_not_taken_for_the_earlier(database: str, db: Db) -> None:
    """A worker can lose a lease to itself, when an outage kept it from renewing."""
    sign_up(db, "a")

    async def scenario() -> None:
        async with worker(database) as queue:
            (first,) = await queue.claim(10, 10)
            expire_leases(db)
            (second,) = await queue.claim(10, 10)
            assert (first.id, 2) == (second.id, second.generation)
            assert not queue.holds(first)
            assert not await queue.settle(first)
            assert queue.holds(second)
            await queue.renew()
            assert queue.holds(second)
            assert await queue.settle(second)
            assert not queue.holds(second)

    asyncio.run(scenario())


def test_renewing_tells_what_was_lost(database: str, db: Db) -> None:
    sign_up_many(db, 4)

    async def scenario() -> None:
        async with worker(database) as one, worker(database) as other:
            kept, lost = await one.claim(4, 2)
            db.execute("UPDATE mailroom.leases SET due_at = now() WHERE id = %s", [lost.id])
            (taken,) = await other.claim(10, 10)
            assert lost.id == taken.id
            before = kept.valid_until
            await one.renew()
            assert (True, False) == (one.holds(kept), one.holds(lost))
            assert kept.valid_until > before
            assert [kept] == one.held

    asyncio.run(scenario())


def test_a_lease_is_not_certain_after_its_time(database: str, db: Db) -> None:
    sign_up(db, "a")

    async def scenario() -> None:
        async with worker(database) as queue:
            (lease,) = await queue.claim(10, 10)
            assert time.monotonic() < lease.valid_until <= time.monotonic() + LEASE_MS / 1000
            lease.valid_until = time.monotonic()
            assert not queue.holds(lease)

    asyncio.run(scenario())


def test_a_claim_whose_answer_was_lost_is_had_again_at_once(database: str, db: Db) -> None:
    sign_up_many(db, 5)
    port = int(conninfo_to_dict(database)["port"] or 5432)

    async def scenario(proxy: Proxy) -> None:
        async with worker(make_conninfo(database, host="127.0.0.1", port=proxy.port), 1) as queue:
            assert await queue.next_due() is None
            proxy.go_deaf(to_clients_only=True)
            (lease,) = await queue.claim(10, 10)
            assert (5, 2) == (len(lease.claimed), lease.generation)

    with Proxy(port) as proxy:
        asyncio.run(scenario(proxy))


def test_giving_back_rings_for_another_worker(database: str, db: Db) -> None:
    sign_up_many(db, 3)

    async def scenario() -> int:
        async with worker(database) as queue:
            assert 0 == await queue.release()
            await queue.claim(10, 10)
            return await queue.release()

    with psycopg.connect(database, autocommit=True) as listener:
        listener.execute("LISTEN token_insert")
        assert 3 == asyncio.run(scenario())
        assert ["3"] == [note.payload for note in listener.notifies(timeout=30, stop_after=1)]


def test_a_schema_that_was_altered_is_an_error_and_no_loop(database: str, db: Db) -> None:
    sign_up(db, "a")
    db.execute("ALTER TABLE tokens RENAME COLUMN login TO username")

    async def scenario() -> None:
        async with worker(database) as queue:
            with pytest.raises(DatabaseError, match="PostgreSQL refused a statement") as refused:
                await queue.claim(10, 10)
            assert refused.value.hint

    asyncio.run(scenario())


async def settle(queue: Queue, lease: Lease) -> None:
    outcomes = {one.token: Answer(Result.SENT, message_id="1") for one in lease.claimed}
    await record(queue, lease, outcomes, provider="test", retry_ms=1000, retry_limit=3)


def test_a_claim_after_a_standstill_renews_first(
    database: str, db: Db, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mailroom.queue.client.LEASE_MS", 200)
    sign_up(db, "zoe")

    async def scenario() -> None:
        async with worker(database) as queue:
            (lease,) = await queue.claim(10, 10)
            time.sleep(0.5)  # noqa: ASYNC251 - the whole process stands still
            assert [] == await queue.claim(10, 10)
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
            (lease,) = await queue.claim(10, 10)
            await queue.renew()
            own_server.stop()
            claiming = asyncio.create_task(queue.claim(10, 10))
            await asyncio.sleep(1)  # longer than the lease
            own_server.start()
            settling = asyncio.create_task(settle(queue, lease))
            assert [] == await claiming
            await settling

    asyncio.run(scenario())
    with psycopg.connect(own_server.url(), autocommit=True) as db:
        assert [(1, "sent")] == ledger(db, "attempt", "outcome")
    assert "lease_lost" not in caplog.text
