"""Connects to PostgreSQL, and connects again after an outage.

``Database`` has one address, which may name several hosts. ``connect`` retries until it succeeds, with
exponential back-off and jitter. Each outage is logged when it begins, once a minute, and when a statement
is answered again. Only the very first connection fails at once on an error that retrying cannot fix, such
as a wrong password, and suggests a fix.

Every answer has a time limit. The server ends a statement shortly before it, so that nothing goes on that
was given up. A connection may be dead without being closed: hence ``limited`` shuts it down at the limit. The
kernel's keepalives find dead connections on which nobody waits.

A connection that is refused while others are open is no outage: the server may have no free connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import select
import socket
from collections.abc import Awaitable, Mapping
from types import MappingProxyType
from typing import Final, TypeVar
from weakref import WeakSet

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from mailroom.database.parameters import limit, set_parameters_of
from mailroom.database.sqlstates import is_permanent
from mailroom.errors import DatabaseError
from mailroom.logs import EventLogger
from mailroom.outage import Outage

Value = TypeVar("Value")
Connection = psycopg.AsyncConnection[psycopg.rows.TupleRow]

# The server ends a statement after this share of the time that its client waits.
SERVERS_SHARE: Final = 0.9

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

# Why a connection failed, where retrying cannot help. libpq reports no SQLSTATE for a refused connection, so
# the English text is matched. With a server in another language we keep retrying, and the log says why.
_PERMANENT_FAILURES: Final = (
    (r'database ".*" does not exist', "create the database, or correct its name in MAILROOM_DATABASE_URL"),
    (r'role ".*" does not exist', "create the role, or correct the user in MAILROOM_DATABASE_URL"),
    (r"password authentication failed", "correct the user or the password in MAILROOM_DATABASE_URL"),
    (r"no password supplied", "put the password into MAILROOM_DATABASE_URL, or into a .pgpass file"),
    (r"no pg_hba\.conf entry", "add a line for this machine and user to the server's pg_hba.conf"),
    (r"permission denied for database", "GRANT CONNECT ON DATABASE to the user"),
    (r"(server does not support SSL|root certificate file|certificate verify failed)",
     "correct sslmode or sslrootcert in MAILROOM_DATABASE_URL"),
    (r"invalid (port number|.* value)|could not match \d+ |definition of service .* not found",
     "correct that option in MAILROOM_DATABASE_URL"),
)  # fmt: skip

log = EventLogger("database")


class Database:
    """A database by its address, and whether it answers.

    Args:
        conninfo: a libpq connection string, completed by ``CONNECTION_DEFAULTS``.
        program: the application_name of the connections, unless the string has one.
        answer_limit_s: how many seconds one answer may take.
    """

    def __init__(self, conninfo: str, *, program: str, answer_limit_s: float) -> None:
        self._conninfo = completed(conninfo, program)
        self.answer_limit_s = answer_limit_s
        self._ever_connected = False
        self._keeps_sessions = False
        self._outage = Outage(log, "lost", "still_lost", "back")
        # One more connection is refused, while the others are open.
        self._refused = Outage(log, "refused", "still_refused", "accepted")
        self._connections: WeakSet[Connection] = WeakSet()
        self._epoch = 0

    @property
    def epoch(self) -> int:
        """The number of outages until now. A connection of an older epoch must not be used."""
        return self._epoch

    @property
    def is_down(self) -> bool:
        """Whether the last statement got no answer."""
        return self._outage.is_on

    async def connect(self) -> Connection:
        """A new connection in autocommit mode; retries until there is one.

        Raises:
            DatabaseError: no connection ever succeeded, and retrying cannot fix the error; or the user may
                not use the session.
        """
        while True:
            await self._outage.back_off()
            await self._refused.back_off()
            try:
                connection = await self.connect_once(self.answer_limit_s)
            except (psycopg.Error, OSError) as error:
                if isinstance(error, psycopg.Error) and is_permanent(error):
                    raise explained(error) from error
                if not self._ever_connected and (fatal := permanent_failure(error)):
                    raise fatal from error
                if any(is_open(other) for other in self._connections):
                    self._refused.failed(reason(error))
                else:
                    self.lost(error)
            else:
                self._refused.ended()
                self._ever_connected = True
                self._connections.add(connection)
                return connection

    async def connect_once(self, answer_limit_s: float) -> Connection:
        """A new connection in autocommit mode, which changes nothing else; to be closed by the caller.

        Args:
            answer_limit_s: how many seconds one answer may take.

        Raises:
            psycopg.Error, OSError: there is none.
        """
        connection = await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)
        connection.add_notice_handler(_log_warning)
        try:
            await self._set_parameters(connection, answer_limit_s)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def keep_sessions(self, *connections: Connection) -> None:
        """Note that every connection keeps its session, even behind a pooler, and set up these.

        Raises:
            psycopg.Error: a connection broke.
        """
        self._keeps_sessions = True
        for connection in connections:
            await self._set_parameters(connection, self.answer_limit_s)

    async def _set_parameters(self, connection: Connection, answer_limit_s: float) -> None:
        parameters = limit(SERVERS_SHARE * answer_limit_s)
        setting = set_parameters_of(connection, parameters, is_kept=self._keeps_sessions)
        await self.limited(connection, setting)

    def lost(self, error: BaseException) -> None:
        """Record that the database did not answer, and shut down all its connections."""
        if self._outage.failed(reason(error)):
            self._epoch += 1
            for connection in self._connections:
                hang_up(connection)
            self._connections.clear()

    def answered(self) -> None:
        """Record that the database answered, which ends an outage."""
        self._outage.ended()

    async def limited(self, connection: Connection, answer: Awaitable[Value]) -> Value:
        """The answer; if it does not come in time, the connection is shut down.

        Raises:
            psycopg.OperationalError: the connection broke, or was shut down.
        """
        timer = asyncio.get_running_loop().call_later(self.answer_limit_s, hang_up, connection)
        try:
            return await answer
        finally:
            timer.cancel()


def completed(conninfo: str, program: str, defaults: Mapping[str, str] = MappingProxyType({})) -> str:
    """A connection string with a value for each option that it left out.

    Args:
        conninfo: a libpq connection string; its own values stay.
        program: the application_name.
        defaults: libpq's options that differ from ``CONNECTION_DEFAULTS``.
    """
    given = {name: str(value) for name, value in conninfo_to_dict(conninfo).items() if value is not None}
    ours = {"fallback_application_name": program}
    return make_conninfo(**(CONNECTION_DEFAULTS | ours | dict(defaults) | given))


def reason(error: BaseException) -> str:
    """An error of psycopg or the system on one line, without rows and context, for a log."""
    primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    return " ".join((primary or str(error)).split()) or type(error).__name__


def refusal(error: psycopg.Error) -> str:
    """The reason of a refused statement, with its SQLSTATE."""
    return f"{reason(error)} (SQLSTATE {error.sqlstate})" if error.sqlstate else reason(error)


def permanent_failure(error: BaseException) -> DatabaseError | None:
    """The error to raise if a connection failed and retrying cannot help, else None."""
    text = reason(error)
    for pattern, remedy in _PERMANENT_FAILURES:
        if re.search(pattern, text):
            return DatabaseError(f"PostgreSQL refuses the connection: {text}", hint=remedy)
    return None


def refuse_no_encoding(connection: psycopg.Connection | Connection) -> None:
    """Check that the database has an encoding.

    Raises:
        DatabaseError: it has none.
    """
    if connection.info.parameter_status("server_encoding") == "SQL_ASCII":
        raise DatabaseError(
            "the database has no encoding (SQL_ASCII), so its text may be any bytes",
            hint="move it to a database with ENCODING 'UTF8'",
        )


def explained(error: psycopg.Error, role: str = WORKER_ROLE) -> DatabaseError:
    """The error to raise if a statement failed and retrying cannot help.

    Args:
        error: psycopg's.
        role: the role of ``mailroom roles`` that may run the statement.
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
        case psycopg.errors.InsufficientPrivilege() if error.diag.source_function == "check_enable_rls":
            return DatabaseError(
                f"row-level security would hide rows from Mailroom's functions: {text}",
                hint="run `mailroom doctor`: it names the table and the statement that allows it",
            )
        case psycopg.errors.InsufficientPrivilege() if remedy := built_in_remedy(text):
            return DatabaseError(f"PostgreSQL's own functions are restricted: {text}", hint=remedy)
        case psycopg.errors.InsufficientPrivilege():
            return DatabaseError(
                f"the user may not do this: {text}",
                hint=f"GRANT {role} to it; `mailroom roles` makes the role, after each migration",
            )
        case _:
            return DatabaseError(
                f"PostgreSQL refused a statement: {text} ({type(error).__name__})",
                hint="check whether the schema was altered; the server's log has the full error",
            )


def built_in_remedy(text: str) -> str:
    """What to do if PostgreSQL's own function or view was revoked from PUBLIC; empty for any other error."""
    found = re.search(r"permission denied for (function|view|table) (pg_\w+)", text)
    if not found:
        return ""
    right = "EXECUTE ON FUNCTION" if found[1] == "function" else "SELECT ON"
    return (
        f"as a superuser, GRANT {right} pg_catalog.{found[2]} TO the owner of the schema mailroom"
        " and to this user"
    )


def _log_warning(notice: psycopg.errors.Diagnostic) -> None:
    if notice.severity_nonlocalized == "WARNING":
        log.warning("warning", message=notice.message_primary)


def is_open(connection: Connection) -> bool:
    """Whether the server has not closed the connection, as far as this machine knows."""
    if connection.closed:
        return False
    poll = select.poll()
    closed = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)
    poll.register(connection.fileno(), closed)
    return not poll.poll(0)


def hang_up(connection: psycopg.Connection | Connection) -> None:
    """Shut the socket down, so that a statement under way fails at once."""
    with (
        contextlib.suppress(OSError, psycopg.OperationalError),
        socket.socket(fileno=os.dup(connection.fileno())) as twin,
    ):
        twin.shutdown(socket.SHUT_RDWR)
