"""The sender: reads lines from the pipe, sends their mails, and sets aside what is not mailed.

A line is read only when there is room for it. While nothing can be sent the pipe fills up, the collector
waits, and PostgreSQL keeps the queue.

Promises: every recipient that was read is either sent or in ``rejected.csv``, and so is every line that
cannot be decoded; the file is on the disk before the next line is read. At the end of the input, mails
in hand are finished. After a signal, a line that has begun to arrive is still taken, and what cannot be
finished in time is set aside.

Does not promise anything for mails in hand at a ``kill -9``: they are lost, as they had left the pipe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from mailroom.actions import load_actions
from mailroom.answers import Result
from mailroom.concurrency import before, end
from mailroom.errors import ActionsError, SetAsideError, UnknownAction, WireError
from mailroom.logs import EventLogger
from mailroom.outage import Outage
from mailroom.sender.policy import Sender, Verdict
from mailroom.sender.rejected import Rejected, RejectedRow
from mailroom.sender.stdin import Input, Line
from mailroom.settings.sender import SenderSettings
from mailroom.transports.transport import Transport
from mailroom.wire import Message, decode, split_line
from mailroom.wording import counted

log = EventLogger("sender")


class Pipe:
    """Sends the mails of the lines that ``lines`` reads."""

    def __init__(self, settings: SenderSettings, lines: Input, transports: Sequence[Transport]) -> None:
        self._lines = lines
        self._folder = settings.templates.folder
        self._actions = load_actions(self._folder)
        self._rejected = Rejected(settings.output_path)
        self._sender = Sender(transports, settings, self._report)
        self._shutdown_s = settings.shutdown_timeout_ms / 1000
        self._unsaved: list[RejectedRow] = []
        self._saved, self._not_saved = asyncio.Event(), asyncio.Event()
        self._saved.set()
        self._malformed = 0
        self._has_set_aside = False
        self._full_disk = Outage(log, "not_set_aside", "still_not_set_aside", "set_aside_again")

    async def run(self, stop: asyncio.Event) -> bool:
        """Send until the input ends or ``stop`` is set; True if every mail was sent.

        Raises:
            SetAsideError: what was not mailed could not be saved.
            MailroomError: the transport's configuration cannot be used.
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
            self._set_aside([])  # one more try for the rows that could not be saved before
            self._log_summary()
        if self._unsaved:
            raise SetAsideError(
                f"{counted(len(self._unsaved), 'recipient or line', 'recipients or lines')} could not be set"
                " aside",
                hint="the log says why; their tokens are lost, so these users must ask for new ones",
            )
        return not self._has_set_aside

    async def _work(self, stop: asyncio.Event) -> None:
        await self._sender.start()
        while (line := await self._next_line(stop)) is not None:
            messages = self._decoded(line)
            # Lines that wait share a call.
            while (
                not stop.is_set()
                and self._saved.is_set()
                and len(messages) < self._sender.shared
                and (line := self._lines.waiting()) is not None
            ):
                messages += self._decoded(line)
            if messages:
                await self._sender.submit(messages)
        await self._sender.drain()
        await self._saved.wait()

    async def _next_line(self, stop: asyncio.Event) -> Line | None:
        """The next line, when there is room for it; after a signal, only a line that has begun to arrive."""
        line = None
        if not self._saved.is_set():
            await before(self._saved.wait(), stop.wait(), self._sender.failed())
        if not self._sender.has_room:
            await before(self._sender.room(), stop.wait(), self._sender.failed())
        if not stop.is_set():
            line = await before(self._lines.line(), stop.wait(), self._sender.failed())
        if line is None and stop.is_set() and self._lines.begun:
            self._lines.reads_ahead = False
            line = await before(self._lines.line(), self._sender.failed())
        return line

    def _decoded(self, line: Line) -> list[Message]:
        """A line's messages. What cannot be decoded is logged and set aside.

        Of a line with the number of an unknown action, the other messages are returned.
        """
        if line.is_rest:
            self._set_aside_malformed(line, [(line.content, "the rest of a line that is too long")])
            return []
        parts = [line.content]
        try:
            return decode(line.content, self._actions)
        except UnknownAction:
            self._read_folder_again()
            with suppress(WireError):
                parts = split_line(line.content)
        except WireError:
            pass
        messages: list[Message] = []
        malformed = []
        for part in parts:
            try:
                messages += decode(part, self._actions)
            except WireError as error:
                malformed.append((part, str(error)))
        if malformed:
            self._set_aside_malformed(line, malformed)
        return messages

    def _read_folder_again(self) -> None:
        """The action may be new there."""
        try:
            self._actions = load_actions(self._folder)
        except ActionsError as error:
            log.warning("actions_unreadable", reason=error)

    def _set_aside_malformed(self, line: Line, parts: list[tuple[bytes, str]]) -> None:
        rows = [
            RejectedRow("malformed", f"line {line.number}, {fault}", part.removesuffix(b"\n"))
            for part, fault in parts
        ]
        self._malformed += len(rows)
        log.error("malformed", reason=rows[0].reason)
        self._set_aside(rows)

    def _set_aside_unread(self) -> None:
        """Set aside what was read ahead and not submitted in time."""
        for line in self._lines.rest():
            why = "stopped before it was sent"
            self._report([(message, Verdict.UNSENT, why) for message in self._decoded(line)])

    def _report(self, verdicts: list[tuple[Message, Verdict, str]]) -> None:
        self._set_aside(
            [
                RejectedRow.of(message, verdict.value, why)
                for message, verdict, why in verdicts
                if verdict is not Verdict.SENT
            ]
        )

    def _set_aside(self, rows: list[RejectedRow]) -> None:
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
        """Retry to set aside what a full disk refused."""
        while True:
            await self._not_saved.wait()
            await self._full_disk.back_off()
            self._set_aside([])

    def _log_summary(self) -> None:
        counts = {verdict.value: self._sender.verdicts[verdict] for verdict in Verdict}
        # Each lost answer may stand for a mail that was sent and not counted as sent.
        counts["unknown_answers"] = self._sender.answers[Result.UNKNOWN]
        log.info("finished", **counts, malformed=self._malformed)
