"""The gate before a transport that refuses everybody for a while: throttled, paused, away.

While it is closed one call at a time is let through, after a back-off with jitter, to see whether
the trouble is over; everybody else waits. When there is nobody left to try, it is open to whoever
comes next: nobody knows any more. What a person must mend is told as an error when it
begins and once a minute while it lasts, and so is, as a warning, every other trouble of more than a
moment.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from mailroom.answers import Answer, Result
from mailroom.logs import EventLogger, without_addresses

REMINDER_S: Final = 60.0
MOMENT_S: Final = 1.0
# The first back-off and the longest, in seconds.
BACK_OFF_S: Final = {
    Result.THROTTLED: (0.2, 15.0),
    Result.TRANSIENT: (0.2, 15.0),
    Result.UNKNOWN: (0.5, 60.0),
    Result.PAUSED: (2.0, 30.0),
}

log = EventLogger("sender")


class Breaker:
    """Open at first; ``name`` says in the log what stands behind it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._turn = asyncio.Lock()
        self._opened = asyncio.Event()
        self._failures = 0
        self._closed_at = self._try_at = 0.0
        self._told_at = float("-inf")
        self._told = False
        self._reason = ""

    @property
    def is_open(self) -> bool:
        """Whether calls go through freely."""
        return self._failures == 0

    @property
    def trouble(self) -> tuple[str, float] | None:
        """Why it is closed, and for how many seconds; None when it is open."""
        return None if self.is_open else (self._reason, time.monotonic() - self._closed_at)

    async def ready(self) -> None:
        """Wait until it is open, or time for the next try."""
        if not self.is_open:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self._try_at - time.monotonic())):
                    await self._opened.wait()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[bool]:
        """Wait for leave to make one call; True for the one that tries a closed gate."""
        if not self.is_open:
            async with self._turn:
                await self.ready()
                if not self.is_open:
                    yield True
                    return
        yield False

    def close(self, outcome: Answer) -> None:
        """Note that a call was refused, for a reason that holds for every other as well."""
        now = time.monotonic()
        if self.is_open:
            self._closed_at, self._told = now, False
            self._opened.clear()
        elif now < self._try_at:
            return  # a call that was under way already when the gate closed
        first_s, longest_s = BACK_OFF_S.get(outcome.result, BACK_OFF_S[Result.TRANSIENT])
        ceiling = min(longest_s, first_s * 2 ** min(self._failures, 10))
        self._try_at = now + random.uniform(ceiling / 2, ceiling)  # noqa: S311 - jitter, no secret
        self._failures += 1
        self._reason = without_addresses(f"{outcome.result.value}: {outcome.detail}")
        self._tell(now, outcome)

    def succeeded(self) -> None:
        """Note that a call was answered in a way that says nothing against the next."""
        if self.is_open:
            return
        if self._told:
            after_s = time.monotonic() - self._closed_at
            log.info("resumed", gate=self._name, after=f"{after_s:.1f}s", tries=self._failures)
        self._failures = 0
        self._opened.set()

    def lapse(self, untried_s: float) -> None:
        """Open, when nobody has tried for so long after it was time to: the next call will tell."""
        now = time.monotonic()
        if self.is_open or self._turn.locked() or now < self._try_at + untried_s:
            return
        if self._told:
            log.info("lapsed", gate=self._name, after=f"{now - self._closed_at:.1f}s", tries=self._failures)
        self._failures = 0
        self._opened.set()

    def _tell(self, now: float, outcome: Answer) -> None:
        lasted_s = now - self._closed_at
        # A trouble that comes and goes is no more often told than one that stays.
        if now - self._told_at < REMINDER_S:
            return
        if outcome.result is Result.PAUSED or lasted_s >= MOMENT_S:
            say = log.error if outcome.result is Result.PAUSED else log.warning
            say(
                "paused",
                gate=self._name,
                reason=self._reason,
                since=f"{lasted_s:.0f}s",
                tries=self._failures,
                **({"remedy": "mailroom doctor"} if outcome.result is Result.PAUSED else {}),
            )
            self._told, self._told_at = True, now
