"""Checks, before a worker starts, that the database can be used, and says what to do if not.

The sessions: LISTEN and advisory locks belong to a session. Behind PgBouncer in transaction mode each
transaction of a connection may run in another session: both statements succeed, and no notification ever
arrives. A direct connection is never refused. The server reports its process id when a session begins; if a
statement later reports the same id, there is no such pooler in between. Otherwise a notification must arrive.
It does in session mode. In other modes it cannot, however many server processes the pooler has: it drops
notifications for a connection that is not in a transaction.

The schema: its version, the functions that this version of Mailroom calls, row-level security, and the
trigger on tokens.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final

import psycopg
from psycopg import sql

from mailroom.database.connection import Connection, Database, explained, refuse_no_encoding
from mailroom.database.session import Session
from mailroom.database.sqlstates import is_permanent
from mailroom.errors import DatabaseError
from mailroom.wording import counted

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
    "misplaced_tokens",
    "known_actions",
    "record_events",
    "keep_unreadable",
)
VERSION: Final = "SELECT mailroom.schema_version()"
# Behind a pooler the search_path is the user's, so these name the schema of all that they use.
UNUSABLE: Final = """
SELECT f.name, p.oid IS NOT NULL
FROM pg_catalog.unnest(%s::pg_catalog.text[]) WITH ORDINALITY AS f (name, n)
LEFT JOIN pg_catalog.pg_proc p ON p.proname OPERATOR(pg_catalog.=) f.name
     AND p.pronamespace OPERATOR(pg_catalog.=) pg_catalog.to_regnamespace('mailroom')
WHERE p.oid IS NULL OR NOT pg_catalog.has_function_privilege(p.oid, 'EXECUTE') ORDER BY f.n
"""
MISPLACED: Final = "SELECT unreachable, repeated FROM mailroom.misplaced_tokens()"
# Enabled means that it fires on a primary: O and A, not R.
TRIGGERS: Final = """
SELECT t.tgrelid::pg_catalog.regclass::pg_catalog.text, pg_catalog.quote_ident(t.tgname),
       t.tgenabled OPERATOR(pg_catalog.=) ANY (ARRAY['O', 'A']::pg_catalog."char"[]),
       pg_catalog.split_part(pg_catalog.encode(t.tgargs, 'escape'), '\\000', 1)
FROM pg_catalog.pg_trigger t
WHERE t.tgfoid OPERATOR(pg_catalog.=) pg_catalog.to_regprocedure(%s)::pg_catalog.oid
"""
RING_FUNCTION: Final = "mailroom.ring()"
# The tables whose rows row-level security hides from the owner of the functions.
HIDDEN: Final = """
SELECT c.oid::regclass::text, quote_ident(r.rolname), pg_has_role(r.oid, c.relowner, 'USAGE')
FROM pg_proc p
JOIN pg_roles r ON r.oid = p.proowner AND NOT r.rolsuper AND NOT r.rolbypassrls
JOIN pg_class c ON c.relrowsecurity AND (c.relforcerowsecurity OR NOT pg_has_role(r.oid, c.relowner, 'USAGE'))
WHERE p.proname = 'claim' AND p.pronamespace = to_regnamespace('mailroom')
  AND (c.relnamespace = to_regnamespace('mailroom')
       OR c.relname IN ('accounts', 'tokens', 'jobs')
          AND c.relnamespace = (SELECT t.typnamespace FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
                                WHERE a.attrelid = to_regclass('mailroom.actions') AND a.attname = 'action'))
ORDER BY 1
"""


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


def hidden_fault(hidden: Sequence[tuple[str, str, bool]]) -> DatabaseError | None:
    """Why Mailroom's functions cannot read all rows; None if they can.

    Args:
        hidden: the rows of ``HIDDEN``: a table, the functions' owner, and whether it owns the table too.
    """
    if not hidden:
        return None
    owner, owns_all = hidden[0][1], all(owns_table for _, _, owns_table in hidden)
    remedies = [
        f"ALTER TABLE {table} " + ("NO FORCE ROW LEVEL SECURITY" if owns_table else f"OWNER TO {owner}")
        for table, _, owns_table in hidden
    ]
    names = ", ".join(table for table, _, _ in hidden)
    state = "is forced" if owns_all else "is enabled"
    return DatabaseError(
        f"row-level security {state} on {names}, and would hide rows from {owner}, the owner of Mailroom's"
        " functions",
        hint=f"{'; '.join(remedies)}; or, as a superuser, ALTER ROLE {owner} BYPASSRLS",
    )


def restore_fault(unreachable: int, repeated: int) -> DatabaseError | None:
    """Why the cursor does not fit the tokens, as after a restore without it; None if it does.

    Args:
        unreachable: how many tokens no claim would find.
        repeated: how many tokens in the ledger the next claims would find.
    """
    if not unreachable and not repeated:
        return None
    found = [
        f"the mail of {counted(unreachable, 'waiting token')} would not be sent" if unreachable else "",
        f"the mail of {counted(repeated, 'token')} would be sent again" if repeated else "",
    ]
    return DatabaseError(
        f"the database was restored without the queue's cursor, so {' and '.join(filter(None, found))}",
        hint="run SELECT mailroom.take_over() in it as the schema's owner;"
        " see docs/how-to/restoring-a-backup.md",
    )


async def check_functions(session: Session, names: Sequence[str]) -> None:
    """Check the schema's version, and that these functions are there and granted.

    Args:
        session: to ask over.
        names: of functions in the schema ``mailroom``; ``schema_version`` is one of them.

    Raises:
        DatabaseError: something is missing; the hint says how to fix it.
    """
    unusable: dict[str, bool] = dict(await session.ask(UNUSABLE, [list(names)]))
    version = None if "schema_version" in unusable else (await session.ask(VERSION, []))[0][0]
    if fault := schema_fault(unusable, version):
        raise fault


async def check_schema(session: Session, channel: str) -> None:
    """Check the schema's version, the rights, row-level security, the trigger on tokens, and the cursor.

    Args:
        session: to ask over.
        channel: the channel that the trigger has to notify.

    Raises:
        DatabaseError: something is missing; the hint says how to fix it.
    """
    await check_functions(session, CALLED)
    if fault := hidden_fault([(row[0], row[1], row[2]) for row in await session.ask(HIDDEN, [])]):
        raise fault
    triggers = await session.ask(TRIGGERS, [RING_FUNCTION])
    notified = [name for _, _, is_enabled, name in triggers if is_enabled]
    if channel not in notified:
        raise DatabaseError(
            f"MAILROOM_CHANNEL_NAME: no trigger notifies {channel!r}, so new tokens would not be noticed"
            + (f"; the trigger on tokens notifies {', '.join(map(repr, notified))}" if notified else ""),
            hint="correct the name, or create the trigger tokens_ring again with this argument",
        )
    for unreachable, repeated in await session.ask(MISPLACED, []):
        if fault := restore_fault(unreachable, repeated):
            raise fault
