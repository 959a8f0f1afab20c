"""Makes one attempt for a few messages: waits for the breakers, a free thread and the rate, then calls once.

Two breakers stand before a call: the account's and the action's. An answer trips one when every other
mail of the account, or of the action, would get the same answer. While one is tripped, one call at a
time tries whether the trouble is over. Refusals in unknown words are doubted first; see ``brake``.

Calls that pass the breakers wait in a line, in the order of their lanes. Only the first one takes a thread
and waits for the rate, so a more urgent call that comes meanwhile is the next.

Promises: an attempt is one call and yields one answer for each message. Does not retry.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from mailroom.action_table import LANES
from mailroom.answers import Answer, Result, Scope
from mailroom.concurrency import RankedLock
from mailroom.logs import EventLogger, without_addresses
from mailroom.sender.attempt import Attempt
from mailroom.sender.brake import Brake
from mailroom.sender.breaker import Breaker
from mailroom.sender.provider import Provider
from mailroom.sender.rate import Bucket, Rate
from mailroom.settings.sender import SenderSettings
from mailroom.transports.transport import DEFAULT_RATE, Transport
from mailroom.wire import Message

QUOTA_INTERVAL_S: Final = 300.0
# After a check found that no mail can be sent, it is repeated in this interval.
CHECK_INTERVAL_S: Final = 10.0
ACCOUNT: Final = ""
CUT_OFF: Final = "stopped before it was answered; it may have been accepted"

log = EventLogger("sender")


class Calls:
    """Calls a transport, within a rate and behind breakers.

    Args:
        transport: the transport to call.
        settings: rate and concurrency.
        changed: is set whenever ``can_send`` or ``waiting`` may have changed.
        bucket: a rate that is shared with other workers; by default its own rate.
        called: is called after each call with the action, the answers and the seconds it took.
        resumed: is set when a breaker was reset.
        account: what the log calls the account's breaker.

    Attributes:
        name: the transport's.
        unable: why no mail can be sent, as the last check of the transport found; empty for no reason.
        waiting: how many attempts wait at a tripped breaker.
        paused: how many messages wait at the breakers of their actions.
        resumed: see above.
        answers: how many answers of each class recipients got.
        moved: is set when mail begins to go by another transport: never, as there is one. See ``failover``.
        moves_in_s: in how many seconds that happens if nothing changes.
        probing: how many attempts find out whether another transport can send.
        wants_probe: whether an attempt with one message is to find out whether another transport can send.
        detour: why mail goes by another transport.
        lost_wait_s: for how long a recipient waits, at least, after its answer was lost.
    """

    moves_in_s: float = math.inf
    probing = 0
    wants_probe = False
    detour = ""
    lost_wait_s = 0.0

    def __init__(
        self,
        transport: Transport,
        settings: SenderSettings,
        changed: asyncio.Event,
        bucket: Rate | None = None,
        called: Callable[[str, Sequence[Answer], float], None] | None = None,
        *,
        resumed: asyncio.Event | None = None,
        account: str = "account",
    ) -> None:
        self._provider = Provider(transport, settings.send_timeout_ms / 1000)
        self.name = transport.name
        self._asks_quota = settings.send_rate is None
        self._knows_quota = False
        self._bucket: Rate = bucket or Bucket(settings.send_rate or DEFAULT_RATE)
        self._brake = Brake()
        self.resumed = resumed or asyncio.Event()
        self.moved = asyncio.Event()
        self._breaker = Breaker(account, self.resumed.set)
        self._action_breakers: dict[str, Breaker] = {}  # made with the first mail of each
        self._line = RankedLock()
        self._in_line = 0  # recipients
        self._slots = asyncio.Semaphore(settings.send_concurrency)
        self._changed = changed
        self._called = called
        self.unable = ""
        self.waiting = self.paused = 0
        self.answers: Counter[Result] = Counter()

    @property
    def can_send(self) -> bool:
        """Whether the account's breaker lets mails through."""
        return not self._breaker.is_tripped

    @property
    def trouble(self) -> tuple[str, float] | None:
        """Why no mail can be sent, and for how many seconds; None when it can."""
        return self._breaker.trouble

    @property
    def troubles(self) -> dict[str, tuple[str, float]]:
        """Why mail cannot be sent, and for how many seconds it could not.

        All mail under the key ``ACCOUNT``, one action's mail under the action's name.
        """
        breakers = {ACCOUNT: self._breaker} | self._action_breakers
        return {name: trouble for name, breaker in breakers.items() if (trouble := breaker.trouble)}

    @property
    def rate(self) -> float:
        """Recipients a second at present."""
        return self._bucket.rate

    @property
    def recipients_per_call(self) -> int:
        """The most messages that one call takes."""
        return self._provider.recipients_per_call

    @property
    def largest(self) -> int:
        """The most messages that one attempt should have."""
        return min(self.recipients_per_call, self._bucket.burst)

    def in_time(self, seconds: float) -> int:
        """How many messages of one attempt the rate allows in a time; one at least."""
        return max(1, min(self.largest, int(seconds * self._bucket.rate)))

    @property
    def line_s(self) -> float:
        """For how many seconds of the rate recipients wait in the line, without its head."""
        return self._in_line / self._bucket.rate

    def is_under_way(self, message: Message) -> bool:
        """Whether a call for it has begun and has not been answered."""
        return self._provider.is_under_way(message)

    def cut_off(self, message: Message) -> Answer | None:
        """The answer to a message whose call is under way and is not waited for; None for any other."""
        return Answer(Result.UNKNOWN, CUT_OFF) if self.is_under_way(message) else None

    def is_held(self, message: Message) -> bool:
        """Whether its recipient was refused in words that pause all mail."""
        return self._brake.is_on and self._brake.holds(message)

    def try_in_s(self, action: str) -> float | None:
        """In how many seconds a mail of a paused action may try whether it can be sent again.

        0 while another mail tries; None when a call may be made now.
        """
        return self._breaker_of(action).try_in_s

    @property
    def account_try_in_s(self) -> float | None:
        """As ``try_in_s``, for a mail that may try whether any mail can be sent again."""
        return self._breaker.try_in_s

    def is_paused(self, action: str) -> bool:
        """Whether the action's own breaker is tripped."""
        return self._breaker_of(action).is_tripped

    async def start(self) -> None:
        """Check the transport and ask for its rate.

        Raises:
            MailroomError: the transport's configuration would lose mails.
        """
        await self._check()
        if self._asks_quota and not self.unable:
            await self._ask_quota()
        log.info("started", transport=self.name, rate=f"{self._bucket.rate:.10g}/s")

    async def keep_asking(self) -> None:
        """Until cancelled: check the transport again while it is unable, and ask for its rate at intervals.

        Raises:
            MailroomError: see ``start``.
        """
        while True:
            soon = self.unable or (self._asks_quota and not self._knows_quota)
            await asyncio.sleep(CHECK_INTERVAL_S if soon else QUOTA_INTERVAL_S)
            if self.unable:
                await self._check()
            if self._asks_quota and not self.unable:
                await self._ask_quota()

    async def ready(self) -> None:
        """Wait until the account's breaker is reset, or until its next try is due."""
        await self._breaker.ready()

    def reset_if_untried(self, untried_s: float) -> None:
        """Reset the breakers that no call has tried for ``untried_s`` seconds after a try was due."""
        own = [] if self.unable else [self._breaker]
        for breaker in (*own, *self._action_breakers.values()):
            breaker.reset_if_untried(untried_s)
        self._changed.set()

    async def attempt(
        self,
        messages: Sequence[Message],
        give_up_at: float,
        *,
        lane: str,
        max_wait_s: float = math.inf,
        is_retry: bool = False,  # noqa: ARG002 - it matters where there are two transports
    ) -> Attempt | None:
        """Send messages of one action in one call; None when no call could begin in time.

        Args:
            messages: at most ``largest`` of them.
            give_up_at: of ``time.monotonic``; a call that has begun by then is waited for.
            lane: urgent, normal or bulk; where in the line the call waits.
            max_wait_s: how long to wait at a tripped breaker.
            is_retry: whether one of them was tried before.
        """
        action = messages[0].action.name
        answers = await self._call(
            messages, self._breaker_of(action), LANES.index(lane), give_up_at, max_wait_s
        )
        if answers is None:
            return None
        tripped = self._learn(action, answers)
        return Attempt(answers, tripped and not any(map(self.is_held, messages)))

    def close(self) -> None:
        """Close the transport, unless a thread still uses it."""
        self._provider.close()

    async def _check(self) -> None:
        try:
            trouble = await self._provider.check()
        except TimeoutError:
            return  # the first call reports it
        if trouble:
            self._breaker.trip(trouble)
        elif self.unable:
            self._breaker.succeeded()
        self.unable = without_addresses(trouble.detail) if trouble else ""
        self._changed.set()

    async def _call(
        self,
        messages: Sequence[Message],
        own_breaker: Breaker,
        rank: int,
        give_up_at: float,
        max_wait_s: float,
    ) -> list[Answer] | None:
        loop = asyncio.get_running_loop()
        last = loop.time() + max(give_up_at - time.monotonic(), 0)
        try:
            async with asyncio.timeout(None) as limit:
                while True:
                    async with AsyncExitStack() as stack:
                        limit.reschedule(min(last, loop.time() + max_wait_s))
                        is_try = await self._turn(self._breaker, stack)
                        self.paused += len(messages)
                        try:
                            is_own_try = await self._turn(own_breaker, stack)
                        finally:
                            self.paused -= len(messages)
                        limit.reschedule(last)
                        async with self._turn_in_line(rank, len(messages)):
                            await stack.enter_async_context(self._slots)
                            # Another call may have tripped a breaker since.
                            if (self._breaker.is_tripped and not is_try) or (
                                own_breaker.is_tripped and not is_own_try
                            ):
                                continue
                            await self._bucket.take(len(messages), give_up_at, behind=self._in_line)
                        if time.monotonic() >= give_up_at:  # the process was suspended
                            return None
                        limit.reschedule(None)
                        return await self._send(messages)
        except TimeoutError:
            return None

    async def _turn(self, breaker: Breaker, stack: AsyncExitStack) -> bool:
        self.waiting += 1
        self._changed.set()
        try:
            return await stack.enter_async_context(breaker.turn())
        finally:
            self.waiting -= 1

    @asynccontextmanager
    async def _turn_in_line(self, rank: int, recipients: int) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            self._in_line += recipients
            try:
                await stack.enter_async_context(self._line.turn(rank))
            finally:
                self._in_line -= recipients
                self._changed.set()
            yield

    async def _send(self, messages: Sequence[Message]) -> list[Answer]:
        started = time.monotonic()
        answers = await self._provider.send(messages)
        answers = self._brake.judge(messages, answers, started)
        self.answers.update(answer.result for answer in answers)
        took_s = time.monotonic() - started
        if self._called:
            self._called(messages[0].action.name, answers, took_s)
        self._log_answers(messages[0].action.name, answers, took_s)
        return answers

    def _learn(self, action: str, answers: Sequence[Answer]) -> bool:
        """Adapt the rate and the breakers to a call's answers; True if one tripped."""
        if throttled := sum(answer.result is Result.THROTTLED for answer in answers):
            self._bucket.throttle(throttled)
        if all(answer.is_ours for answer in answers):
            return False
        general = [one for one in answers if one.scope in {Scope.ACTION, Scope.ACCOUNT}]
        trips = bool(general) and all(answer.result is not Result.SENT for answer in answers)
        if not trips and all(answer.is_ours or answer.result is Result.UNKNOWN for answer in answers):
            return False  # a lost answer is no sign that others are not lost
        if not trips:
            self.unable = ""
            self._succeeded()
            self._breaker_of(action).succeeded()
        elif general[0].scope is Scope.ACTION:
            self._succeeded()
            trips = self._breaker_of(action).trip(general[0])
        else:
            trips = self._breaker.trip(general[0])
        self._changed.set()
        return trips

    def _breaker_of(self, action: str) -> Breaker:
        if action not in self._action_breakers:
            self._action_breakers[action] = Breaker(action, self.resumed.set)
        return self._action_breakers[action]

    def _succeeded(self) -> None:
        """Reset the account's breaker, unless the brake tripped it: then only an accepted mail does."""
        if not self._brake.is_on:
            self._breaker.succeeded()

    def _log_answers(self, action: str, answers: Sequence[Answer], took_s: float) -> None:
        kinds = Counter((answer.result, answer.scope) for answer in answers)
        for (result, scope), count in kinds.items():
            detail = next(one.detail for one in answers if (one.result, one.scope) == (result, scope))
            why = without_addresses(detail)
            if count > 1 and scope is Scope.CALL:
                log.info("halved", count=count, action=action, reason=why)
            elif result is Result.SENT:
                log.info("sent", count=count, action=action, took=f"{took_s:.2f}s")
            elif result is Result.REJECTED:
                log.warning("rejected", count=count, action=action, reason=why)
            elif result is Result.UNKNOWN and not self._breaker.is_tripped:  # else the breaker logs it
                log.warning("unknown", count=count, action=action, reason=why)
            else:
                log.debug("retried", count=count, action=action, reason=why)

    async def _ask_quota(self) -> None:
        rate = await self._provider.quota()
        if rate is not None:
            self._knows_quota = True
            self._bucket.limit(rate)
