"""The sending rate: a token bucket, charged per recipient, that adapts to throttles.

The ceiling is what the provider allows, in recipients a second. Each throttled recipient lowers the current
rate by one a second. One call lowers it by 30 % at most, and never to less than 2 % of the ceiling. The rate
doubles in 14 s, up to the ceiling. So it settles where about 5 % of the recipients are throttled (ln 2 / 14):
sporadic throttles leave it at the ceiling, and beside another sender it settles just above what is left.

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
DOUBLED_IN_S: Final = 14.0
LEAST_FACTOR: Final = 0.7
LOWEST_SHARE: Final = 0.02
MAX_DOUBLINGS: Final = 10.0
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

    def throttle(self, recipients: int) -> None:
        """Lower the rate after a call of which this number of recipients was throttled."""

    async def take(self, recipients: int, until: float = math.inf, *, behind: int = 0) -> None:
        """Wait until mails to this number of recipients may be sent; for one caller at a time.

        Args:
            recipients: how many.
            until: of ``time.monotonic``; the caller gives up then.
            behind: how many recipients wait for their turn, so that several calls can be charged at once.

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

    def throttle(self, recipients: int) -> None:
        """Lower the rate after a call of which this number of recipients was throttled."""
        self._refill()
        lowered = max(self._rate - recipients, self._rate * LEAST_FACTOR)
        self._rate = max(lowered, self._ceiling * LOWEST_SHARE)

    async def take(self, recipients: int, until: float = math.inf, *, behind: int = 0) -> None:  # noqa: ARG002
        """Wait until mails to this number of recipients may be sent; for one caller at a time.

        A cancelled wait has charged nothing, so only ``recipients`` is needed.
        """
        while True:
            self._refill()
            wanted = min(recipients, self.burst)
            if self._level >= wanted - ROUNDING:
                self._level -= recipients
                return
            await asyncio.sleep((wanted - self._level) / self._rate)

    def _refill(self) -> None:
        now = self._clock()
        passed_s = now - self._filled_at
        self._level += passed_s * self._rate
        self._rate = min(self._rate * 2 ** min(passed_s / DOUBLED_IN_S, MAX_DOUBLINGS), self._ceiling)
        self._level = min(self._level, float(self.burst))
        self._filled_at = now
