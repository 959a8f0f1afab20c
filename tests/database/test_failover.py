"""An asynchronous failover that lost the last commits: sequences go back, and the same ids come again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from mailroom.answers import Answer, Result
from mailroom.database.connection import Database
from mailroom.demo.postgres import PostgresServer
from mailroom.operations.dead import dead_letters
from mailroom.operations.reports import stories
from mailroom.queue.client import Queue
from mailroom.queue.lease import Lease
from mailroom.runner import ledger
from support.postgres import DURABLE, copy_of
from support.queue_sql import Db, claim, claimed_tokens, expire_leases, sign_up


@dataclass
class Servers:
    """A primary, and what would be promoted without the primary's last commits."""

    primary: PostgresServer
    promoted: PostgresServer

    @property
    def url(self) -> str:
        here = f"127.0.0.1:{self.primary.port}"
        return self.primary.url().replace(here, f"{here},127.0.0.1:{self.promoted.port}")


@contextmanager
def lost_tail(primary: PostgresServer) -> Iterator[Servers]:
    """Servers with the same history; what the primary commits from here on is lost."""
    with psycopg.connect(primary.url(), autocommit=True) as db:
        sign_up(db, "before")
        claimed_tokens(db)
    primary.stop()
    with copy_of(primary, DURABLE) as promoted:
        primary.start()
        yield Servers(primary, promoted)


@asynccontextmanager
async def worker(url: str) -> AsyncIterator[Queue]:
    queue = Queue(Database(url, program="mailroom test", answer_limit_s=30), channel="token_insert")
    try:
        yield queue
    finally:
        await queue.close()


async def answer(queue: Queue, lease: Lease, result: Result) -> dict[int, ledger.Recorded]:
    answers = {one.token: Answer(result, "said for the lost one", "id-lost") for one in lease.claimed}
    return await ledger.record(queue, lease, answers, provider="ses", retry_ms=0, retry_limit=1)


async def settle(queue: Queue, lease: Lease) -> None:
    assert not await queue.settle(lease)


async def settle_a_part(queue: Queue, lease: Lease) -> None:
    assert not await queue.settle(lease, [lease.claimed[0].token, 999])


async def renew(queue: Queue, lease: Lease) -> None:
    await queue.renew()
    assert not queue.holds(lease)


async def record(queue: Queue, lease: Lease, result: Result) -> None:
    assert {} == await answer(queue, lease, result)


Late = Callable[[Queue, Lease], Coroutine[Any, Any, None]]


@pytest.mark.parametrize("leased", [True, False], ids=["leased again", "waiting"])
@pytest.mark.parametrize(
    "late",
    [
        settle,
        settle_a_part,
        renew,
        *(lambda queue, lease, each=each: record(queue, lease, each) for each in Result),
    ],
    ids=["settle", "part", "renew", *(each.value for each in Result)],
)
def test_an_answer_from_before_touches_nothing_of_after(
    own_server: PostgresServer, late: Late, leased: bool
) -> None:
    async def scenario(servers: Servers) -> None:
        async with worker(servers.url) as queue:
            with psycopg.connect(servers.primary.url(), autocommit=True) as db:
                lost = sign_up(db, "lost")
                (lease,) = await queue.claim(10, 10)
            servers.primary.stop("immediate")
            with psycopg.connect(servers.promoted.url(), autocommit=True) as db:
                assert lost == sign_up(db, "other")
                if leased:
                    (other,) = claim(db)
                    assert (lease.id, lease.generation, (lost,)) == (
                        other.lease,
                        other.generation,
                        other.tokens,
                    )
                before = state(db)
                await late(queue, lease)
                assert before == state(db)
                check_it_is_sent(db, lost)

    with lost_tail(own_server) as servers:
        asyncio.run(scenario(servers))


def state(db: Db) -> list[tuple[Any, ...]]:
    leases = db.execute("SELECT * FROM mailroom.leases ORDER BY id").fetchall()
    return [*leases, *db.execute("SELECT * FROM mailroom.deliveries ORDER BY id").fetchall()]


def check_it_is_sent(db: Db, token: int) -> None:
    (story,) = stories(db, str(token))
    assert {"waiting", "in flight"} >= {story.verdict}
    expire_leases(db)
    assert [token] == claimed_tokens(db)


@pytest.mark.parametrize("result", Result, ids=[each.value for each in Result])
def test_an_answer_for_a_token_that_does_not_exist_yet_is_not_the_next_ones(
    own_server: PostgresServer, result: Result
) -> None:
    """It is recorded for the lost token; another one gets its id afterwards."""

    async def scenario(servers: Servers) -> None:
        async with worker(servers.url) as queue:
            with psycopg.connect(servers.primary.url(), autocommit=True) as db:
                lost = sign_up(db, "lost")
                (lease,) = await queue.claim(10, 10)
            servers.primary.stop("immediate")
            await answer(queue, lease, result)
            with psycopg.connect(servers.promoted.url(), autocommit=True) as db:
                assert lost == sign_up(db, "other")
                assert [] == dead_letters(db, None, None, 10)
                assert [(False,)] == db.execute("SELECT mailroom.is_dead(%s)", [lost]).fetchall()
                assert [(0, False)] == db.execute(
                    "SELECT * FROM mailroom.dead_count(NULL, NULL, 9)"
                ).fetchall()
                claim(db)
                check_it_is_sent(db, lost)

    with lost_tail(own_server) as servers:
        asyncio.run(scenario(servers))


def test_a_release_from_before_keeps_and_frees_only_its_own(own_server: PostgresServer) -> None:
    async def scenario(servers: Servers) -> None:
        async with worker(servers.url) as queue:
            with psycopg.connect(servers.primary.url(), autocommit=True) as db:
                sign_up(db, "lost")
                (lost,) = await queue.claim(10, 10)
            servers.primary.stop("immediate")
            with psycopg.connect(servers.promoted.url(), autocommit=True) as db:
                sign_up(db, "other")
                (own,) = claim(db, worker=queue.worker)
                assert lost.id == own.lease
                assert 1 == await queue.release([lost])
                assert [own.tokens] == [lease.tokens for lease in claim(db)]

    with lost_tail(own_server) as servers:
        asyncio.run(scenario(servers))


def test_a_worker_tells_its_own_leases_of_one_id_apart(own_server: PostgresServer) -> None:
    async def scenario(servers: Servers) -> None:
        async with worker(servers.url) as queue:
            with psycopg.connect(servers.primary.url(), autocommit=True) as db:
                sign_up(db, "lost")
                (lost,) = await queue.claim(10, 10)
            servers.primary.stop("immediate")
            with psycopg.connect(servers.promoted.url(), autocommit=True) as db:
                sign_up(db, "other")
            (other,) = await queue.claim(10, 10)
            assert (lost.id, lost.generation) == (other.id, other.generation)
            await queue.renew()
            assert [other] == queue.held
            assert not await queue.settle(lost)
            assert queue.holds(other)
            assert await queue.settle(other)

    with lost_tail(own_server) as servers:
        asyncio.run(scenario(servers))
