"""A circuit breaker for a transport that refuses every mail for a while: throttled, paused, unreachable.

It trips when an answer says that every other call would get the same one; for throttles, when
``THROTTLES_IN_A_ROW`` calls got none other, since sporadic ones only lower the rate. While it is tripped, one
call at a time goes through, after a back-off with jitter, and all others wait. A call that succeeds
resets it. When no mail is left to try, it is reset without a call, since its state is unknown by then.

A trouble that a person must fix is logged as an error when it begins and once a minute while it lasts. Any
other trouble is logged as a warning, once it has lasted longer than a moment.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from mailroom.answers import Answer, Result
from mailroom.logs import EventLogger, without_addresses
from mailroom.outage import REMINDER_S, back_off_s

MOMENT_S: Final = 1.0
THROTTLES_IN_A_ROW: Final = 3
# The first back-off and the longest, in seconds.
BACK_OFF_S: Final = {
    Result.THROTTLED: (0.2, 15.0),
    Result.TRANSIENT: (0.2, 15.0),
    Result.UNKNOWN: (0.5, 60.0),
    Result.PAUSED: (2.0, 30.0),
}

log = EventLogger("sender")


class Breaker:
    """One breaker, not tripped at first.

    Args:
        name: what the log calls it.
        was_reset: is called when it is reset.
    """

    def __init__(self, name: str, was_reset: Callable[[], None] = lambda: None) -> None:
        self._name = name
        self._on_reset = was_reset
        self._turn = asyncio.Lock()
        self._was_reset = asyncio.Event()
        self._failures = self._throttles = 0
        self._tripped_at = self._try_at = 0.0
        self._logged_at = float("-inf")
        self._was_logged = False
        self._reason = ""

    @property
    def is_tripped(self) -> bool:
        """Whether calls have to wait."""
        return self._failures > 0

    @property
    def trouble(self) -> tuple[str, float] | None:
        """Why it is tripped, and for how many seconds; None when it is not."""
        return (self._reason, time.monotonic() - self._tripped_at) if self.is_tripped else None

    @property
    def try_in_s(self) -> float | None:
        """In how many seconds a call may try; 0 while another one tries; None when a call may be made now."""
        due_s = self._try_at - time.monotonic()
        return max(due_s, 0.0) if self.is_tripped and (due_s > 0 or self._turn.locked()) else None

    async def ready(self) -> None:
        """Wait until it is reset, or until the next try is due."""
        if self.is_tripped:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self._try_at - time.monotonic())):
                    await self._was_reset.wait()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[bool]:
        """Wait until one call may be made; True for the call that tries while it is tripped."""
        if self.is_tripped:
            async with self._turn:
                await self.ready()
                if self.is_tripped:
                    yield True
                    return
        yield False

    def trip(self, answer: Answer) -> bool:
        """Note an answer that every other call would get as well; returns whether it is tripped now."""
        now = time.monotonic()
        if not self.is_tripped:
            self._throttles += answer.result is Result.THROTTLED
            if answer.result is Result.THROTTLED and self._throttles < THROTTLES_IN_A_ROW:
                return False
            self._tripped_at, self._was_logged = now, False
            self._was_reset.clear()
        elif now < self._try_at:
            return True  # this call began before the breaker tripped
        limits_s = BACK_OFF_S.get(answer.result, BACK_OFF_S[Result.TRANSIENT])
        self._try_at = now + back_off_s(self._failures, limits_s)
        self._failures += 1
        self._reason = without_addresses(f"{answer.result.value}: {answer.detail}")
        self._log_trouble(now, answer)
        return True

    def succeeded(self) -> None:
        """Note an answer that does not affect other calls, and reset the breaker."""
        if fields := self._reset():
            log.info("resumed", **fields)

    def reset_if_untried(self, untried_s: float) -> None:
        """Reset it when no call has tried for ``untried_s`` seconds after a try was due."""
        if self._turn.locked() or time.monotonic() < self._try_at + untried_s:
            return
        if fields := self._reset():
            log.info("reset", **fields)

    def _reset(self) -> dict[str, object]:
        """The fields to log; none when it was not tripped, or its trouble not logged."""
        fields: dict[str, object] = {}
        if self.is_tripped and self._was_logged:
            after_s = time.monotonic() - self._tripped_at
            fields = {"breaker": self._name, "after": f"{after_s:.1f}s", "tries": self._failures}
        was_tripped = self.is_tripped
        self._failures = self._throttles = 0
        self._was_reset.set()
        if was_tripped:
            self._on_reset()
        return fields

    def _log_trouble(self, now: float, answer: Answer) -> None:
        lasted_s = now - self._tripped_at
        # A trouble that comes and goes is logged no more often than one that stays.
        if now - self._logged_at < REMINDER_S:
            return
        needs_person = answer.result is Result.PAUSED
        if needs_person or lasted_s >= MOMENT_S:
            fields: dict[str, object] = {
                "breaker": self._name,
                "reason": self._reason,
                "since": f"{lasted_s:.0f}s",
                "tries": self._failures,
            }
            if needs_person:
                log.error("paused", **fields, remedy="mailroom doctor")
            else:
                log.warning("paused", **fields)
            self._was_logged, self._logged_at = True, now
