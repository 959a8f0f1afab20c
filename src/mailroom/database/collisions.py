"""Finds what stands in the way of the migrations: names that are taken, and a table of versions of others.

Everything is read from the catalog before anything is written. ``Place`` says where the migrations go.
Promises: no statement here writes, and none calls a function of the application's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import psycopg
from psycopg import sql

from mailroom.database.parameters import CATALOG_ONLY, SET_PATH
from mailroom.errors import MigrationError

TABLE: Final = "schema_migrations"
OURS: Final = "mailroom"
GUIDE: Final = "see docs/how-to/own-schema.md"
TABLE_WAY_OUT: Final = (
    "give Mailroom a table of versions of its own: MAILROOM_MIGRATIONS_TABLE=mailroom_migrations (with"
    " golang-migrate itself, x-migrations-table=mailroom_migrations)"
)
SCHEMA_WAY_OUT: Final = (
    "install Mailroom in a schema of its own: CREATE SCHEMA mail, and append ?options=-csearch_path%3Dmail to"
    f" MAILROOM_DATABASE_URL; {GUIDE}"
)
COUNTED_BY: Final = "set MAILROOM_MIGRATIONS_TABLE to the table that counts Mailroom's migrations"
KINDS: Final = {
    "r": "a table",
    "p": "a table",
    "f": "a foreign table",
    "v": "a view",
    "m": "a materialized view",
    "S": "a sequence",
    "i": "an index",
    "I": "an index",
    "c": "a type",
}
GOLANG_COLUMNS: Final = [("version", "bigint"), ("dirty", "boolean")]
MAKERS: Final = {("version",): "Rails", ("version", "inserted_at"): "Ecto"}
_CREATED: Final = re.compile(
    r"^CREATE (?:TABLE|TYPE) (\w+)\b(?!\.)|^CREATE (?:UNIQUE )?INDEX (\w+) ON \w+\b(?!\.)", re.MULTILINE
)

WHERE: Final = "SELECT pg_catalog.current_database(), pg_catalog.current_schemas(false)"
INSTALLED: Final = """
SELECT (SELECT substring(pg_get_function_sqlbody(p.oid) FROM '^RETURN ([0-9]{1,9})$')::int4 FROM pg_proc p
        WHERE p.pronamespace = n.oid AND p.proname = 'schema_version' AND p.pronargs = 0),
       (SELECT s.nspname FROM pg_class c
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'action'
        JOIN pg_type t ON t.oid = a.atttypid JOIN pg_namespace s ON s.oid = t.typnamespace
        WHERE c.relnamespace = n.oid AND c.relname = 'actions')
FROM pg_namespace n WHERE n.nspname = 'mailroom'
"""
COLUMNS: Final = """
SELECT c.relkind::text, a.attname, format_type(a.atttypid, a.atttypmod)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE n.nspname = %s AND c.relname = %s ORDER BY a.attnum
"""
TAKEN: Final = """
SELECT c.relname::text, c.relkind::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = ANY (%(names)s)
UNION ALL
SELECT t.typname, 'c' FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
WHERE n.nspname = %(schema)s AND t.typname = ANY (%(names)s) AND t.typrelid = 0
ORDER BY 1, 2
"""
# Tables of golang-migrate's form with another name, one of which may be Mailroom's, that this user may read.
TWINS: Final = """
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relname <> %s
  AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
  AND ARRAY['version bigint', 'dirty boolean'] =
      (SELECT array_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod) ORDER BY a.attnum)
       FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
ORDER BY 1, 2
"""
RIGHTS: Final = """
SELECT quote_ident(current_user), quote_ident(current_database()), quote_ident(n.nspname),
       has_database_privilege(current_database(), 'CREATE'), has_schema_privilege(n.oid, 'CREATE')
