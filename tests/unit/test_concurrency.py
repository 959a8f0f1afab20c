"""Races end what they began, and leave alone what they were given."""

from __future__ import annotations

import asyncio

import pytest

from mailroom.concurrency import before
from mailroom.outage import back_off_s


async def give(value: str) -> str:
    return value


async def never() -> None:
    await asyncio.Event().wait()


def test_work_that_ends_first_is_returned() -> None:
    assert "done" == asyncio.run(before(give("done"), never()))


def test_work_is_cancelled_when_another_ends_first() -> None:
    async def run() -> None:
        working = asyncio.create_task(never())
        given = asyncio.create_task(never())

        async def work() -> str:
            await working
            return "done"

        assert await before(work(), give("other"), given) is None
        assert working.cancelled()
        assert not given.done()
        given.cancel()

    asyncio.run(run())


def test_work_that_ends_at_the_same_time_counts_as_first() -> None:
    assert "done" == asyncio.run(before(give("done"), give("other")))


def test_what_the_first_to_end_raises_is_raised() -> None:
    async def fail() -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        asyncio.run(before(never(), fail()))
    with pytest.raises(OSError, match="no"):
        asyncio.run(before(fail(), never()))


@pytest.mark.parametrize(("failures", "ceiling_s"), [(0, 0.5), (1, 1.0), (3, 4.0), (7, 60.0), (10_000, 60.0)])
def test_back_off_doubles_up_to_its_limit(failures: int, ceiling_s: float) -> None:
    for _ in range(100):
        assert ceiling_s / 2 <= back_off_s(failures, (0.5, 60.0)) <= ceiling_s
