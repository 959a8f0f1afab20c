"""Applies and reverts migrations, with golang-migrate's file names and table of versions.

Either tool can continue where the other one stopped. Files are ``000001_name.up.sql`` and
``000001_name.down.sql``. The table ``schema_migrations`` in the current schema holds the version that is
applied, and whether its migration was interrupted (``dirty``). The advisory locks are those of
golang-migrate's drivers, so the two never migrate a database at the same time.

Promises: each migration and its row in the table are one transaction, so Mailroom leaves no dirty state. A
dirty state of another tool is an error, and nothing is applied.
"""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

import psycopg

from mailroom.database.connection import built_in_remedy, reason, refuse_no_encoding
from mailroom.database.parameters import CATALOG_ONLY, SET_PATH
from mailroom.errors import MigrationError

LOCK_SALT: Final = 1486364155
TRY_S: Final = 0.25
TABLE: Final = "schema_migrations"
OWNER: Final = (
    "run it as the owner of Mailroom's schema; the first time, as a user who may create in the database"
)
_FILE_NAME: Final = re.compile(r"([0-9]+)_(.+)\.(up|down)\.sql")

TRY_LOCK: Final = "SELECT pg_catalog.pg_try_advisory_lock(%s)"
PATH: Final = "SELECT pg_catalog.current_setting('search_path')"
CREATE_TABLE: Final = """
CREATE TABLE IF NOT EXISTS schema_migrations (version bigint NOT NULL PRIMARY KEY, dirty boolean NOT NULL)
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema, up and down."""

    version: int
    name: str
    up: str
    down: str


@dataclass(frozen=True, slots=True)
class State:
    """The applied version (0 is none) and whether its migration was interrupted."""

    version: int
    dirty: bool


def shipped() -> list[Migration]:
    """The migrations of this version of Mailroom, in order."""
    texts: dict[tuple[int, str], dict[str, str]] = {}
    for entry in files("mailroom").joinpath("migrations").iterdir():
        if found := _FILE_NAME.fullmatch(entry.name):
            version, name, direction = int(found[1]), found[2], found[3]
            texts.setdefault((version, name), {})[direction] = entry.read_text("utf-8")
    return [
        Migration(version, name, pair["up"], pair["down"]) for (version, name), pair in sorted(texts.items())
    ]


def state(connection: psycopg.Connection) -> State:
    """The version that is applied.

    Raises:
        MigrationError: the table is not golang-migrate's, or the user may not read it; or there is no schema.
    """
    _current(connection)
    if connection.execute("SELECT pg_catalog.to_regclass(%s)", [TABLE]).fetchall() == [(None,)]:
        return State(0, dirty=False)
    try:
        rows = connection.execute("SELECT version, dirty FROM schema_migrations").fetchall()
    except psycopg.errors.InsufficientPrivilege as error:
        raise MigrationError(f"the user may not read {TABLE}: {reason(error)}", hint=OWNER) from error
    if len(rows) > 1:
        raise MigrationError(
            f"{TABLE} has {len(rows)} rows, and golang-migrate's has one",
            hint="the table belongs to another tool; use another database or schema for Mailroom",
        )
    return State(*rows[0]) if rows else State(0, dirty=False)


def up(connection: psycopg.Connection, steps: int | None, report: Callable[[str], None]) -> int:
    """Apply the next ``steps`` migrations, or all; returns how many there were to apply.

    Raises:
        DatabaseError: the database has no encoding.
        MigrationError: the state is dirty or unknown, or a migration failed (and was rolled back).
    """
    refuse_no_encoding(connection)
    with _locked(connection):
        current = _clean_version(connection)
        chosen = [migration for migration in shipped() if migration.version > current][:steps]
        for migration in chosen:
            _apply(connection, migration, "up", migration.version, report)
        return len(chosen)


def down(connection: psycopg.Connection, steps: int, report: Callable[[str], None]) -> int:
    """Revert the last ``steps`` migrations; returns how many there were to revert.

    Raises:
        MigrationError: the state is dirty or unknown, or a migration failed (and was rolled back).
    """
    with _locked(connection):
        current = _clean_version(connection)
        applied = [migration for migration in shipped() if migration.version <= current]
        chosen = applied[::-1][:steps]
        for migration in chosen:
            earlier = [other.version for other in applied if other.version < migration.version]
            _apply(connection, migration, "down", max(earlier, default=0), report)
        return len(chosen)


def lock_id(database: str, schema: str) -> int:
    """golang-migrate's advisory lock for a database (database.GenerateAdvisoryLockId)."""
    names = "\x00".join([schema, TABLE, database])
    return zlib.crc32(names.encode()) * LOCK_SALT % 2**32


@contextmanager
def _locked(connection: psycopg.Connection) -> Iterator[None]:
    database, schema = _current(connection)
    # golang-migrate's library locks the first; its command line the second, which is a URL's path.
    locks = [lock_id(name, schema) for name in (database, f"/{database}")]
    for lock in locks:
        # A session that waited for the lock would hold a snapshot, which delays VACUUM and CREATE INDEX
        # CONCURRENTLY.
        while connection.execute(TRY_LOCK, [lock]).fetchall() != [(True,)]:
            time.sleep(TRY_S)
    try:
        yield
    finally:
        for lock in locks:
            if not connection.closed:
                connection.execute("SELECT pg_catalog.pg_advisory_unlock(%s)", [lock])


def _current(connection: psycopg.Connection) -> tuple[str, str]:
    """The current database and schema."""
    query = "SELECT pg_catalog.current_database(), pg_catalog.current_schema()"
    row = connection.execute(query).fetchone()
    if row is None or row[1] is None:
        raise MigrationError(
            "no schema of the search_path exists, or the user may not use it",
            hint="create the schema public, or set search_path",
        )
    return row[0], row[1]


def _clean_version(connection: psycopg.Connection) -> int:
    current = state(connection)
    if current.dirty:
        raise MigrationError(
            f"the schema is dirty: a migration to or from version {current.version} was interrupted",
            hint="find out which of its statements were applied, complete or undo them, then set the version:"
            " UPDATE schema_migrations SET version = …, dirty = false",
        )
    newest = max(migration.version for migration in shipped())
    if current.version not in {0, *(migration.version for migration in shipped())}:
        raise MigrationError(
            f"the schema is at version {current.version}, and this Mailroom knows 1 to {newest}",
            hint="use the Mailroom that migrated it, or a newer one",
        )
    return current.version


def _apply(
    connection: psycopg.Connection,
    migration: Migration,
    direction: str,
    version: int,
    report: Callable[[str], None],
) -> None:
    script = migration.up if direction == "up" else migration.down
    try:
        with connection.transaction():
            connection.execute(CREATE_TABLE)
            ((path,),) = connection.execute(PATH).fetchall()
            connection.execute(SET_PATH, [CATALOG_ONLY])  # the script names its other schemas
            # A script without parameters goes over the simple protocol, which takes many statements.
            connection.execute(script.encode())
            connection.execute(SET_PATH, [path])
            connection.execute("DELETE FROM schema_migrations")
            if version:
                connection.execute("INSERT INTO schema_migrations VALUES (%s, false)", [version])
    except psycopg.Error as error:
        remedy = "fix the cause and run it again"
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            remedy = built_in_remedy(reason(error)) or OWNER
        raise MigrationError(
            f"migration {migration.version:06d}_{migration.name} ({direction}) failed and was rolled back:"
            f" {reason(error)}",
            hint=f"nothing of it was applied; {remedy}",
        ) from error
    report(f"{migration.version:06d}_{migration.name} {direction}")
