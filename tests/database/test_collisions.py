"""What others have under Mailroom's names is found before anything is written, and stays."""

from __future__ import annotations

import os
import subprocess
from typing import Final

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from mailroom.database import collisions, migrate
from mailroom.demo.postgres import embedded_binaries
from mailroom.settings.migrations import MigrationSettings
from mailroom.settings.variables import read_settings
from support import commands, processes
from support.postgres import bindir, migrated, needs
from support.queue_sql import Db, claimed_tokens

NEWEST: Final = len(migrate.shipped())
RAILS: Final = """
CREATE TABLE schema_migrations (version character varying NOT NULL PRIMARY KEY);
CREATE TABLE ar_internal_metadata (key character varying NOT NULL PRIMARY KEY, value character varying);
INSERT INTO schema_migrations VALUES ('20240101000000'), ('20240102000000');
"""
ECTO: Final = """
CREATE TABLE schema_migrations (version bigint PRIMARY KEY, inserted_at timestamp(0) without time zone);
INSERT INTO schema_migrations VALUES (20240101000000, now());
"""
GOLANG: Final = """
CREATE TABLE schema_migrations (version bigint NOT NULL PRIMARY KEY, dirty boolean NOT NULL);
INSERT INTO schema_migrations VALUES ({}, false);
CREATE TABLE letters (id bigint PRIMARY KEY);
"""
TABLES: Final = """
CREATE TABLE accounts (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), name text);
CREATE TABLE tokens (value text);
CREATE TABLE jobs (id bigserial PRIMARY KEY, payload jsonb);
INSERT INTO accounts (name) VALUES ('zoe');
INSERT INTO tokens VALUES ('theirs');
"""
OTHERS: Final = """
CREATE TYPE account_status AS ENUM ('on', 'off');
CREATE DOMAIN token_action AS text;
CREATE TYPE job_type AS (a integer);
CREATE SEQUENCE jobs;
CREATE VIEW accounts AS SELECT 1 AS id;
CREATE TABLE letters (id bigint);
CREATE INDEX tokens_secret_key ON letters (id);
CREATE MATERIALIZED VIEW tokens AS SELECT 1 AS id;
"""
FOREIGN_SCHEMA: Final = "CREATE SCHEMA mailroom; CREATE TABLE mailroom.rooms (id bigint)"

SCHEMA_WAY: Final = "install Mailroom in a schema of its own: CREATE SCHEMA mail"
TABLE_WAY: Final = "MAILROOM_MIGRATIONS_TABLE=mailroom_migrations"
DATABASES: Final = {
    "rails": (
        RAILS,
        ["public.schema_migrations is not golang-migrate's table of versions, but a table with the columns",
         "version character varying, as Rails makes it"],
        [TABLE_WAY, "x-migrations-table=mailroom_migrations"],
    ),
    "ecto": (
        ECTO,
        ["public.schema_migrations is not golang-migrate's table of versions, but a table with the columns",
         "version bigint, inserted_at timestamp(0) without time zone, as Ecto makes it"],
        [TABLE_WAY],
    ),
    **{
        f"golang-migrate at {version}": (
            GOLANG.format(version),
            [f"public.schema_migrations is at version {version} and counts other migrations than Mailroom's"],
            [TABLE_WAY, "x-migrations-table=mailroom_migrations"],
        )
        for version in (1, 3, 4, 15, 42, 20240101000000)
    },
    "tables": (
        TABLES,
        [f"public.{name} is a table that is not Mailroom's" for name in ("accounts", "jobs", "tokens")],
        [SCHEMA_WAY],
    ),
    "others": (
        OTHERS,
        ["public.account_status is a type", "public.accounts is a view", "public.job_type is a type",
         "public.jobs is a sequence", "public.token_action is a type",
         "public.tokens is a materialized view", "public.tokens_secret_key is an index"],
        [SCHEMA_WAY],
    ),
    "rails with tables": (
        RAILS + TABLES,
        ["as Rails makes it", "public.accounts is a table", "public.jobs is a", "public.tokens is a"],
        [TABLE_WAY, SCHEMA_WAY],
    ),
}  # fmt: skip
CASES = pytest.mark.parametrize(("script", "faults", "ways_out"), DATABASES.values(), ids=DATABASES)


def run(url: str, *arguments: str, table: str = "") -> subprocess.CompletedProcess[str]:
    given = {"MAILROOM_MIGRATIONS_TABLE": table} if table else {}
    return commands.run("migrate", *arguments, env=processes.environment(url) | given)


