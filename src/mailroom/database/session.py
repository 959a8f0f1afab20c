"""Runs statements one at a time over one connection, and connects again when it breaks.

``ask`` repeats a statement until there is an answer. ``ask_once`` is for statements that must not run twice:
it raises ``AnswerLost`` when it is not known whether the statement ran. When one session loses its
connection, the other sessions of its ``Database`` connect again too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import LiteralString

import psycopg
from psycopg.rows import TupleRow

from mailroom.database.connection import Connection, Database, explained, reason, refusal
from mailroom.database.sqlstates import is_lost, is_permanent, refuses_value, spoils_session
from mailroom.errors import MailroomError
from mailroom.logs import EventLogger
from mailroom.outage import Outage

Cursor = psycopg.AsyncCursor[TupleRow]

log = EventLogger("queue")


class AnswerLost(MailroomError):
    """The connection broke; the statement may or may not have run."""


class Refused(MailroomError):
    """The database refuses a value, and would refuse it again."""


class Postponed(MailroomError):
    """The statement was not sent."""


class Session:
    """A session of ``database``; it connects for its first statement."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Connection | None = None
        self._epoch = -1
        self._refused = Outage(log, "refused", "still_refused", "accepted")
        self._one_at_a_time = asyncio.Lock()

    async def ask(
        self, query: LiteralString, parameters: Sequence[object], *, refused: bool = False
    ) -> list[TupleRow]:
        """The rows of the answer; the statement is repeated until there is one.

        Args:
            query: the statement.
            parameters: its parameters.
            refused: whether a refused value is raised, and the statement not repeated.

        Raises:
            Refused: the database refuses a value.
            DatabaseError: the schema or a privilege is missing.
        """
        while True:
            try:
                return await (await self.ask_once(query, parameters, refused=refused)).fetchall()
            except AnswerLost:
                continue

    async def ask_once(
        self,
        query: LiteralString,
        parameters: Sequence[object],
        *,
        unless: Callable[[], bool] | None = None,
        refused: bool = False,
    ) -> Cursor:
        """The whole answer, as a cursor whose rows have not been read yet.

        Waits for the database. The statement is repeated only after an error that certainly rolled it back.

        Args:
            query: the statement.
            parameters: its parameters.
            unless: called right before the statement is sent; True prevents it.
            refused: as for ``ask``.

        Raises:
            Refused: see ``ask``.
            Postponed: ``unless`` returned True.
            AnswerLost: the connection broke before there was an answer.
            DatabaseError: the schema or a privilege is missing.
        """
        async with self._one_at_a_time:
            while True:
                await self._refused.back_off()
                connection = await self.connected()
                if unless and unless():
                    raise Postponed("it would be too early")
                try:
                    answer = await self._database.limited(
                        connection, connection.execute(query, _storable(parameters, connection), binary=True)
                    )
                except psycopg.Error as error:
                    if is_lost(connection, error):
                        if self._epoch == self._database.epoch:  # else another session reported it
                            self._database.lost(error)
                        await connection.close()
                        raise AnswerLost(reason(error)) from error
                    if is_permanent(error):
                        raise explained(error) from error
                    if refused and refuses_value(error):
                        raise Refused(refusal(error)) from error
                    self._refused.failed(refusal(error))  # a full disk, a time limit
                    if spoils_session(error):
                        await connection.close()
                else:
                    self._database.answered()
                    self._refused.ended()
                    return answer

    async def connected(self) -> Connection:
        """The connection, a new one if the last one broke."""
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


def _storable(parameters: Sequence[object], connection: Connection) -> list[object]:
    """The parameters, with ``?`` for each character that the database cannot hold.

    Such as the words of a provider may have: no such text may end the worker, or prevent an answer's record.
    """
    name = connection.info.parameter_status("server_encoding")
    encoding = "utf-8" if name in {"UTF8", None} else "ascii"

    def storable(value: object) -> object:
        if isinstance(value, list):
            return [storable(one) for one in value]
        if not isinstance(value, str) or (value.isascii() and "\0" not in value):
            return value
        return value.replace("\0", "?").encode(encoding, "replace").decode(encoding)

    return [storable(value) for value in parameters]
