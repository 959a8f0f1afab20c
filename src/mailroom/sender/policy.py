"""The sending policy: takes messages and reports one verdict on every recipient.

Messages are grouped by action and language, cut to what one call takes and to what the rate allows at once,
and given to the transport in a few threads, the most urgent first. The answers decide what happens next:

- sent or rejected: final, and reported;
- the call was refused because of one of its recipients: send it again in halves, until the recipient
  is known;
- transient, throttled, answer lost: retry after a back-off with jitter, until the mail's token has
  expired. A failure without a stated reason, and a lost answer, is retried a few times only;
- a trouble that affects every mail (throttled, paused, unreachable): begin nothing more. ``room`` waits
  until it is over, so that the caller stops reading;
- a trouble that affects every mail of an action: they wait until it is over, and delay no other action. Once
  ``MAX_PAUSED`` wait, more of them are given up as unsent;
- refused for good in words that nobody knows: retry, until the provider has accepted another mail. When all
  are refused so, other recipients are tried first, and a few more are read to try them.

With two transports, the second sends while the first cannot; see ``failover``.

Promises: every submitted message is reported once with its verdict; ``abandon`` reports those still in
hand. Does not promise that a mail is sent once: a lost answer is counted and logged as unknown, and
the mail is sent again.
"""

from __future__ import annotations

import asyncio
import enum
import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from mailroom.action_table import LANES
from mailroom.answers import RETRY_LIMIT, Answer, Result, Scope
from mailroom.logs import EventLogger
from mailroom.outage import back_off_s
from mailroom.sender.calls import CUT_OFF
from mailroom.sender.failover import open_calls
from mailroom.settings.sender import SenderSettings
from mailroom.transports.transport import Transport
from mailroom.wire import Message

# No more recipients are taken once this many are in hand, most of them waiting for a retry.
MAX_IN_HAND: Final = 1000
# Up to this many more wait while the mails of their action cannot be sent.
MAX_PAUSED: Final = 1000
# A recipient whose refusal helped to pause all mail waits this long for a turn at the breaker, so that others
# get it.
MAX_HELD_AT_BREAKER_S: Final = 1.0
# No more are taken while calls for this many seconds of the rate wait: the next mail that is read may be more
# urgent.
MAX_LINE_S: Final = 0.25
# Messages of several lines share a call that has no more than the rate allows in this time, since what is in
# hand is lost with a killed process.
SHARED_S: Final = 0.1
# Before a recipient is tried again: the first wait and the longest.
BACK_OFF_S: Final = (0.5, 60.0)

log = EventLogger("sender")


class Verdict(enum.Enum):
    """The final state of a recipient. UNKNOWN: it may have been sent. UNSENT: it was not tried in time."""

    SENT = "sent"
    REJECTED = "rejected"
    EXPIRED = "expired"
    UNSENT = "unsent"
    UNKNOWN = "unknown"


@dataclass(eq=False, slots=True)
class Recipient:
    """A message in hand.

    Attributes:
        useful_until: of ``time.monotonic``; after that it is given up.
        failures: how often it failed without a stated reason, or its answer was lost.
        last: the last answer.
        lost: the last UNKNOWN answer: the mail may have been accepted.
        waits: whether it waits, with two transports, since its last answer was UNKNOWN.
    """

    message: Message
    useful_until: float
    failures: int = 0
    last: Answer | None = None
    lost: Answer | None = None
    waits: bool = False


Report = Callable[[list[tuple[Message, Verdict, str]]], None]
"""Is called with recipients, their verdicts and a reason for each, in one sentence."""


