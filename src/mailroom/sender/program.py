"""The sender's end of the pipe: lines from standard input, mails out, what is not mailed set aside.

A line is read when there is room for it, and not before: while nothing can be sent the pipe fills,
the collector waits, and PostgreSQL keeps the queue.

Promises: every recipient that was read is sent or stands in ``rejected.csv``, and so does every line
that cannot be read; the file is on the disk before the next line is read. At the end of the input
what is in hand is finished. After a signal the line that had begun to arrive is still taken, and
what cannot be finished in time is set aside. What a ``kill -9`` finds in hand is lost: it had left
the pipe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Literal, TypeVar

from mailroom.answers import Result
from mailroom.concurrency import end
from mailroom.errors import SetAsideError, WireError
from mailroom.logs import EventLogger
from mailroom.outage import Outage
from mailroom.sender.policy import Sender, Verdict
from mailroom.sender.rejected import Rejected, Row
from mailroom.sender.stdin import Input, Line
from mailroom.settings.sender import SenderSettings
from mailroom.transports.transport import Transport
from mailroom.wire import Message, decode

Answer = TypeVar("Answer")

log = EventLogger("sender")


class Pipe:
    """Sends what ``lines`` holds."""

    def __init__(self, settings: SenderSettings, lines: Input, transport: Transport) -> None:
        self._lines = lines
        self._rejected = Rejected(settings.output_path)
        self._sender = Sender(transport, settings, self._report)
        self._shutdown_s = settings.shutdown_timeout_ms / 1000
        self._unsaved: list[Row] = []
        self._saved, self._not_saved = asyncio.Event(), asyncio.Event()
        self._saved.set()
        self._malformed = 0
        self._has_set_aside = False
        self._full_disk = Outage(log, "not_set_aside", "still_not_set_aside", "set_aside_again")

    async def run(self, stop: asyncio.Event) -> bool:
        """Send until the input ends or ``stop`` is set; True if every mail went out.

        Raises:
            SetAsideError: what was not mailed could not be written down.
            MailroomError: the transport cannot be used as it is set up.
        """
        working = asyncio.create_task(self._work(stop))
        stopping = asyncio.create_task(stop.wait())
        saving = asyncio.create_task(self._keep_saving())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                log.info("stopping", within=f"{self._shutdown_s:g}s")
                await asyncio.wait({working}, timeout=self._shutdown_s)
            if working.done():
                await working
        finally:
            await end(working, stopping, saving)
            await self._sender.abandon()
            self._set_aside_unread()
            self._set_aside([])  # once more what was not taken before
            self._sum_up()
        if self._unsaved:
            raise SetAsideError(
                f"{len(self._unsaved)} recipients and lines that were not mailed could not be set aside",
                hint="the log says why; their tokens are lost, so let those users ask for a new one",
            )
        return not self._has_set_aside

    async def _work(self, stop: asyncio.Event) -> None:
        await self._sender.start()
        stopping = asyncio.create_task(stop.wait())
        failing = asyncio.create_task(self._sender.failed())
        try:
            while (line := await self._next_line(stop, stopping, failing)) is not None:
                await self._take(line)
        finally:
            await end(stopping, failing)
        await self._sender.drain()
        await self._saved.wait()

    async def _next_line(
        self, stop: asyncio.Event, stopping: asyncio.Task[Literal[True]], failing: asyncio.Task[None]
    ) -> Line | None:
        """The next line, when there is room for it; after the signal only what had begun to arrive."""
        line = None
        if not self._saved.is_set():
            await _first(self._saved.wait(), stopping, failing)
        if not self._sender.has_room:
            await _first(self._sender.room(), stopping, failing)
        if not stop.is_set():
            line = await _first(self._lines.line(), stopping, failing)
        if line is None and stop.is_set() and self._lines.begun:
            self._lines.reads_ahead = False
            line = await _first(self._lines.line(), failing)
        return line

    async def _take(self, line: Line) -> None:
        if messages := self._decoded(line):
            await self._sender.submit(messages)

    def _decoded(self, line: Line) -> list[Message]:
        """A line's messages; none if it cannot be read, which is told, and the line set aside."""
        fault = "the rest of a line that is too long"
        if not line.is_rest:
            try:
                return decode(line.content)
            except WireError as error:
                fault = str(error)
        fault = f"line {line.number}, {fault}"
        self._malformed += 1
        log.error("malformed", reason=fault)
        self._set_aside([Row("malformed", fault, line.content.removesuffix(b"\n"))])
        return []

    def _set_aside_unread(self) -> None:
        """Set aside what was read ahead, and not taken in time."""
        for line in self._lines.rest():
            messages = self._decoded(line)
            self._set_aside(
                [Row.of(one, Verdict.UNSENT.value, "stopped before it was sent") for one in messages]
            )

    def _report(self, verdicts: list[tuple[Message, Verdict, str]]) -> None:
        self._set_aside(
            [
                Row.of(message, verdict.value, why)
                for message, verdict, why in verdicts
                if verdict is not Verdict.SENT
            ]
        )

    def _set_aside(self, rows: list[Row]) -> None:
        self._unsaved += rows
        self._has_set_aside |= bool(rows)
        if self._unsaved:
            try:
                self._rejected.add(self._unsaved)
            except SetAsideError as error:
                self._full_disk.failed(str(error))
                self._saved.clear()
                self._not_saved.set()
            else:
                self._unsaved.clear()
                self._full_disk.ended()
                self._not_saved.clear()
                self._saved.set()

    async def _keep_saving(self) -> None:
        """Try again to set aside what a full disk did not take."""
        while True:
            await self._not_saved.wait()
            await self._full_disk.back_off()
            self._set_aside([])

    def _sum_up(self) -> None:
        counts = {verdict.value: self._sender.verdicts[verdict] for verdict in Verdict}
        # Answers that never came: so many mails may have gone out once more.
        counts["unknown_answers"] = self._sender.answers[Result.UNKNOWN]
        log.info("finished", **counts, malformed=self._malformed)


async def _first(work: Coroutine[object, object, Answer], *others: asyncio.Task[Any]) -> Answer | None:
    """What the work gives back, or None when one of the others ended before that.

    Raises:
        Exception: what that one raised.
    """
    working: asyncio.Task[Answer] = asyncio.create_task(work)
    try:
        await asyncio.wait({working, *others}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():  # first, since a line that was taken is nowhere else
            return await working
        for other in others:
            if other.done():
                other.result()
        return None
    finally:
        await end(working)
