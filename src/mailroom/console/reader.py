"""Runs questions one at a time over one connection, in its own thread.

If the connection broke, the question is asked once more over a new one, so each of its changes must be safe
to repeat. A question fails after ``LIMIT_S`` seconds without an answer, and is cancelled in the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import psycopg

from mailroom.database.sqlstates import spoils_session
from mailroom.database.sync import ANY_SERVER, answer_limit, answering_within, connected
from mailroom.errors import DatabaseUnavailable

Value = TypeVar("Value")
Question = Callable[[psycopg.Connection], Value]

PROGRAM: Final = "mailroom console"
LIMIT_S: Final = 5.0
CONNECT_S: Final = "3"


class ConsoleReader:
    """Asks a database.

    Args:
        conninfo: a libpq connection string.
        read_only: refuse all changes; a standby is enough then.
    """

    def __init__(self, conninfo: str, *, read_only: bool) -> None:
        self._conninfo = conninfo
        self._read_only = read_only
        self._connection: psycopg.Connection | None = None
        self._thread = ThreadPoolExecutor(1, "console-reader")

    async def ask(self, question: Question[Value]) -> Value:
        """The answer to a question.

        Raises:
            DatabaseError, DatabaseUnavailable: PostgreSQL refuses the question, or does not answer.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._ask, question)

    def ask_now(self, question: Question[Value]) -> Value:
        """The answer to a question, for callers without an event loop."""
        return self._thread.submit(self._ask, question).result()

    def close(self) -> None:
        """Close the connection after the current question."""
        self._thread.submit(self._hang_up)
        self._thread.shutdown()

    def _ask(self, question: Question[Value]) -> Value:
        is_old = self._connection is not None and not self._connection.closed
        try:
            return self._asked(question)
        except DatabaseUnavailable as error:
            if self._connection is not None and not self._connection.closed:
                cause = error.__cause__
                if not (isinstance(cause, psycopg.Error) and spoils_session(cause)):
                    raise
                self._connection.close()
            if not is_old:
                raise
            return self._asked(question)

    def _asked(self, question: Question[Value]) -> Value:
        if self._connection is None or self._connection.closed:
            self._connection = self._connect()
        with answering_within(self._connection, LIMIT_S):
            return question(self._connection)

    def _connect(self) -> psycopg.Connection:
        defaults = {"connect_timeout": CONNECT_S} | (ANY_SERVER if self._read_only else {})
        parameters = answer_limit(LIMIT_S)
        if self._read_only:
            parameters["default_transaction_read_only"] = "on"
        return connected(self._conninfo, program=PROGRAM, defaults=defaults, parameters=parameters)

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
