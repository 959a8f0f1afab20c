"""A database as the checks see it: one connection, whose every statement has a limit.

The limit holds for one transaction, so that nothing is left behind in a connection that a pooler
lends to others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, LiteralString

import psycopg
from psycopg.rows import TupleRow

from mailroom.database import sync
from mailroom.database.connection import LOST, WORKER_ROLE, reason
from mailroom.database.sync import ANY_SERVER
from mailroom.errors import DatabaseError, DatabaseUnavailable
from mailroom.settings.collector import CollectorSettings

PROGRAM: Final = "mailroom doctor"
CONNECT_LIMIT_S: Final = "4"
STATEMENT_LIMIT_MS: Final = 3000
NO_ANSWER: Final = "see the server's load, its locks (pg_locks) and its log"


@dataclass(slots=True)
class Probe:
    """What the checks share: the settings, and the connection that the first of them makes."""

    settings: CollectorSettings
    opened: psycopg.Connection | None = None

    @property
    def connection(self) -> psycopg.Connection:
        """The connection; ``server`` has made it."""
        if self.opened is None:
            raise RuntimeError("a check that needs the server does not say so")
        return self.opened

    @contextmanager
    def transaction(self) -> Iterator[psycopg.Connection]:
        """A transaction whose statements have their limit.

        Raises:
            DatabaseError, DatabaseUnavailable: PostgreSQL refused something, or did not answer.
        """
        with self.translated(), self.connection.transaction():
            self.connection.execute(
                "SELECT set_config('statement_timeout', %s, true)", [str(STATEMENT_LIMIT_MS)]
            )
            yield self.connection

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turns psycopg's errors into Mailroom's; a statement that took too long counts as no answer.

        Raises:
            DatabaseError, DatabaseUnavailable: PostgreSQL refused something, or did not answer.
        """
        with sync.translated(self.connection, WORKER_ROLE):
            try:
                yield
            except LOST as error:
                raise DatabaseUnavailable(
                    f"the database gave no answer: {reason(error)}", hint=NO_ANSWER
                ) from error

    def ask(self, query: LiteralString, *parameters: object) -> list[TupleRow]:
        """The rows of one query in a transaction of its own. Raises what ``transaction`` does."""
        with self.transaction() as connection:
            return connection.execute(query, parameters or None).fetchall()


def connect(database_url: str) -> psycopg.Connection:
    """A connection in autocommit mode, to a server that takes writes if one of the hosts does.

    Raises:
        DatabaseError, DatabaseUnavailable: no host accepts the connection.
    """
    options = {"connect_timeout": CONNECT_LIMIT_S}
    try:
        return sync.connected(database_url, program=PROGRAM, defaults={}, **options)
    except (DatabaseError, DatabaseUnavailable) as error:
        if "read-only" not in str(error):
            raise
    return sync.connected(database_url, program=PROGRAM, defaults={}, **options | ANY_SERVER)
