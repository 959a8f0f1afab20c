"""Checks that this version of Mailroom can use the database's schema, and says what to do if not."""

from __future__ import annotations

from typing import Final

from mailroom.database.session import Session
from mailroom.errors import DatabaseError

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
    "throttle",
    "heartbeat",
    "leave",
    "backlog",
    "pulse",
    "sleep_lock",
    "bell_lock",
    "schema_version",
)
VERSION: Final = "SELECT mailroom.schema_version()"
UNUSABLE: Final = """
SELECT f.name, p.oid IS NOT NULL FROM unnest(%s::text[]) WITH ORDINALITY AS f (name, n)
LEFT JOIN pg_proc p ON p.proname = f.name AND p.pronamespace = to_regnamespace('mailroom')
WHERE p.oid IS NULL OR NOT has_function_privilege(p.oid, 'EXECUTE') ORDER BY f.n
"""
# Enabled means that it fires on a primary: O and A, not R.
TRIGGERS: Final = """
SELECT t.tgrelid::regclass::text, quote_ident(t.tgname), t.tgenabled IN ('O', 'A'),
       split_part(encode(t.tgargs, 'escape'), '\\000', 1)
FROM pg_trigger t WHERE t.tgfoid = to_regprocedure(%s)
"""
RING_FUNCTION: Final = "mailroom.ring()"


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