def dump(url: str, *options: str) -> str:
    """All that the database has, with its rows."""
    program = (bindir() or embedded_binaries()) / "pg_dump"
    command = [str(program), *options, f"--dbname={url}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    lines = done.stdout.splitlines()
    return "\n".join(line for line in lines if not line.startswith(("\\restrict", "\\unrestrict")))


def write(url: str, script: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(script.encode())


@CASES
def test_it_is_refused_before_a_byte_is_written(
    empty_database: str, script: str, faults: list[str], ways_out: list[str]
) -> None:
    needs("pg_dump")
    write(empty_database, script)
    before = dump(empty_database)
    for command in (["up"], ["up", "1"], ["up", "--dry-run"]):
        refused = run(empty_database, *command)
        assert (78, "") == (refused.returncode, refused.stdout)
        text, _, hint = refused.stderr.partition("Try: ")
        assert [] == [fault for fault in faults if fault not in text]
        assert [] == [way for way in ways_out if way not in hint]
    down = run(empty_database, "down", "--yes", "99")
    assert (0, 78)[TABLE_WAY in ways_out] == down.returncode
    assert before == dump(empty_database)


@CASES
def test_it_is_installed_beside_it_in_a_schema_of_its_own(
    empty_database: str, script: str, faults: list[str], ways_out: list[str]
) -> None:
    needs("pg_dump")
    write(empty_database, script)
    before, in_public = dump(empty_database), dump(empty_database, "--schema=public")
    write(empty_database, "CREATE SCHEMA mail")
    own = migrated(make_conninfo(empty_database, options="-csearch_path=mail"))
    with psycopg.connect(own, autocommit=True) as owner:
        owner.execute("INSERT INTO accounts (email, login) VALUES ('zoe@example.com', 'zoe')")
        assert claimed_tokens(owner)
    assert in_public == dump(empty_database, "--schema=public")
    # With the path of the application, nothing is found that could be taken for the application's.
    refused = run(empty_database, "down", "--yes", "99")
    assert 78 == refused.returncode
    done = run(own, "down", "--yes", "99")
    assert (0, "") == (done.returncode, done.stderr)
    write(empty_database, "DROP TABLE mail.schema_migrations; DROP SCHEMA mail")
    assert before == dump(empty_database)


@pytest.mark.parametrize("name", [name for name, (_, _, ways) in DATABASES.items() if SCHEMA_WAY not in ways])
def test_a_table_of_versions_of_its_own_is_enough(empty_database: str, name: str) -> None:
    needs("pg_dump")
    write(empty_database, DATABASES[name][0])
    before = dump(empty_database)
    for table in ("mailroom_migrations", "acme.versions"):
        write(empty_database, "CREATE SCHEMA IF NOT EXISTS acme")
        assert 0 == run(empty_database, "up", table=table).returncode
        assert f"{NEWEST}\n" == run(empty_database, "version", table=table).stdout
        # It is forgotten: then down refuses, and the others unless both are at the same version.
        assert 78 == run(empty_database, "down", "--yes", "99").returncode
        for command in ("up", "status", "version"):
            expected = 0 if name == f"golang-migrate at {NEWEST}" else 78
            assert expected == run(empty_database, command).returncode
        done = run(empty_database, "down", "--yes", "99", table=table)
        assert (0, NEWEST) == (done.returncode, len(done.stdout.splitlines()))
        write(empty_database, f"DROP TABLE {table}; DROP SCHEMA acme CASCADE")
    assert before == dump(empty_database)


def test_a_schema_mailroom_of_others_is_found(empty_database: str) -> None:
    needs("pg_dump")
    write(empty_database, FOREIGN_SCHEMA)
    before = dump(empty_database)
    for command in (["up"], ["status"], ["down", "--yes"]):
        refused = run(empty_database, *command)
        assert (78, True) == (refused.returncode, "Mailroom did not make it" in refused.stderr)
        assert "ALTER SCHEMA mailroom RENAME TO" in refused.stderr
    assert before == dump(empty_database)


def test_no_function_of_a_schema_mailroom_of_others_is_called(empty_database: str) -> None:
    write(
        empty_database,
        "CREATE SCHEMA mailroom; CREATE TYPE verb AS ENUM ('go');"
        " CREATE TABLE mailroom.actions (action verb);"
        " CREATE FUNCTION mailroom.schema_version() RETURNS integer LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE 'it was called'; END $$",
    )
    refused = run(empty_database, "up")
    assert (78, True) == (refused.returncode, "Mailroom did not make it" in refused.stderr)


def test_a_name_that_a_later_migration_needs_is_found(empty_database: str, db: Db) -> None:
    assert 0 == run(empty_database, "up", "2").returncode
    write(empty_database, "CREATE TABLE jobs (id bigint)")
    refused = run(empty_database, "up")
    assert (78, True) == (refused.returncode, "public.jobs is a table" in refused.stderr)
    assert "2\n" == run(empty_database, "version").stdout
    assert 0 == run(empty_database, "down", "--yes", "2").returncode
    with psycopg.connect(empty_database) as connection:
        assert [] == connection.execute("SELECT id FROM jobs").fetchall()


def test_a_table_at_the_same_version_is_not_taken_for_mailrooms(database: str) -> None:
    """Of two such tables with different names only their reader knows whose they are."""
    write(database, "CREATE SCHEMA acme; CREATE TABLE acme.versions (LIKE schema_migrations);"
                    f"INSERT INTO acme.versions VALUES ({NEWEST}, false)")  # fmt: skip
    refused = run(database, "down", "--yes")
    assert (78, "") == (refused.returncode, refused.stdout)
    assert f"public.schema_migrations and acme.versions are tables of versions, and each is at {NEWEST}" in (
        refused.stderr
    )
    assert 0 == run(database, "up").returncode  # with nothing to do
    assert 0 == run(database, "down", "--yes", table="public.schema_migrations").returncode
    with psycopg.connect(database) as connection:
        assert [(NEWEST, False)] == connection.execute("SELECT version, dirty FROM acme.versions").fetchall()


def test_tables_in_another_schema_of_the_path_are_named(empty_database: str) -> None:
    write(empty_database, "CREATE SCHEMA mail")
    own = migrated(make_conninfo(empty_database, options="-csearch_path=mail"))
    for command in (["up"], ["version"], ["down", "--yes"]):
        refused = run(empty_database, *command)
        assert (78, True) == (refused.returncode, "tables are in the schema mail" in refused.stderr)
        assert "let search_path begin with mail" in refused.stderr
    assert f"{NEWEST}\n" == run(own, "version").stdout


def test_a_dry_run_writes_nothing(empty_database: str) -> None:
    needs("pg_dump")
    before = dump(empty_database)
    done = run(empty_database, "up", "--dry-run")
    assert [f"would apply {one}" for one in migrate.shipped()] == done.stdout.splitlines()
    assert before == dump(empty_database)
    migrated(empty_database)
    before = dump(empty_database)
    done = run(empty_database, "down", "2", "--dry-run")
    assert [f"would revert {one}" for one in migrate.shipped()[:1:-1]] == done.stdout.splitlines()
    assert "nothing to apply: the schema is up to date\n" == run(empty_database, "up", "--dry-run").stdout
    assert before == dump(empty_database)


def test_the_version_is_printed(empty_database: str) -> None:
    assert (0, "0\n") == ((done := run(empty_database, "version")).returncode, done.stdout)
    run(empty_database, "up", "3")
    assert (0, "3\n") == ((done := run(empty_database, "version")).returncode, done.stdout)
    write(empty_database, "UPDATE schema_migrations SET dirty = true")
    assert (78, "3 (dirty)\n") == ((done := run(empty_database, "version")).returncode, done.stdout)


def test_the_names_are_those_of_the_migrations() -> None:
    found = collisions.names(migration.up for migration in migrate.shipped())
    assert {"accounts", "tokens", "jobs", "account_status", "token_action", "job_type"} <= {*found}
    assert {"accounts_email_key", "tokens_lane_txid_id_idx"} <= {*found}
    assert "mailroom" not in found
    assert "deliveries" not in found


def test_the_default_is_golang_migrates() -> None:
    environment = {"MAILROOM_DATABASE_URL": "dbname=acme"}
    assert collisions.TABLE == read_settings(MigrationSettings, environment).table


@pytest.mark.parametrize("table", ["a.b.c", ".a", "a.", "é" * 32])
def test_a_name_that_cannot_be_a_tables_is_refused(table: str) -> None:
    refused = run("postgresql://127.0.0.1:1/nowhere", "up", table=table)
    assert (78, True) == (refused.returncode, "MAILROOM_MIGRATIONS_TABLE: " in refused.stderr)
