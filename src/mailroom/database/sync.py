"""Connections for commands: one at a time, blocking, with errors that name the remedy."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, LiteralString, TypeVar

import psycopg
from psycopg.rows import class_row

from mailroom.database.connection import explained, hang_up, permanent_failure, reason
from mailroom.errors import DatabaseUnavailable, MailroomError

ROLE: Final = "mailroom_oncall"

Row = TypeVar("Row")


@contextmanager
def connected(conninfo: str) -> Iterator[psycopg.Connection]:
    """A connection for migrating.

    Raises:
        DatabaseError, DatabaseUnavailable: PostgreSQL does not let us in, for good or for now.
    """
    try:
        connection = psycopg.connect(
            conninfo, autocommit=True, client_encoding="UTF8", fallback_application_name="mailroom migrate"
        )
    except psycopg.OperationalError as error:
        raise permanent_failure(error) or DatabaseUnavailable(
            f"cannot connect to PostgreSQL: {reason(error)}",
            hint="see that the server runs, and that MAILROOM_DATABASE_URL is right",
        ) from error
    with connection:
        yield connection


@contextmanager
def answering_within(connection: psycopg.Connection, limit_s: float) -> Iterator[None]:
    """Hang up on a connection that has not answered in time, so that whoever waits gets an error."""
    timer = threading.Timer(limit_s, hang_up, [connection])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def rows(
    connection: psycopg.Connection, row: type[Row], query: LiteralString, parameters: Sequence[object] = ()
) -> list[Row]:
    """What a query gives, as instances of a class with its columns' names.

    Raises:
        DatabaseError: there is not this schema, or it may not be asked.
        DatabaseUnavailable: the connection was lost.
    """
    try:
        with connection.cursor(row_factory=class_row(row)) as cursor:
            return cursor.execute(query, parameters).fetchall()
    except psycopg.Error as error:
        raise _failure(connection, error) from error


def one(
    connection: psycopg.Connection, query: LiteralString, parameters: Sequence[object]
) -> tuple[Any, ...]:
    """The one row that a query gives.

    Raises:
        DatabaseError, DatabaseUnavailable: as ``rows`` does.
    """
    try:
        (row,) = connection.execute(query, parameters).fetchall()
    except psycopg.Error as error:
        raise _failure(connection, error) from error
    return row


def _failure(connection: psycopg.Connection, error: psycopg.Error) -> MailroomError:
    if not connection.closed:
        return explained(error, ROLE)
    return DatabaseUnavailable(
        f"the connection to PostgreSQL was lost: {reason(error)}",
        hint="run it again; what was done stays done",
    )
