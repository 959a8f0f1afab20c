"""Opens blocking connections for commands, the console and the doctor, and queries over them.

psycopg's errors become Mailroom's, with a hint. Nothing is retried here. A statement that was given up is
cancelled in the server.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final, LiteralString, TypeVar

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.rows import class_row

from mailroom.database.connection import (
    ONCALL_ROLE,
    SERVERS_SHARE,
    completed,
    explained,
    hang_up,
    permanent_failure,
    reason,
    refusal,
)
from mailroom.database.parameters import Parameters, limit, set_parameters
from mailroom.database.sqlstates import is_permanent
from mailroom.errors import DatabaseUnavailable

PROGRAM: Final = "mailroom"
# A request to cancel takes at most this long, since the network may deliver nothing.
CANCEL_S: Final = 1.0
ANY_SERVER: Final = {"target_session_attrs": "any"}
# What the schema's owner runs: it may take long, and uses the search_path of the database or the user.
FOR_THE_OWNER: Final = limit(0) | {"search_path": None}

RowT = TypeVar("RowT")


def connected(
    conninfo: str,
    *,
    program: str = PROGRAM,
    defaults: Mapping[str, str] = ANY_SERVER,
    parameters: Parameters = FOR_THE_OWNER,
    options: Mapping[str, str] = MappingProxyType({}),
) -> psycopg.Connection:
    """A connection in autocommit mode, which the caller closes, or uses as a context.

    Args:
        conninfo: a libpq connection string.
        program: the connection's application_name, unless the string has one.
        defaults: libpq's options that the string leaves out; they precede ``CONNECTION_DEFAULTS``.
        parameters: the server's parameters of this session; see ``mailroom.database.parameters``.
        options: libpq's options that override the string's.

    Raises:
        DatabaseError, DatabaseUnavailable: PostgreSQL refuses the connection, for good or for now.
    """
    try:
        connection = psycopg.connect(
            make_conninfo(
                completed(conninfo, program, defaults), **{"client_encoding": "UTF8"} | dict(options)
            ),
            autocommit=True,
            # A pooler may lend the server's process to others, and a prepared statement would stay in it.
            prepare_threshold=None,
        )
    except (psycopg.OperationalError, OSError) as error:
        raise permanent_failure(error) or DatabaseUnavailable(
            f"cannot connect to PostgreSQL: {reason(error)}",
            hint="check that the server runs and can be reached, and that MAILROOM_DATABASE_URL is right",
        ) from error
    try:
        with translated(connection):
            set_parameters(connection, parameters)
    except BaseException:
        connection.close()
        raise
    return connection


def answer_limit(limit_s: float) -> dict[str, str]:
    """The parameter with which the server ends a statement before ``answering_within`` gives it up."""
    return limit(SERVERS_SHARE * limit_s)


@contextmanager
def answering_within(connection: psycopg.Connection, limit_s: float) -> Iterator[None]:
    """Give the connection up after ``limit_s`` seconds, so that a statement under way fails."""
    timer = threading.Timer(limit_s, _give_up, [connection])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _give_up(connection: psycopg.Connection) -> None:
    """Cancel the connection's statement in the server, and shut the connection down."""
    with contextlib.suppress(psycopg.Error):
        connection.cancel_safe(timeout=CANCEL_S)
    hang_up(connection)


@contextmanager
def translated(connection: psycopg.Connection, role: str = ONCALL_ROLE) -> Iterator[None]:
    """Turns psycopg's errors into Mailroom's.

    Args:
        connection: the connection that is used inside.
        role: the role of ``mailroom roles`` to suggest when a privilege is missing.

    Raises:
        DatabaseError: the schema is missing or older, or a privilege is missing.
        DatabaseUnavailable: the connection was lost, or the statement was refused for now.
    """
    try:
        yield
    except psycopg.Error as error:
        # A command is not repeated by itself, and a row that others refer to stays so.
        is_final = is_permanent(error) or isinstance(error, psycopg.errors.ForeignKeyViolation)
        if not connection.closed and is_final:
            raise explained(error, role) from error
        if not connection.closed:
            raise DatabaseUnavailable(
                f"PostgreSQL refuses a statement for now: {refusal(error)}",
                hint="run it again; if it fails again, see the server's log and its locks (pg_locks)",
            ) from error
        raise DatabaseUnavailable(
            f"the connection to PostgreSQL was lost: {reason(error)}",
            hint="run it again; work that was committed is kept",
        ) from error


def rows(
    connection: psycopg.Connection, row: type[RowT], query: LiteralString, parameters: Sequence[object] = ()
) -> list[RowT]:
    """The rows of a query, as instances of a class with its columns' names.

    Raises:
        DatabaseError, DatabaseUnavailable: as ``translated`` does.
    """
    with translated(connection), connection.cursor(row_factory=class_row(row)) as cursor:
        return cursor.execute(query, parameters).fetchall()


def one(
    connection: psycopg.Connection, query: LiteralString, parameters: Sequence[object] = ()
) -> tuple[Any, ...]:
    """The only row of a query.

    Raises:
        DatabaseError, DatabaseUnavailable: as ``translated`` does.
    """
    with translated(connection):
        (row,) = connection.execute(query, parameters).fetchall()
    return row
