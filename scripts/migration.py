"""Make the next migration from ``src/mailroom/sql``, which is the schema as people read and edit it.

``make migration NAME=…`` writes the next numbered pair, the difference between the migrated database and
``sql``: functions, triggers, comments and rights. What differs in tables and types it lists at the head of
the pair, for you to write. The new version goes into ``sql/rights.sql``; write it into ``queue.start_check``
too. A released migration never changes: ``tests/vectors/migrations.sha256`` has its hash.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg

import mailroom
from mailroom.database import migrate, sync
from mailroom.demo.postgres import PostgresServer

SQL: Final = Path(mailroom.__file__).parent / "sql"
MIGRATIONS: Final = SQL.parent / "migrations"
# The files of ``sql`` in the order of creation.
FILES: Final = (
    *("accounts", "actions", "own_schema", "tokens", "consume", "ring"),
    *("addresses", "ledger"),
    *("cursor", "lease", "suppressions", "events", "screen", "claim", "rate", "workers"),
    *("status", "why", "dead", "traffic", "prune", "forget", "restore", "adopt"),
    "rights",
)
# Names without a schema are those of accounts, tokens and jobs. Bodies name tables that may lie elsewhere.
SET_UP: Final = """\
SELECT pg_catalog.set_config('search_path', pg_catalog.format('%s, pg_temp', mailroom.user_schema()), true),
       pg_catalog.set_config('check_function_bodies', 'off', true);
"""
VERSION: Final = re.compile(r"(?<=^RETURN )\d+(?=;$)", re.MULTILINE)

FUNCTIONS: Final = """
SELECT replace((pg_identify_object('pg_proc'::regclass, p.oid, 0)).identity, 'public.', ''),
       pg_get_functiondef(p.oid), pg_get_function_result(p.oid)
FROM pg_proc p
WHERE p.pronamespace = 'mailroom'::regnamespace AND p.proname <> 'schema_version' ORDER BY 1
"""
TRIGGERS: Final = """
SELECT format('%I ON %s', t.tgname, t.tgrelid::regclass),
       replace(pg_get_triggerdef(t.oid), ' ON public.', ' ON ')
FROM pg_trigger t WHERE NOT t.tgisinternal ORDER BY 1
"""
COMMENTS: Final = """
SELECT CASE o.type WHEN 'table column' THEN 'COLUMN' ELSE upper(o.type) END || ' '
       || replace(o.identity, 'public.', ''), quote_literal(d.description)
FROM pg_description d, pg_identify_object(d.classoid, d.objoid, d.objsubid) o
WHERE o.schema IN ('mailroom', 'public') OR (o.type, o.identity) = ('schema', 'mailroom') ORDER BY 1
"""
STRUCTURE: Final = """
WITH ours AS (
    SELECT c.oid FROM pg_class c
    WHERE c.relnamespace IN ('mailroom'::regnamespace, 'public'::regnamespace)
      AND c.relname NOT LIKE 'schema\\_migrations%')
SELECT format('column %s.%I %s%s%s', a.attrelid::regclass, a.attname, format_type(a.atttypid, a.atttypmod),
              CASE WHEN a.attnotnull THEN ' NOT NULL' END, ' DEFAULT ' || pg_get_expr(d.adbin, d.adrelid))
