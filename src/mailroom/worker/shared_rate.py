"""The sending rate that all workers of a queue share; it is kept in the database.

SES's rate belongs to the account, not to a worker. Each charge is one statement, so the calls of all
workers together stay within the rate, and a worker that joins, leaves or dies changes the shares at once.

Promises: a call that will not wait for its turn is not charged. A charge is made at most ``MAX_S`` ahead, so
a process that dies wastes at most that much of the rate. Workers that have to ask again do so at random
moments, so that each gets a share.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from typing import Final

from mailroom.queue.client import Queue
from mailroom.sender.rate import BURST_S, DOUBLED_IN_S, LEAST_FACTOR, LOWEST_SHARE

# A charge that is lost in a crash of the database does no harm, so it does not wait for the disk.
RESERVE: Final = (
    "SELECT wait_s, rate"
    " FROM pg_catalog.set_config('synchronous_commit', 'off', true)"
    ", mailroom.reserve(%s, %s, %s, %s, %s, %s, %s, %s)"
)
POLICY: Final = (BURST_S, DOUBLED_IN_S, LEAST_FACTOR, LOWEST_SHARE)
MAX_S: Final = 1.0
# The database's answer may take this long, and the wait still ends in time.
MARGIN_S: Final = 0.5
# A call that must ask again does so after this time at the latest, since the rate may have gone up.
MAX_PAUSE_S: Final = 5.0


class SharedRate:
    """A ``Rate`` for the workers of one queue; ``ceiling`` is in recipients a second."""

    def __init__(self, queue: Queue, ceiling: float) -> None:
        self._queue = queue
        self._ceiling = self._rate = ceiling
        self._throttled = 0  # recipients, since the last charge

    @property
    def rate(self) -> float:
        """Recipients a second, for all workers, at the last charge."""
        return self._rate

    @property
    def burst(self) -> int:
        """The most recipients that one charge should ask for."""
        return max(1, int(self._rate * BURST_S))

    def limit(self, ceiling: float) -> None:
        """Change the ceiling."""
        self._rate = ceiling if self._rate >= self._ceiling else min(self._rate, ceiling)
        self._ceiling = ceiling

    def throttle(self, recipients: int) -> None:
        """Lower the rate for all workers at the next charge: this number of recipients was throttled."""
        self._throttled += recipients

    async def take(self, recipients: int, until: float = math.inf) -> None:
        """Wait until mails to this number of recipients may be sent; for one caller at a time.

        Args:
            recipients: how many.
            until: of ``time.monotonic``; a longer wait is not charged.

        Raises:
            TimeoutError: they may not be sent by then.
        """
        while (longest_s := min(MAX_S, until - MARGIN_S - time.monotonic())) >= 0:
            throttled, self._throttled = self._throttled, 0
            ((wait_s, self._rate),) = await self._queue.ask(
                RESERVE, [recipients, throttled, self._ceiling, longest_s, *POLICY]
            )
            if wait_s <= longest_s:
                await asyncio.sleep(wait_s)
                return
            pause_s = min(wait_s - longest_s, MAX_PAUSE_S)
            await asyncio.sleep(pause_s + random.uniform(0, MAX_S / 2))  # noqa: S311 - jitter, no secret
        raise TimeoutError
