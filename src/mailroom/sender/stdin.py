r"""Reads standard input as lines, without blocking the event loop.

Reads are small, and none happens before the last line was taken. So a killed sender has read little
that it had not sent, and the rest stays in the pipe, where the collector sees that it was not read.
"""

from __future__ import annotations

import asyncio
import os
import select
import sys
from typing import Final, NamedTuple

from mailroom.errors import InputClosed

CHUNK_BYTES: Final = select.PIPE_BUF
# Twice what ten thousand messages of the largest possible fields need.
MAX_LINE: Final = 64 * 1024 * 1024


class Line(NamedTuple):
    r"""A line as it was read.

    Attributes:
        number: from 1.
        content: its bytes with the ``\n``, which is missing at the end of the input and when the line
            is too long.
        is_rest: whether it is the rest of a line that was too long.
    """

    number: int
    content: bytes
    is_rest: bool = False


class Input:
    """A file descriptor, read as lines.

    Attributes:
        reads_ahead: False to read byte by byte, and no byte beyond the line that has begun.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._read = bytearray()
        self._searched = 0
        self._number = 0
        self._ended = False
        self._is_cut = False
        self.reads_ahead = True
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    @property
    def begun(self) -> bytes:
        """The part of the next line that was read."""
        return bytes(self._read)

    async def line(self) -> Line | None:
        """The next line; None at the end of the input.

        May be cancelled and called again at any time, without losing a byte.
        """
        while (line := self.waiting()) is None and not self._ended:
            await self._readable()
        return line

    def waiting(self) -> Line | None:
        """The next line, if it has arrived; None if it has not, and at the end of the input."""
        while True:
            end = self._read.find(b"\n", self._searched) + 1
            self._searched = len(self._read)
            if not end and (self._ended or len(self._read) >= MAX_LINE):
                end = len(self._read)
            if end:
                return self._taken(end)
            if self._ended or not self._poll.poll(0):
                return None
            chunk = os.read(self._descriptor, CHUNK_BYTES if self.reads_ahead else 1)
            self._read += chunk
            self._ended = not chunk

    def rest(self) -> list[Line]:
        """The lines that were read ahead and not taken; the last may be cut off."""
        lines = []
        while self._read:
            lines.append(self._taken(self._read.find(b"\n") + 1 or len(self._read)))
        return lines

    def _taken(self, end: int) -> Line:
        content = bytes(self._read[:end])
        del self._read[:end]
        self._searched = 0
        is_rest, self._is_cut = self._is_cut, not content.endswith(b"\n")
        self._number += not is_rest
        return Line(self._number, content, is_rest)

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self._descriptor, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._descriptor)


def standard_input() -> Input:
    """This process's standard input.

    Raises:
        InputClosed: it has none.
    """
    if sys.stdin is None:
        raise InputClosed(
            "standard input is closed", hint="pipe lines into it: mailroom collector | mailroom sender"
        )
    return Input(sys.stdin.fileno())