FROM pg_namespace n WHERE n.nspname = ANY (%s) ORDER BY n.nspname
"""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that stands in the way, and what to do about it."""

    text: str
    way_out: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where the migrations go.

    Attributes:
        database: the name of the database.
        schema: the first schema of search_path, which gets accounts, tokens and jobs.
        table: the schema and the name of the table of versions.
        is_chosen: whether ``MAILROOM_MIGRATIONS_TABLE`` names that table.
    """

    database: str
    schema: str
    table: tuple[str, str]
    is_chosen: bool

    @property
    def identifier(self) -> sql.Identifier:
        """The table of versions, quoted."""
        return sql.Identifier(*self.table)

    def __str__(self) -> str:
        return ".".join(self.table)


@dataclass(frozen=True, slots=True)
class Installed:
    """What the schema ``mailroom`` is.

    Attributes:
        exists: whether there is one.
        version: the version of Mailroom's schema; None if it is not Mailroom's.
        schema: the schema of accounts, tokens and jobs; empty if it is not Mailroom's.
    """

    exists: bool = False
    version: int | None = None
    schema: str = ""


@contextmanager
def catalog(connection: psycopg.Connection) -> Iterator[None]:
    """A transaction in which unqualified names are PostgreSQL's own. It reads only, and is rolled back.

    So in a transaction of the caller's, search_path is the former afterwards.
    """
    with connection.transaction(force_rollback=True):
        connection.execute(SET_PATH, [CATALOG_ONLY])
        yield


def place(connection: psycopg.Connection, table: str) -> Place:
    """Where the migrations go.

    Args:
        connection: with the search_path of the database or the user.
        table: the value of ``MAILROOM_MIGRATIONS_TABLE``.

    Raises:
        MigrationError: no schema of search_path exists.
    """
    ((database, path),) = connection.execute(WHERE).fetchall()
    # A user called mailroom has this schema in "$user" as soon as it exists.
    schema = next((name for name in path if name != OURS), None)
    if schema is None:
        raise MigrationError(
            "no schema of the search_path exists, or the user may not use it",
            hint="create the schema public, or set search_path",
        )
    *named, name = table.split(".")
    return Place(database, schema, (named[0] if named else schema, name), table != TABLE)


def installed(connection: psycopg.Connection) -> Installed:
    """What the schema ``mailroom`` is."""
    with catalog(connection):
        rows = connection.execute(INSTALLED).fetchall()
        if not rows:
            return Installed()
        version, schema = rows[0]
        if version is None or schema is None:
            return Installed(exists=True)
        return Installed(exists=True, version=version, schema=schema)


def form_of(connection: psycopg.Connection, where: Place) -> str | None:
    """What the table of versions is, if not golang-migrate's; None if there is none, else empty."""
    with catalog(connection):
        rows = connection.execute(COLUMNS, where.table).fetchall()
    if not rows:
        return None
    kind, columns = rows[0][0], [(row[1], row[2]) for row in rows]
    if kind in {"r", "p"} and columns == GOLANG_COLUMNS:
        return ""
    maker = MAKERS.get(tuple(name for name, _ in columns))
    listed = ", ".join(f"{name} {type_}" for name, type_ in columns)
    return f"{KINDS.get(kind, 'an object')} with the columns {listed}" + (
        f", as {maker} makes it" if maker else ""
    )


def version_faults(
    where: Place, found: Installed, form: str | None, rows: Sequence[tuple[int, bool]]
) -> list[Fault]:
    """Why the table of versions does not count Mailroom's migrations; empty if it does, or can.

    Args:
        where: the table.
        found: the schema mailroom.
        form: see ``form_of``.
        rows: of the table.
    """
    way_out = TABLE_WAY_OUT if found.version is None else COUNTED_BY
    version, dirty = rows[0] if rows else (0, False)
    faults = []
    if found.exists and found.version is None:
        faults.append(
            Fault(
                "the schema mailroom exists, and Mailroom did not make it",
                "rename it (ALTER SCHEMA mailroom RENAME TO …), or use another database",
            )
        )
    if form:
        faults.append(Fault(f"{where} is not golang-migrate's table of versions, but {form}", way_out))
    elif len(rows) > 1:
        faults.append(
            Fault(f"{where} has {len(rows)} rows, and golang-migrate's table of versions has one", way_out)
        )
    elif found.version is None:
        # golang-migrate marks the first migration as dirty before it runs.
        if version and (version, dirty) != (1, True):
            faults.append(
                Fault(f"{where} is at version {version} and counts other migrations than Mailroom's", way_out)
            )
    elif found.schema != where.schema and not where.is_chosen:
        faults.append(
            Fault(
                f"Mailroom's tables are in the schema {found.schema}, and the first schema of search_path is"
                f" {where.schema}",
                f"let search_path begin with {found.schema}, as for the first migration; {GUIDE}",
            )
        )
    elif not dirty and version != found.version:
        state = "does not exist" if form is None else f"is at version {version}"
        faults.append(Fault(f"{where} {state}, and Mailroom's schema is at version {found.version}", way_out))
    return faults


def names(scripts: Iterable[str]) -> list[str]:
    """The names of tables, types and indexes that these migrations create beside the schema ``mailroom``."""
    return sorted({first or second for script in scripts for first, second in _CREATED.findall(script)})


def name_faults(connection: psycopg.Connection, schema: str, wanted: Sequence[str]) -> list[Fault]:
    """Which of these names are taken in a schema."""
    with catalog(connection):
        rows = connection.execute(TAKEN, {"schema": schema, "names": list(wanted)}).fetchall()
    return [
        Fault(f"{schema}.{name} is {KINDS.get(kind, 'an object')} that is not Mailroom's", SCHEMA_WAY_OUT)
        for name, kind in rows
    ]


def twins(connection: psycopg.Connection, where: Place, version: int) -> list[str]:
    """Tables of versions with another name that are at this version too."""
    found = []
    with catalog(connection):
        for table in connection.execute(TWINS, where.table[1:]).fetchall():
            query = sql.SQL("SELECT version FROM {}").format(sql.Identifier(*table))
            if connection.execute(query).fetchall() == [(version,)]:
                found.append(".".join(table))
    return found


def missing_rights(connection: psycopg.Connection, where: Place) -> list[str]:
    """The statements that an administrator has to run before the first migration; empty if none."""
    with catalog(connection):
        rows = connection.execute(RIGHTS, [[where.schema, where.table[0]]]).fetchall()
    statements = [f"GRANT CREATE ON DATABASE {rows[0][1]} TO {rows[0][0]}"] if rows and not rows[0][3] else []
    return statements + [f"GRANT CREATE ON SCHEMA {row[2]} TO {row[0]}" for row in rows if not row[4]]
