"""A database as the checks see it: one connection, whose every statement has a limit.

The limit holds for one transaction, so that nothing is left behind in a connection that a pooler
lends to others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, LiteralString

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from mailroom.database.connection import CONNECTION_DEFAULTS, LOST, explained, permanent_failure, reason
from mailroom.errors import DatabaseUnavailable
from mailroom.settings.collector import CollectorSettings

PROGRAM: Final = "mailroom doctor"
CONNECT_LIMIT_S: Final = 4
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
        with translated(), self.connection.transaction():
            self.connection.execute(
                "SELECT set_config('statement_timeout', %s, true)", [str(STATEMENT_LIMIT_MS)]
            )
            yield self.connection

    def ask(self, query: LiteralString, *parameters: object) -> list[TupleRow]:
        """The rows of one query in a transaction of its own. Raises what ``transaction`` does."""
        with self.transaction() as connection:
            return connection.execute(query, parameters or None).fetchall()


@contextmanager
def translated() -> Iterator[None]:
    """Turns psycopg's errors into ours.

    Raises:
        DatabaseError, DatabaseUnavailable: PostgreSQL refused something, or did not answer.
    """
    try:
        yield
    except LOST as error:
        raise DatabaseUnavailable(
            f"the database gave no answer: {reason(error)}",
            hint=NO_ANSWER,
        ) from error
    except psycopg.Error as error:
        raise explained(error) from error


def connect(database_url: str) -> psycopg.Connection:
    """A connection in autocommit mode; to a server that takes writes, where the address leaves a choice.

    Raises:
        DatabaseError, DatabaseUnavailable: there is none to be had.
    """
    given = {name: str(value) for name, value in conninfo_to_dict(database_url).items() if value is not None}
    defaults = CONNECTION_DEFAULTS | {"fallback_application_name": PROGRAM}
    options = defaults | given | {"connect_timeout": str(CONNECT_LIMIT_S)}
    try:
        try:
            return _connected(options)
        except psycopg.OperationalError as error:
            if "read-only" not in reason(error):
                raise
            return _connected(options | {"target_session_attrs": "any"})
    except (psycopg.OperationalError, OSError) as error:
        raise permanent_failure(error) or DatabaseUnavailable(
            f"cannot connect to PostgreSQL: {reason(error)}",
            hint="see that the server runs and can be reached from here, and MAILROOM_DATABASE_URL",
        ) from error


def _connected(options: Mapping[str, str]) -> psycopg.Connection:
    # Behind a pooler, a prepared statement would be left in a connection that is not ours.
    return psycopg.connect(make_conninfo(**options), autocommit=True, prepare_threshold=None)
