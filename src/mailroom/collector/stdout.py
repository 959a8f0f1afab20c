"""Standard output for whole lines, without ever blocking the event loop.

A full pipe is waited for; then at most PIPE_BUF bytes are written at a time, which POSIX promises
not to block once the pipe is writable. So the descriptor stays in blocking mode, which matters: it
is shared with whoever else has this pipe or terminal open.

A reader that goes away is noticed at once, even while nothing is written, and what it left unread
in the pipe is known to the byte. A line that cannot be finished on a file (a full disk) is taken
back.
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
LOOKS_AT_ONCE: Final = 20  # at whether a pipe was read, before it is slept over
LOOK_S: Final = (0.0002, 0.25)  # how long to sleep between looks: at first, at last


class Output:
    """A file descriptor that takes lines.

    Attributes:
        written: how many bytes it has taken so far.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._mode = os.fstat(descriptor).st_mode
        self.written = 0
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    async def write(self, lines: Sequence[bytes], go_on: Callable[[], bool] = lambda: True) -> None:
        """Write lines whole, in as few pieces as it can, as long as ``go_on`` says so before each.

        Raises:
            OutputClosed: the reader is gone, or the file takes no more.
        """
        ends = list(accumulate(map(len, lines)))
        content, start, done = memoryview(b"".join(lines)), 0, self.written
        try:
            while start < len(content):
                if not self._poll.poll(0):
                    await self._writable()
                end = start + CHUNK_BYTES
                if not go_on():  # no more than the line in hand
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
        """How many of the bytes written the reader of the pipe has taken; all, if it is no pipe."""
        unread = array.array("i", [0])
        if stat.S_ISFIFO(self._mode):
            fcntl.ioctl(self._descriptor, termios.FIONREAD, unread)
        return self.written - unread[0]

    async def read_up_to(self, end: int) -> None:
        """Return when the reader of the pipe has taken so many of the bytes that were written.

        No event tells of it, so this looks again and again, the less often the longer it takes.
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
        """Return when the reader of a pipe has gone away; never on anything else."""
        gone = asyncio.Event()
        if stat.S_ISFIFO(self._mode):
            # The writing end of a pipe is never readable, except to say that the reader is gone.
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
        hint="make room or give it another place, and start again: unwritten tokens are not lost",
    )


def standard_output() -> Output:
    """This process's standard output.

    Raises:
        OutputClosed: it has none.
    """
    if sys.stdout is None:
        raise OutputClosed("standard output is closed", hint="send it to a sender, or to a file")
    return Output(sys.stdout.fileno())


def reader_gone() -> OutputClosed:
    """The error for a pipe whose reader ended."""
    return OutputClosed(
        "the reader of standard output is gone",
        hint="see why it ended (its own log tells), and start both again: unwritten tokens are not lost",
    )
