"""The sending policy: from messages to one verdict on every recipient.

Messages are grouped by action, cut to what a call takes and to what the rate allows at once, and
given to the transport in a few threads. What comes back decides:

- sent or rejected: final, and reported;
- a call that was refused for somebody in it: cut in halves, until it is known for whom;
- transient, throttled, lost answer: tried again, after a back-off with jitter, until the mail is of
  no use any more; a failure without a stated reason only a few times;
- trouble that everybody would have (throttled, paused, away): nothing more is begun, and ``room``
  waits until it is over, so that whoever reads stops reading.

Promises: every message that was submitted is reported once with its verdict; ``abandon`` does so for
those still in hand. Does not promise that a mail goes out once: an answer that was lost is counted
and told as unknown, and the mail is sent again.
"""

from __future__ import annotations

import asyncio
import enum
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from mailroom.answers import RETRY_LIMIT, Answer, Result, Scope
from mailroom.logs import EventLogger
from mailroom.sender.calls import Calls
from mailroom.settings.sender import SenderSettings
from mailroom.transports.transport import Transport
from mailroom.wire import Message

# So many recipients may be in hand, most of them waiting for a retry, before no more are taken.
MAX_IN_HAND: Final = 1000
# And so many while one action's mails cannot go out, since these would be most of them.
MAX_WHILE_GATED: Final = 100
# Before a recipient is tried again: at first, at last.
BACK_OFF_S: Final = (0.5, 60.0)
# A mail is given up this long after it was read, when its token has expired.
USEFUL_S: Final = 900.0

log = EventLogger("sender")


