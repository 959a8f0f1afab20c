"""Runs the worker of ``mailroom run`` inside an application, as tasks of its event loop.

Promises: the application's loop is not blocked, since the provider is called in threads. Signals, logging and
the process stay the application's. A worker that ends before the context does logs ``run.failed``, and
its error is raised when the context ends. The context ends once the leases are released.

Does not start the worker again after an error that retrying cannot fix: as for ``mailroom run``, that is for
what supervises the process.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from mailroom.concurrency import end, in_thread
from mailroom.errors import MailroomError
from mailroom.logs import EventLogger

if TYPE_CHECKING:
    from mailroom.settings.worker import RunSettings
    from mailroom.transports.transport import Transport

# The application starts without its worker if the database does not answer within this time.
START_S: Final = 5.0

log = EventLogger("run")


class Worker:
    """A worker of this event loop."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        self._task = task

    @property
    def is_running(self) -> bool:
        """Whether it runs. While the database or the provider does not answer, it runs and tries again."""
        return not self._task.done()

    async def ended(self) -> None:
        """Wait until it no longer runs."""
        await asyncio.wait({self._task})

    @property
    def error(self) -> BaseException | None:
        """The error that ended it, if one did."""
        return self._task.exception() if self._task.done() and not self._task.cancelled() else None


@asynccontextmanager
async def worker(environ: Mapping[str, str] | None = None) -> AsyncIterator[Worker]:
    """Run the worker of `mailroom run` within this event loop, while the context is entered.

    It returns a worker with two attributes: `is_running`, and `error`, the exception that ended it. Its
    method `ended()` waits until it no longer runs. It takes no signals and leaves logging alone. When the
    context ends, it finishes the mails in hand within MAILROOM_SHUTDOWN_TIMEOUT, and releases its leases.

    If the database does not answer within 5 seconds, the context is entered without it, and the worker tries
    again for as long as the context lasts. A worker that ends before the context does logs `run.failed`.

    Args:
        environ: the settings of `mailroom run` by the names of their variables; None for the process's
            environment. AWS's own variables are always read from the process's environment.

    Raises:
        MailroomError: at the start, the settings, the schema, a privilege or the transport cannot be used.
            At the end, the error that ended the worker, unless the context ends with an exception of its own.
    """
    opened = await in_thread(_opened, os.environ if environ is None else environ)
    async with working(*opened) as running:
        yield running


def _opened(environ: Mapping[str, str]) -> tuple[RunSettings, Sequence[Transport]]:
    # Here, so that a thread imports botocore and psycopg, which takes a while.
    from mailroom.runner import program  # noqa: F401
    from mailroom.settings import misspelt
    from mailroom.settings.variables import read_settings
    from mailroom.settings.worker import RunSettings
    from mailroom.transports.transport import open_transports

    misspelt.warn(environ)
    settings = read_settings(RunSettings, environ)
    return settings, open_transports(settings.sender)


@asynccontextmanager
async def working(settings: RunSettings, transports: Sequence[Transport]) -> AsyncIterator[Worker]:
    """Run a worker that sends over these transports; see ``worker``."""
    from mailroom.runner.program import Runner

    stop, runner = asyncio.Event(), Runner(settings, transports)
    task = asyncio.create_task(runner.run(stop), name="mailroom.worker")
    try:
        await _start(task, runner.started)
        task.add_done_callback(lambda ended: _report(ended, stop))
        yield Worker(task)
    finally:
        stop.set()
        await _ended(task)
    if not task.cancelled():
        await task


async def _start(task: asyncio.Task[None], started: asyncio.Event) -> None:
    """Wait until the worker has started, has failed to, or takes too long."""
    starting = asyncio.create_task(started.wait())
    try:
        await asyncio.wait({task, starting}, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end(starting)
    if task.done():
        await task
    if not started.is_set():
        log.warning("not_started", within=f"{START_S:g}s")


async def _ended(task: asyncio.Task[None]) -> None:
    """Wait until a task is over; a cancellation of this wait cancels the task, and waits on."""
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        await end(task)
        raise


def _report(task: asyncio.Task[None], stop: asyncio.Event) -> None:
    """Log that a worker has ended, unless it was stopped."""
    if task.cancelled():
        if not stop.is_set():
            log.warning("cancelled")
    elif isinstance(error := task.exception(), MailroomError):
        log.error("failed", reason=error, hint=error.hint)
    elif error:
        log.failure("failed", error)
