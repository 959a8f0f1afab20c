"""The sending policy: from messages to one verdict on every recipient.

Messages are grouped by action, cut to what a call takes and to what the rate allows at once, and
given to the transport in a few threads. What comes back decides:

- sent or rejected: final, and reported;
- a call that was refused for somebody in it: cut in halves, until it is known for whom;
- transient, throttled, lost answer: tried again, after a back-off with jitter, until the mail is of
  no use any more; a failure without a stated reason only a few times;
- trouble that everybody would have (throttled, paused, away): a gate closes, and ``room`` waits
  until it is open again, so that whoever reads stops reading.

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
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final, TypeVar

from mailroom.actions import ACTIONS
from mailroom.gate import Gate
from mailroom.logs import EventLogger, without_addresses
from mailroom.outcomes import Outcome, Result, Scope
from mailroom.rate import Bucket
from mailroom.sender_settings import SenderSettings
from mailroom.transports import Transport
from mailroom.wire import Message

# So many recipients may be in hand, most of them waiting for a retry, before no more are taken.
MOST_IN_HAND: Final = 1000
# What SES allows an account that has just left the sandbox.
DEFAULT_RATE: Final = 14.0
QUOTA_INTERVAL_S: Final = 300.0
# Before a recipient is tried again: at first, at last.
BACK_OFF_S: Final = (0.5, 60.0)

Answer = TypeVar("Answer")

log = EventLogger("sender")


class Verdict(enum.Enum):
    """What finally became of a recipient; UNSENT and UNKNOWN were in hand when the time was over."""

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
        failures: how often it failed without a stated reason.
        in_call: whether a call for it is under way.
        last: the last outcome.
    """

    message: Message
    useful_until: float
    failures: int = 0
    in_call: bool = False
    last: Outcome | None = None


Report = Callable[[list[tuple[Message, Verdict, str]]], None]
"""Is given recipients with their verdicts and the reasons for them, in one sentence each."""


