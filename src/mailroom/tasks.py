"""Tasks of asyncio's that end together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


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
