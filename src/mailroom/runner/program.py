"""``mailroom run``: mails committed tokens and settles them, in one process.

It waits until the listener reports that a claim is due, claims leases, signs, sends, and settles each
lease with the transport's answers, recipient by recipient, into the ledger. Tokens to be tried again
stay in their lease, which is due after a back-off; the next claim of it, by any worker, checks again
whether each may still be mailed.

Promises: each mail is sent at least once, until its token expires. It is sent again only when this
process dies between the provider's answer and the settling, or when the answer was lost; the ledger
shows both. A lease that another worker may have taken over is not sent. Memory does not depend on the
backlog: for every two leases being sent, one more is in hand, and all of them are at most a second of the
rate, so that a more urgent mail is not behind them for long. Any number of workers share the queue and the
rate.

While nothing can be sent, it claims one lease at a time, to try whether the trouble is over: in turn one of
new tokens and one that is due again, since the trouble may be that of a few recipients. On a signal it claims
no more, finishes what is in hand within the shutdown time, renewing its leases, and releases the rest. Mails
in a call that is still under way then are recorded as unknown, since the provider may have accepted them, and
are due again.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mailroom.concurrency import before, end, first, in_thread
from mailroom.database.session import Session
from mailroom.errors import MailroomError
from mailroom.logs import EventLogger
from mailroom.queue.connect import keep_renewing, open_worker
from mailroom.queue.known_actions import KnownActions
from mailroom.queue.lease import LEASE_MS, Lease, messages_in
from mailroom.runner import health, ledger
from mailroom.runner.delivery import LeaseDelivery
from mailroom.runner.readiness import SILENCE_S, Readiness
from mailroom.runner.shared_rate import SharedRate
from mailroom.sender.calls import ACCOUNT
from mailroom.sender.failover import open_calls
from mailroom.settings.events import EventsSettings
from mailroom.settings.transports import SES_TRANSPORTS
from mailroom.settings.worker import RunSettings
from mailroom.transports.transport import Transport

if TYPE_CHECKING:
    from mailroom.events.program import Reader
    from mailroom.runner.metrics import Metrics

HEARTBEAT_S: Final = 5.0
GIVE_BACK_S: Final = 5.0
# A mail server may be slow to answer QUIT.
CLOSE_S: Final = 2.0
MAX_CLAIMED: Final = 1000
# If no call has tried a breaker for this time after a try was due, no mail is left that could try it.
UNTRIED_S: Final = 120.0

Value = TypeVar("Value")

log = EventLogger("run")


class Runner:
    """One worker of a queue that sends over the first of ``transports``, or the second while that cannot.

    Attributes:
        started: is set once the database and the transport were checked.
    """

    def __init__(self, settings: RunSettings, transports: Sequence[Transport]) -> None:
        collector, sender = settings.collector, settings.sender
        self._health = settings.health
        worker = open_worker(
            collector, "mailroom run", 1.5 * SILENCE_S if settings.health.address else float("inf")
        )
        self._database, self._queue, self._listener = worker
        self._batch_limit = collector.batch_limit
        # More leases than are being sent, so that one claim feeds several calls.
        self._max_in_hand = sender.send_concurrency + sender.send_concurrency // 2
        self._shutdown_s = sender.shutdown_timeout_ms / 1000
        self._changed = asyncio.Event()
        self._metrics = _metrics() if settings.health.address else None
        self._calls = open_calls(
            transports,
            sender,
            self._changed,
            lambda name, ceiling: SharedRate(self._queue, ceiling, name),
            self._metrics.called if self._metrics else None,
        )
        self._known = KnownActions(self._queue)
        self._events = self._reader(settings.events) if settings.events.queue else None
        self._delivery = LeaseDelivery(
            self._queue,
            self._calls,
            self._metrics,
            provider=transports[0].name,
            keys=collector.keys,
            known=self._known,
            # Without a configuration set SES publishes no events.
            waits_for_events=self._events is not None
            and transports[0].name in SES_TRANSPORTS
            and bool(sender.config_set),
        )
        self._readiness = self._metrics and Readiness(
            worker, self._calls, self._metrics, self._state, self._events
        )
        self._deliveries: set[asyncio.Task[None]] = set()
        self._tries_new = False  # the last claim of a time of trouble
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._retrying = asyncio.Event()
        self.started = asyncio.Event()
        self._stopping = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set, then finish what is in hand and release the rest.

        Raises:
            DatabaseError: at the start, for an error that retrying cannot fix.
            MailroomError: the transport's configuration cannot be used, or health cannot be served.
        """
        serving = []
        if self._health.address and self._readiness:
            listening = health.listen_on(self._health.address)
            serving.append(asyncio.create_task(self._serve(listening, self._readiness)))
        working = asyncio.create_task(self._work())
        reading = asyncio.create_task(self._read_events())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({working, stopping, *serving}, return_when=asyncio.FIRST_COMPLETED)
            for ended in (working, *serving):
                if ended.done():
                    await ended
            log.info("stopping", within=f"{self._shutdown_s:g}s", leases=len(self._deliveries))
            self._stopping.set()
            await asyncio.wait({working, reading}, timeout=self._shutdown_s)
            if working.done():
                await working
        finally:
            self._stopping.set()
            await end(working, stopping, reading)
            await end(*self._deliveries)
            await self._give_back()
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await in_thread(self._calls.close)
            await end(*serving)
            if self._readiness:
                await self._readiness.close()

    async def _work(self) -> None:
        """Work until the signal has come and nothing is in hand."""
        await self._unless_stopping(self._start())
        if self.started.is_set():
            await first(
                self._mail(),
                keep_renewing(self._queue),
                self._keep_reporting(),
                self._keep_resuming(),
                self._calls.keep_asking(),
                failed=self._failed,
            )

    async def _start(self) -> None:
        await self._queue.check()
        await self._learn_actions()
        await self._calls.start()
        self.started.set()
        log.info("started", worker=self._queue.worker)

    async def _mail(self) -> None:
        await first(self._listener.run(), self._claim_all())
        while self._deliveries:
            await asyncio.wait(self._deliveries)

    async def _claim_all(self) -> None:
        """Claim and deliver until the signal comes."""
        while (waited_s := await self._unless_stopping(self._due())) is not None:
            more, size = True, MAX_CLAIMED if self._listener.is_busy else self._batch_limit
            while more:
                free = await self._unless_stopping(self._room())
                if free is None or self._stopping.is_set():
                    return
                lease_tokens = self._lease_tokens
                asked = min(size, free * lease_tokens)
                self._listener.clear()
                began = time.monotonic()
                leases = await self._unless_stopping(self._claim(asked, min(lease_tokens, asked)))
                if leases is None or self._stopping.is_set():
                    await self._unclaim(leases or [])
                    return
                claimed = messages_in(leases)
                if self._metrics:
                    self._metrics.claimed(claimed, time.monotonic() - began)
                for lease in leases:
                    task = asyncio.create_task(self._deliver(lease, waited_s))
                    self._deliveries.add(task)
                    task.add_done_callback(self._delivered)
                more = claimed >= asked
                self._listener.claimed(claimed, more=more)
                size = min(size * 2, MAX_CLAIMED)

    async def _claim(self, tokens: int, lease_tokens: int) -> list[Lease]:
        self._tries_new = not (self._tries_new or self._calls.can_send)
        if self._tries_new and (leases := await self._queue.claim(tokens, lease_tokens, only_new=True)):
            return leases
        return await self._queue.claim(tokens, lease_tokens)

    async def _unclaim(self, leases: Sequence[Lease]) -> None:
        """Release what was being claimed when the signal came, even if the claim's answer is missing."""
        if not self._database.is_down:
            await self._queue.release(keep=[lease for lease in self._queue.held if lease not in leases])

    async def _due(self) -> float:
        """Wait until a claim is due; returns for how many seconds the first hint has waited."""
        while True:
            self._retrying.clear()
            due_s = await self._queue.next_due()
            if due_s is None and not self._deliveries:
                self._calls.reset_if_untried(0)
            # A delivery that is to be retried may be due sooner.
            waited_s = await before(self._listener.due(due_s), self._retrying.wait())
            if waited_s is not None:
                return waited_s

    @property
    def _max_leases(self) -> int:
        """The most leases in hand: as many as recipients may be mailed in a second, or fewer."""
        return min(self._max_in_hand, max(2, int(self._calls.rate)))

    @property
    def _lease_tokens(self) -> int:
        """The most tokens in a lease, so that all leases in hand are at most a second of the rate."""
        if self._calls.wants_probe:
            return 1
        return min(self._calls.largest, max(1, int(self._calls.rate / self._max_leases)))

    async def _room(self) -> int:
        """Wait until more leases may be in hand; returns how many."""
        while True:
            await self._calls.ready()
            # While nothing can be sent, one lease at a time is claimed, to try. Else one claim feeds several
            # calls.
            limit = (self._max_leases if self._calls.can_send else 1) + self._calls.probing
            if (free := limit - len(self._deliveries)) >= max(limit // 3, 1):
                return free
            self._changed.clear()
            await self._changed.wait()

    async def _unless_stopping(self, work: Coroutine[Any, Any, Value]) -> Value | None:
        """What the work returns; None when the signal comes first, which cancels the work."""
        return await before(work, self._stopping.wait())

    def _delivered(self, task: asyncio.Task[None]) -> None:
        self._deliveries.discard(task)
        self._changed.set()
        if not task.cancelled() and (error := task.exception()) and not self._failed.done():
            self._failed.set_exception(error)

    async def _keep_reporting(self) -> None:
        while True:
            self._calls.reset_if_untried(UNTRIED_S)
            troubles = [self._calls.detour] if self._calls.detour else []
            troubles += [
                f"{name}: {why}" if name != ACCOUNT else why
                for name, (why, _) in self._calls.troubles.items()
            ]
            unread = self._events.trouble if self._events else None
            await ledger.heartbeat(self._queue, "; ".join(troubles), unread.why if unread else "")
            await self._learn_actions()
            await asyncio.sleep(HEARTBEAT_S)

    async def _learn_actions(self) -> None:
        await self._known.refresh()
        if self._metrics:
            self._metrics.begin(await self._known.covering(()))

    async def _keep_resuming(self) -> None:
        """Make what was put off due when it may be sent again; also at the start, for a worker that ended."""
        while True:
            if await self._queue.resume():
                self._retrying.set()
            self._calls.resumed.clear()
            await self._calls.resumed.wait()

    async def _deliver(self, lease: Lease, waited_s: float) -> None:
        if await self._delivery.deliver(lease, waited_s):
            self._retrying.set()

    def _reader(self, settings: EventsSettings) -> Reader:
        # Imported when needed, so that SMTP works without botocore.
        from mailroom.events.program import Reader, open_queue

        counted = [self._metrics.read] if self._metrics else []
        return Reader(open_queue(settings), Session(self._database), *counted)

    async def _read_events(self) -> None:
        """Read SES's events, if they are read, until the signal comes."""
        if self._events:
            await self._unless_stopping(self.started.wait())
            await self._events.keep_running(self._stopping)

    async def _serve(self, listening: socket.socket, readiness: Readiness) -> None:
        await health.serve(listening, readiness.faults, readiness.warnings, readiness.exposition)

    def _state(self) -> str:
        if self._stopping.is_set():
            return "it is stopping"
        return "" if self.started.is_set() else "it has not started yet"

    async def _give_back(self) -> None:
        try:
            # Before the start was over nothing was claimed, and no heartbeat was sent.
            if self.started.is_set() and not self._database.is_down:
                async with asyncio.timeout(GIVE_BACK_S):
                    await ledger.leave(self._queue)
                    cut_off = await self._delivery.give_back()
                    if cut_off:
                        await self._queue.ring(cut_off)
                    if freed := cut_off + await self._queue.release():
                        log.info("leases_released", tokens=freed)
        except (TimeoutError, MailroomError) as error:
            log.warning(
                "leases_not_released", due_within=f"{LEASE_MS / 1000:.0f}s", reason=type(error).__name__
            )
        finally:
            await self._queue.close()


def _metrics() -> Metrics:
    # Imported when needed, since they take a thirtieth of the memory.
    from mailroom.runner.metrics import Metrics

    return Metrics()
