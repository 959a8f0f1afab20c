"""Writes complete lines to standard output, without blocking the event loop.

It waits until a pipe is writable, then writes at most PIPE_BUF bytes at a time, which by POSIX does not
block. So the descriptor stays in blocking mode, which other processes with this pipe or terminal open may
rely on.

Promises: a reader that goes away is noticed at once, even while nothing is written, and the number of
bytes that it left unread is known. A line that cannot be finished on a file (a full disk) is removed.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import os
import select
import stat
import sys
import termios
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Final

from mailroom.errors import OutputClosed

CHUNK_BYTES: Final = select.PIPE_BUF
LOOKS_AT_ONCE: Final = 20  # how often to check whether a pipe was read, before the first pause
LOOK_S: Final = (0.0002, 0.25)  # the pause between two checks: the first and the longest


class Output:
    """A file descriptor, written to in lines.

    Attributes:
        written: how many bytes were written so far.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._mode = os.fstat(descriptor).st_mode
        self.written = 0
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    async def write(self, lines: Sequence[bytes], go_on: Callable[[], bool] = lambda: True) -> None:
        """Write complete lines, in as few pieces as possible, as long as ``go_on`` is true before each piece.

        Raises:
            OutputClosed: the reader is gone, or the file cannot be written.
        """
        ends = list(accumulate(map(len, lines)))
        content, start, done = memoryview(b"".join(lines)), 0, self.written
        try:
            while start < len(content):
                if not self._poll.poll(0):
                    await self._writable()
                end = start + CHUNK_BYTES
                if not go_on():  # finish only the line that has begun
                    begun = bisect_right(ends, start)
                    if start == (ends[begun - 1] if begun else 0):
                        return
                    end = min(end, ends[begun])
                count = os.write(self._descriptor, content[start:end])
                self.written += count
                start += count
        except OSError as error:
            whole = bisect_right(ends, start)
            self._take_back(self.written - done - (ends[whole - 1] if whole else 0))
            raise _closed(error) from error

    @property
    def read(self) -> int:
        """How many of the written bytes the reader of the pipe has read; all, if it is not a pipe."""
        unread = array.array("i", [0])
        if stat.S_ISFIFO(self._mode):
            fcntl.ioctl(self._descriptor, termios.FIONREAD, unread)
        return self.written - unread[0]

    async def read_up_to(self, end: int) -> None:
        """Return when the reader of the pipe has read this number of the written bytes.

        There is no event for that, so this checks repeatedly, with growing pauses.
        """
        for _ in range(LOOKS_AT_ONCE):
            if self.read >= end:
                return
            await asyncio.sleep(0)
        pause_s, longest_s = LOOK_S
        while self.read < end:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.25, longest_s)

    async def closed(self) -> None:
        """Return when the reader of a pipe has gone away; for anything else, never return."""
        gone = asyncio.Event()
        if stat.S_ISFIFO(self._mode):
            # The writing end of a pipe becomes readable only when the reader is gone.
            asyncio.get_running_loop().add_reader(self._descriptor, gone.set)
        try:
            await gone.wait()
        finally:
            asyncio.get_running_loop().remove_reader(self._descriptor)

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_writer(self._descriptor, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_writer(self._descriptor)

    def _take_back(self, count: int) -> None:
        if count and stat.S_ISREG(self._mode):
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - count)
            self.written -= count


def _closed(error: OSError) -> OutputClosed:
    if isinstance(error, BrokenPipeError):
        return reader_gone()
    return OutputClosed(
        f"cannot write to standard output: {error.strerror}",
        hint="free disk space or write to another place, and start again; unwritten tokens are not lost",
    )


def standard_output() -> Output:
    """This process's standard output.

    Raises:
        OutputClosed: it has none.
    """
    if sys.stdout is None:
        raise OutputClosed(
            "standard output is closed", hint="pipe it into a sender, or redirect it to a file"
        )
    return Output(sys.stdout.fileno())


def reader_gone() -> OutputClosed:
    """The error for a pipe whose reader ended."""
    return OutputClosed(
        "the reader of standard output is gone",
        hint="see its log for why it ended, and start both again; unwritten tokens are not lost",
    )
