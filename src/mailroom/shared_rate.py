"""The rate that all workers of a queue share; it is kept in the database.

SES's rate belongs to the account, not to a worker. Each charge is one statement, so that the sum of
all workers' calls holds the rate, and one that joins, leaves or dies changes the shares at once.

Promises: nobody charges what it will not wait for. A charge is made at most ``LONGEST_S`` ahead, so a
process that dies leaves no more behind than that. A worker asks for one call at a time, in the order
of their coming; several workers ask at random moments, so that each gets its share.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from typing import Final

from mailroom.queue import Queue
from mailroom.rate import BURST_S

LONGEST_S: Final = 1.0
# An answer of the database's may take so long, and the wait still ends in time.
MARGIN_S: Final = 0.5
# Told to come again, whoever waits asks after so long at the latest: the rate may have gone up.
LONGEST_NAP_S: Final = 5.0


class SharedRate:
    """A ``Rate`` for the workers of one queue; ``ceiling`` is in recipients a second."""

    def __init__(self, queue: Queue, ceiling: float) -> None:
        self._queue = queue
        self._ceiling = self._rate = ceiling
        self._turn = asyncio.Lock()
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
        """Let all give way to a throttle, before the next charge."""
        if self._slowing is None:
            self._slowing = asyncio.create_task(self._queue.slow(self._ceiling))

    async def take(self, recipients: int, until: float = math.inf) -> None:
        """Wait until so many recipients may be sent to.

        Args:
            recipients: how many.
            until: of ``time.monotonic``; what would take longer is not charged.

        Raises:
            TimeoutError: they may not, by then.
        """
        async with self._turn:
            while True:
                await self._slowed()
                longest_s = min(LONGEST_S, until - MARGIN_S - time.monotonic())
                if longest_s < 0:
                    raise TimeoutError
                wait_s, self._rate = await self._queue.reserve(recipients, self._ceiling, longest_s)
                if wait_s <= longest_s:
                    break
                nap_s = min(wait_s - longest_s, LONGEST_NAP_S)
                await asyncio.sleep(nap_s + random.uniform(0, LONGEST_S / 2))  # noqa: S311 - jitter, no secret
        await asyncio.sleep(wait_s)

    async def close(self) -> None:
        """Leave alone what was begun."""
        if self._slowing:
            self._slowing.cancel()
            await asyncio.gather(self._slowing, return_exceptions=True)

    async def _slowed(self) -> None:
        if slowing := self._slowing:
            await asyncio.wait({slowing})
            self._slowing = None
            slowing.result()
