"""Standard output for whole lines, without ever blocking the event loop.

A full pipe is waited for; then at most PIPE_BUF bytes are written at a time, which POSIX promises
not to block once the pipe is writable. So the descriptor stays in blocking mode, which matters: it
is shared with whoever else has this pipe or terminal open.

A reader that goes away is noticed at once, even while nothing is written. A line that cannot be
finished on a file (a full disk) is taken back.
"""

from __future__ import annotations

import asyncio
import os
import select
import stat
import sys
from typing import Final

from mailroom.errors import OutputClosed

CHUNK_BYTES: Final = select.PIPE_BUF


class Output:
    """A file descriptor that takes lines."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._mode = os.fstat(descriptor).st_mode
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    async def write(self, line: bytes) -> None:
        """Write one line whole.

        Raises:
            OutputClosed: the reader is gone, or the file takes no more.
        """
        rest = memoryview(line)
        try:
            while rest:
                if not self._poll.poll(0):
                    await self._writable()
                rest = rest[os.write(self._descriptor, rest[:CHUNK_BYTES]) :]
        except OSError as error:
            self._take_back(len(line) - len(rest))
            raise _closed(error) from error

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

    def _take_back(self, written: int) -> None:
        if written and stat.S_ISREG(self._mode):
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)


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