class Verdict(enum.Enum):
    """What finally became of a recipient; UNKNOWN may have been sent to, UNSENT was not tried in time."""

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
        last: the last outcome.
        lost: the last one whose answer was lost, so that the mail may have been accepted.
    """

    message: Message
    useful_until: float
    failures: int = 0
    last: Answer | None = None
    lost: Answer | None = None


Report = Callable[[list[tuple[Message, Verdict, str]]], None]
"""Is given recipients with their verdicts and the reasons for them, in one sentence each."""


class Sender:
    """Sends what is submitted, over one transport.

    Args:
        transport: what sends.
        settings: rate, concurrency, limits.
        report: see ``Report``; called once for every recipient.
        retry_limit: how often a recipient is tried that fails for no stated reason, or whose answer is lost.
        useful_s: how long after ``submit`` a message is given up.

    Attributes:
        verdicts: how many recipients there were of each.
    """

    def __init__(
        self,
        transport: Transport,
        settings: SenderSettings,
        report: Report,
        *,
        retry_limit: int = RETRY_LIMIT,
        useful_s: float = USEFUL_S,
    ) -> None:
        self._report = report
        self._concurrency = settings.send_concurrency
        self._retry_limit = retry_limit
        self._useful_s = useful_s
        self._changed = asyncio.Event()
        self._calls = Calls(transport, settings, self._changed)
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
            # Somebody has to look whether the trouble is over.
            (self._calls.is_open or not self._in_hand)
            and len(self._deliveries) - self._backing_off - self._calls.waiting < self._concurrency
            and len(self._in_hand) < (MAX_IN_HAND if self._calls.is_clear else MAX_WHILE_GATED)
        )

    async def start(self) -> None:
        """Check the transport and ask for its rate.

        Raises:
            MailroomError: mails would be dropped for the way the transport is set up.
        """
        await self._calls.start()
        self._background = self._run(self._calls.keep_asking())

    async def room(self) -> None:
        """Wait until more may be submitted.

        Raises:
            Exception: a fault of ours ended the sending of an earlier message.
        """
        await self._until(lambda: self.has_room)

    async def submit(self, messages: Sequence[Message]) -> None:
        """Take messages, and begin to send them as there is room; gives back when all are begun.

        Raises:
            Exception: see ``room``.
        """
        useful_until = time.monotonic() + self._useful_s
        recipients = sorted((Recipient(message, useful_until) for message in messages), key=_action)
        self._submitted += recipients
        for _, group in groupby(recipients, key=_action):
            rest = list(group)
            while rest:
                await self.room()
                size = self._calls.largest
                self._begin(rest[:size])
                del rest[:size]

    async def failed(self) -> None:
        """Wait until a fault of ours ends the sending, and raise it.

        Raises:
            Exception: that one.
        """
        await self._until(lambda: False)

    async def drain(self) -> None:
        """Wait until nothing is in hand.

        Raises:
            Exception: see ``room``.
        """
        await self._until(lambda: not self._in_hand and not self._submitted)

    async def abandon(self) -> None:
        """Stop at once, and report what is in hand as unsent, or unknown where a call is under way."""
        tasks = [*self._deliveries, *([self._background] if self._background else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._calls.close()
        self._finish(
            [
                (one, Verdict.UNKNOWN, "stopped before it was answered; it may have been accepted")
                if self._calls.is_under_way(one.message)
                else _given_up(one, Verdict.UNSENT, "stopped before it was sent")
                for one in [*self._in_hand, *self._submitted]
            ]
        )
        self._submitted.clear()

    def _begin(self, recipients: list[Recipient]) -> None:
        del self._submitted[: len(recipients)]
        self._in_hand.update(recipients)
        self._start(recipients)

    def _start(self, recipients: list[Recipient], tries: int = 0, lost: int = 0) -> None:
        task = self._run(self._deliver(recipients, tries, lost))
        self._deliveries.add(task)
        task.add_done_callback(self._deliveries.discard)

    async def _deliver(self, recipients: list[Recipient], tries: int, lost: int) -> None:
        """Try until there is a verdict on each of them.

        Args:
            recipients: of one action.
            tries: how often they were tried before.
            lost: how often in sequence all of them were without an answer.
        """
        while recipients := self._drop_expired(recipients):
            # The rate may have gone down; and what is lost as a whole may be one recipient's fault.
            size = min(self._calls.largest, len(recipients) // 2 or 1 if lost > 1 else len(recipients))
            for first in range(size, len(recipients), size):
                self._start(recipients[first : first + size], tries, lost)
            recipients = recipients[:size]
            useful_until = min(recipient.useful_until for recipient in recipients)
            attempt = await self._calls.attempt([one.message for one in recipients], useful_until)
            if attempt is None:
                continue
            pairs = list(zip(recipients, attempt.outcomes, strict=True))
            if len(blamed := [one for one, outcome in pairs if outcome.scope is Scope.CALL]) > 1:
                # For somebody among these the call was refused: cut it, to see for whom.
                self._start(blamed[len(blamed) // 2 :])
                self._start(blamed[: len(blamed) // 2])
                pairs = [pair for pair in pairs if pair[0] not in blamed]
            lost = lost + 1 if all(outcome.result is Result.UNKNOWN for _, outcome in pairs) else 0
            recipients = self._judge(pairs)
            if recipients and not attempt.gated:
                await self._back_off(tries)
                tries += 1

    def _judge(self, pairs: list[tuple[Recipient, Answer]]) -> list[Recipient]:
        """Report those whose outcome is final, and give back the others."""
        final, again = [], []
        for recipient, outcome in pairs:
            recipient.last = outcome
            if outcome.result is Result.UNKNOWN:
                recipient.lost = outcome
            recipient.failures += outcome.result in {Result.FAILED, Result.UNKNOWN}
            if outcome.result is Result.SENT:
                final.append((recipient, Verdict.SENT, ""))
            elif outcome.result is Result.REJECTED:
                final.append((recipient, Verdict.REJECTED, outcome.detail))
            elif recipient.failures >= self._retry_limit:
                final.append(_given_up(recipient, Verdict.REJECTED, f"given up at try {recipient.failures}"))
            else:
                again.append(recipient)
        self._finish(final)
        return again

    def _drop_expired(self, recipients: list[Recipient]) -> list[Recipient]:
        now = time.monotonic()
        expired = [recipient for recipient in recipients if recipient.useful_until <= now]
        if expired:
            log.warning("expired", count=len(expired), action=expired[0].message.action)
            after = f"not sent within {self._useful_s:g} s"
            self._finish([_given_up(one, Verdict.EXPIRED, after) for one in expired])
        return [recipient for recipient in recipients if recipient.useful_until > now]

    def _finish(self, verdicts: list[tuple[Recipient, Verdict, str]]) -> None:
        self._in_hand.difference_update(recipient for recipient, _, _ in verdicts)
        if verdicts:
            self._report([(recipient.message, verdict, why) for recipient, verdict, why in verdicts])
        self.verdicts.update(verdict for _, verdict, _ in verdicts)
        self._changed.set()

    async def _back_off(self, tries: int) -> None:
        first_s, longest_s = BACK_OFF_S
        ceiling = min(longest_s, first_s * 2 ** min(tries, 10))
        self._backing_off += 1
        self._changed.set()
        try:
            await asyncio.sleep(random.uniform(ceiling / 2, ceiling))  # noqa: S311 - jitter, no secret
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


def _action(recipient: Recipient) -> str:
    return recipient.message.action


def _given_up(recipient: Recipient, verdict: Verdict, why: str) -> tuple[Recipient, Verdict, str]:
    """A verdict that is none of the provider's; UNKNOWN where the mail may have gone out all the same."""
    if recipient.lost:
        why += f"; it may have been accepted, since an answer was lost: {recipient.lost.detail}"
        return recipient, Verdict.UNKNOWN, why
    return recipient, verdict, f"{why}; the last answer: {recipient.last.detail}" if recipient.last else why
