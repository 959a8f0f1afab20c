"""The collector: claims tokens and writes them, signed, in batches to standard output.

It waits until the listener reports that a claim is due. Then it claims, signs and writes until a claim
comes back short. It settles a lease once its lines are written and, for a pipe, read. A claim is at most what
the reader takes in ``CLAIM_S``, so that a more urgent mail is not behind much that was claimed.

Promises: a token is settled only after its line was written completely and read from the pipe. A token
that was claimed and not read is released, or due when its lease expires. While a slow reader delays a
line, the leases are renewed and no transaction is open. A lease that another worker may have taken over is
not written.
After a ``kill -9`` at most ``REPEATED_TOKENS`` tokens, or one batch where that is more, are written again.

A token that no line can hold is settled and logged by its id. One that five fields cannot carry, and one
of an action that the database has and this worker does not know, stays in the queue until it expires.
Neither affects the others.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from mailroom.collector.outgoing import LeftBehind, Outgoing
from mailroom.collector.stdout import Output, reader_gone
from mailroom.concurrency import end, first
from mailroom.errors import DatabaseUnavailable, MailroomError, OutputClosed
from mailroom.logs import EventLogger
from mailroom.queue.connect import keep_renewing, open_worker
from mailroom.queue.known_actions import INTERVAL_S, KnownActions
from mailroom.queue.lease import LEASE_MS, Lease, messages_in
from mailroom.settings.collector import CollectorSettings

REPEATED_TOKENS: Final = 200
MAX_CLAIM_TOKENS: Final = 2000
CLAIM_S: Final = 0.1
# How much the last lease changes the pace that was measured.
PACE_SHARE: Final = 0.2
SHUTDOWN_S: Final = 10.0

log = EventLogger("collector")


class Collector:
    """One worker of a queue that writes to ``output``."""

    def __init__(self, settings: CollectorSettings, output: Output) -> None:
        self._database, self._queue, self._listener = open_worker(settings, "mailroom collector")
        self._output = output
        self._keys = settings.keys
        self._known = KnownActions(self._queue)
        self._batch_limit = settings.batch_limit
        self._line_format = settings.line_format
        self._left_behind = LeftBehind()
        # A lease is settled as a whole, after complete batches, before the next lease is written. So a
        # crash repeats one lease.
        self._lease_tokens = max(REPEATED_TOKENS // self._batch_limit, 1) * self._batch_limit
        self._largest_claim = self._batch_limit  # as the reader's pace allows
        self._per_message_s = 0.0  # for which the reader takes a message
        self._outgoing: Outgoing | None = None
        self._writing = False
        self._stopping = False

    async def run(self, stop: asyncio.Event) -> None:
        """Collect until ``stop`` is set, then finish the line in hand and release the rest.

        Raises:
            OutputClosed: the reader is gone.
            DatabaseError: at the start, for an error that retrying cannot fix.
        """
        working = asyncio.create_task(self._work())
        stopping = asyncio.create_task(stop.wait())
        closed = asyncio.create_task(self._output.closed())
        try:
            await asyncio.wait({working, stopping, closed}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                await working
            elif closed.done():
                raise reader_gone()
            else:
                await self._finish(working)
        finally:
            await end(working, stopping, closed)
            await self._give_back()

    async def _work(self) -> None:
        await self._queue.check()
        log.info("started", worker=self._queue.worker)
        await first(self._listener.run(), keep_renewing(self._queue), self._collect())

    async def _collect(self) -> None:
        while not self._stopping:
            waited_s = await self._listener.due(await self._queue.next_due())
            await self._drain(waited_s)

    async def _drain(self, waited_s: float) -> None:
        """Claim until a claim comes back short, as much each time as the reader's pace allows.

        While the leases of one claim are written, the next claim is under way. While one lease is
        settled, the next is signed.
        """
        await self._known.refresh(older_than_s=INTERVAL_S)
        size = self._largest_claim
        if not self._listener.is_busy:
            size = min(size, self._batch_limit)
        claiming = asyncio.create_task(self._claim(size))
        settling = asyncio.create_task(asyncio.sleep(0))
        try:
            while True:
                leases = await claiming
                more = messages_in(leases) >= size
                if more:
                    size = min(size * 2, self._largest_claim)
                    claiming = asyncio.create_task(self._claim(size))
                for lease in leases:
                    await asyncio.sleep(0)  # lets the claim and the settlement be sent before it is signed
                    outgoing = Outgoing(
                        lease,
                        keys=self._keys,
                        actions=await self._known.covering(lease.actions),
                        batch_limit=self._batch_limit,
                        line_format=self._line_format,
                    )
                    self._left_behind.add(outgoing.left)
                    await settling
                    if self._stopping:
                        return
                    began = time.monotonic()
                    await self._write(outgoing)
                    settling = asyncio.create_task(self._settle_when_read(outgoing, waited_s, began))
                if not more:
                    await settling
                    return
        finally:
            await end(claiming, settling)

    async def _claim(self, size: int) -> list[Lease]:
        self._listener.clear()
        leases = await self._queue.claim(size, self._lease_tokens)
        messages = messages_in(leases)
        self._listener.claimed(messages, more=messages >= size)
        return leases

    async def _write(self, outgoing: Outgoing) -> None:
        outgoing.begin(self._output.written)
        self._outgoing = outgoing
        lease, written = outgoing.lease, 0
        self._writing = True
        while written < len(outgoing.lines) and not self._stopping and await self._is_ours(lease):
            await self._output.write(
                outgoing.lines[written:], lambda: not self._stopping and self._queue.holds(lease)
            )
            written = outgoing.whole_lines(self._output.written)
        self._writing = False

    async def _settle_when_read(self, outgoing: Outgoing, waited_s: float, began: float) -> None:
        written = self._output.written
        await self._output.read_up_to(written)
        self._keep_pace(outgoing.count(written), time.monotonic() - began)
        await self._settle(outgoing)
        self._outgoing = None
        if count := outgoing.count(written):
            log.info("batch", count=count, waited=f"{waited_s:.1f}s")

    def _keep_pace(self, messages: int, read_s: float) -> None:
        """Let the next claim be as large as the reader's pace allows, but at most twice as large."""
        if messages:
            self._per_message_s += PACE_SHARE * (read_s / messages - self._per_message_s)
        allowed = int(min(CLAIM_S / max(self._per_message_s, 1e-6), 2 * self._largest_claim))
        allowed = min(allowed, max(MAX_CLAIM_TOKENS, self._batch_limit))
        # Whole batches, unless the reader is too slow for one.
        self._largest_claim = max(1, allowed // self._batch_limit * self._batch_limit or allowed)

    async def _settle(self, outgoing: Outgoing) -> None:
        """Settle the tokens of a lease that were read, and those that no line can hold."""
        again, outgoing.is_settling = outgoing.is_settling, True
        await self._queue.settle(outgoing.lease, outgoing.done(self._output.read), again=again)

    async def _is_ours(self, lease: Lease) -> bool:
        if not self._queue.holds(lease):
            await self._queue.renew()
        return self._queue.holds(lease)

    async def _finish(self, working: asyncio.Task[None]) -> None:
        log.info("stopping")
        self._stopping = True
        if not self._outgoing:
            working.cancel()
        done, _ = await asyncio.wait({working}, timeout=SHUTDOWN_S)
        if not done and self._writing:
            raise OutputClosed(
                f"the reader of standard output did not take the line in hand within {SHUTDOWN_S:.0f} s",
                hint="its tokens are released and will be written again; the line may be cut off in the pipe",
            )
        if not done and self._output.read < self._output.written:
            log.warning("unread", bytes=self._output.written - self._output.read)
            return
        if not done:
            raise DatabaseUnavailable(
                f"PostgreSQL did not settle the last lines within {SHUTDOWN_S:.0f} s",
                hint="they will be written again once it is back",
            )
        if not working.cancelled():
            await working

    async def _give_back(self) -> None:
        try:
            if self._database.is_down:
                raise DatabaseUnavailable("PostgreSQL does not answer")
            async with asyncio.timeout(SHUTDOWN_S / 2):
                if self._outgoing:
                    await self._settle(self._outgoing)
                if freed := await self._queue.release():
                    log.info("leases_released", tokens=freed)
        except (TimeoutError, MailroomError) as error:
            log.warning(
                "leases_not_released", due_within=f"{LEASE_MS / 1000:.0f}s", reason=type(error).__name__
            )
        finally:
            await self._queue.close()