class Sender:
    """Sends what is submitted, over one transport.

    Args:
        transport: what sends.
        settings: rate, concurrency, limits.
        report: see ``Report``; called once for every recipient.

    Attributes:
        verdicts: how many recipients there were of each.
        answers: how many answers of each class recipients got, retries included.
    """

    def __init__(self, transport: Transport, settings: SenderSettings, report: Report) -> None:
        self._transport = transport
        self._report = report
        self._concurrency = settings.send_concurrency
        self._retry_limit = settings.retry_limit
        self._useful_s = settings.retry_for_ms / 1000
        self._asks_quota = settings.send_rate is None
        self._bucket = Bucket(settings.send_rate or DEFAULT_RATE)
        self._gate = Gate("account")
        self._action_gates = {action.name: Gate(action.name) for action in ACTIONS}
        self._slots = asyncio.Semaphore(self._concurrency)
        self._threads = ThreadPoolExecutor(self._concurrency, thread_name_prefix="transport")
        self._submitted: list[Recipient] = []  # and not begun yet
        self._in_hand: set[Recipient] = set()
        self._busy = 0  # tasks that are neither at a closed gate nor backing off
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()
        self._in_threads: set[Future[Any]] = set()
        self.verdicts: Counter[Verdict] = Counter()
        self.answers: Counter[Result] = Counter()

    @property
    def is_stuck(self) -> bool:
        """Whether a thread waits for an answer, which after ``abandon`` nobody wants any more."""
        return any(not future.done() for future in self._in_threads)

    async def start(self) -> None:
        """Check the transport and ask for its rate.

        Raises:
            MailroomError: mails would be dropped for the way the transport is set up.
        """
        await self._in_thread(self._transport.check)
        if self._asks_quota:
            await self._ask_quota()
            self._run(self._keep_asking())
        log.info("started", transport=self._transport.name, rate=f"{self._bucket.rate:g}/s")

    async def room(self) -> None:
        """Wait until more may be submitted.

        Raises:
            Exception: a fault of ours ended the sending of an earlier message.
        """
        await self._until(
            lambda: (
                (self._gate.is_open or not self._in_hand)
                and self._busy < self._concurrency
                and len(self._in_hand) < MOST_IN_HAND
            )
        )

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
                size = min(self._transport.recipients_per_call, self._bucket.burst)
                self._begin(rest[:size])
                del rest[:size]

    async def drain(self) -> None:
        """Wait until nothing is in hand.

        Raises:
            Exception: see ``room``.
        """
        await self._until(lambda: not self._in_hand and not self._submitted)

    async def abandon(self) -> None:
        """Stop at once, and report what is in hand as unsent, or unknown where a call is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)
        left = [*self._in_hand, *self._submitted]
        self._finish(
            [
                (recipient, Verdict.UNKNOWN, "stopped before it was answered; it may have been accepted")
                if recipient.in_call
                else (recipient, Verdict.UNSENT, f"stopped before it was sent{_why(recipient)}")
                for recipient in left
            ]
        )
        self._submitted.clear()
        if not self.is_stuck:
            self._transport.close()

    def _begin(self, recipients: list[Recipient]) -> None:
        del self._submitted[: len(recipients)]
        self._in_hand.update(recipients)
        self._start(recipients)

    def _start(self, recipients: list[Recipient]) -> None:
        self._busy += 1
        task = self._run(self._deliver(recipients))
        task.add_done_callback(self._started_ended)

    def _started_ended(self, _: asyncio.Task[None]) -> None:
        self._busy -= 1
        self._changed.set()

    async def _deliver(self, recipients: list[Recipient]) -> None:
        """Try until there is a verdict on each of them."""
        tries = 0
        while recipients := self._drop_expired(recipients):
            outcomes = await self._call(recipients)
            gated = self._learn(recipients[0].message.action, outcomes)
            if len(recipients) > 1 and outcomes[0].scope is Scope.CALL:
                half = len(recipients) // 2
                self._start(recipients[half:])
                recipients = recipients[:half]
                continue
            recipients = self._judge(recipients, outcomes)
            if recipients and not gated:
                with self._aside():
                    await asyncio.sleep(_back_off_s(tries))
                tries += 1

    async def _call(self, recipients: list[Recipient]) -> list[Outcome]:
        """One call, when the gates, the rate and the threads allow it."""
        gates = (self._gate, self._action_gates[recipients[0].message.action])
        while True:
            async with AsyncExitStack() as stack:
                leave = [await self._turn(gate, stack) for gate in gates]
                await stack.enter_async_context(self._slots)
                if not all(tries or gate.is_open for tries, gate in zip(leave, gates, strict=True)):
                    continue
                await self._bucket.take(len(recipients))
                started = time.monotonic()
                for recipient in recipients:
                    recipient.in_call = True
                messages = [recipient.message for recipient in recipients]
                outcomes: list[Outcome] = await self._in_thread(self._transport.send, messages)
                for recipient, outcome in zip(recipients, outcomes, strict=True):
                    recipient.in_call, recipient.last = False, outcome
                self._tell(messages[0].action, outcomes, time.monotonic() - started)
                return outcomes

    async def _turn(self, gate: Gate, stack: AsyncExitStack) -> bool:
        if gate.is_open:
            return await stack.enter_async_context(gate.turn())
        with self._aside():
            return await stack.enter_async_context(gate.turn())

    def _learn(self, action: str, outcomes: Sequence[Outcome]) -> bool:
        """Slow down, and open or close gates, by what a call's answer says; True if one closed."""
        if any(outcome.result is Result.THROTTLED for outcome in outcomes):
            self._bucket.slow()
        everybodys = [o for o in outcomes if o.scope in {Scope.ACTION, Scope.ACCOUNT}]
        some_sent = any(outcome.result is Result.SENT for outcome in outcomes)
        closes = bool(everybodys) and not some_sent
        if not closes or everybodys[0].scope is Scope.ACTION:
            self._gate.succeeded()
        if not closes:
            self._action_gates[action].succeeded()
        elif everybodys[0].scope is Scope.ACTION:
            self._action_gates[action].close(everybodys[0])
        else:
            self._gate.close(everybodys[0])
        self._changed.set()
        return closes

    def _judge(self, recipients: list[Recipient], outcomes: list[Outcome]) -> list[Recipient]:
        """Report those whose outcome is final, and give back the others."""
        final, again = [], []
        for recipient, outcome in zip(recipients, outcomes, strict=True):
            recipient.failures += outcome.result is Result.FAILED
            if outcome.result is Result.SENT:
                final.append((recipient, Verdict.SENT, ""))
            elif outcome.result is Result.REJECTED or recipient.failures >= self._retry_limit:
                final.append((recipient, Verdict.REJECTED, outcome.detail))
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
            self._finish([(one, Verdict.EXPIRED, after + _why(one)) for one in expired])
        return [recipient for recipient in recipients if recipient.useful_until > now]

    def _finish(self, verdicts: list[tuple[Recipient, Verdict, str]]) -> None:
        self._in_hand.difference_update(recipient for recipient, _, _ in verdicts)
        self.verdicts.update(verdict for _, verdict, _ in verdicts)
        self._changed.set()
        if verdicts:
            self._report([(recipient.message, verdict, why) for recipient, verdict, why in verdicts])

    def _tell(self, action: str, outcomes: Sequence[Outcome], took_s: float) -> None:
        counts = Counter(outcome.result for outcome in outcomes)
        self.answers.update(counts)
        for result, count in counts.items():
            detail = next(outcome.detail for outcome in outcomes if outcome.result is result)
            if len(outcomes) > 1 and outcomes[0].scope is Scope.CALL:
                log.info("halved", count=count, action=action, reason=without_addresses(detail))
            elif result is Result.SENT:
                log.info("sent", count=count, action=action, took=f"{took_s:.2f}s")
            elif result is Result.REJECTED:
                log.warning("rejected", count=count, action=action, reason=without_addresses(detail))
            elif result is Result.UNKNOWN and self._gate.is_open:  # else the gate tells
                log.warning("unknown", count=count, action=action, reason=without_addresses(detail))
            else:
                log.debug("retried", count=count, action=action, reason=without_addresses(detail))

    async def _ask_quota(self) -> None:
        rate = await self._in_thread(self._transport.quota)
        if rate is not None:
            self._bucket.limit(rate)

    async def _keep_asking(self) -> None:
        while True:
            await asyncio.sleep(QUOTA_INTERVAL_S)
            await self._ask_quota()

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Let others be busy meanwhile."""
        self._busy -= 1
        self._changed.set()
        try:
            yield
        finally:
            self._busy += 1

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds() or self._failure:
            if self._failure:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()

    def _run(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            self._failure = self._failure or task.exception()
            self._changed.set()

    async def _in_thread(self, function: Callable[..., Answer], *arguments: object) -> Answer:
        future = self._threads.submit(function, *arguments)
        self._in_threads.add(future)
        future.add_done_callback(self._in_threads.discard)
        return await asyncio.wrap_future(future)


def _action(recipient: Recipient) -> str:
    return recipient.message.action


def _why(recipient: Recipient) -> str:
    return f"; the last answer: {recipient.last.detail}" if recipient.last else ""


def _back_off_s(tries: int) -> float:
    first_s, longest_s = BACK_OFF_S
    ceiling = min(longest_s, first_s * 2 ** min(tries, 10))
    return random.uniform(ceiling / 2, ceiling)  # noqa: S311 - jitter, no secret