FROM ours JOIN pg_attribute a ON a.attrelid = ours.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
UNION ALL
SELECT format('constraint %I on %s: %s', n.conname, n.conrelid::regclass, pg_get_constraintdef(n.oid))
FROM ours JOIN pg_constraint n ON n.conrelid = ours.oid AND n.contype <> 'n'
UNION ALL SELECT pg_get_indexdef(i.indexrelid) FROM ours JOIN pg_index i ON i.indrelid = ours.oid
UNION ALL SELECT format('value of %s: %s', e.enumtypid::regtype, e.enumlabel) FROM pg_enum e
UNION ALL SELECT format('options of %s: %s', c.oid::regclass, c.reloptions)
FROM ours JOIN pg_class c USING (oid) WHERE c.reloptions IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What a database has: functions, their results, triggers, comments, and the structure of its tables."""

    functions: dict[str, str]
    results: dict[str, str]
    triggers: dict[str, str]
    comments: dict[str, str]
    structure: set[str]


def text_of(name: str) -> str:
    """The text of one file of ``sql``."""
    return (SQL / f"{name}.sql").read_text("utf-8")


def ending(version: int) -> str:
    """What ends the migration to a version: the function that returns it, and the rights."""
    return VERSION.sub(str(version), text_of("rights"))


def whole_schema() -> str:
    """The schema of ``sql``."""
    return "\n".join(map(text_of, FILES))


def catalogue(connection: psycopg.Connection) -> Catalogue:
    """What a database has."""
    connection.execute("SET search_path = public, pg_temp")
    functions = connection.execute(FUNCTIONS).fetchall()
    return Catalogue(
        {name: text for name, text, _ in functions},
        {name: result for name, _, result in functions},
        dict(connection.execute(TRIGGERS).fetchall()),
        dict(connection.execute(COMMENTS).fetchall()),
        {row[0] for row in connection.execute(STRUCTURE)},
    )


def difference(old: Catalogue, new: Catalogue) -> str:
    """The SQL that leads from one database to the other, headed by what is left to write."""
    remade = {name for name in old.functions.keys() & new.functions if old.results[name] != new.results[name]}
    gone = remade | (old.functions.keys() - new.functions)
    lines = [f"-- TODO remove: {each}" for each in sorted(old.structure - new.structure)]
    lines += [f"-- TODO add: {each}" for each in sorted(new.structure - old.structure)]
    lines += [f"DROP TRIGGER {name};" for name in _changed(new.triggers, old.triggers)]
    lines += [f"DROP FUNCTION {name};" for name in sorted(gone)]
    lines += [
        f"{new.functions[name]};" for name in sorted({*_changed(old.functions, new.functions), *remade})
    ]
    lines += [f"{new.triggers[name]};" for name in _changed(old.triggers, new.triggers)]
    for name in _changed(old.comments | {f"FUNCTION {each}": "" for each in remade}, new.comments):
        lines.append(f"COMMENT ON {name} IS {new.comments[name]};")
    for name in sorted(old.comments.keys() - new.comments - {f"FUNCTION {each}" for each in gone}):
        lines.append(f"-- TODO unless it is gone: COMMENT ON {name} IS NULL;")
    return "\n".join([*lines, ""])


def _changed(old: dict[str, str], new: dict[str, str]) -> Iterable[str]:
    """What the new one has and the old one has not, or not so."""
    return [name for name, text in new.items() if old.get(name) != text]


def compared(migrated: str, edited: str) -> tuple[int, str, str]:
    """The next version, and what leads to it and back.

    Args:
        migrated: the address of a database with all migrations.
        edited: the address of an empty one, which gets the schema of ``sql``.
    """
    with sync.connected(migrated) as connection:
        version = migrate.state(connection).version
        before = catalogue(connection)
    with sync.connected(edited) as connection:
        connection.execute(whole_schema().encode())
        after = catalogue(connection)
    up = f"{SET_UP}\n{difference(before, after)}\n{ending(version + 1)}"
    return version + 1, up, f"{SET_UP}\n{difference(after, before)}\n{ending(version)}"


def main(arguments: list[str]) -> None:
    """Make the pair of this name."""
    name = "".join(arguments)
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        sys.exit(f"Error: {name!r} is not a migration's name. Try: lower-case words joined by _")
    with PostgresServer(settings={"fsync": "off"}) as server:
        with sync.connected(server.url()) as connection:
            connection.execute("CREATE DATABASE edited")
            migrate.up(connection, None, lambda _: None)
        version, *pair = compared(server.url(), server.url("edited"))
    for direction, text in zip(("up", "down"), pair, strict=True):
        path = MIGRATIONS / f"{version:06d}_{name}.{direction}.sql"
        path.write_text(text, "utf-8")
        print(path)  # noqa: T201
    (SQL / "rights.sql").write_text(ending(version), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
