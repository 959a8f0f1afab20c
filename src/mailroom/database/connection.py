"""Connections to PostgreSQL that come back.

``Database`` knows one address (which may name several hosts). ``connect`` tries for ever, with
exponential back-off and jitter, and each outage is told once: a line when it begins, one when the
first statement is answered again, and one a minute in between. At the very first connection it
gives up on what waiting cannot heal, such as a wrong password, with the remedy.

A network that goes deaf without closing is found by time: every answer has a limit, after which
``limited`` hangs up, and the kernel's keepalives look after the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
from collections.abc import Awaitable, Mapping
from types import MappingProxyType
from typing import Final, TypeVar
from weakref import WeakSet

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from mailroom.errors import DatabaseError
from mailroom.logs import EventLogger
from mailroom.outage import Outage

Value = TypeVar("Value")
Connection = psycopg.AsyncConnection[psycopg.rows.TupleRow]

# What may heal by waiting. A server that turned read-only is a standby now, and another host is not.
LOST: Final = (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction)

CONNECTION_DEFAULTS: Final = {
    "client_encoding": "UTF8",
    "connect_timeout": "10",
    "target_session_attrs": "read-write",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}

WORKER_ROLE: Final = "mailroom_worker"
ONCALL_ROLE: Final = "mailroom_oncall"

# We are idle for as long as nobody signs up, whatever the database's default is.
NO_IDLE_TIMEOUT: Final = (
    "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'"
)

# The server's reasons that stay as they are however long one waits. libpq passes no SQLSTATE for a
# refused connection, so they are known by their English text; where the server speaks another
# language we go on trying, and the log says why.
_PERMANENT_FAILURES: Final = (
    (r'database ".*" does not exist', "create the database, or correct its name in MAILROOM_DATABASE_URL"),
    (r'role ".*" does not exist', "create the role, or correct the user in MAILROOM_DATABASE_URL"),
    (r"password authentication failed", "correct the user or the password in MAILROOM_DATABASE_URL"),
    (r"no password supplied", "put the password into MAILROOM_DATABASE_URL, or into a .pgpass file"),
    (r"no pg_hba\.conf entry", "let this machine and user in with a line in the server's pg_hba.conf"),
    (r"permission denied for database", "GRANT CONNECT ON DATABASE to the user"),
    (r"(server does not support SSL|root certificate file|certificate verify failed)",
     "correct sslmode or sslrootcert in MAILROOM_DATABASE_URL"),
    (r"invalid (port number|.* value)", "correct that option in MAILROOM_DATABASE_URL"),
)  # fmt: skip

log = EventLogger("database")


class Database:
    """One address, and whether it answers.

    Args:
        conninfo: a libpq connection string; what it leaves open gets ``CONNECTION_DEFAULTS``.
        program: the connections' application_name, unless the string has one.
        answer_limit_s: how long one answer may take, in seconds.
    """

    def __init__(self, conninfo: str, *, program: str, answer_limit_s: float) -> None:
        self._conninfo = completed(conninfo, program)
        self.answer_limit_s = answer_limit_s
        self._ever_connected = False
        self._outage = Outage(log, "lost", "still_lost", "back")
        self._connections: WeakSet[Connection] = WeakSet()
        self._epoch = 0

    @property
    def epoch(self) -> int:
        """Counts outages: a connection of an older epoch is not to be trusted."""
        return self._epoch

    @property
    def is_down(self) -> bool:
        """Whether the last statement was not answered."""
        return self._outage.is_on

    async def connect(self) -> Connection:
        """A fresh connection in autocommit mode; waits as long as it takes.

        Raises:
            DatabaseError: there never was one, and waiting will not help.
        """
        while True:
            await self._outage.back_off()
            try:
                connection = await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)
                await self.limited(connection, connection.execute(NO_IDLE_TIMEOUT))
            except (psycopg.OperationalError, OSError) as error:
                if not self._ever_connected and (fatal := permanent_failure(error)):
                    raise fatal from error
                self.lost(error)
            else:
                self._ever_connected = True
                self._connections.add(connection)
                connection.add_notice_handler(_pass_on_warning)
                return connection

    def lost(self, error: BaseException) -> None:
        """Note that the database did not answer; what one connection met ends the others too."""
        if self._outage.failed(reason(error)):
            self._epoch += 1
            for connection in self._connections:
                hang_up(connection)
            self._connections.clear()

    def answered(self) -> None:
        """Note that the database did answer, which ends an outage."""
        self._outage.ended()

    async def limited(self, connection: Connection, answer: Awaitable[Value]) -> Value:
        """Wait for an answer, and hang up on a connection that does not give it in time.

        Raises:
            psycopg.OperationalError: the connection broke, or was hung up on.
        """
        timer = asyncio.get_running_loop().call_later(self.answer_limit_s, hang_up, connection)
        try:
            return await answer
        finally:
            timer.cancel()


def completed(conninfo: str, program: str, defaults: Mapping[str, str] = MappingProxyType({})) -> str:
    """A connection string with a value for everything that it left open.

    Args:
        conninfo: a libpq connection string; its own values stay.
        program: the application_name.
        defaults: libpq's options that differ from ``CONNECTION_DEFAULTS``.
    """
    given = {name: str(value) for name, value in conninfo_to_dict(conninfo).items() if value is not None}
    ours = {"fallback_application_name": program}
    return make_conninfo(**(CONNECTION_DEFAULTS | ours | dict(defaults) | given))


def reason(error: BaseException) -> str:
    """An error of psycopg's or the system's on one line, for a log: no row, no context."""
    primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    return " ".join((primary or str(error)).split()) or type(error).__name__


def permanent_failure(error: BaseException) -> DatabaseError | None:
    """The error to end with, when a connection failed for a reason that waiting will not heal."""
    text = reason(error)
    for pattern, remedy in _PERMANENT_FAILURES:
        if re.search(pattern, text):
            return DatabaseError(f"PostgreSQL refuses the connection: {text}", hint=remedy)
    return None


def refuse_no_encoding(connection: psycopg.Connection | Connection) -> None:
    """See that the database's texts are of an encoding.

    Raises:
        DatabaseError: they are of none.
    """
    if connection.info.parameter_status("server_encoding") == "SQL_ASCII":
        raise DatabaseError(
            "the database has no encoding (SQL_ASCII), so its texts may be anything",
            hint="move it to a database with ENCODING 'UTF8'",
        )


def explained(error: psycopg.Error, role: str = WORKER_ROLE) -> DatabaseError:
    """The error to end with, when a statement failed for a reason that waiting will not heal.

    Args:
        error: why it failed.
        role: of ``mailroom roles``, the one whose work it is.
    """
    text = reason(error)
    match error:
        case (
            psycopg.errors.UndefinedTable()
            | psycopg.errors.UndefinedFunction()
            | psycopg.errors.InvalidSchemaName()
        ):
            return DatabaseError(
                f"the schema is not Mailroom's: {text}", hint="run `mailroom migrate up` on this database"
            )
        case psycopg.errors.InsufficientPrivilege():
            return DatabaseError(
                f"the user may not do this: {text}",
                hint=f"GRANT {role} to it; `mailroom roles` makes the role, after each migration",
            )
        case _:
            return DatabaseError(
                f"PostgreSQL refused a statement: {text} ({type(error).__name__})",
                hint="see whether the schema was altered; the server's log holds the whole error",
            )


def _pass_on_warning(notice: psycopg.errors.Diagnostic) -> None:
    if notice.severity_nonlocalized == "WARNING":
        log.warning("warning", message=notice.message_primary)


def hang_up(connection: psycopg.Connection | Connection) -> None:
    """Shut the socket down, so that whoever waits on it gets an error at once."""
    with (
        contextlib.suppress(OSError, psycopg.OperationalError),
        socket.socket(fileno=os.dup(connection.fileno())) as twin,
    ):
        twin.shutdown(socket.SHUT_RDWR)
