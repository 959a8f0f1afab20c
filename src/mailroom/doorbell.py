"""The doorbell: LISTEN, add up the hints, and say when a batch is due.

A notification is a hint that something is pending; the query is the truth. Its payload is the
number of tokens that a statement inserted. From the first hint the doorbell waits until the batch
is full or its time is over, and then says so.

Promises: no token that commits while we listen goes unheard. LISTEN comes before the first drain,
and each time the connection had to be made anew the doorbell asks for a drain of its own accord.
Every connection is asked for a sign of life so often that a dead one is noticed within the health
check interval.

Does not promise an exact count: PostgreSQL folds identical notifications of one transaction into
one, so a batch may go out on its time-out rather than on its size. Whoever is woken drains until a
claim comes back short, whatever was counted.
"""

from __future__ import annotations

import asyncio
import time

from psycopg import sql

from mailroom.database import LOST, Database
from mailroom.logs import EventLogger

log = EventLogger("doorbell")


class Doorbell:
    """The channel, listened to.

    Args:
        database: where it is.
        channel: its name.
        batch_limit: so many announced tokens are a full batch.
        batch_timeout_s: a batch that is not full waits so long after its first hint.
        check_interval_s: a dead connection is noticed within so many seconds.
    """

    def __init__(
        self,
        database: Database,
        *,
        channel: str,
        batch_limit: int,
        batch_timeout_s: float,
        check_interval_s: float,
    ) -> None:
        self._database = database
        self._channel = channel
        self._batch_limit = batch_limit
        self._batch_timeout_s = batch_timeout_s
        self._check_interval_s = check_interval_s
        self._announced = 0
        self._first_hint_at: float | None = None
        self._catch_up = False
        self._changed = asyncio.Event()

    def clear(self) -> None:
        """Forget the hints so far: call it right before a claim, which covers them."""
        self._announced = 0
        self._first_hint_at = None
        self._catch_up = False

    async def due(self, lease_due_s: float | None) -> float:
        """Wait until a claim is due; gives back how long the first hint waited, in seconds.

        Args:
            lease_due_s: a claim is due after so many seconds even without a hint.
        """
        lease_due_at = None if lease_due_s is None else time.monotonic() + lease_due_s
        while not (self._catch_up or self._announced >= self._batch_limit):
            batch_due_at = None
            if self._first_hint_at is not None:
                batch_due_at = self._first_hint_at + self._batch_timeout_s
            soonest = min((at for at in (lease_due_at, batch_due_at) if at is not None), default=None)
            if soonest is not None and soonest <= time.monotonic():
                break
            self._changed.clear()
            try:
                async with asyncio.timeout(None if soonest is None else soonest - time.monotonic()):
                    await self._changed.wait()
            except TimeoutError:
                break
        return 0.0 if self._first_hint_at is None else time.monotonic() - self._first_hint_at

    async def listen(self) -> None:
        """Listen for ever, over as many connections as it takes.

        Raises:
            DatabaseError: the first connection was refused for good.
        """
        # Silence for two thirds of the interval is followed by a question that has to be answered
        # in the last third (see Database.limited): a dead connection is noticed within the whole.
        silence_s = self._check_interval_s * 2 / 3
        listen = sql.SQL("LISTEN {}").format(sql.Identifier(self._channel))
        while True:
            connection = await self._database.connect()
            try:
                await self._database.limited(connection, connection.execute(listen))
                self._database.answered()
                log.debug("listening", channel=self._channel)
                self._catch_up = True
                self._changed.set()
                while True:
                    heard = False
                    async for notification in connection.notifies(timeout=silence_s, stop_after=1):
                        self._hear(notification.payload)
                        heard = True
                    if not heard:
                        await self._database.limited(connection, connection.execute("SELECT 1"))
            except LOST as error:
                self._database.lost(error)
            finally:
                await connection.close()

    def _hear(self, payload: str) -> None:
        if self._first_hint_at is None:
            self._first_hint_at = time.monotonic()
        self._announced += int(payload) if payload.isascii() and payload.isdigit() else 1
        self._changed.set()
