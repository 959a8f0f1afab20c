"""Checks the database server, and the keys."""

from __future__ import annotations

from time import time
from typing import Final

from mailroom.database.connection import refuse_no_encoding
from mailroom.doctor.clocks import compared
from mailroom.doctor.probe import Probe, connect
from mailroom.doctor.report import Finding, fault, ok, warning

OLDEST_VERSION: Final = 14
CLOCK: Final = "SELECT extract(epoch FROM pg_catalog.clock_timestamp())::pg_catalog.float8"


def server(probe: Probe) -> Finding:
    """The server accepts the connection, and its version is supported."""
    probe.opened = connection = connect(probe.settings.database_url)
    info = connection.info
    version = info.parameter_status("server_version") or "of unknown version"
    safety = "TLS" if connection.pgconn.ssl_in_use else "no TLS"
    detail = (
        f"PostgreSQL {version} at {info.host}:{info.port}, database {info.dbname}, user {info.user}, {safety}"
    )
    if info.server_version < OLDEST_VERSION * 10_000:
        return fault(detail, f"Mailroom needs PostgreSQL {OLDEST_VERSION} or newer: move the database to one")
    return ok(detail)


def encoding(probe: Probe) -> Finding:
    """The database has an encoding."""
    refuse_no_encoding(probe.connection)
    return ok(probe.connection.info.parameter_status("server_encoding") or "unknown")


def writable(probe: Probe) -> Finding:
    """The server accepts writes, which every claim needs."""
    ((in_recovery, read_only),) = probe.ask(
        "SELECT pg_catalog.pg_is_in_recovery(),"
        " pg_catalog.current_setting('transaction_read_only') OPERATOR(pg_catalog.=) 'on'"
    )
    if in_recovery:
        return fault(
            "the server is a standby, which refuses writes",
            "set MAILROOM_DATABASE_URL to the primary, or to all hosts with target_session_attrs=read-write",
        )
    if read_only:
        return fault(
            "transactions are read-only",
            "check default_transaction_read_only of the server, the database, the user, and in"
            " MAILROOM_DATABASE_URL",
        )
    return ok("the server accepts writes")


def two_phase(probe: Probe) -> Finding:
    """No transaction can be prepared, or what to mind if it can."""
    ((limit,),) = probe.ask("SELECT current_setting('max_prepared_transactions')::integer")
    if limit:
        return warning(
            f"max_prepared_transactions is {limit}, and PREPARE TRANSACTION fails for a transaction that"
            " inserted a token while all workers were idle: it has executed NOTIFY",
            "insert accounts and tokens in a transaction that is not prepared, such as one after COMMIT"
            " PREPARED; if you prepare none, ignore this",
        )
    return ok("no transaction is prepared (max_prepared_transactions is 0)")


def clock(probe: Probe) -> Finding:
    """This machine's clock agrees with the database's, by which tokens expire."""
    with probe.transaction() as connection:
        asked_at = time()
        rows = connection.execute(CLOCK).fetchall()
        answered_at = time()
    return compared("the database", rows[0][0], asked_at, answered_at)


def keys(probe: Probe) -> Finding:
    """There are keys that sign tokens."""
    count = len(probe.settings.keys)
    more = "the first one signs, all verify (a rotation is under way)"
    return ok(f"{count} keys; {more}" if count > 1 else "1 key")
