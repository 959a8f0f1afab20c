"""Sets the server's parameters that Mailroom relies on, for each connection of each program.

A server, a database or a role may have other defaults (``ALTER DATABASE … SET DateStyle``), and a connection
begins with them. One statement after the connect sets those of Mailroom. They are not libpq's ``options``,
because a pooler refuses that option.

A pooler in transaction mode lends the server's process to other clients, so most of the parameters would
reach the application. There only ``OF_THE_CLIENT`` is set, which a pooler restores for each client. The
server reports its process id when a session begins; if a statement then reports the same id, no pooler is in
between. Hence statements may rely on the others only where a session is kept, and name the schema of all
that they use.

Not set: ``default_transaction_read_only``. Somebody who sets it wants that nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, LiteralString

import psycopg

OF_THE_CLIENT: Final = {"DateStyle": "ISO", "TimeZone": "UTC", "standard_conforming_strings": "on"}

# Functions and tables of other schemas are named with theirs.
CATALOG_ONLY: Final = "pg_catalog, pg_temp"
SET_PATH: Final[LiteralString] = "SELECT pg_catalog.set_config('search_path', %s, true)"

# A backend that waits for a lock looks after this time whether its client still lives. With log_lock_waits
# the server logs the wait again each time.
CLIENT_CHECK: Final = "client_connection_check_interval"
CLIENT_CHECK_MS: Final = 10_000

# A worker is idle while nobody signs up, which may be longer than the server's limits.
OF_THE_SESSION: Final = {
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "search_path": CATALOG_ONLY,
    "row_security": "off",  # an error in place of rows that are left out
    "client_min_messages": "warning",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "lock_timeout": "0",
    "transaction_timeout": "0",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    CLIENT_CHECK: str(CLIENT_CHECK_MS),
}

# A server of an older version lacks some.
SET: Final[LiteralString] = """
SELECT pg_catalog.set_config(given.name, given.value, false)
FROM ROWS FROM (pg_catalog.unnest(%s::pg_catalog.text[]), pg_catalog.unnest(%s::pg_catalog.text[]),
                pg_catalog.unnest(%s::pg_catalog.bool[])) AS given (name, value, is_of_session)
WHERE pg_catalog.current_setting(given.name, true) IS NOT NULL
      AND (NOT given.is_of_session OR %s OR pg_catalog.pg_backend_pid() OPERATOR(pg_catalog.=) %s)
"""

Parameters = Mapping[str, str | None]


def limit(seconds: float) -> dict[str, str]:
    """The parameter with which the server ends a statement after this time; 0 is no limit."""
    return {"statement_timeout": str(round(seconds * 1000))}


def parameters_of(backend_pid: int, parameters: Parameters, *, is_kept: bool) -> list[object]:
    """The parameters of ``SET``.

    Args:
        backend_pid: the server's process id, as it was reported when the session began.
        parameters: of this session, in place of ``OF_THE_SESSION`` and beside it; None leaves one as it is.
        is_kept: the session is known to be this client's alone, even behind a pooler.
    """
    of_session = {
        name: value for name, value in {**OF_THE_SESSION, **parameters}.items() if value is not None
    }
    names = [*OF_THE_CLIENT, *of_session]
    values = [*OF_THE_CLIENT.values(), *of_session.values()]
    return [names, values, [name in of_session for name in names], is_kept, backend_pid]


def set_parameters(connection: psycopg.Connection, parameters: Parameters) -> None:
    """Set the parameters of a blocking connection, whose session may be a pooler's."""
    pid = connection.info.backend_pid
    try:
        connection.execute(SET, parameters_of(pid, parameters, is_kept=False))
    except psycopg.DataError:  # the server's system cannot check its clients
        connection.execute(SET, parameters_of(pid, {**parameters, CLIENT_CHECK: None}, is_kept=False))


async def set_parameters_of(
    connection: psycopg.AsyncConnection, parameters: Parameters, *, is_kept: bool
) -> None:
    """Set the parameters of a connection; see ``parameters_of``."""
    pid = connection.info.backend_pid
    try:
        await connection.execute(SET, parameters_of(pid, parameters, is_kept=is_kept))
    except psycopg.DataError:  # the server's system cannot check its clients
        left = {**parameters, CLIENT_CHECK: None}
        await connection.execute(SET, parameters_of(pid, left, is_kept=is_kept))
