"""The migrations make the schema that ``src/mailroom/sql`` holds, and the script makes the next one."""

from __future__ import annotations

import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

import psycopg
import pytest

import migration
from mailroom.database import migrate, sync
from mailroom.demo.postgres import embedded_binaries
from mailroom.queue.start_check import SCHEMA_VERSION
from support.postgres import bindir, needs

RELEASED = Path(__file__).parents[1] / "vectors" / "migrations.sha256"
ADDED = "ALTER TABLE mailroom.workers ADD COLUMN place text NOT NULL DEFAULT '';"


def dump(url: str) -> list[str]:
    """The schema with comments and rights, without the bookkeeping of migrations."""
    program = (bindir() or embedded_binaries()) / "pg_dump"
    command = [str(program), "--schema-only", "--exclude-table=public.schema_migrations", f"--dbname={url}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # \restrict has a random key.
    return [line for line in done.stdout.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]


def write(url: str, script: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(script.encode())


def test_the_migrations_make_the_schema(database: str, empty_database: str) -> None:
    needs("pg_dump")
    write(empty_database, migration.whole_schema())
    assert dump(database) == dump(empty_database)


def test_a_released_migration_never_changes() -> None:
    """Change the schema by a new one: ``make migration NAME=…``."""
    released = dict(line.split()[::-1] for line in RELEASED.read_text().splitlines())
    assert "000001_accounts_and_tokens.up.sql" in released
    assert released == {
        name: sha256((migration.MIGRATIONS / name).read_bytes()).hexdigest() for name in released
    }


def test_every_file_is_in_the_schema_but_roles() -> None:
    assert {*migration.FILES, "roles"} == {path.stem for path in migration.SQL.glob("*.sql")}


def test_each_migration_leaves_its_version(empty_database: str) -> None:
    def version() -> int | None:
        if connection.execute("SELECT to_regproc('mailroom.schema_version')").fetchone() == (None,):
            return None
        ((found,),) = connection.execute("SELECT mailroom.schema_version()").fetchall()
        return int(found)

    newest = len(migrate.shipped())
    assert SCHEMA_VERSION == newest
    with sync.connected(empty_database) as connection:
        for number in range(1, newest + 1):
            migrate.up(connection, 1, lambda _: None)
            assert number == version()
        for number in range(newest - 1, 0, -1):
            migrate.down(connection, 1, lambda _: None)
            assert number == version()
        migrate.down(connection, 1, lambda _: None)
        assert version() is None


def test_a_new_migration_is_the_difference(
    database: str, empty_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Functions, triggers, comments and rights are made; what changes in a table is left to write."""
    needs("pg_dump")
    before = dump(database)
    folder = shutil.copytree(migration.SQL, tmp_path / "sql")
    monkeypatch.setattr(migration, "SQL", folder)
    for name, old, new in (
        ("workers", "DELETE FROM mailroom.workers w WHERE w.worker = p_worker", "SELECT"),
        ("workers", "IS 'Removes a worker that has stopped in good order.'", "IS 'Does nothing.'"),
        ("lease", "RETURNS SETOF uuid", "RETURNS TABLE (lease uuid)"),
        ("ledger", "BEFORE UPDATE OF id", "BEFORE DELETE OR UPDATE OF id"),
        (
            "prune",
            "CREATE FUNCTION mailroom.prune_tokens(p_after",
            "CREATE FUNCTION mailroom.cut_tokens(p_after",
        ),
        ("prune", "COMMENT ON FUNCTION mailroom.prune_tokens", "COMMENT ON FUNCTION mailroom.cut_tokens"),
        ("cursor", "IS 'When a claim last moved the cursors.'", "IS 'When it last moved.'"),
    ):
        text = (folder / f"{name}.sql").read_text()
        assert 1 == text.count(old)
        (folder / f"{name}.sql").write_text(text.replace(old, new))
    with (folder / "workers.sql").open("a") as file:
        file.write(f"{ADDED}\nCOMMENT ON COLUMN mailroom.workers.place IS 'Where it runs.';\n")

    version, up, down = migration.compared(database, empty_database)

    assert SCHEMA_VERSION + 1 == version
    to_add = "-- TODO add: column mailroom.workers.place text NOT NULL DEFAULT ''::text"
    assert [to_add] == [line for line in up.splitlines() if "TODO" in line]
    write(database, up.replace(to_add, ADDED))
    assert dump(empty_database) == [
        line.replace(f"RETURN {version};", f"RETURN {version - 1};") for line in dump(database)
    ]
    todo = [line for line in down.splitlines() if "TODO" in line]
    assert todo == [
        to_add.replace("add", "remove"),
        "-- TODO unless it is gone: COMMENT ON COLUMN mailroom.workers.place IS NULL;",
    ]
    write(database, down.replace(todo[0], "ALTER TABLE mailroom.workers DROP COLUMN place;"))
    assert before == dump(database)
