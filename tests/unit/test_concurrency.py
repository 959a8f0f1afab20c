"""Races, a ranked lock, and work in threads."""

from __future__ import annotations

import asyncio
import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mailroom.concurrency import RankedLock, before, in_thread
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


class RankedLockMachine(RuleBasedStateMachine):
    """Tasks come, wait, hold the lock, leave it and are cancelled, some of them at the same moment."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.lock = RankedLock()
        self.tasks: dict[tuple[int, int], asyncio.Task[None]] = {}
        self.may_leave: dict[tuple[int, int], asyncio.Event] = {}
        self.inside: set[tuple[int, int]] = set()
        # As the lock should have it.
        self.holder: tuple[int, int] | None = None
        self.waiting: list[tuple[int, int]] = []

    def teardown(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        self.settle()
        self.loop.close()

    def settle(self) -> None:
        for _ in range(10):
            self.loop.run_until_complete(asyncio.sleep(0))

    async def hold(self, one: tuple[int, int]) -> None:
        async with self.lock.turn(one[0]):
            self.inside.add(one)
            try:
                await self.may_leave[one].wait()
            finally:
                self.inside.discard(one)

    def next_holds(self) -> None:
        self.holder = min(self.waiting, default=None)
        if self.holder:
            self.waiting.remove(self.holder)

    @rule(ranks=st.lists(st.integers(0, 2), min_size=1, max_size=4))
    def come(self, ranks: list[int]) -> None:
        for rank in ranks:
            one = (rank, len(self.tasks))
            self.may_leave[one] = asyncio.Event()
            self.tasks[one] = self.loop.create_task(self.hold(one))
            self.waiting.append(one)
            if not self.holder:
                self.holder = self.waiting.pop()
        self.settle()

    @precondition(lambda self: self.holder)
    @rule(choices=st.lists(st.integers(0, 20), max_size=3), cancels_first=st.booleans(), fails=st.booleans())
    def leave(self, choices: list[int], cancels_first: bool, fails: bool) -> None:
        """The holder leaves or is cancelled, and so are some that wait, before any of them runs."""
        assert self.holder
        chosen = {self.waiting[choice % len(self.waiting)] for choice in choices if self.waiting}
        cancelled = [self.tasks[one] for one in chosen]
        if cancels_first:
            for task in cancelled:
                task.cancel()
        if fails:
            self.tasks[self.holder].cancel()
        else:
            self.may_leave[self.holder].set()
        if not cancels_first:
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()  # the holder leaves, and the next one has not run yet
            for task in cancelled:
                task.cancel()
        self.waiting = [one for one in self.waiting if one not in chosen]
        self.next_holds()
        self.settle()

    @precondition(lambda self: self.waiting)
    @rule(choice=st.integers(0, 20))
    def give_up(self, choice: int) -> None:
        one = self.waiting.pop(choice % len(self.waiting))
        self.tasks[one].cancel()
        self.settle()

    @invariant()
    def the_first_in_line_holds_it_alone(self) -> None:
        assert self.inside == ({self.holder} if self.holder else set())


RankedLockMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestRankedLock = RankedLockMachine.TestCase


def test_works_run_side_by_side_and_threads_are_used_again() -> None:
    meeting = threading.Barrier(5, timeout=30)

    def meet() -> int:
        meeting.wait()
        return threading.get_ident()

    async def meet_often() -> list[set[int]]:
        return [set(await asyncio.gather(*(in_thread(meet) for _ in range(5)))) for _ in range(20)]

    rounds = asyncio.run(meet_often())
    assert all(len(threads) == 5 for threads in rounds)
    assert len(set().union(*rounds)) <= 10  # one may be needed before another has come back


def test_work_that_never_ends_holds_up_no_other() -> None:
    stuck = threading.Event()

    async def work() -> list[int]:
        waiting = asyncio.create_task(in_thread(stuck.wait))
        done = [await in_thread(abs, -number) for number in range(20)]
        assert not waiting.done()
        stuck.set()
        await waiting
        return done

    assert list(range(20)) == asyncio.run(work())
