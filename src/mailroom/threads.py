"""Blocking work in threads that nobody has to wait for.

Each call gets a daemon thread of its own: one that never answers costs its thread and no other's,
and does not keep the process from ending, as an executor's would.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")


async def in_thread(function: Callable[..., Answer], *arguments: object) -> Answer:
    """What a blocking function gives back. Cancelled, the function goes on and is not heard any more.

    Raises:
        Exception: what the function raises.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Answer] = loop.create_future()

    def tell(answer: Answer | None, error: BaseException | None) -> None:
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
