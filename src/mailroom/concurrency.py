"""What asyncio lacks here: tasks that end together, and blocking work in threads that nobody waits for."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Value = TypeVar("Value")


async def in_thread(function: Callable[..., Value], *arguments: object) -> Value:
    """What a blocking function gives back. Cancelled, the function goes on and is not heard any more.

    Raises:
        Exception: what the function raises.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Value] = loop.create_future()

    def tell(answer: Value | None, error: BaseException | None) -> None:
        if not future.done():
            if error:
                future.set_exception(error)
            else:
                future.set_result(answer)  # type: ignore[arg-type]  # None is an answer where it is one

    def work() -> None:
        answer, error = None, None
        try:
            answer = function(*arguments)
        except BaseException as raised:  # noqa: BLE001 - it is raised where it is waited for
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, answer, error)

    threading.Thread(target=work, daemon=True).start()
    return await future


async def first(*works: Coroutine[Any, Any, None], failed: asyncio.Future[None] | None = None) -> None:
    """Do all of it until the first ends, which ends the others.

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


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they are over; what they raise then is nobody's business any more."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
