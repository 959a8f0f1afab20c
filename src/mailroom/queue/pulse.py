"""Reads the state of a queue, for health and for metrics.

It uses a connection of its own, so that a reading never waits for a claim. It reads only on request, and
at most once a second. A reading that fails changes nothing else: the other connections stay.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

import psycopg

from mailroom.database.connection import Connection, Database, explained, hang_up, reason, refusal
from mailroom.database.sqlstates import is_permanent, spoils_session

PULSE: Final = (
    "SELECT waiting, in_flight, retrying, oldest_due, is_paused, rate, oldest_unsettled,"
    " urgent, normal, bulk, scheduled, pause_reason,"
    " ARRAY(SELECT ARRAY[a.action, a.pause_reason] FROM mailroom.paused_actions() AS a)"
    " FROM mailroom.pulse(%s) LEFT JOIN mailroom.paused() ON true"
)
COUNT_LIMIT: Final = 10_000
FRESH_S: Final = 1.0
LIMIT_S: Final = 2.0


class Pulse(NamedTuple):
    """One reading of a queue.

    Attributes:
        waiting: tokens that no worker has claimed; ``COUNT_LIMIT`` means that many or more.
        in_flight: tokens that are leased to a worker.
        retrying: tokens that wait for a retry.
        oldest_due_s: for how many seconds the oldest mail that could be sent has waited.
        is_paused: whether a person paused the queue; then nothing is due.
        rate: recipients a second that all workers share; None before the first charge.
        oldest_unsettled_s: how many seconds ago the oldest mail that is neither sent nor given up was
            requested, whether or not the queue is paused.
        urgent, normal, bulk: ``waiting`` of each lane.
        scheduled: tokens that wait for their ``send_at``, which count nowhere else.
        pause_reason: why the queue is paused, as the person wrote it; None if it is not paused.
        paused_actions: the name of each action whose mails wait until a person resumes it, and the reason.
    """

    waiting: int
    in_flight: int
    retrying: int
    oldest_due_s: float | None
    is_paused: bool
    rate: float | None
    oldest_unsettled_s: float | None
    urgent: int
    normal: int
    bulk: int
    scheduled: int
    pause_reason: str | None
    paused_actions: Sequence[tuple[str, str | None]]


class Pulses:
    """Reads the queue of a database.

    Attributes:
        why: why the last reading failed; empty if it did not.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Connection | None = None
        self._one_at_a_time = asyncio.Lock()
        self._last: Pulse | None = None
        self.why = ""
        self._looked_at = float("-inf")

    async def look(self) -> Pulse | None:
        """A reading at most a second old; None when the database does not answer within two.

        Raises:
            DatabaseError: the schema is not Mailroom's, or the user may not read it.
        """
        async with self._one_at_a_time:
            if time.monotonic() - self._looked_at >= FRESH_S:
                self._last, self.why = None, ""
                try:
                    self._last = await self._ask()
                except TimeoutError:
                    await self.close()
                    self.why = f"no answer within {LIMIT_S:g} s"
                except OSError as error:
                    self.why = reason(error)
                except psycopg.Error as error:
                    if is_permanent(error):
                        raise explained(error) from error
                    if spoils_session(error):
                        await self.close()
                    self.why = refusal(error)
                self._looked_at = time.monotonic()
            return self._last

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()

    async def _ask(self) -> Pulse | None:
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + LIMIT_S
        if self._connection is None or self._connection.closed:
            async with asyncio.timeout_at(ends_at):
                self._connection = await self._database.connect_once(LIMIT_S)
        # A cancelled statement would make psycopg wait for the server, so the connection is shut down.
        timer = loop.call_at(ends_at, hang_up, self._connection)
        try:
            cursor = await self._connection.execute(PULSE, [COUNT_LIMIT])
            row = await cursor.fetchone()
        finally:
            timer.cancel()
        return None if row is None else Pulse._make(row)
