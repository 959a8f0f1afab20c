"""An outage, told without flooding the log, and the back-off that goes with it."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Final

from mailroom.logs import EventLogger

FIRST_DELAY_S: Final = 0.05
MAX_DELAY_S: Final = 5.0
REMINDER_S: Final = 60.0


class Outage:
    """Something that does not work for a while: told once, then once a minute, and when it is over.

    Args:
        log: where to tell.
        began: the event's name for the first failure.
        lasts: its name for the reminders.
        over: its name for the end.
    """

    def __init__(self, log: EventLogger, began: str, lasts: str, over: str) -> None:
        self._log = log
        self._began, self._lasts, self._over = began, lasts, over
        self._failures = 0
        self._since = self._told_at = 0.0

    @property
    def is_on(self) -> bool:
        """Whether the last attempt failed."""
        return self._failures > 0

    def failed(self, reason: str) -> bool:
        """Note a failure; True when it is the first."""
        now = time.monotonic()
        self._failures += 1
        if self._failures == 1:
            self._since = self._told_at = now
            self._log.warning(self._began, reason=reason)
        elif now - self._told_at >= REMINDER_S:
            self._told_at = now
            self._log.warning(self._lasts, down=f"{now - self._since:.0f}s", reason=reason)
        return self._failures == 1

    def ended(self) -> None:
        """Note a success."""
        if self._failures:
            down = time.monotonic() - self._since
            self._log.info(self._over, down=f"{down:.1f}s", failures=self._failures)
            self._failures = 0

    async def back_off(self) -> None:
        """Wait: longer after each failure, with jitter; not at all when the last attempt succeeded."""
        if self._failures:
            ceiling = min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** min(self._failures, 10))
            await asyncio.sleep(random.uniform(ceiling / 2, ceiling))  # noqa: S311 - jitter, no secret
