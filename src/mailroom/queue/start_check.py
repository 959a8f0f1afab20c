"""Checks, before a worker starts, that the database can be used, and says what to do if not.

The sessions: LISTEN and advisory locks belong to a session. Behind PgBouncer in transaction mode each
transaction of a connection may run in another session: both statements succeed, and no notification ever
arrives. A direct connection is never refused. The server reports its process id when a session begins; if a
statement later reports the same id, there is no such pooler in between. Otherwise a notification must arrive.
It does in session mode. In other modes it cannot, however many server processes the pooler has: it drops
notifications for a connection that is not in a transaction.

The schema: its version, the functions that this version of Mailroom calls, and the trigger on tokens.
"""

from __future__ import annotations

import secrets
from typing import Final

import psycopg
from psycopg import sql

from mailroom.database.connection import Connection, Database, explained, refuse_no_encoding
from mailroom.database.session import Session
from mailroom.database.sqlstates import is_permanent
from mailroom.errors import DatabaseError

ARRIVES_WITHIN_S: Final = 5.0
PROCESS: Final = "SELECT pg_catalog.pg_backend_pid()"
NOTIFY: Final = "SELECT pg_catalog.pg_notify(%s, '')"
# What this version calls, in the schema of the last migration that it knows.
SCHEMA_VERSION: Final = 4
CALLED: Final = (
    "claim",
    "settle",
    "record",
    "renew",
    "release",
    "next_due",
    "reserve",
    "heartbeat",
    "leave",
    "backlog",
    "pulse",
    "sleep_lock",
    "bell_lock",
    "request_sleep",
    "schema_version",
)
VERSION: Final = "SELECT mailroom.schema_version()"
# The doctor asks these with the search_path of the user, so they name the schema of all that they use.
UNUSABLE: Final = """
SELECT f.name, p.oid IS NOT NULL
FROM pg_catalog.unnest(%s::pg_catalog.text[]) WITH ORDINALITY AS f (name, n)
LEFT JOIN pg_catalog.pg_proc p ON p.proname OPERATOR(pg_catalog.=) f.name
     AND p.pronamespace OPERATOR(pg_catalog.=) pg_catalog.to_regnamespace('mailroom')
WHERE p.oid IS NULL OR NOT pg_catalog.has_function_privilege(p.oid, 'EXECUTE') ORDER BY f.n
"""
# Enabled means that it fires on a primary: O and A, not R.
TRIGGERS: Final = """
SELECT t.tgrelid::pg_catalog.regclass::pg_catalog.text, pg_catalog.quote_ident(t.tgname),
       t.tgenabled OPERATOR(pg_catalog.=) ANY (ARRAY['O', 'A']::pg_catalog."char"[]),
       pg_catalog.split_part(pg_catalog.encode(t.tgargs, 'escape'), '\\000', 1)
FROM pg_catalog.pg_trigger t
WHERE t.tgfoid OPERATOR(pg_catalog.=) pg_catalog.to_regprocedure(%s)::pg_catalog.oid
"""
RING_FUNCTION: Final = "mailroom.ring()"


async def check_sessions(database: Database, listening: Session, notifying: Session) -> None:
    """Check that connections keep their sessions, and that texts have an encoding.

    Raises:
        DatabaseError: a check failed.
    """
    while True:
        listener, ringer = await listening.connected(), await notifying.connected()
        try:
            kept = await database.limited(listener, keeps_sessions(listener, ringer))
            if kept:
                await database.keep_sessions(listener, ringer)
        except psycopg.Error as error:
            if is_permanent(error):
                raise explained(error) from error
            database.lost(error)  # both reconnect
        else:
            break
    if not kept:
        raise DatabaseError(
            "MAILROOM_DATABASE_URL names a pooler that keeps no sessions, such as PgBouncer in"
            " transaction mode, so new tokens would not be noticed",
            hint="set it to PostgreSQL itself, or to a pool in session mode; the application may keep"
            " using the pooler",
        )
    refuse_no_encoding(await listening.connected())


async def keeps_sessions(listener: Connection, ringer: Connection) -> bool:
    """Whether a notification sent over ``ringer`` arrives at ``listener``.

    Raises:
        psycopg.OperationalError: a connection broke.
    """
    found = await (await listener.execute(PROCESS)).fetchone()
    if found == (listener.info.backend_pid,):
        return True
    name = f"mailroom_session_{secrets.token_hex(8)}"
    channel = sql.Identifier(name)
    try:
        await listener.execute(sql.SQL("LISTEN {}").format(channel))
        await ringer.execute(NOTIFY, [name])
        arrived = [note async for note in listener.notifies(timeout=ARRIVES_WITHIN_S, stop_after=1)]
        await listener.execute(sql.SQL("UNLISTEN {}").format(channel))
    except (psycopg.ProgrammingError, psycopg.NotSupportedError):  # a pooler that does not support LISTEN
        return False
    return bool(arrived)


def schema_fault(unusable: dict[str, bool], version: int | None) -> DatabaseError | None:
    """Why this version of Mailroom cannot use the schema; None if it can.

    Args:
        unusable: the functions in ``CALLED`` that are missing or not granted, and whether they exist.
        version: the schema's version; None if its function is among them.
    """
    if version is None and not unusable["schema_version"]:
        return DatabaseError(
            "the database lacks Mailroom's schema",
            hint="run `mailroom migrate up` with the same MAILROOM_DATABASE_URL",
        )
    if version is not None and version < SCHEMA_VERSION:
        return DatabaseError(
            f"the schema is at version {version}, and this Mailroom needs {SCHEMA_VERSION}",
            hint="run `mailroom migrate up` with the same MAILROOM_DATABASE_URL",
        )
    if version is not None and version > SCHEMA_VERSION:
        return DatabaseError(
            f"this Mailroom is older than the schema: it knows version {SCHEMA_VERSION}, and the schema is at"
            f" {version}",
            hint="use the Mailroom that migrated it, or a newer one",
        )
    if missing := [name for name, exists in unusable.items() if not exists]:
        return DatabaseError(
            f"the schema was altered: it has no mailroom.{missing[0]}",
            hint="create the function again from the migrations",
        )
    if unusable:
        names = ", ".join(f"mailroom.{name}" for name in unusable)
        return DatabaseError(
            f"the user may not call {names}: permission denied",
            hint="GRANT mailroom_worker to it; `mailroom roles` makes the role, after each migration",
        )
    return None


async def check_schema(session: Session, channel: str) -> None:
    """Check the schema's version, the user's rights, and the trigger on tokens.

    Args:
        session: to ask over.
        channel: the channel that the trigger has to notify.

    Raises:
        DatabaseError: something is missing; the hint says how to fix it.
    """
    unusable: dict[str, bool] = dict(await session.ask(UNUSABLE, [list(CALLED)]))
    version = None if "schema_version" in unusable else (await session.ask(VERSION, []))[0][0]
    if fault := schema_fault(unusable, version):
        raise fault
    triggers = await session.ask(TRIGGERS, [RING_FUNCTION])
    notified = [name for _, _, is_enabled, name in triggers if is_enabled]
    if channel not in notified:
        raise DatabaseError(
            f"MAILROOM_CHANNEL_NAME: no trigger notifies {channel!r}, so new tokens would not be noticed"
            + (f"; the trigger on tokens notifies {', '.join(map(repr, notified))}" if notified else ""),
            hint="correct the name, or create the trigger tokens_ring again with this argument",
        )
