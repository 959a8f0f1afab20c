"""Adds what asyncio lacks here: tasks that end together, races, a lock with ranks, and work in threads."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from bisect import insort
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from itertools import count
from queue import SimpleQueue
from typing import Any, Final, TypeVar

Value = TypeVar("Value")


# A thread that has done its work waits for the next, since a new one would cost as much as a call to SES.
# Unlike those of an executor, none of them holds up the end of the process.
_works: Final[SimpleQueue[Callable[[], None]]] = SimpleQueue()
_idle: Final = threading.Semaphore(0)


def _keep_working() -> None:
    while True:
        _works.get()()
        _idle.release()


async def in_thread(function: Callable[..., Value], *arguments: object) -> Value:
    """What a blocking function returns, called in a thread.

    After a cancellation the function continues in its thread, and its result is dropped.

    Raises:
        Exception: what the function raises.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Value] = loop.create_future()

    def finish(value: Value | None, error: BaseException | None) -> None:
        if not future.done():
            if error:
                future.set_exception(error)
            else:
                future.set_result(value)  # type: ignore[arg-type]  # None only where the function returns it

    def work() -> None:
        value, error = None, None
        try:
            value = function(*arguments)
        except BaseException as raised:  # noqa: BLE001 - it is raised where the future is awaited
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(finish, value, error)

    _works.put(work)
    if not _idle.acquire(blocking=False):
        threading.Thread(target=_keep_working, daemon=True).start()
    return await future


class RankedLock:
    """A lock, which goes to the lowest rank of those that wait; within a rank, to the first that came."""

    def __init__(self) -> None:
        self._is_held = False
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = count()

    @contextlib.asynccontextmanager
    async def turn(self, rank: int) -> AsyncIterator[None]:
        """Wait for the lock, and hold it."""
        if self._is_held:
            await self._wait(rank)
        self._is_held = True
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, rank: int) -> None:
        passed_on: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        mine = (rank, next(self._numbers), passed_on)
        insort(self._waiting, mine)
        try:
            await passed_on
        except asyncio.CancelledError:
            if mine in self._waiting:
                self._waiting.remove(mine)
            elif not passed_on.cancelled():
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        # The lock stays held in between, so that no task that comes then gets it first.
        while self._waiting:
            _, _, passed_on = self._waiting.pop(0)
            if not passed_on.cancelled():
                passed_on.set_result(None)
                return
        self._is_held = False


async def first(*works: Coroutine[Any, Any, None], failed: asyncio.Future[None] | None = None) -> None:
    """Run all of them until one ends, and cancel the others.

    Raises:
        Exception: what that one raised, or ``failed``.
    """
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(
            [*tasks, *([failed] if failed else [])], return_when=asyncio.FIRST_COMPLETED
        )
        for ended in done:
            await ended
    finally:
        await end(*tasks)


async def before(work: Awaitable[Value], *others: Awaitable[object]) -> Value | None:
    """What ``work`` returns, or None when one of the others ends first.

    Work that ends at the same time counts as first. Coroutines that have not ended by then are
    cancelled; tasks and futures are left alone.

    Raises:
        Exception: what the first to end raised.
    """
    working = asyncio.ensure_future(work)
    rest = [asyncio.ensure_future(other) for other in others]
    try:
        await asyncio.wait({working, *rest}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return await working
        for other in rest:
            if other.done():
                other.result()
        return None
    finally:
        made = zip((working, *rest), (work, *others), strict=True)
        await end(*(one for one, given in made if one is not given))


async def end(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks, wait until they are over, and ignore what they raise."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
