"""Migrations: up, down, status, and golang-migrate's bookkeeping."""

from __future__ import annotations

import json
import secrets
import subprocess
import threading
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from mailroom.database import migrate, sync
from mailroom.demo.postgres import PostgresServer
from mailroom.errors import MigrationError
from support import commands
from support.processes import environment
from support.runs import wait_until

NAMES = [f"{migration.version:06d}_{migration.name}" for migration in migrate.shipped()]


def run(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return commands.run("migrate", *arguments, env=environment(url))


def bookkeeping(url: str) -> list[tuple[int, bool]]:
    with psycopg.connect(url) as connection:
        return [(row[0], row[1]) for row in connection.execute("SELECT * FROM schema_migrations")]


def test_up_applies_all_and_then_nothing(empty_database: str) -> None:
    first = run(empty_database, "up")
    assert (0, [f"{name} up" for name in NAMES]) == (first.returncode, first.stdout.splitlines())
    assert [(len(NAMES), False)] == bookkeeping(empty_database)
    again = run(empty_database, "up")
    assert (0, "nothing to apply: the schema is up to date\n") == (again.returncode, again.stdout)


def test_steps_go_up_and_down_one_by_one(empty_database: str) -> None:
    assert [f"{NAMES[0]} up"] == run(empty_database, "up", "1").stdout.splitlines()
    assert [(1, False)] == bookkeeping(empty_database)
    assert [f"{name} up" for name in NAMES[1:]] == run(
        empty_database, "up", str(len(NAMES))
    ).stdout.splitlines()
    assert [f"{NAMES[-1]} down"] == run(empty_database, "down", "--yes").stdout.splitlines()
    assert [(len(NAMES) - 1, False)] == bookkeeping(empty_database)
    assert 0 == run(empty_database, "down", "--yes", str(len(NAMES))).returncode
    assert [] == bookkeeping(empty_database)
    assert "nothing to revert" in run(empty_database, "down", "--yes").stdout


def test_nothing_is_taken_back_unasked_without_a_terminal(empty_database: str) -> None:
    run(empty_database, "up")
    refused = run(empty_database, "down", "99")
    assert (64, "") == (refused.returncode, refused.stdout)
    assert "needs --yes" in refused.stderr
    assert [(len(NAMES), False)] == bookkeeping(empty_database)


def test_a_user_who_is_not_the_owner_reads_who_migrates(empty_database: str, server_url: str) -> None:
    name = f"mailroom_stranger_{secrets.token_hex(4)}"
    with psycopg.connect(empty_database, autocommit=True) as owner:
        owner.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        owner.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'hunter2'".encode())
        try:
            stranger = make_conninfo(empty_database, user=name, password="hunter2")
            first = run(stranger, "up")  # it may not make a table
            run(empty_database, "up")
            refusals = [run(stranger, *arguments) for arguments in (["status"], ["up"], ["down", "--yes"])]
        finally:
            owner.execute(f"DROP ROLE {name}".encode())
    assert (78, True) == (first.returncode, f"GRANT CREATE ON SCHEMA public TO {name}" in first.stderr)
    for refused in refusals:
        assert (78, "") == (refused.returncode, refused.stdout), refused.stderr
        assert refused.stderr.startswith("Error: ")
        assert "run it as the owner of Mailroom's schema" in refused.stderr.split("Try: ")[1]


def test_a_database_without_an_encoding_is_refused_before_the_first(server_url: str) -> None:
    name = f"mailroom_ascii_{secrets.token_hex(4)}"
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'".encode())
        try:
            refused = run(make_conninfo(server_url, dbname=name), "up")
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
    assert (78, "") == (refused.returncode, refused.stdout)
    assert "the database has no encoding (SQL_ASCII)" in refused.stderr


def test_status_tells_what_is_applied(empty_database: str) -> None:
    run(empty_database, "up", "1")
    table = run(empty_database, "status")
    assert 0 == table.returncode
    assert f"000001  applied  {NAMES[0][7:]}" == table.stdout.splitlines()[0]
    assert "pending" in table.stdout.splitlines()[1]
    report = json.loads(run(empty_database, "status", "--json").stdout)
    assert (1, False) == (report["version"], report["dirty"])
    assert [True] + [False] * (len(NAMES) - 1) == [row["applied"] for row in report["migrations"]]


def test_a_dirty_state_is_reported_and_refused(empty_database: str) -> None:
    run(empty_database, "up", "1")
    with psycopg.connect(empty_database) as connection:
        connection.execute("UPDATE schema_migrations SET dirty = true")
    for command in (["up"], ["down", "--yes"]):
        refused = run(empty_database, *command)
        assert 78 == refused.returncode
        assert "the schema is dirty" in refused.stderr
        assert "Try:" in refused.stderr
    status = run(empty_database, "status")
    assert 78 == status.returncode
    assert "dirty" in status.stdout


def test_a_version_from_the_future_is_refused(empty_database: str) -> None:
    run(empty_database, "up")
    with psycopg.connect(empty_database) as connection:
        connection.execute("UPDATE schema_migrations SET version = 999")
    refused = run(empty_database, "up")
    assert (78, True) == (refused.returncode, "at version 999" in refused.stderr)


def test_a_failing_migration_leaves_nothing(empty_database: str) -> None:
    with psycopg.connect(empty_database) as connection:
        connection.execute("CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS"
                           " 'BEGIN RAISE EXCEPTION ''no types here''; END'")  # fmt: skip
        connection.execute("CREATE EVENT TRIGGER refuse ON ddl_command_end WHEN TAG IN ('CREATE TYPE')"
                           " EXECUTE FUNCTION refuse()")  # fmt: skip
    failed = run(empty_database, "up")
    assert (78, True) == (failed.returncode, "failed and was rolled back" in failed.stderr)
    with psycopg.connect(empty_database) as connection:
        rows = connection.execute(
            "SELECT to_regclass('accounts'), to_regclass('schema_migrations')"
        ).fetchall()
    assert [(None, None)] == rows


def test_an_unreachable_server_is_an_error_with_a_remedy() -> None:
    refused = run("postgresql://127.0.0.1:1/nowhere?connect_timeout=2", "up")
    assert (75, True) == (refused.returncode, "Try:" in refused.stderr)


def test_a_database_that_does_not_exist_is_reported(empty_database: str) -> None:
    refused = run(make_conninfo(empty_database, dbname="nowhere"), "up")
    assert (78, True) == (refused.returncode, "create the database" in refused.stderr)


def test_two_at_once_migrate_once(empty_database: str) -> None:
    applied: list[str] = []

    def migrate_up() -> None:
        with sync.connected(empty_database) as connection:
            migrate.up(connection, None, applied.append)

    threads = [threading.Thread(target=migrate_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [f"{name} up" for name in NAMES] == applied


@pytest.mark.parametrize("name", ["{}", "/{}"], ids=["the library's lock", "the command line's lock"])
def test_one_that_waits_for_another_holds_no_snapshot(empty_database: str, name: str) -> None:
    applied: list[str] = []

    def migrate_up() -> None:
        with sync.connected(empty_database) as connection:
            migrate.up(connection, None, applied.append)

    second = threading.Thread(target=migrate_up)
    with (
        psycopg.connect(empty_database, autocommit=True) as first,
        psycopg.connect(empty_database, autocommit=True) as other,
    ):
        lock = migrate.lock_id(name.format(first.info.dbname), "public")
        first.execute("SELECT pg_advisory_lock(%s)", [lock])
        second.start()
        wait_until(
            first,
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE application_name = 'mailroom' AND datname = current_database() AND query ~ 'advisory'",
            1,
        )
        try:
            other.execute("CREATE TABLE letters (id int)")
            other.execute("SET statement_timeout = '5s'")
            other.execute("CREATE INDEX CONCURRENTLY ON letters (id)")
            assert [] == applied
        finally:
            first.execute("SELECT pg_advisory_unlock(%s)", [lock])
            second.join()
    assert [f"{name} up" for name in NAMES] == applied


def test_down_then_up_leaves_the_same_schema() -> None:
    with PostgresServer(settings={"fsync": "off"}) as server:
        dumps = []
        with sync.connected(server.url()) as connection:
            migrate.up(connection, None, lambda _: None)
            for _ in range(2):
                dump = server.run_tool("pg_dump", "--schema-only", "--restrict-key=x", server.url())
                dumps.append(dump)
                migrate.down(connection, len(NAMES), lambda _: None)
                left = connection.execute(
                    "SELECT to_regnamespace('mailroom'), to_regclass('tokens')"
                ).fetchall()
                assert [(None, None)] == left
                migrate.up(connection, None, lambda _: None)
    assert b"CREATE TABLE public.tokens" in dumps[0]
    assert dumps[0] == dumps[1]


def test_every_migration_can_be_taken_back_alone(empty_database: str) -> None:
    with sync.connected(empty_database) as connection:
        for _ in NAMES:
            migrate.up(connection, 1, lambda _: None)
            migrate.down(connection, 1, lambda _: None)
            migrate.up(connection, 1, lambda _: None)


def test_migrations_are_plain_ascii_for_databases_of_any_encoding() -> None:
    assert all(migration.up.isascii() and migration.down.isascii() for migration in migrate.shipped())


def test_the_lock_is_golang_migrates() -> None:
    # What GenerateAdvisoryLockId("app", "public", "schema_migrations") of golang-migrate 4.20 gives.
    assert 1787120056 == migrate.lock_id("app", "public")


def test_a_foreign_schema_migrations_table_is_refused(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute("CREATE TABLE schema_migrations (version bigint NOT NULL, dirty boolean NOT NULL)")
        connection.execute("INSERT INTO schema_migrations VALUES (1, false), (2, false)")
        with pytest.raises(MigrationError, match="has 2 rows"):
            migrate.state(connection)


def test_the_link_at_the_top_leads_to_the_migrations() -> None:
    top = Path(__file__).parents[2] / "migrations"
    assert top.is_symlink()
    assert sorted(f"{name}.{way}.sql" for name in NAMES for way in ("up", "down")) == sorted(
        entry.name for entry in top.iterdir()
    )
