"""Chooses between two transports: the second sends while the first cannot send any mail.

Mail goes by the first, until its account's breaker has been tripped for a time. From then on it goes by the
second, also what waits for the first. Meanwhile single mails try the first, one at a time, when its breaker
lets a call through. The call that resets the breaker ends this, and mail goes by the first again. A
mail that the first refused in such a try, as it refuses all, goes by the second at once.

If the first fails again soon after that, as one that takes a few mails now and then, the second sends at
once, and the first is not tried for a while, which doubles each time.

Each transport has its own breakers, brake, line and rate. The breaker of an action, or the refusal of a
recipient, moves no mail to the second.

Promises: after a lost answer a mail waits ``EVENT_S`` before any of the two tries it again, as the caller
keeps ``lost_wait_s``. Does not keep its state across a restart, or share it between workers.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from mailroom.answers import Answer, Result, Scope
from mailroom.logs import EventLogger
from mailroom.sender.attempt import Attempt
from mailroom.sender.calls import ACCOUNT, Calls
from mailroom.sender.rate import Rate
from mailroom.settings.sender import SenderSettings
from mailroom.transports.transport import Transport
from mailroom.wire import Message

# An event says usually within a second that a mail was taken. Also where no events are read, a retry by the
# other transport within a moment would mail twice each person whose answer was slow.
EVENT_S: Final = 10.0
# While the second cannot send either, what waits for it looks again in this interval.
LOOK_S: Final = 1.0
# For how long at most the first is not tried after it failed again.
MAX_REST_S: Final = 600.0

log = EventLogger("sender")


class Failover:
    """Calls the first of two transports, or the second; has all that ``Calls`` has.

    Args:
        first: the calls of the first.
        second: the calls of the second.
        after_s: for how long the first cannot send before the second does.
        changed: is set when another one sends.
        resumed: is set when another one sends, or a breaker of one was reset.

    Attributes:
        probing: how many attempts try the first while the second sends.
        moved: is set when another one sends.
    """

    lost_wait_s = EVENT_S

    def __init__(
        self, first: Calls, second: Calls, after_s: float, changed: asyncio.Event, resumed: asyncio.Event
    ) -> None:
        self._first = first
        self._second = second
        self._after_s = after_s
        self._changed = changed
        self.resumed = resumed
        self.moved = asyncio.Event()
        self.probing = 0
        self._detour = ""
        self._moved_at = self._back_at = -math.inf
        self._rest_s = 0.0  # from the last move on, the first is not tried

    @property
    def detour(self) -> str:
        """Why the second sends; empty while the first does."""
        self._chosen()
        return self._detour

    @property
    def moves_in_s(self) -> float:
        """In how many seconds the second sends if the first still cannot."""
        if self._chosen() is self._second or not self._first.trouble:
            return math.inf
        return max(self._patience_s - self._first.trouble[1], 0.0)

    @property
    def wants_probe(self) -> bool:
        """Whether an attempt with one message is to find out whether the first can send again."""
        return (
            self._chosen() is self._second
            and self._first.account_try_in_s is None
            and (time.monotonic() >= self._moved_at + self._rest_s or not self._second.can_send)
        )

    @property
    def can_send(self) -> bool:
        """Whether the account's breaker of the one that sends lets mails through."""
        return self._chosen().can_send

    @property
    def unable(self) -> str:
        """Why the one that sends cannot, as its last check found; empty for no reason."""
        return self._chosen().unable

    @property
    def troubles(self) -> dict[str, tuple[str, float]]:
        """As of ``Calls``, of the one that sends."""
        chosen = self._chosen()
        found = chosen.troubles
        if ACCOUNT in found:
            why, since_s = found[ACCOUNT]
            found[ACCOUNT] = f"{chosen.name}: {why}", since_s
        return found

    @property
    def waiting(self) -> int:
        """How many attempts wait at a tripped breaker, or try the first while the second sends."""
        return self._first.waiting + self._second.waiting + self.probing

    @property
    def paused(self) -> int:
        """How many messages wait at the breakers of their actions."""
        return self._first.paused + self._second.paused

    @property
    def answers(self) -> Counter[Result]:
        """How many answers of each class recipients got."""
        return self._first.answers + self._second.answers

    @property
    def rate(self) -> float:
        """Recipients a second at present."""
        return self._chosen().rate

    @property
    def largest(self) -> int:
        """The most messages that one attempt should have."""
        return self._chosen().largest

    def in_time(self, seconds: float) -> int:
        """As of ``Calls``, of the one that sends."""
        return self._chosen().in_time(seconds)

    @property
    def line_s(self) -> float:
        """As of ``Calls``, of the one that sends."""
        return self._chosen().line_s

    def is_under_way(self, message: Message) -> bool:
        """Whether a call for it has begun and has not been answered."""
        return self._first.is_under_way(message) or self._second.is_under_way(message)

    def cut_off(self, message: Message) -> Answer | None:
        """As of ``Calls``."""
        for calls in (self._first, self._second):
            if answer := calls.cut_off(message):
                return replace(answer, transport=calls.name)
        return None

    def is_held(self, message: Message) -> bool:
        """As of ``Calls``, of the one that sends."""
        return self._chosen().is_held(message)

    def try_in_s(self, action: str) -> float | None:
        """As of ``Calls``, of the one that sends."""
        return self._chosen().try_in_s(action)

    async def start(self) -> None:
        """Check both transports and ask for their rates.

        Raises:
            MailroomError: the configuration of one would lose mails.
        """
        await asyncio.gather(self._first.start(), self._second.start())

    async def keep_asking(self) -> None:
        """As of ``Calls``, for both.

        Raises:
            MailroomError: see ``start``.
        """
        await asyncio.gather(self._first.keep_asking(), self._second.keep_asking())

    async def ready(self) -> None:
        """Wait until mail can be sent, or a try is due."""
        wait_s = self.moves_in_s
        if self._chosen() is self._second:
            due_s = self._first.account_try_in_s
            wait_s = 0.0 if due_s is None else due_s or LOOK_S  # 0 while another mail tries
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s if wait_s < math.inf else None):
                await self._chosen().ready()
        self._chosen()

    def reset_if_untried(self, untried_s: float) -> None:
        """As of ``Calls``; the first is not reset while the second sends, since a mail tries it."""
        self._chosen().reset_if_untried(untried_s)

    async def attempt(
        self,
        messages: Sequence[Message],
        give_up_at: float,
        *,
        lane: str,
        max_wait_s: float = math.inf,
        is_retry: bool = False,
    ) -> Attempt | None:
        """As of ``Calls``; None also when the messages are more than the one that sends takes in a call."""
        until = min(give_up_at, time.monotonic() + max_wait_s)
        while True:
            if self._is_to_try_first(messages, is_retry=is_retry):
                self.probing += 1
                self._changed.set()
                try:
                    tried = await self._first.attempt(messages, give_up_at, lane=lane, max_wait_s=LOOK_S)
                finally:
                    self.probing -= 1
                if tried and not _is_for_second(tried.answers[0]):
                    self._chosen()
                    return _named(tried, self._first)
            calls = self._chosen()
            if len(messages) > calls.recipients_per_call:
                return None
            wait_s = LOOK_S if calls is self._second else min(self.moves_in_s, self._after_s)
            attempt = await calls.attempt(
                messages, give_up_at, lane=lane, max_wait_s=min(wait_s, max(until - time.monotonic(), 0.0))
            )
            if attempt:
                self._chosen()
                return _named(attempt, calls)
            if time.monotonic() >= until:
                return None

    def close(self) -> None:
        """Close the transports, unless a thread still uses one."""
        self._first.close()
        self._second.close()

    def _is_to_try_first(self, messages: Sequence[Message], *, is_retry: bool) -> bool:
        return (
            self.wants_probe
            and len(messages) == 1
            # While the second sends, a try must not cost a mail that failed before one more lost answer.
            and not (is_retry and self._second.can_send)
            and not self._first.is_paused(messages[0].action.name)
        )

    @property
    def _patience_s(self) -> float:
        """For how long the first cannot send before the second does."""
        is_on_trial = time.monotonic() < self._back_at + max(self._after_s, self._rest_s)
        return 0.0 if is_on_trial else self._after_s

    def _chosen(self) -> Calls:
        """The one that sends now. Changes it when that is due."""
        trouble = self._first.trouble
        if not self._detour and trouble and trouble[1] >= self._patience_s:
            has_relapsed = self._patience_s == 0.0
            self._rest_s = min(max(2 * self._rest_s, self._after_s), MAX_REST_S) if has_relapsed else 0.0
            now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            names = f"{self._second.name} sends instead of {self._first.name}"
            self._detour = f"{names} since {now}: {trouble[0]}"
            self._moved_at = time.monotonic()
            log.warning(
                "failover",
                to=self._second.name,
                instead_of=self._first.name,
                reason=trouble[0],
                after=f"{trouble[1]:.1f}s",
            )
            self._second.reset_if_untried(0)  # of an earlier time
            self._moved()
        elif self._detour and not trouble:
            self._detour = ""
            self._back_at = time.monotonic()
            lasted_s = self._back_at - self._moved_at
            log.info("back", to=self._first.name, instead_of=self._second.name, after=f"{lasted_s:.1f}s")
            self._moved()
        return self._second if self._detour else self._first

    def _moved(self) -> None:
        self.moved.set()
        self.moved = asyncio.Event()
        self.resumed.set()
        self._changed.set()


