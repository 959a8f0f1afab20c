"""The rate that workers share: used to the full, however many calls wait for it, and never exceeded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import LiteralString

import psycopg
import pytest
from psycopg.rows import TupleRow

from mailroom.concurrency import RankedLock
from mailroom.database.connection import Database
from mailroom.inbox.server import InboxServer
from mailroom.queue.client import Queue
from mailroom.runner.shared_rate import MAX_S, SharedRate
from support.queue_sql import Db, reserve, sign_up_many
from support.runs import Start
from support.throttling import Account, Clock, send


def ahead_s(db: Db) -> float:
    row = db.execute("SELECT extract(epoch FROM free_at - clock_timestamp()) FROM mailroom.rates").fetchone()
    assert row
    return float(row[0])


def test_who_would_wait_for_too_long_is_not_charged(db: Db) -> None:
    assert reserve(db, 7, 14, 1) == 0
    waits = [reserve(db, 7, 14, 1) for _ in range(50)]
    charged, refused = [one for one in waits if one <= 1], [one for one in waits if one > 1]
    assert charged == sorted(charged)
    assert len(charged) in {2, 3}
    assert charged + refused == waits
    assert ahead_s(db) < 2
    assert all(earlier > later for earlier, later in pairwise(refused))


def test_nobody_may_charge_for_longer_than_a_lease(db: Db) -> None:
    waits = [reserve(db, 10, 1, float("inf")) for _ in range(10)]
    assert max(waits) > 15
    assert ahead_s(db) < 25 + 1


def test_a_charge_that_nobody_used_is_forgotten(db: Db) -> None:
    """Such as an older version left, or a clock that was set back."""
    reserve(db, 1, 14, 1)
    db.execute("UPDATE mailroom.rates SET free_at = clock_timestamp() + interval '1 hour'")
    assert 15 < reserve(db, 7, 14, 1) < 17
    assert ahead_s(db) < 17


@pytest.mark.parametrize(("recipients", "rate"), [(0, 14), (1, 0), (1, -1), (1, float("nan"))])
def test_what_makes_no_sense_is_refused_and_changes_nothing(db: Db, recipients: int, rate: float) -> None:
    db.execute("SET statement_timeout = '5s'")
    with pytest.raises(psycopg.DatabaseError, match="mailroom: ") as refused:
        reserve(db, recipients, rate, float("inf"))
    assert not isinstance(refused.value, psycopg.errors.QueryCanceled)
    assert [] == db.execute("SELECT FROM mailroom.rates").fetchall()


def test_a_ceiling_that_is_not_known_lowers_no_rate(db: Db) -> None:
    """A worker that started while SES did not tell its quota, beside workers that know it."""

    def rate() -> float:
        ((rate,),) = db.execute("SELECT rate FROM mailroom.rates").fetchall()
        return float(rate)

    reserve(db, 1, 14, is_known=False)
    assert rate() == 14
    db.execute("UPDATE mailroom.rates SET rate = 200, changed_at = clock_timestamp()")
    reserve(db, 1, 14, is_known=False)
    assert rate() == 200
    reserve(db, 1, 100)
    assert rate() == 100


def test_a_worker_that_was_not_told_its_rate_takes_that_of_the_others(database: str, db: Db) -> None:
    async def scenario() -> tuple[float, float]:
        queue = CountingQueue(database)
        rate = SharedRate(queue, None, "ses")
        try:
            await rate.take(1)
            untold = rate.rate
            rate.limit(100)
            await rate.take(1)
            return untold, rate.rate
        finally:
            await queue.close()

    reserve(db, 1, 200)
    assert (200, 100) == asyncio.run(scenario())


def test_what_would_come_too_late_leaves_no_charge(database: str, db: Db) -> None:
    async def scenario() -> list[bool]:
        queue = Queue(Database(database, program="mailroom test", answer_limit_s=30), channel="token_insert")
        rate, line = SharedRate(queue, 2.0, "ses"), RankedLock()
        until = time.monotonic() + 3

        async def take() -> bool:
            async with line.turn(0):
                try:
                    await rate.take(1, until)
                except TimeoutError:
                    return False
                return True

        try:
            return await asyncio.gather(*(take() for _ in range(30)))
        finally:
            await queue.close()

    taken = asyncio.run(scenario())
    assert 4 <= sum(taken) <= 7
    assert taken == sorted(taken, reverse=True)
    assert ahead_s(db) < MAX_S


class CountingQueue(Queue):
    """Remembers how many recipients each statement charged for."""

    def __init__(self, database: str) -> None:
        super().__init__(
            Database(database, program="mailroom test", answer_limit_s=30), channel="token_insert"
        )
        self.charged: list[int] = []

    async def ask(self, query: LiteralString, parameters: Sequence[object]) -> list[TupleRow]:
        _, recipients, *_ = parameters
        assert isinstance(recipients, int)
        self.charged.append(recipients)
        return await super().ask(query, parameters)


@pytest.mark.parametrize(
    ("ceiling", "recipients", "charged"),
    [(10_000, 50, [200]), (2000, 50, [100, 100]), (100, 10, [10, 10, 10, 10])],
    ids=["all", "some", "alone"],
)
def test_one_charge_is_for_several_calls_at_a_high_rate(
    database: str, ceiling: float, recipients: int, charged: list[int]
) -> None:
    async def scenario() -> list[int]:
        queue = CountingQueue(database)
        rate = SharedRate(queue, ceiling, "ses")
        try:
            for behind in (3, 2, 1, 0):
                await rate.take(recipients, behind=behind * recipients)
            return queue.charged
        finally:
            await queue.close()

    assert charged == asyncio.run(scenario())


def test_a_call_that_gives_up_leaves_its_charge_to_the_next(database: str) -> None:
    async def scenario() -> tuple[list[int], float]:
        queue = CountingQueue(database)
        rate = SharedRate(queue, 20, "ses")
        try:
            await rate.take(10)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await rate.take(10)
            began = time.monotonic()
            await rate.take(10)
            return queue.charged, time.monotonic() - began
        finally:
            await queue.close()

    charged, waited_s = asyncio.run(scenario())
    assert [10, 10] == charged
    assert 0.1 < waited_s < 0.5


class ClockedQueue(Queue):
    """Lets the simulated time pass for the database too, by moving the stored times back."""

    def __init__(self, database: str, clock: Clock) -> None:
        super().__init__(
            Database(database, program="mailroom test", answer_limit_s=30), channel="token_insert"
        )
        self._clock = clock
        self._asked_at = clock.now

    async def ask(self, query: LiteralString, parameters: Sequence[object]) -> list[TupleRow]:
        began_at = time.monotonic()
        await super().ask(
            "UPDATE mailroom.rates SET changed_at = now() - p.passed,"
            " free_at = free_at + (now() - p.passed - changed_at)"
            " FROM (SELECT %s * interval '1 second' AS passed) p RETURNING 1",
            [self._clock.now - self._asked_at],
        )
        rows = await super().ask(query, parameters)
        # Only a part of this time passed for the database.
        self._clock.now += time.monotonic() - began_at
        self._asked_at = self._clock.now
        return rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ceiling", "share", "other", "least"),
    [(200, 0.02, 0, 0.8), (14, 0.02, 0, 0.8), (200, 0, 100, 1 / 3), (14, 0, 7, 1 / 3), (200, 0, 0, 0.95)],
    ids=["throttles", "few a second, throttles", "beside another", "few a second, beside another", "alone"],
)
def test_it_settles_near_what_the_provider_lets_through(
    database: str, monkeypatch: pytest.MonkeyPatch, ceiling: float, share: float, other: float, least: float
) -> None:
    clock, seconds = Clock(), 240.0
    monkeypatch.setattr("mailroom.runner.shared_rate.asyncio", clock.asyncio)
    monkeypatch.setattr("mailroom.runner.shared_rate.time", SimpleNamespace(monotonic=clock))
    account = Account(clock, ceiling, share=share, other=other)

    async def scenario() -> None:
        queue = ClockedQueue(database, clock)
        try:
            await send(account, SharedRate(queue, ceiling, "ses"), clock, seconds)
        finally:
            await queue.close()

    asyncio.run(scenario())
    counts = account.counts
    assert counts.accepted > least * ceiling * seconds
    assert bool(share or other) == bool(counts.throttled)


@pytest.mark.slow
def test_the_rate_is_used_by_many_calls_at_once(db: Db, ses: InboxServer, start: Start) -> None:
    """Their waits are longer than a lease, in sum; and the sum of three workers' calls holds the rate."""
    sign_up_many(db, 1000)
    for _ in range(3):
        start(SEND_RATE=10, SEND_CONCURRENCY=50).wait_for_log("run.started")
    ses.wait_for(lambda inbox: inbox.calls and inbox.calls[-1].at_s > inbox.calls[0].at_s + 40, 90)
    accepted = [(call.at_s, call.accepted) for call in ses.inbox.calls if call.accepted]
    for at, (since, _) in enumerate(accepted):
        seen = 0
        for until, count in accepted[at:]:
            seen += count
            assert seen <= 10 * (until - since) + 10 + 1e-6
    first = accepted[0][0]
    for begin in (0, 10, 20, 30):
        assert 80 < sum(count for at, count in accepted if begin <= at - first < begin + 10)
    shares = [
        row[0]
        for row in db.execute(
            "SELECT count(*) FROM mailroom.deliveries WHERE outcome = 'sent' GROUP BY worker"
        ).fetchall()
    ]
    assert 3 == len(shares)
    assert min(shares) > sum(shares) / 9, shares


@pytest.mark.slow
def test_a_slow_rate_is_used_by_some_workers(db: Db, ses: InboxServer, start: Start) -> None:
    rate = 0.5
    sign_up_many(db, 100)
    for _ in range(3):
        start(SEND_RATE=rate).wait_for_log("run.started")
    ses.wait_for(lambda inbox: inbox.calls and inbox.calls[-1].at_s > inbox.calls[0].at_s + 30, 90)
    assert 30 * rate * 0.8 < ses.inbox.counts.accepted <= 1 + 32 * rate
