"""An account's limits: recipients a second, and recipients in 24 hours.

The rate is a token bucket that holds one second's worth, and at least one recipient. The day is
counted in minutes, so that it takes little memory however much is sent.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

DAY_S: Final = 24 * 60 * 60
MINUTE_S: Final = 60
FASTEST: Final = 1_000_000.0


class Limits:
    """The limits, and what was sent under them.

    Args:
        rate: recipients a second.
        quota_24h: recipients in 24 hours; None for as many as one likes.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        rate: float = FASTEST,
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
        """Recipients a second; to set it fills the bucket."""
        return self._rate

    @rate.setter
    def rate(self, rate: float) -> None:
        self._rate = rate
        self._level = max(rate, 1.0)
        self._filled_at = self._clock()

    def take(self, recipients: int) -> bool:
        """Let so many through, or say no and take nothing."""
        now = self._clock()
        self._level = min(self._level + (now - self._filled_at) * self._rate, max(self._rate, 1.0))
        self._filled_at = now
        if recipients > self._level:
            return False
        self._level -= recipients
        return True

    def sent_24h(self) -> int:
        """Recipients in the last 24 hours."""
        oldest = int((self._clock() - DAY_S) // MINUTE_S)
        while self._minutes and self._minutes[0][0] < oldest:
            self._sent -= self._minutes.popleft()[1]
        return self._sent

    def left_24h(self) -> float:
        """Recipients that may still be sent to."""
        return float("inf") if self.quota_24h is None else self.quota_24h - self.sent_24h()

    def count(self, recipients: int) -> None:
        """Note that so many were sent to."""
        minute = int(self._clock() // MINUTE_S)
        if not self._minutes or self._minutes[-1][0] != minute:
            self._minutes.append((minute, 0))
        self._minutes[-1] = (minute, self._minutes[-1][1] + recipients)
        self._sent += recipients
