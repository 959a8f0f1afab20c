"""Logs an outage without flooding the log, and computes the back-off between two attempts.

A new reason is logged at once, and each reason once a minute. Reasons that differ only in numbers are one.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from typing import Final

from mailroom.logs import EventLogger

# The first delay and the longest.
DELAY_S: Final = (0.1, 5.0)
REMINDER_S: Final = 60.0
# How many different reasons of one outage are logged.
MAX_REASONS: Final = 10


def back_off_s(earlier_failures: int, limits_s: tuple[float, float]) -> float:
    """Seconds to wait after a failure: doubled after each, with jitter.

    Args:
        earlier_failures: how many failures came right before this one.
        limits_s: the wait after the first failure, and the longest wait, each before jitter, which takes
            off up to half.
    """
    first_s, longest_s = limits_s
    ceiling_s = min(longest_s, first_s * 2 ** min(earlier_failures, 10))
    return random.uniform(ceiling_s / 2, ceiling_s)  # noqa: S311 - jitter, no secret


class Outage:
    """An outage: logged when it begins, once a minute, and when it ends.

    Args:
        log: where to log.
        began: the event's name for the first failure.
        lasts: its name for the reminders and for a new reason.
        over: its name for the end.
    """

    def __init__(self, log: EventLogger, began: str, lasts: str, over: str) -> None:
        self._log = log
        self._began, self._lasts, self._over = began, lasts, over
        self._failures = 0
        self._since = 0.0
        self._logged_at: dict[str, float] = {}

    @property
    def is_on(self) -> bool:
        """Whether the last attempt failed."""
        return self._failures > 0

    def failed(self, reason: str) -> bool:
        """Note a failure; True when it is the first."""
        now = time.monotonic()
        self._failures += 1
        kind = re.sub("[0-9]+", "0", reason)
        if kind not in self._logged_at and len(self._logged_at) >= MAX_REASONS:
            kind = ""
        if self._failures == 1:
            self._since = now
            self._logged_at = {kind: now}
            self._log.warning(self._began, reason=reason)
        elif now - self._logged_at.get(kind, float("-inf")) >= REMINDER_S:
            self._logged_at[kind] = now
            self._log.warning(self._lasts, down=f"{now - self._since:.0f}s", reason=reason)
        return self._failures == 1

    def ended(self) -> None:
        """Note a success."""
        if self._failures:
            down = time.monotonic() - self._since
            self._log.info(self._over, down=f"{down:.1f}s", failures=self._failures)
            self._failures = 0

    async def back_off(self) -> None:
        """Wait, longer after each failure; return at once when the last attempt succeeded."""
        if self._failures:
            await asyncio.sleep(back_off_s(self._failures - 1, DELAY_S))