AnyCalls = Calls | Failover


def open_calls(
    transports: Sequence[Transport],
    settings: SenderSettings,
    changed: asyncio.Event,
    rate_of: Callable[[str, float | None], Rate] | None = None,
    called: Callable[[str, Sequence[Answer], float], None] | None = None,
) -> AnyCalls:
    """The calls of one transport, or of two.

    Args:
        transports: the first, and the second if there is one.
        settings: rate, concurrency, and for how long the first cannot send before the second does.
        changed: see ``Calls``.
        rate_of: the rate of a transport by its name and ceiling, None if it is not known yet; by default
            its own.
        called: see ``Calls``.
    """
    resumed, is_one = asyncio.Event(), len(transports) == 1
    first, *others = [
        Calls(
            transport,
            settings.at(place),
            changed,
            rate_of and rate_of(transport.name, settings.at(place).send_rate),
            called,
            resumed=resumed,
            account="account" if is_one else transport.name,
        )
        for place, transport in enumerate(transports)
    ]
    for second in others:
        return Failover(first, second, settings.failover_after_ms / 1000, changed, resumed)
    return first


def _is_for_second(answer: Answer) -> bool:
    """Whether the first's answer to a try says that it takes no mail, and has not taken this one."""
    return answer.scope is Scope.ACCOUNT and answer.result not in {Result.SENT, Result.UNKNOWN}


def _named(attempt: Attempt, calls: Calls) -> Attempt:
    answers = [replace(answer, transport=calls.name) for answer in attempt.answers]
    return attempt._replace(answers=answers)
