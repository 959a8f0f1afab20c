"""Tells errors that may pass from those that do not, by SQLSTATE.

One table for every program: an error that is not in ``PERMANENT`` may pass, so the statement is repeated and
its reason is logged. Only an error that certainly does not pass ends a program.
"""

from __future__ import annotations

from typing import Final

import psycopg

# Classes, and codes of them that may pass nevertheless.
PERMANENT: Final = frozenset(
    {
        "25000",  # the transaction's isolation level is not the one that a function needs
        "28",  # the server refuses the user
        "3D",  # there is no such database
        "3F",  # there is no such schema
        "42",  # a table, a function or a column is missing, or a privilege
    }
)
PASSING: Final = frozenset(
    {
        "42P03",  # a cursor's name is taken in the session
        "42P05",  # a prepared statement's name is taken in the session
    }
)
# After an error of another class the session itself may be at fault: a prepared statement that the server has
# forgotten or refuses, a transaction that failed, an internal error. The statement is repeated in a new one.
KEEPS_SESSION: Final = frozenset(
    {
        "22",  # a value
        "23",  # a constraint
        "40",  # a serialization failure or a deadlock
        "53",  # memory, disk, connections
        "54",  # a limit of the server
        "55",  # a lock that is not available
        "57",  # a cancelled statement, a time limit
        "58",  # the operating system
        "P0",  # PL/pgSQL
    }
)

# A value is at fault: it cannot be converted, breaks a constraint, or is too large for an index.
VALUES: Final = frozenset({"22", "23", "54", "P0"})


def is_permanent(error: psycopg.Error) -> bool:
    """Whether repeating the statement cannot help."""
    code = error.sqlstate
    if code is None:  # libpq's own are OperationalError; psycopg's others are faults of the caller
        return not isinstance(error, psycopg.OperationalError)
    return code not in PASSING and not PERMANENT.isdisjoint({code, code[:2]})


def is_lost(connection: psycopg.Connection | psycopg.AsyncConnection, error: psycopg.Error) -> bool:
    """Whether the connection is of no more use: it is closed, or its server became a standby."""
    return connection.closed or isinstance(error, psycopg.errors.ReadOnlySqlTransaction)


def spoils_session(error: psycopg.Error) -> bool:
    """Whether the statement should be repeated in a new session."""
    return (error.sqlstate or "")[:2] not in KEEPS_SESSION


def refuses_value(error: psycopg.Error) -> bool:
    """Whether the statement would be refused again for its values, as far as the SQLSTATE tells."""
    return (error.sqlstate or "")[:2] in VALUES