class Sender:
    """Sends submitted messages.

    Args:
        transports: the transport to send with, and the second if there is one.
        settings: rate, concurrency, limits.
        report: see ``Report``; called once for every recipient.
        retry_limit: how often to try a recipient that fails for no stated reason, or whose answer is lost.

    Attributes:
        verdicts: how many recipients got each of them.
    """

    def __init__(
        self,
        transports: Sequence[Transport],
        settings: SenderSettings,
        report: Report,
        *,
        retry_limit: int = RETRY_LIMIT,
    ) -> None:
        self._report = report
        self._concurrency = settings.send_concurrency
        self._retry_limit = retry_limit
        self._changed = asyncio.Event()
        self._calls = open_calls(transports, settings, self._changed)
        self._submitted: list[Recipient] = []  # and not begun yet
        self._in_hand: set[Recipient] = set()
        self._deliveries: set[asyncio.Task[None]] = set()
        self._backing_off = 0
        self._background: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self.verdicts: Counter[Verdict] = Counter()

    @property
    def answers(self) -> Counter[Result]:
        """How many answers of each class recipients got, retries included."""
        return self._calls.answers

    @property
    def has_room(self) -> bool:
        """Whether more may be submitted."""
        return (
            # In trouble, the breaker needs one message for its next try, and one that was not refused yet.
            (self._calls.can_send or self._all_held)
            and len(self._deliveries) - self._backing_off - self._calls.waiting < self._concurrency
            and len(self._in_hand) - self._calls.paused < MAX_IN_HAND
            and self._calls.line_s < MAX_LINE_S
        )

    @property
    def shared(self) -> int:
        """How many messages a call may share that come in several lines; one while nothing can be sent."""
        return self._calls.in_time(SHARED_S) if self._calls.can_send else 1

    @property
    def _all_held(self) -> bool:
        return all(one.waits or self._calls.is_held(one.message) for one in self._in_hand)

    async def start(self) -> None:
        """Check the transport and ask for its rate.

        Raises:
            MailroomError: the transport's configuration would lose mails.
        """
        await self._calls.start()
        self._background = self._run(self._calls.keep_asking())

    async def room(self) -> None:
        """Wait until more may be submitted.

        Raises:
            Exception: an internal error ended the sending of an earlier message.
        """
        await self._until(lambda: self.has_room)

    async def submit(self, messages: Sequence[Message]) -> None:
        """Take messages and begin to send them as there is room; returns when all have begun.

        Raises:
            Exception: see ``room``.
        """
        now = time.monotonic()
        recipients = sorted((Recipient(one, now + useful_s(one)) for one in messages), key=_order)
        self._submitted += recipients
        for _, group in groupby(recipients, key=_order):
            rest = list(group)
            while rest:
                await self.room()
                size = self._calls.largest
                self._begin(rest[:size])
                del rest[:size]

    async def failed(self) -> None:
        """Wait until an internal error ends the sending, and raise it.

        Raises:
            Exception: that error.
        """
        await self._until(lambda: False)

    async def drain(self) -> None:
        """Wait until nothing is in hand.

        Raises:
            Exception: see ``room``.
        """
        await self._until(lambda: not self._in_hand and not self._submitted)

    async def abandon(self) -> None:
        """Stop at once. Reports what is in hand as unsent, or as unknown where a call is under way."""
        tasks = [*self._deliveries, *([self._background] if self._background else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._calls.close()
        self._finish(
            [
                (one, Verdict.UNKNOWN, CUT_OFF)
                if self._calls.is_under_way(one.message)
                else _given_up(one, Verdict.UNSENT, "stopped before it was sent")
                for one in [*self._in_hand, *self._submitted]
            ]
        )
        self._submitted.clear()

    def _begin(self, recipients: list[Recipient]) -> None:
        del self._submitted[: len(recipients)]
        action = recipients[0].message.action.name
        trouble = self._calls.troubles.get(action)
        if trouble and self._calls.paused >= MAX_PAUSED:
            why = f"no mail of the action {action} can be sent, and {MAX_PAUSED} or more wait: {trouble[0]}"
            self._finish([(one, Verdict.UNSENT, why) for one in recipients])
            return
        self._in_hand.update(recipients)
        self._start(recipients)

    def _start(
        self, recipients: Sequence[Recipient], tries: int = 0, lost: int = 0, *, wait_s: float = 0.0
    ) -> None:
        task = self._run(self._deliver(recipients, tries, lost, wait_s))
        self._deliveries.add(task)
        task.add_done_callback(self._deliveries.discard)

    async def _deliver(self, recipients: Sequence[Recipient], tries: int, lost: int, wait_s: float) -> None:
        """Try until each recipient has a verdict.

        Args:
            recipients: of one action and language.
            tries: how often they were tried before.
            lost: how often in a row the answer for all of them was lost.
            wait_s: before the first try.
        """
        if wait_s:
            await self._wait(asyncio.sleep(wait_s))
            for recipient in recipients:
                recipient.waits = False
        while recipients := self._drop_expired(recipients):
            # The rate may have gone down. A call that is lost repeatedly may be one recipient's fault.
            size = min(self._calls.largest, len(recipients) // 2 or 1 if lost > 1 else len(recipients))
            if self._calls.wants_probe and size > 1:
                self._start(recipients[1:], tries, lost)
                recipients = recipients[:1]
            for first in range(size, len(recipients), size):
                self._start(recipients[first : first + size], tries, lost)
            recipients = recipients[:size]
            useful_until = min(recipient.useful_until for recipient in recipients)
            messages = [one.message for one in recipients]
            is_held = any(map(self._calls.is_held, messages))
            max_wait_s = MAX_HELD_AT_BREAKER_S if is_held else math.inf
            attempt = await self._calls.attempt(
                messages,
                useful_until,
                lane=messages[0].action.lane,
                max_wait_s=max_wait_s,
                is_retry=any(one.last for one in recipients),
            )
            if attempt is None:
                if is_held:
                    await self._back_off(tries)
                continue
            pairs = list(zip(recipients, attempt.answers, strict=True))
            if halves := attempt.halves(recipients):
                for half in halves:
                    self._start(half)
                pairs = [(one, answer) for one, answer in pairs if answer.scope is not Scope.CALL]
            lost = lost + 1 if all(answer.result is Result.UNKNOWN for _, answer in pairs) else 0
            recipients = self._without_lost(self._judge(pairs), tries, lost)
            if attempt.tripped:  # one that ends every call must not stay before the others
                random.shuffle(recipients)
            elif recipients:
                await self._back_off(tries)
                tries += 1

    def _judge(self, pairs: list[tuple[Recipient, Answer]]) -> list[Recipient]:
        """The recipients to try again; the others are reported."""
        final, again = [], []
        for recipient, answer in pairs:
            recipient.last = answer
            if answer.result is Result.UNKNOWN:
                recipient.lost = answer
            recipient.failures += answer.result in {Result.FAILED, Result.UNKNOWN}
            if answer.result is Result.SENT:
                final.append((recipient, Verdict.SENT, ""))
            elif answer.result is Result.REJECTED:
                final.append((recipient, Verdict.REJECTED, answer.detail))
            elif recipient.failures >= self._retry_limit:
                final.append(_given_up(recipient, Verdict.REJECTED, f"given up at try {recipient.failures}"))
            else:
                again.append(recipient)
        self._finish(final)
        return again

    def _without_lost(self, recipients: list[Recipient], tries: int, lost: int) -> list[Recipient]:
        """Those whose last answer was not lost; with two transports the others wait on their own."""
        if not (wait_s := self._calls.lost_wait_s):
            return recipients
        if waiting := [one for one in recipients if one.last and one.last.result is Result.UNKNOWN]:
            for one in waiting:
                one.waits = True
            self._start(waiting, tries + 1, lost, wait_s=wait_s)
        return [one for one in recipients if one not in waiting]

    def _drop_expired(self, recipients: Sequence[Recipient]) -> list[Recipient]:
        now = time.monotonic()
        expired = [recipient for recipient in recipients if recipient.useful_until <= now]
        if expired:
            log.warning("expired", count=len(expired), action=expired[0].message.action.name)
            self._finish(
                [
                    _given_up(one, Verdict.EXPIRED, f"not sent within {useful_s(one.message):g} s")
                    for one in expired
                ]
            )
        return [recipient for recipient in recipients if recipient.useful_until > now]

    def _finish(self, verdicts: list[tuple[Recipient, Verdict, str]]) -> None:
        self._in_hand.difference_update(recipient for recipient, _, _ in verdicts)
        if verdicts:
            self._report([(recipient.message, verdict, why) for recipient, verdict, why in verdicts])
        self.verdicts.update(verdict for _, verdict, _ in verdicts)
        self._changed.set()

    async def _back_off(self, tries: int) -> None:
        """Wait before another try; until mail goes by another transport at the longest."""
        with suppress(TimeoutError):
            async with asyncio.timeout(back_off_s(tries, BACK_OFF_S)):
                await self._wait(self._calls.moved.wait())

    async def _wait(self, over: Awaitable[object]) -> None:
        self._backing_off += 1
        self._changed.set()
        try:
            await over
        finally:
            self._backing_off -= 1

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds() or self._failure:
            if self._failure:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()

    def _run(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception():
            self._failure = self._failure or task.exception()
        self._changed.set()


def useful_s(message: Message) -> float:
    """How long after it was read a message is given up: its token has expired then."""
    return message.action.lifetime_s if message.expires_in_s is None else message.expires_in_s


def _order(recipient: Recipient) -> tuple[int, str, str]:
    """Calls are made for messages of one action and language; the most urgent come first."""
    message = recipient.message
    return LANES.index(message.action.lane), message.action.name, message.locale


def _given_up(recipient: Recipient, verdict: Verdict, why: str) -> tuple[Recipient, Verdict, str]:
    """A verdict that is not the provider's; UNKNOWN where the mail may have been accepted."""
    if recipient.lost:
        why += f"; it may have been accepted, since an answer was lost: {recipient.lost.detail}"
        return recipient, Verdict.UNKNOWN, why
    return recipient, verdict, f"{why}; the last answer: {recipient.last.detail}" if recipient.last else why
