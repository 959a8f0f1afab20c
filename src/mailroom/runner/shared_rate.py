"""The sending rate that all workers of a queue share; it is kept in the database.

A provider's rate belongs to the account, not to a worker. Each charge is one statement, so the calls of all
workers together stay within the rate, and a worker that joins, leaves or dies changes the shares at once.

Promises: a call that will not wait for its turn is not charged. A charge is made at most ``MAX_S`` ahead, so
a process that dies wastes at most that much of the rate. At a high rate one charge is for several of the
calls that wait, but for at most ``TOGETHER_S`` of the rate. Workers that have to ask again do so at random
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
from mailroom.transports.transport import DEFAULT_RATE

# A charge that is lost in a crash of the database does no harm, so it does not wait for the disk.
RESERVE: Final = (
    "SELECT wait_s, rate"
    " FROM pg_catalog.set_config('synchronous_commit', 'off', true)"
    ", mailroom.reserve(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
)
POLICY: Final = (BURST_S, DOUBLED_IN_S, LEAST_FACTOR, LOWEST_SHARE)
MAX_S: Final = 1.0
TOGETHER_S: Final = 0.05
# The database's answer may take this long, and the wait still ends in time.
MARGIN_S: Final = 0.5
# A call that must ask again does so after this time at the latest, since the rate may have gone up.
MAX_PAUSE_S: Final = 5.0


class SharedRate:
    """A ``Rate`` for the workers of one queue and a transport.

    Args:
        queue: of the workers.
        ceiling: recipients a second; None while the provider has not told it. Until then the rate is
            ``DEFAULT_RATE``, or the one that another worker knows.
        transport: its name.
    """

    def __init__(self, queue: Queue, ceiling: float | None, transport: str) -> None:
        self._queue = queue
        self._transport = transport
        self._is_known = ceiling is not None
        self._ceiling = self._rate = ceiling or DEFAULT_RATE
        self._throttled = 0  # recipients, since the last charge
        self._charged = 0  # recipients who were charged for, and may be mailed from the next time on
        self._leave_at = 0.0

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
        self._is_known = True
        self._rate = ceiling if self._rate >= self._ceiling else min(self._rate, ceiling)
        self._ceiling = ceiling

    def throttle(self, recipients: int) -> None:
        """Lower the rate for all workers at the next charge: this number of recipients was throttled."""
        self._throttled += recipients

    async def take(self, recipients: int, until: float = math.inf, *, behind: int = 0) -> None:
        """Wait until mails to this number of recipients may be sent; for one caller at a time.

        Args:
            recipients: how many.
            until: of ``time.monotonic``; a longer wait is not charged.
            behind: how many recipients wait for their turn.

        Raises:
            TimeoutError: they may not be sent by then.
        """
        while recipients > self._charged:
            await self._charge(recipients - self._charged, until, behind)
        await asyncio.sleep(max(self._leave_at - time.monotonic(), 0))
        self._charged -= recipients

    async def _charge(self, recipients: int, until: float, behind: int) -> None:
        """Charge for these recipients, and some of those behind; or pause, to ask again."""
        longest_s = min(MAX_S, until - MARGIN_S - time.monotonic())
        if longest_s < 0:
            raise TimeoutError
        together = max(recipients, min(recipients + behind, int(self._rate * TOGETHER_S)))
        throttled, self._throttled = self._throttled, 0
        ((wait_s, self._rate),) = await self._queue.ask(
            RESERVE,
            [self._transport, together, throttled, self._ceiling, self._is_known, longest_s, *POLICY],
        )
        if wait_s <= longest_s:
            self._charged += together
            self._leave_at = time.monotonic() + wait_s
            return
        pause_s = min(wait_s - longest_s, MAX_PAUSE_S)
        await asyncio.sleep(pause_s + random.uniform(0, MAX_S / 2))  # noqa: S311 - jitter, no secret
