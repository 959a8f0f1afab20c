"""One attempt for some messages, when everything allows it: the gates, the rate, a free thread.

Two gates stand before a call: the account's and the action's. They close when an answer says that
everybody would get the same, and while one is closed, one call at a time looks whether the trouble
is over.

Promises: an attempt is one call, and gives one outcome for each message. Does not retry.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Final, NamedTuple

from mailroom.actions import ACTIONS
from mailroom.answers import Answer, Result, Scope
from mailroom.concurrency import in_thread
from mailroom.logs import EventLogger, without_addresses
from mailroom.sender.breaker import Breaker
from mailroom.sender.rate import Bucket, Rate
from mailroom.settings.sender import SenderSettings
from mailroom.transports.transport import CONNECT_TIMEOUT_S, Transport
from mailroom.wire import Message

# What SES allows an account that has just left the sandbox.
DEFAULT_RATE: Final = 14.0
QUOTA_INTERVAL_S: Final = 300.0
MAX_WAITS: Final = 4
ACCOUNT: Final = ""

log = EventLogger("sender")


class Attempt(NamedTuple):
    """What came of it.

    Attributes:
        outcomes: one for each message, in their order.
        gated: whether a gate was closed by it, which then decides when to try again.
    """

    outcomes: list[Answer]
    gated: bool


class Calls:
    """The way to a transport.

    Args:
        transport: what sends.
        settings: rate and concurrency.
        changed: is set whenever ``is_open`` or ``waiting`` may have changed.
        bucket: the rate that others have a share in; one of its own for None.
        called: is told of each call: the action, the outcomes, how many seconds it took.

    Attributes:
        waiting: how many attempts wait at a closed gate.
        answers: how many answers of each class recipients got.
    """

    def __init__(
        self,
        transport: Transport,
        settings: SenderSettings,
        changed: asyncio.Event,
        bucket: Rate | None = None,
        called: Callable[[str, Sequence[Answer], float], None] | None = None,
    ) -> None:
        self._transport = transport
        self._asks_quota = settings.send_rate is None
        self._bucket: Rate = bucket or Bucket(settings.send_rate or DEFAULT_RATE)
        self._gate = Breaker("account")
        self._action_gates = {action.name: Breaker(action.name) for action in ACTIONS}
        self._slots = asyncio.Semaphore(settings.send_concurrency)
        # A call has several waits, each with a limit of its own; together they have this one.
        self._longest_s = CONNECT_TIMEOUT_S + MAX_WAITS * settings.send_timeout_ms / 1000
        self._in_calls: set[int] = set()  # of id(): one mail may be asked for twice
        self._changed = changed
        self._called = called
        self.waiting = 0
        self.answers: Counter[Result] = Counter()

    @property
    def is_open(self) -> bool:
        """Whether nothing is known that would keep every mail from going out."""
        return self._gate.is_open and any(gate.is_open for gate in self._action_gates.values())

    @property
    def is_clear(self) -> bool:
        """Whether nothing is known that would keep any mail from going out."""
        return self._gate.is_open and all(gate.is_open for gate in self._action_gates.values())

    @property
    def troubles(self) -> dict[str, tuple[str, float]]:
        """What keeps mail from going out, and for how many seconds it has.

        Of every mail under ``ACCOUNT``, of an action's under its name.
        """
        gates = {ACCOUNT: self._gate} | self._action_gates
        return {name: trouble for name, gate in gates.items() if (trouble := gate.trouble)}

    @property
    def largest(self) -> int:
        """The most messages that one attempt should have."""
        return min(self._transport.recipients_per_call, self._bucket.burst)

    def is_under_way(self, message: Message) -> bool:
        """Whether a call for it has begun and is not answered."""
        return id(message) in self._in_calls

    async def start(self) -> None:
        """Check the transport and ask for its rate.

        Raises:
            MailroomError: mails would be dropped for the way the transport is set up.
        """
        with suppress(TimeoutError):  # it is no answer that would say more
            async with asyncio.timeout(self._longest_s):
                await in_thread(self._transport.check)
        if self._asks_quota:
            await self._ask_quota()
        log.info("started", transport=self._transport.name, rate=f"{self._bucket.rate:.10g}/s")

    async def keep_asking(self) -> None:
        """Follow the provider's rate, for ever, unless it was set."""
        while True:
            await asyncio.sleep(QUOTA_INTERVAL_S)
            if self._asks_quota:
                await self._ask_quota()

    async def ready(self) -> None:
        """Wait until the account's gate is open, or time for the next try."""
        await self._gate.ready()

    def lapse(self, untried_s: float) -> None:
        """Forget the troubles that nobody looked at again for so long after it was time to."""
        for gate in (self._gate, *self._action_gates.values()):
            gate.lapse(untried_s)
        self._changed.set()

    async def attempt(
        self, messages: Sequence[Message], give_up_at: float, *, gate_s: float = math.inf
    ) -> Attempt | None:
        """Send messages of one action, each in one attempt; None when there was no leave in time.

        Args:
            messages: at most ``largest`` of them.
            give_up_at: of ``time.monotonic``; a call that has begun by then is waited for.
            gate_s: at a closed gate it waits for so many seconds, at most.
        """
        action = messages[0].action
        gates = (self._gate, self._action_gates[action])
        outcomes = await self._call(messages, gates, give_up_at, gate_s)
        return None if outcomes is None else Attempt(outcomes, self._learn(action, outcomes))

    def close(self) -> None:
        """Let go of the transport, unless a thread is still at it."""
        if not self._in_calls:
            self._transport.close()

    async def _call(
        self, messages: Sequence[Message], gates: Sequence[Breaker], give_up_at: float, gate_s: float
    ) -> list[Answer] | None:
        loop = asyncio.get_running_loop()
        last = loop.time() + max(give_up_at - time.monotonic(), 0)
        try:
            async with asyncio.timeout(None) as limit:
                while True:
                    async with AsyncExitStack() as stack:
                        limit.reschedule(min(last, loop.time() + gate_s))
                        leave = [await self._turn(gate, stack) for gate in gates]
                        limit.reschedule(last)
                        await stack.enter_async_context(self._slots)
                        if not all(tries or gate.is_open for tries, gate in zip(leave, gates, strict=True)):
                            continue
                        await self._bucket.take(len(messages), give_up_at)
                        if time.monotonic() >= give_up_at:  # after a sleep of the whole process
                            return None
                        limit.reschedule(None)
                        return await self._send(messages)
        except TimeoutError:
            return None

    async def _turn(self, gate: Breaker, stack: AsyncExitStack) -> bool:
        self.waiting += 1
        self._changed.set()
        try:
            return await stack.enter_async_context(gate.turn())
        finally:
            self.waiting -= 1

    async def _send(self, messages: Sequence[Message]) -> list[Answer]:
        started = time.monotonic()
        self._in_calls.update(map(id, messages))
        # Cancelled, it leaves them there: nobody knows what will have become of them.
        try:
            async with asyncio.timeout(self._longest_s):
                outcomes = await in_thread(self._transport.send, messages)
        except TimeoutError:
            detail = f"no whole answer within {self._longest_s:g} s"
            outcomes = [Answer(Result.UNKNOWN, detail, scope=Scope.ACCOUNT)] * len(messages)
        self._in_calls.difference_update(map(id, messages))
        self.answers.update(outcome.result for outcome in outcomes)
        took_s = time.monotonic() - started
        if self._called:
            self._called(messages[0].action, outcomes, took_s)
        self._tell(messages[0].action, outcomes, took_s)
        return outcomes

    def _learn(self, action: str, outcomes: Sequence[Answer]) -> bool:
        """Slow down, and open or close gates, by what a call's answer says; True if one closed."""
        if any(outcome.result is Result.THROTTLED for outcome in outcomes):
            self._bucket.slow()
        if all(one.is_ours for one in outcomes):
            return False
        everybodys = [one for one in outcomes if one.scope in {Scope.ACTION, Scope.ACCOUNT}]
        closes = bool(everybodys) and all(one.result is not Result.SENT for one in outcomes)
        if not closes:
            self._gate.succeeded()
            self._action_gates[action].succeeded()
        elif everybodys[0].scope is Scope.ACTION:
            self._gate.succeeded()
            self._action_gates[action].close(everybodys[0])
        else:
            self._gate.close(everybodys[0])
        self._changed.set()
        return closes

    def _tell(self, action: str, outcomes: Sequence[Answer], took_s: float) -> None:
        kinds = Counter((outcome.result, outcome.scope) for outcome in outcomes)
        for (result, scope), count in kinds.items():
            detail = next(one.detail for one in outcomes if (one.result, one.scope) == (result, scope))
            why = without_addresses(detail)
            if count > 1 and scope is Scope.CALL:
                log.info("halved", count=count, action=action, reason=why)
            elif result is Result.SENT:
                log.info("sent", count=count, action=action, took=f"{took_s:.2f}s")
            elif result is Result.REJECTED:
                log.warning("rejected", count=count, action=action, reason=why)
            elif result is Result.UNKNOWN and self._gate.is_open:  # else the gate tells
                log.warning("unknown", count=count, action=action, reason=why)
            else:
                log.debug("retried", count=count, action=action, reason=why)

    async def _ask_quota(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._longest_s):
                rate = await in_thread(self._transport.quota)
                if rate is not None:
                    self._bucket.limit(rate)
