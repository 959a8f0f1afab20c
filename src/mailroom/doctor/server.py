"""The server and the schema: what has to be right before the queue can be looked at."""

from __future__ import annotations

from time import time
from typing import Final

import psycopg

from mailroom.database import migrate
from mailroom.database.connection import refuse_no_encoding
from mailroom.doctor.clocks import compared
from mailroom.doctor.probe import Probe, connect
from mailroom.doctor.report import Finding, NotKnown, fault, ok, warning
from mailroom.errors import MigrationError

OLDEST_VERSION: Final = 14


def server(probe: Probe) -> Finding:
    """The server lets us in, and is new enough."""
    probe.opened = connection = connect(probe.settings.database_url)
    info = connection.info
    version = info.parameter_status("server_version") or "of an unknown version"
    safety = "TLS" if connection.pgconn.ssl_in_use else "no TLS"
    detail = (
        f"PostgreSQL {version} at {info.host}:{info.port}, database {info.dbname}, user {info.user}, {safety}"
    )
    if info.server_version < OLDEST_VERSION * 10_000:
        return fault(detail, f"Mailroom needs PostgreSQL {OLDEST_VERSION} or newer: move the database to one")
    return ok(detail)


def encoding(probe: Probe) -> Finding:
    """The texts in the database are of an encoding."""
    refuse_no_encoding(probe.connection)
    return ok(probe.connection.info.parameter_status("server_encoding") or "unknown")


def writable(probe: Probe) -> Finding:
    """The server takes writes, without which no token can be claimed."""
    ((in_recovery, read_only),) = probe.ask(
        "SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on'"
    )
    if in_recovery:
        return fault(
            "the server is a standby, which takes no writes",
            "let MAILROOM_DATABASE_URL name the primary, or all hosts with target_session_attrs=read-write",
        )
    if read_only:
        return fault(
            "transactions are read-only",
            "see default_transaction_read_only of the server, the database, the user and the address"
            " in MAILROOM_DATABASE_URL",
        )
    return ok("it takes writes")


def clock(probe: Probe) -> Finding:
    """This machine's clock and the database's, by which tokens expire, agree."""
    with probe.transaction() as connection:
        asked_at = time()
        rows = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchall()
        answered_at = time()
    return compared("the database", rows[0][0], asked_at, answered_at)


def migrations(probe: Probe) -> Finding:
    """The schema is this version's."""
    newest = max(migration.version for migration in migrate.shipped())
    try:
        with probe.transaction() as connection:
            state = migrate.state(connection)
    except MigrationError as error:
        if isinstance(error.__cause__, psycopg.errors.InsufficientPrivilege):
            raise NotKnown(
                f"not known: this user may not read {migrate.TABLE}",
                f"run the doctor as the schema's owner, or GRANT SELECT ON {migrate.TABLE} to this user",
            ) from error
        raise
    if state.dirty:
        return fault(
            f"dirty: a migration to or from version {state.version} was left half done",
            "look what of it was applied and mend that by hand; then set the version that holds, and"
            f" dirty = false, in {migrate.TABLE}",
        )
    if state.version < newest:
        return fault(
            f"the schema is at version {state.version}, and this Mailroom needs {newest}"
            if state.version
            else "the database has no schema of Mailroom's",
            "run `mailroom migrate up` with the same MAILROOM_DATABASE_URL",
        )
    if state.version > newest:
        return warning(
            f"the schema is at version {state.version}, and this Mailroom knows up to {newest}",
            "update Mailroom on this machine to the version that migrated it",
        )
    return ok(f"up to date, version {state.version}")


def keys(probe: Probe) -> Finding:
    """What signs tokens."""
    count = len(probe.settings.keys)
    more = "the first signs, all verify: a rotation is under way"
    return ok(f"{count} keys; {more}" if count > 1 else "1 key")
