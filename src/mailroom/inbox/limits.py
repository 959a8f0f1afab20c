"""Enforces an account's limits: recipients a second, and recipients in 24 hours.

The rate is a token bucket that holds one second's worth, and at least one recipient. Recipients are
summed up by minutes, so that a day needs little memory.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

DAY_S: Final = 24 * 60 * 60
MINUTE_S: Final = 60
MAX_RATE: Final = 1_000_000.0


class Limits:
    """The limits, and the recipients that count against them.

    Args:
        rate: recipients a second.
        quota_24h: recipients in 24 hours; None for no limit.
        clock: a monotonic clock, in seconds.

    Attributes:
        taken_at_s: when recipients were last taken from the bucket, or refused.
    """

    def __init__(
        self,
        rate: float = MAX_RATE,
        quota_24h: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._minutes: deque[tuple[int, int]] = deque()
        self._sent = 0
        self.quota_24h = quota_24h
        self.rate = rate

    @property
    def rate(self) -> float:
        """Recipients a second. Setting it fills the bucket."""
        return self._rate

    @rate.setter
    def rate(self, rate: float) -> None:
        self._rate = rate
        self._level = max(rate, 1.0)
        self.taken_at_s = self._clock()

    def take(self, recipients: int) -> bool:
        """Take this many recipients from the bucket if it holds them, and return whether it did."""
        now = self._clock()
        self._level = min(self._level + (now - self.taken_at_s) * self._rate, max(self._rate, 1.0))
        self.taken_at_s = now
        if recipients > self._level:
            return False
        self._level -= recipients
        return True

    def sent_24h(self) -> int:
        """Return the recipients of the last 24 hours."""
        oldest = int((self._clock() - DAY_S) // MINUTE_S)
        while self._minutes and self._minutes[0][0] < oldest:
            self._sent -= self._minutes.popleft()[1]
        return self._sent

    def left_24h(self) -> float:
        """Return how many recipients the quota still allows."""
        return float("inf") if self.quota_24h is None else self.quota_24h - self.sent_24h()

    def count(self, recipients: int) -> None:
        """Count this many recipients against the quota."""
        minute = int(self._clock() // MINUTE_S)
        if not self._minutes or self._minutes[-1][0] != minute:
            self._minutes.append((minute, 0))
        self._minutes[-1] = (minute, self._minutes[-1][1] + recipients)
        self._sent += recipients
