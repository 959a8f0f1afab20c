"""Checks the database server, the keys, and the schema's version."""

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
CLOCK: Final = "SELECT extract(epoch FROM pg_catalog.clock_timestamp())::pg_catalog.float8"

# Names in a schema that the user may not use are not found.
IS_HIDDEN: Final = """
SELECT pg_catalog.to_regnamespace('mailroom') IS NOT NULL
   AND pg_catalog.to_regclass(
       pg_catalog.quote_ident(pg_catalog.current_schema()) || '.schema_migrations') IS NULL
"""


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


def migrations(probe: Probe) -> Finding:
    """The schema has the version that this Mailroom needs."""
    newest = max(migration.version for migration in migrate.shipped())
    with probe.transaction(keep_path=True) as connection:
        ((is_hidden,),) = connection.execute(IS_HIDDEN).fetchall()
    if is_hidden:
        raise NotKnown(
            f"not known: this user cannot see {migrate.TABLE}, and Mailroom's schema exists",
            f"run `mailroom roles --apply`, or GRANT USAGE ON SCHEMA public and SELECT ON {migrate.TABLE} TO"
            " this user",
        )
    try:
        with probe.transaction(keep_path=True) as connection:
            state = migrate.state(connection)
    except MigrationError as error:
        if isinstance(error.__cause__, psycopg.errors.InsufficientPrivilege):
            raise NotKnown(
                f"not known: this user may not read {migrate.TABLE}",
                f"run the doctor as the schema's owner, or GRANT SELECT ON {migrate.TABLE} TO this user",
            ) from error
        raise
    if state.dirty:
        return fault(
            f"dirty: a migration to or from version {state.version} failed halfway",
            "find out which of its statements were applied, and complete or undo them; then set"
            f" version accordingly, and dirty = false, in {migrate.TABLE}",
        )
    if state.version < newest:
        return fault(
            f"the schema is at version {state.version}, and this Mailroom needs {newest}"
            if state.version
            else "the database does not have Mailroom's schema",
            "run `mailroom migrate up` with the same MAILROOM_DATABASE_URL",
        )
    if state.version > newest:
        return warning(
            f"the schema is at version {state.version}, and this Mailroom knows up to {newest}",
            "update Mailroom on this machine to the version that migrated the schema",
        )
    return ok(f"up to date, version {state.version}")


def keys(probe: Probe) -> Finding:
    """There are keys that sign tokens."""
    count = len(probe.settings.keys)
    more = "the first one signs, all verify (a rotation is under way)"
    return ok(f"{count} keys; {more}" if count > 1 else "1 key")
