"""Reads SES's events from a queue into the database: for ``mailroom events``, and beside ``mailroom run``.

One call waits for messages. While messages come in numbers, several calls receive them, and what arrives in a
tenth of a second is recorded in one statement; then the messages are deleted.

Promises: a message is deleted only when its events are committed, so none is lost, also over ``kill -9``. A
message that comes again changes nothing. What cannot be read is kept with its text, and affects no other.
While PostgreSQL does not answer, no more messages are taken than may be in hand. Trouble with the queue is
logged and retried with a back-off; it raises nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeVar

from mailroom.concurrency import before, end, first, in_thread
from mailroom.database.connection import Database
from mailroom.database.session import Session
from mailroom.errors import MailroomError
from mailroom.events.recording import Tally, record
from mailroom.events.sqs import LONG_POLL_S, MESSAGES_PER_CALL, EventQueue, Received
from mailroom.logs import EventLogger, without_addresses
from mailroom.outage import Outage
from mailroom.queue.start_check import check_functions
from mailroom.settings.events import EventsSettings, ReaderSettings

CALLED: Final = ("schema_version", "record_events", "keep_unreadable")
# How many calls receive, and how many delete, at a time.
CALLS: Final = 4
# While more messages may be there, a call waits for one no longer than this.
SHORT_POLL_S: Final = 1
# How many messages may be in hand, and how many characters of them.
MAX_IN_HAND: Final = 2000
MAX_SIZE: Final = 32_000_000
# How many messages are recorded together. While they come in numbers, they are gathered for this time.
MAX_TOGETHER: Final = 500
GATHER_S: Final = 0.1
MEASURE_S: Final = 30.0
# At the end, messages in hand are recorded and deleted within this time, or come again.
FINISH_S: Final = 5.0
# After an internal error, and after one of the database that repeating does not help.
AGAIN_S: Final = 10.0
ANSWER_LIMIT_S: Final = 30.0

Value = TypeVar("Value")

log = EventLogger("events")


class Trouble(NamedTuple):
    """Why events are not read now, and for how many seconds they have not been."""

    why: str
    since_s: float


class Step:
    """Receiving or deleting: whether it works, and since when it does not.

    Args:
        outage: logs it.
    """

    def __init__(self, outage: Outage) -> None:
        self._outage = outage
        self._why, self._since = "", 0.0

    @property
    def trouble(self) -> Trouble | None:
        """Why it does not work; None if it does."""
        return Trouble(self._why, time.monotonic() - self._since) if self._outage.is_on else None

    async def attempt(self, call: Callable[..., Value], *arguments: object) -> Value | None:
        """What a blocking call returns, made after a back-off; None if it fails."""
        await self._outage.back_off()
        try:
            value = await in_thread(call, *arguments)
        except MailroomError as error:
            why = _with_hint(error)
        except Exception as error:  # noqa: BLE001 - no answer of the queue may end the reading
            why = type(error).__name__
        else:
            self._outage.ended()
            return value
        self._why = without_addresses(why)
        if self._outage.failed(self._why):
            self._since = time.monotonic()
        return None


class Reader:
    """Reads one queue.

    Args:
        queue: the queue.
        session: where the events are recorded; the reader's own.
        counted: is called with what was recorded.

    Attributes:
        waiting: about how many messages wait in the queue; None if that is not known.
    """

    def __init__(
        self, queue: EventQueue, session: Session, counted: Callable[[Tally], None] = lambda _: None
    ) -> None:
        self._queue = queue
        self._session = session
        self._counted = counted
        self._receiving = Step(Outage(log, "not_received", "still_not_received", "received_again"))
        self._deleting = Step(Outage(log, "not_deleted", "still_not_deleted", "deleted_again"))
        self._arrived: list[Received] = []
        self._has_arrived = asyncio.Event()
        self._in_hand = self._size = 0
        self._has_room = asyncio.Event()
        self._is_busy = asyncio.Event()
        self._deleters = asyncio.Semaphore(CALLS)
        self._deletions: set[asyncio.Task[None]] = set()
        self._not_deleted: Sequence[Received] = ()
        self._has_failed = asyncio.Event()
        self._fault, self._failed_at = "", 0.0
        self.waiting: int | None = None

    @property
    def trouble(self) -> Trouble | None:
        """What is wrong; None if nothing is."""
        if self._fault:
            return Trouble(self._fault, time.monotonic() - self._failed_at)
        return self._receiving.trouble or self._deleting.trouble

    async def keep_running(self, stop: asyncio.Event) -> None:
        """Read until ``stop`` is set, whatever happens: beside a worker, which must go on."""
        while not stop.is_set():
            try:
                await self.run(stop)
            except MailroomError as error:
                why = without_addresses(_with_hint(error))
                if why != self._fault:
                    log.error("failed", reason=why)  # noqa: TRY400 - its hint is enough
            except Exception as error:  # noqa: BLE001 - see above
                why = f"{type(error).__name__}: {without_addresses(str(error))}"
                log.failure("failed", error)
            else:
                continue
            self._failed_at = self._failed_at if self._fault else time.monotonic()
            self._fault = why
            await before(asyncio.sleep(AGAIN_S), stop.wait())

    async def run(self, stop: asyncio.Event) -> None:
        """Read until ``stop`` is set; then record what is in hand.

        Raises:
            DatabaseError: the schema or a privilege is missing.
        """
        try:
            await check_functions(self._session, CALLED)
            if not self._arrived:
                self._fault = ""
            log.info("started", queue=self._queue.name)
            helpers = [self._help() for _ in range(CALLS - 1)]
            work = self._wait(), *helpers, self._record_all(), self._delete_again(), self._keep_measuring()
            await first(*work, _until(stop))
            async with asyncio.timeout(FINISH_S):
                while self._arrived:
                    await self._record_some()
                await asyncio.gather(*self._deletions)
        except TimeoutError:
            log.warning("not_finished", messages=self._in_hand)
        finally:
            await end(*self._deletions)
            self._queue.close()
            await self._session.close()

    async def _wait(self) -> None:
        """Receive, and wait for messages while there are none."""
        while True:
            if await self._receive(LONG_POLL_S) > 1:
                self._is_busy.set()

    async def _help(self) -> None:
        """Receive too while messages come in numbers."""
        while True:
            await self._is_busy.wait()
            if not await self._receive(SHORT_POLL_S):
                self._is_busy.clear()

    async def _receive(self, wait_s: int) -> int:
        """Receive when there is room; returns how many messages."""
        await self._room()
        messages = await self._receiving.attempt(self._queue.receive, wait_s)
        if not messages:
            return 0
        self._in_hand += len(messages)
        self._size += _size(messages)
        self._arrived += messages
        self._has_arrived.set()
        return len(messages)

    async def _room(self) -> None:
        while self._in_hand >= MAX_IN_HAND or self._size >= MAX_SIZE:
            self._has_room.clear()
            await self._has_room.wait()

    async def _record_all(self) -> None:
        while True:
            while self._arrived:
                await self._record_some()
            self._has_arrived.clear()
            await self._has_arrived.wait()
            if self._is_busy.is_set():
                await asyncio.sleep(GATHER_S)

    async def _record_some(self) -> None:
        """Record what has arrived, and begin to delete it."""
        messages = self._arrived[:MAX_TOGETHER]
        tally = await record(self._session, [message.text for message in messages])
        del self._arrived[: len(messages)]
        self._fault = ""
        self._counted(tally)
        for first_one in range(0, len(messages), MESSAGES_PER_CALL):
            some = messages[first_one : first_one + MESSAGES_PER_CALL]
            task = asyncio.create_task(self._delete(some))
            self._deletions.add(task)
            task.add_done_callback(self._deletions.discard)

    async def _delete(self, messages: Sequence[Received]) -> None:
        """Delete messages; those that are not deleted come again, and change nothing."""
        try:
            async with self._deleters:
                failed = await self._deleting.attempt(self._queue.delete, messages)
            if failed is None:
                self._not_deleted = messages
                self._has_failed.set()
            elif failed:
                log.warning("not_deleted", messages=failed)
        finally:
            self._in_hand -= len(messages)
            self._size -= _size(messages)
            self._has_room.set()

    async def _delete_again(self) -> None:
        """Repeat the deletion that failed last until one works, as there may be none of other messages."""
        while True:
            await self._has_failed.wait()
            while self._deleting.trouble:
                await self._deleting.attempt(self._queue.delete, self._not_deleted)
            self._has_failed.clear()

    async def _keep_measuring(self) -> None:
        name = "ApproximateNumberOfMessages"
        while True:
            try:
                found = await in_thread(self._queue.attributes, name)
                self.waiting = int(found[name])
            except Exception:  # noqa: BLE001 - a right to read; the number is left out
                self.waiting = None
            await asyncio.sleep(MEASURE_S)


async def read_until(stop: asyncio.Event, settings: ReaderSettings) -> None:
    """Read the queue that the settings name until ``stop`` is set.

    Raises:
        DatabaseError: the database cannot be used.
        TransportError: botocore's configuration is incomplete.
    """
    database = Database(settings.database_url, program="mailroom events", answer_limit_s=ANSWER_LIMIT_S)
    await Reader(open_queue(settings), Session(database)).run(stop)


def open_queue(settings: EventsSettings) -> EventQueue:
    """The queue that the settings name; it contacts nobody yet.

    Raises:
        TransportError: botocore's configuration is incomplete.
    """
    return EventQueue(settings.queue, connections=2 * CALLS + 1)


def _with_hint(error: MailroomError) -> str:
    return f"{error} (try: {error.hint})" if error.hint else str(error)


def _size(messages: Sequence[Received]) -> int:
    return sum(len(message.text) for message in messages)


async def _until(stop: asyncio.Event) -> None:
    await stop.wait()
