"""Applies and reverts migrations, with golang-migrate's file names and table of versions.

Either tool can continue where the other one stopped. Files are ``000001_name.up.sql`` and
``000001_name.down.sql``. The table ``schema_migrations`` in the first schema of search_path, or the one that
``MAILROOM_MIGRATIONS_TABLE`` names, holds the version that is applied, and whether its migration was
interrupted (``dirty``). The advisory locks are those of golang-migrate's drivers, so the two never migrate a
database at the same time.

Promises: each migration and its row in the table are one transaction, so Mailroom leaves no dirty state. A
dirty state of another tool is an error, and nothing is applied. What is not Mailroom's is neither changed nor
dropped: see ``collisions``.
"""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

import psycopg
from psycopg import sql

from mailroom.database import collisions
from mailroom.database.collisions import TABLE, Fault, Installed, Place
from mailroom.database.connection import built_in_remedy, reason, refuse_no_encoding
from mailroom.errors import MigrationError

LOCK_SALT: Final = 1486364155
TRY_S: Final = 0.25
OWNER: Final = (
    "run it as the owner of Mailroom's schema; the first time, as a user who may create in the database"
)
_FILE_NAME: Final = re.compile(r"([0-9]+)_(.+)\.(up|down)\.sql")

TRY_LOCK: Final = "SELECT pg_catalog.pg_try_advisory_lock(%s)"
CREATE_TABLE: Final = """
CREATE TABLE IF NOT EXISTS {} (version bigint NOT NULL PRIMARY KEY, dirty boolean NOT NULL)
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema, up and down."""

    version: int
    name: str
    up: str
    down: str

    def __str__(self) -> str:
        return f"{self.version:06d}_{self.name}"


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


def state(connection: psycopg.Connection, table: str = TABLE) -> State:
    """The version that is applied.

    Args:
        connection: with the search_path of the database or the user.
        table: the value of ``MAILROOM_MIGRATIONS_TABLE``.

    Raises:
        MigrationError: the table is not Mailroom's, or the user may not read it; or there is no schema.
    """
    found, _, faults = _examined(connection, collisions.place(connection, table))
    if faults:
        raise _error(faults)
    return found


def up(
    connection: psycopg.Connection,
    steps: int | None,
    report: Callable[[str], None],
    *,
    table: str = TABLE,
    dry_run: bool = False,
) -> int:
    """Apply the next ``steps`` migrations, or all; returns how many there were to apply.

    Raises:
        DatabaseError: the database has no encoding.
        MigrationError: the state is dirty or unknown, a name is taken, a right is missing, or a migration
            failed (and was rolled back).
    """
    refuse_no_encoding(connection)
    where = collisions.place(connection, table)
    with _locked(connection, where):
        current = _clean_version(connection, where, "up")
        pending = [migration for migration in shipped() if migration.version > current]
        if not current:
            _check_rights(connection, where)
        chosen = pending[:steps]
        for migration in chosen:
            if dry_run:
                report(f"would apply {migration}")
            else:
                _apply(connection, migration, "up", migration.version, where)
                report(f"{migration} up")
        return len(chosen)


def down(
    connection: psycopg.Connection,
    steps: int,
    report: Callable[[str], None],
    *,
    table: str = TABLE,
    dry_run: bool = False,
) -> int:
    """Revert the last ``steps`` migrations; returns how many there were to revert.

    Raises:
        MigrationError: the state is dirty or unknown, or a migration failed (and was rolled back).
    """
    where = collisions.place(connection, table)
    with _locked(connection, where):
        current = _clean_version(connection, where, "down")
        applied = [migration for migration in shipped() if migration.version <= current]
        chosen = applied[::-1][:steps]
        for migration in chosen:
            if dry_run:
                report(f"would revert {migration}")
            else:
                earlier = [other.version for other in applied if other.version < migration.version]
                _apply(connection, migration, "down", max(earlier, default=0), where)
                report(f"{migration} down")
        return len(chosen)


def lock_id(database: str, schema: str, table: str = TABLE) -> int:
    """golang-migrate's advisory lock for a table of versions (database.GenerateAdvisoryLockId)."""
    names = "\x00".join([schema, table, database])
    return zlib.crc32(names.encode()) * LOCK_SALT % 2**32


