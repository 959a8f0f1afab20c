"""The rate that all workers of a queue share; it is kept in the database.

SES's rate belongs to the account, not to a worker. Each charge is one statement, so that the sum of
all workers' calls holds the rate, and one that joins, leaves or dies changes the shares at once.
"""

from __future__ import annotations

import asyncio

from mailroom.queue import Queue
from mailroom.rate import BURST_S


class SharedRate:
    """A ``Rate`` for the workers of one queue; ``ceiling`` is in recipients a second."""

    def __init__(self, queue: Queue, ceiling: float) -> None:
        self._queue = queue
        self._ceiling = self._rate = ceiling
        self._slowing: asyncio.Task[None] | None = None

    @property
    def rate(self) -> float:
        """Recipients a second, for all workers, when one was last charged."""
        return self._rate

    @property
    def burst(self) -> int:
        """The most recipients that one charge should ask for."""
        return max(1, int(self._rate * BURST_S))

    def limit(self, ceiling: float) -> None:
        """Take another ceiling."""
        self._rate = ceiling if self._rate >= self._ceiling else min(self._rate, ceiling)
        self._ceiling = ceiling

    def slow(self) -> None:
        """Let all give way to a throttle."""
        self._slowing = asyncio.create_task(self._queue.slow(self._ceiling))

    async def take(self, recipients: int) -> None:
        """Wait until so many recipients may be sent to."""
        wait_s, self._rate = await self._queue.reserve(recipients, self._ceiling)
        await asyncio.sleep(wait_s)
