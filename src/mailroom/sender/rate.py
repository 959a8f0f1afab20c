"""The rate of sending: a token bucket, charged per recipient, that gives way to throttles.

The ceiling is what the provider allows, in recipients a second. A throttle takes 30 % off the
current rate, at most once a second, down to 2 % of the ceiling. After a minute without one, every
second gives 1 % of the ceiling back: a provider that allows less than we believe is asked for more
once in a while and not all the time.

The bucket holds half a second's worth, so that a provider that counts a whole second's is never
asked for more than it allows, however the network bunches calls up. A charge that is larger than
what the bucket holds waits for a full one and leaves a debt.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final, Protocol

BURST_S: Final = 0.5
SLOWER: Final = 0.7
GRACE_S: Final = 1.0
HOLD_S: Final = 60.0
FASTER_A_SECOND: Final = 0.01
LOWEST_SHARE: Final = 0.02
ROUNDING: Final = 1e-6


class Rate(Protocol):
    """What limits the sending: a ``Bucket``, or the one that workers share."""

    @property
    def rate(self) -> float:
        """Recipients a second at present."""

    @property
    def burst(self) -> int:
        """The most recipients that one charge should ask for."""

    def limit(self, ceiling: float) -> None:
        """Take another ceiling."""

    def slow(self) -> object:
        """Give way to a throttle."""

    async def take(self, recipients: int, until: float = math.inf) -> None:
        """Wait until so many recipients may be sent to.

        Args:
            recipients: how many.
            until: of ``time.monotonic``; the caller will have given up by then.

        Raises:
            TimeoutError: it is known that they may not, by then.
        """


class Bucket:
    """Lets ``ceiling`` recipients a second through, or fewer after throttles.

    Args:
        ceiling: recipients a second.
        clock: seconds that never go back.
    """

    def __init__(self, ceiling: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ceiling = self._rate = ceiling
        self._level = float(self.burst)
        self._filled_at = clock()
        self._slowed_at = float("-inf")
        self._turn = asyncio.Lock()

    @property
    def rate(self) -> float:
        """Recipients a second at present."""
        return self._rate

    @property
    def burst(self) -> int:
        """The most recipients that one charge should ask for."""
        return max(1, int(self._rate * BURST_S))

    def limit(self, ceiling: float) -> None:
        """Take another ceiling; a rate that had reached the old one moves along."""
        self._refill()
        self._rate = ceiling if self._rate >= self._ceiling else min(self._rate, ceiling)
        self._ceiling = ceiling

    def slow(self) -> bool:
        """Give way to a throttle; False within a second of the last time."""
        now = self._clock()
        if now - self._slowed_at < GRACE_S:
            return False
        self._refill()
        self._slowed_at = now
        self._rate = max(self._rate * SLOWER, self._ceiling * LOWEST_SHARE)
        return True

    async def take(self, recipients: int, until: float = math.inf) -> None:  # noqa: ARG002
        """Wait until so many recipients may be sent to; waiters go in the order of their coming.

        Cancelled, it has charged nothing, so it need not know ``until`` when it is waited for.
        """
        async with self._turn:
            while True:
                self._refill()
                wanted = min(recipients, self.burst)
                if self._level >= wanted - ROUNDING:
                    self._level -= recipients
                    return
                await asyncio.sleep((wanted - self._level) / self._rate)

    def _refill(self) -> None:
        now = self._clock()
        grows_since = max(self._filled_at, self._slowed_at + HOLD_S)
        self._level += (now - self._filled_at) * self._rate
        if now > grows_since:
            self._rate += (now - grows_since) * FASTER_A_SECOND * self._ceiling
            self._rate = min(self._rate, self._ceiling)
        self._level = min(self._level, float(self.burst))
        self._filled_at = now