@contextmanager
def _locked(connection: psycopg.Connection, where: Place) -> Iterator[None]:
    # golang-migrate's library locks the first; its command line the second, which is a URL's path.
    locks = [lock_id(name, *where.table) for name in (where.database, f"/{where.database}")]
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


def _examined(connection: psycopg.Connection, where: Place) -> tuple[State, Installed, list[Fault]]:
    """The version that the table has, what the schema mailroom is, and whether the table counts it."""
    rows: list[tuple[int, bool]] = []
    try:
        found = collisions.installed(connection)
        form = collisions.form_of(connection, where)
        if form == "":
            query = sql.SQL("SELECT version, dirty FROM {}").format(where.identifier)
            rows = connection.execute(query).fetchall()
    except psycopg.errors.InsufficientPrivilege as error:
        raise MigrationError(f"the user may not read {where}: {reason(error)}", hint=OWNER) from error
    faults = collisions.version_faults(where, found, form, rows)
    return State(*rows[0]) if rows else State(0, dirty=False), found, faults


def _error(faults: Iterable[Fault]) -> MigrationError:
    return MigrationError(
        "\n  ".join(fault.text for fault in faults),
        hint="; or ".join(dict.fromkeys(fault.way_out for fault in faults)),
    )


def _clean_version(connection: psycopg.Connection, where: Place, direction: str) -> int:
    """The version that is applied.

    Raises:
        MigrationError: the state is dirty or unknown, or a name that a migration needs is taken.
    """
    current, found, faults = _examined(connection, where)
    if direction == "up":
        scripts = [migration.up for migration in shipped() if migration.version > (found.version or 0)]
        faults += collisions.name_faults(connection, found.schema or where.schema, collisions.names(scripts))
    if faults:
        raise _error(faults)
    if current.dirty:
        raise MigrationError(
            f"the schema is dirty: a migration to or from version {current.version} was interrupted",
            hint="find out which of its statements were applied, complete or undo them, then set version, and"
            f" dirty = false, in {where}",
        )
    newest = max(migration.version for migration in shipped())
    if current.version not in {0, *(migration.version for migration in shipped())}:
        raise MigrationError(
            f"the schema is at version {current.version}, and this Mailroom knows 1 to {newest}",
            hint="use the Mailroom that migrated it, or a newer one",
        )
    has_work = current.version and (direction == "down" or current.version < newest)
    if has_work and not where.is_chosen and (twins := collisions.twins(connection, where, current.version)):
        raise MigrationError(
            f"{' and '.join([str(where), *twins])} are tables of versions, and each is at {current.version}",
            hint=f"set MAILROOM_MIGRATIONS_TABLE to the one of Mailroom's, such as {where}",
        )
    return current.version


def _check_rights(connection: psycopg.Connection, where: Place) -> None:
    """Check that the user may create what the first migration does.

    Raises:
        MigrationError: it may not.
    """
    if statements := collisions.missing_rights(connection, where):
        remedy = f"ask the administrator to run: {'; '.join(statements)}"
        if "ON SCHEMA" in remedy:
            remedy += f". Or {collisions.SCHEMA_WAY_OUT}"
        raise MigrationError(
            "the user may not create Mailroom's schema, and nothing was written", hint=remedy
        )


def _apply(
    connection: psycopg.Connection, migration: Migration, direction: str, version: int, where: Place
) -> None:
    script = migration.up if direction == "up" else migration.down
    table = where.identifier
    try:
        with connection.transaction():
            connection.execute(sql.SQL(CREATE_TABLE).format(table))
            # A script without parameters goes over the simple protocol, which takes many statements. It sets
            # the search_path of this transaction.
            connection.execute(script.encode())
            connection.execute(sql.SQL("DELETE FROM {}").format(table))
            if version:
                connection.execute(sql.SQL("INSERT INTO {} VALUES (%s, false)").format(table), [version])
    except psycopg.Error as error:
        remedy = "fix the cause and run it again"
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            remedy = built_in_remedy(reason(error)) or OWNER
        raise MigrationError(
            f"migration {migration} ({direction}) failed and was rolled back: {reason(error)}",
            hint=f"nothing of it was applied; {remedy}",
        ) from error
