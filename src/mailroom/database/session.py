"""One connection that comes back, and one statement at a time over it.

``ask`` asks until there is an answer. Whoever may not be asked twice uses ``ask_once``, and hears when
the answer was lost. What one session meets hangs up the others of its ``Database``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import LiteralString

import psycopg
from psycopg.rows import TupleRow

from mailroom.database.connection import LOST, Connection, Database, explained, reason
from mailroom.errors import MailroomError
from mailroom.logs import EventLogger
from mailroom.outage import Outage

Cursor = psycopg.AsyncCursor[TupleRow]

log = EventLogger("queue")


class AnswerLost(MailroomError):
    """The statement may have been carried out or not."""


class Postponed(MailroomError):
    """The statement was not asked."""


class Session:
    """A session of ``database``; it connects when it is first asked."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Connection | None = None
        self._epoch = -1
        self._refused = Outage(log, "refused", "still_refused", "accepted")
        self._one_at_a_time = asyncio.Lock()

    async def ask(self, query: LiteralString, parameters: Sequence[object]) -> list[TupleRow]:
        """Ask until there is an answer.

        Raises:
            DatabaseError: the schema or a privilege is missing; waiting will not help.
        """
        while True:
            try:
                return await (await self.ask_once(query, parameters)).fetchall()
            except AnswerLost:
                continue

    async def ask_once(
        self,
        query: LiteralString,
        parameters: Sequence[object],
        *,
        unless: Callable[[], bool] | None = None,
    ) -> Cursor:
        """Ask, as soon as the database is there; again only when it refused for a reason that passes.

        The whole answer has come when it is given back; only its rows are not Python's yet.

        Args:
            query: the statement.
            parameters: and its parameters.
            unless: is asked right before, when the database is there.

        Raises:
            Postponed: because of ``unless``.
            AnswerLost: the connection broke before there was an answer.
            DatabaseError: the schema or a privilege is missing; waiting will not help.
        """
        async with self._one_at_a_time:
            while True:
                await self._refused.back_off()
                connection = await self.connected()
                if unless and unless():
                    raise Postponed("it would be too early")
                try:
                    answer = await self._database.limited(
                        connection, connection.execute(query, parameters, binary=True)
                    )
                except LOST as error:
                    if connection.closed or isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
                        if self._epoch == self._database.epoch:  # else another session has told
                            self._database.lost(error)
                        await connection.close()
                        raise AnswerLost(reason(error)) from error
                    self._refused.failed(reason(error))  # a full disk, a statement_timeout
                except psycopg.Error as error:
                    raise explained(error) from error
                else:
                    self._database.answered()
                    self._refused.ended()
                    return answer

    async def connected(self) -> Connection:
        """The connection, made anew where need be."""
        if self._connection is not None:
            if not self._connection.closed and self._epoch == self._database.epoch:
                return self._connection
            await self._connection.close()
        self._connection = connection = await self._database.connect()
        self._epoch = self._database.epoch
        return connection

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None
