"""The database as the checks see it: one connection, with a time limit for every statement.

The limit is set for one transaction only: a pooler may lend the connection to others later.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, LiteralString

import psycopg
from psycopg.rows import TupleRow

from mailroom.database import sync
from mailroom.database.connection import WORKER_ROLE, reason
from mailroom.database.parameters import CATALOG_ONLY, SET_PATH
from mailroom.database.sqlstates import is_permanent
from mailroom.database.sync import ANY_SERVER
from mailroom.errors import DatabaseError, DatabaseUnavailable
from mailroom.settings.collector import CollectorSettings

PROGRAM: Final = "mailroom doctor"
CONNECT_LIMIT_S: Final = "4"
STATEMENT_LIMIT_MS: Final = 3000
NO_ANSWER: Final = "check the server's load, its locks (pg_locks) and its log"


@dataclass(slots=True)
class Probe:
    """What the checks share: the settings, and the connection that the check ``server`` opens."""

    settings: CollectorSettings
    opened: psycopg.Connection | None = None

    @property
    def connection(self) -> psycopg.Connection:
        """The connection that ``server`` opened."""
        if self.opened is None:
            raise RuntimeError("a check uses the connection and does not list the check 'server' as needed")
        return self.opened

    @contextmanager
    def transaction(self) -> Iterator[psycopg.Connection]:
        """A transaction in which every statement has a time limit and finds PostgreSQL's own catalog.

        Raises:
            DatabaseError, DatabaseUnavailable: PostgreSQL refused something, or did not answer.
        """
        with self.translated(), self.connection.transaction():
            self.connection.execute(
                "SELECT pg_catalog.set_config('statement_timeout', %s, true)", [str(STATEMENT_LIMIT_MS)]
            )
            self.connection.execute(SET_PATH, [CATALOG_ONLY])
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
            except psycopg.Error as error:
                if is_permanent(error):
                    raise
                raise DatabaseUnavailable(
                    f"the database gave no answer: {reason(error)}", hint=NO_ANSWER
                ) from error

    def ask(self, query: LiteralString, *parameters: object) -> list[TupleRow]:
        """The rows of a query, in its own transaction. Raises what ``transaction`` does."""
        with self.transaction() as connection:
            return connection.execute(query, parameters or None).fetchall()


def connect(database_url: str) -> psycopg.Connection:
    """A connection in autocommit mode, to a server that takes writes if one of the hosts does.

    Raises:
        DatabaseError, DatabaseUnavailable: no host accepts the connection.
    """
    limited = {"connect_timeout": CONNECT_LIMIT_S}
    try:
        return sync.connected(database_url, program=PROGRAM, defaults={}, options=limited)
    except (DatabaseError, DatabaseUnavailable) as error:
        if "read-only" not in str(error):
            raise
    return sync.connected(database_url, program=PROGRAM, defaults={}, options=limited | ANY_SERVER)
