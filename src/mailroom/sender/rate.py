"""The sending rate: a token bucket, charged per recipient, that slows down when throttled.

The ceiling is what the provider allows, in recipients a second. A throttle takes 30 % off the
current rate, at most once a second, down to 2 % of the ceiling. After a minute without a throttle the
rate rises by 1 % of the ceiling a second. So a provider that allows less than the ceiling throttles
now and then, and not all the time.

The bucket holds half a second's worth. A provider that counts whole seconds therefore never sees more
than it allows, even if the network delays some calls and delivers them together. A charge larger than
the bucket waits until the bucket is full and leaves a debt.
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
    """A limit on the sending rate: a ``Bucket``, or the rate that workers share."""

    @property
    def rate(self) -> float:
        """Recipients a second at present."""

    @property
    def burst(self) -> int:
        """The most recipients that one charge should ask for."""

    def limit(self, ceiling: float) -> None:
        """Change the ceiling."""

    def slow(self) -> object:
        """Lower the rate after a throttle."""

    async def take(self, recipients: int, until: float = math.inf) -> None:
        """Wait until mails to this number of recipients may be sent.

        Args:
            recipients: how many.
            until: of ``time.monotonic``; the caller gives up then.

        Raises:
            TimeoutError: it is already known that they may not be sent by then.
        """


class Bucket:
    """Allows ``ceiling`` recipients a second, or fewer after throttles.

    Args:
        ceiling: recipients a second.
        clock: returns seconds, monotonic.
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
        """Change the ceiling; a rate at the old ceiling moves to the new one."""
        self._refill()
        self._rate = ceiling if self._rate >= self._ceiling else min(self._rate, ceiling)
        self._ceiling = ceiling

    def slow(self) -> bool:
        """Lower the rate after a throttle; False within a second of the last time."""
        now = self._clock()
        if now - self._slowed_at < GRACE_S:
            return False
        self._refill()
        self._slowed_at = now
        self._rate = max(self._rate * SLOWER, self._ceiling * LOWEST_SHARE)
        return True

    async def take(self, recipients: int, until: float = math.inf) -> None:  # noqa: ARG002
        """Wait until mails to this number of recipients may be sent; first come, first served.

        A cancelled wait has charged nothing, so ``until`` is not needed.
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
