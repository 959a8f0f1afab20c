"""``mailroom run``: from committed tokens to settled mails, in one process.

It waits for the doorbell, claims leases, signs, sends, and settles each lease when the transport has
answered, recipient by recipient, into the ledger. What is to be tried again stays in its lease and
is due after a back-off; then whoever claims it tests again whether it may still be mailed.

Promises: at least once until the token expires. A mail is sent again only when this process dies
between the provider's answer and the settling, or when the answer was lost; both are in the ledger.
A lease that may be another worker's by now is not sent. Memory does not depend on the backlog: a
bounded number of leases is in hand. Any number of workers share a queue, and the rate.

While nothing can be sent nothing is claimed, but for one lease at a time that tries. On a signal it
claims no more, finishes what is in hand within the time it is given, and gives back the rest.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

from mailroom.actions import BY_NAME
from mailroom.calls import DEFAULT_RATE, Calls
from mailroom.database import Database
from mailroom.doorbell import Doorbell
from mailroom.errors import MailroomError, WireError
from mailroom.logs import EventLogger
from mailroom.outcomes import Outcome, Result, Scope
from mailroom.queue import LEASE_MS, Claimed, Lease, Queue
from mailroom.rate import BURST_S
from mailroom.sender_settings import SenderSettings
from mailroom.settings import CollectorSettings
from mailroom.tokens import sign
from mailroom.transports import Transport
from mailroom.wire import Message, encode_message

RENEW_INTERVAL_S: Final = LEASE_MS / 1000 / 3
LONGEST_ANSWER_S: Final = 30.0
GIVE_BACK_S: Final = 5.0
# What waits for longer is claimed anew, which tests again whether it may be mailed.
LONGEST_AT_GATE_S: Final = 1.0
MOST_CLAIMED: Final = 1000
# Before a lease is tried again, by its generation: at first, at last.
BACK_OFF_S: Final = (0.5, 60.0)

log = EventLogger("run")


class SharedRate:
    """The rate that all workers of a queue share; it is kept in the database."""

    def __init__(self, queue: Queue, ceiling: float) -> None:
        self._queue = queue
        self._ceiling = self._rate = ceiling
        self._slowing: asyncio.Task[None] | None = None

    @property
    def rate(self) -> float:
        """Recipients a second, for all workers, when one was last charged."""
        return self._rate

    @property
    def burst(self) -> int:
        """The most recipients that one charge should ask for."""
        return max(1, int(self._rate * BURST_S))

    def limit(self, ceiling: float) -> None:
        """Take another ceiling."""
        self._rate = ceiling if self._rate >= self._ceiling else min(self._rate, ceiling)
        self._ceiling = ceiling

    def slow(self) -> None:
        """Let all give way to a throttle."""
        self._slowing = asyncio.create_task(self._queue.slow(self._ceiling))

    async def take(self, recipients: int) -> None:
        """Wait until so many recipients may be sent to."""
        wait_s, self._rate = await self._queue.reserve(recipients, self._ceiling)
        await asyncio.sleep(wait_s)


class Runner:
    """One worker of a queue that sends over ``transport``."""

    def __init__(
        self, settings: CollectorSettings, sender_settings: SenderSettings, transport: Transport
    ) -> None:
        interval_s = settings.healthcheck_interval_ms / 1000
        self._database = database = Database(
            settings.database_url,
            program="mailroom run",
            answer_limit_s=min(interval_s / 3, LONGEST_ANSWER_S),
        )
        self._queue = Queue(database, name=settings.queue_name, channel=settings.channel_name)
        self._doorbell = Doorbell(
            database,
            channel=settings.channel_name,
            batch_limit=settings.batch_limit,
            batch_timeout_s=settings.batch_timeout_ms / 1000,
            check_interval_s=interval_s,
        )
        self._transport = transport
        self._keys = settings.keys
        self._batch_limit = settings.batch_limit
        self._concurrency = sender_settings.send_concurrency
        self._retry_limit = sender_settings.retry_limit
        self._shutdown_s = sender_settings.shutdown_timeout_ms / 1000
        self._changed = asyncio.Event()
        rate = SharedRate(self._queue, sender_settings.send_rate or DEFAULT_RATE)
        self._calls = Calls(transport, sender_settings, self._changed, rate)
        self._deliveries: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._retrying = asyncio.Event()
        self._stopping = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set, then finish what is in hand and give back the rest.

        Raises:
            DatabaseError: at the start, when waiting will not help.
            MailroomError: the transport cannot be used as it is set up.
        """
        working = asyncio.create_task(self._work())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                await working
            log.info("stopping", within=f"{self._shutdown_s:g}s", leases=len(self._deliveries))
            self._stopping.set()
            if self._deliveries:
                await asyncio.wait(self._deliveries, timeout=self._shutdown_s)
        finally:
            self._stopping.set()
            await _end(working, stopping)
            await _end(*self._deliveries)
            self._calls.close()
            await self._give_back()

    async def _work(self) -> None:
        await self._queue.check()
        await self._calls.start()
        log.info("started", worker=self._queue.worker)
        tasks: list[asyncio.Task[None]] = [
            asyncio.create_task(self._doorbell.listen()),
            asyncio.create_task(self._renew()),
            asyncio.create_task(self._calls.keep_asking()),
            asyncio.create_task(self._claim_all()),
        ]
        try:
            done, _ = await asyncio.wait([*tasks, self._failed], return_when=asyncio.FIRST_COMPLETED)
            for ended in done:
                await ended
        finally:
            await _end(*tasks)

    async def _claim_all(self) -> None:
        while not self._stopping.is_set():
            waited_s = await self._due()
            more, size = True, self._batch_limit
            while more and not self._stopping.is_set():
                await self._room()
                largest = self._calls.largest
                # While nothing can be sent, one lease at a time tries.
                free = self._concurrency - len(self._deliveries) if self._calls.is_open else 1
                asked = min(size, free * largest)
                self._doorbell.clear()
                leases = await self._queue.claim(asked, min(largest, asked))
                if self._stopping.is_set():
                    return
                for lease in leases:
                    task = asyncio.create_task(self._deliver(lease, waited_s))
                    self._deliveries.add(task)
                    task.add_done_callback(self._delivered)
                more = sum(len(lease.claimed) for lease in leases) >= asked
                size = min(size * 2, MOST_CLAIMED)

    async def _due(self) -> float:
        """Wait until a claim is due, for a hint or for a lease; for how long the first hint waited."""
        while True:
            self._retrying.clear()
            due = asyncio.create_task(self._doorbell.due(await self._queue.next_due()))
            retrying = asyncio.create_task(self._retrying.wait())
            try:
                await asyncio.wait({due, retrying}, return_when=asyncio.FIRST_COMPLETED)
                if due.done():
                    return await due
            finally:
                await _end(due, retrying)

    async def _room(self) -> None:
        while len(self._deliveries) >= (self._concurrency if self._calls.is_open else 1):
            self._changed.clear()
            await self._changed.wait()
        await self._calls.ready()

    def _delivered(self, task: asyncio.Task[None]) -> None:
        self._deliveries.discard(task)
        self._changed.set()
        if not task.cancelled() and (error := task.exception()) and not self._failed.done():
            self._failed.set_exception(error)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_INTERVAL_S)
            await self._queue.renew()

    async def _deliver(self, lease: Lease, waited_s: float) -> None:
        """One attempt for every token of a lease, and the settling."""
        outcomes: dict[int, Outcome | None] = {}
        messages: list[tuple[int, Message]] = []
        for claimed in lease.claimed:
            signed = self._signed(claimed)
            if isinstance(signed, Message):
                messages.append((claimed.token, signed))
            else:
                outcomes[claimed.token] = signed
        messages.sort(key=lambda pair: pair[1].action)
        attempts = [
            self._attempt(list(group), lease)
            for _, group in groupby(messages, key=lambda pair: pair[1].action)
        ]
        for found in await asyncio.gather(*attempts):
            outcomes |= found
        written = await self._queue.record(
            lease,
            outcomes,
            provider=self._transport.name,
            retry_ms=round(1000 * _back_off_s(lease.generation)),
            retry_limit=self._retry_limit,
        )
        if set(written.values()) - {"sent", "rejected"}:
            self._retrying.set()
        counts = {outcome: list(written.values()).count(outcome) for outcome in sorted(set(written.values()))}
        log.info("settled", **counts, waited=f"{waited_s:.1f}s")

    async def _attempt(
        self, messages: Sequence[tuple[int, Message]], lease: Lease
    ) -> dict[int, Outcome | None]:
        """The outcomes of one action's messages; None for those that got no leave in time."""
        outcomes: dict[int, Outcome | None] = {}
        size = self._calls.largest
        chunks = [messages[first : first + size] for first in range(0, len(messages), size)]
        while chunks:
            chunk = chunks.pop()
            # As long as the lease is ours without being renewed: a frozen process does not send late.
            attempt = await self._calls.attempt(
                [message for _, message in chunk], lease.valid_until, gate_s=LONGEST_AT_GATE_S
            )
            found = attempt.outcomes if attempt else [None] * len(chunk)
            outcomes |= {token: outcome for (token, _), outcome in zip(chunk, found, strict=True)}
            blamed = [
                pair
                for pair, outcome in zip(chunk, found, strict=True)
                if outcome and outcome.scope is Scope.CALL
            ]
            if len(blamed) > 1:  # for somebody among these: cut the call, to see for whom
                chunks += [blamed[: len(blamed) // 2], blamed[len(blamed) // 2 :]]
        return outcomes

    def _signed(self, claimed: Claimed) -> Message | Outcome | None:
        """The message to send, or why there is none; None where a newer worker may know more."""
        action = BY_NAME.get(claimed.action)
        if action is None:
            log.warning("unknown_action", token=claimed.token, action=claimed.action)
            return None
        try:
            token = sign(claimed.secret, action, keys=self._keys, code=claimed.code)
            message = Message(claimed.action, claimed.email, claimed.login, token, claimed.code)
            encode_message(message)
        except (WireError, ValueError) as error:
            log.warning("rejected", token=claimed.token, reason=error)
            return Outcome(Result.REJECTED, str(error))
        return message

    async def _give_back(self) -> None:
        try:
            if not self._database.is_down:
                async with asyncio.timeout(GIVE_BACK_S):
                    if freed := await self._queue.release():
                        log.info("given_back", tokens=freed)
        except (TimeoutError, MailroomError) as error:
            log.warning("not_given_back", due_within=f"{LEASE_MS / 1000:.0f}s", reason=type(error).__name__)
        finally:
            await self._queue.close()


def _back_off_s(generation: int) -> float:
    first_s, longest_s = BACK_OFF_S
    ceiling = min(longest_s, first_s * 2 ** min(generation - 1, 10))
    return random.uniform(ceiling / 2, ceiling)  # noqa: S311 - jitter, no secret


async def _end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
