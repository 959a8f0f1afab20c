"""Adds what asyncio lacks here: tasks that end together, races, and blocking work in threads."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

Value = TypeVar("Value")


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

    threading.Thread(target=work, daemon=True).start()
    return await future


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
