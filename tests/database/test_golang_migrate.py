"""golang-migrate itself runs our migrations, and either tool goes on where the other stopped."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from mailroom.actions import load_actions
from mailroom.database import migrate, sync
from mailroom.errors import MigrationError
from mailroom.operations import actions
from support.processes import PATIENCE_S
from support.queue_sql import claimed_tokens, sign_up
from support.runs import wait_until

ROOT = Path(__file__).parents[2]
MODULE: Final = "github.com/golang-migrate/migrate/v4/cmd/migrate"
VERSION: Final = "v4.20.1"
OFFLINE: Final = ("dial tcp", "i/o timeout", "no such host", "connection refused")
NEWEST: Final = len(migrate.shipped())

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("go"), reason="there is no go to build golang-migrate with"),
]


@pytest.fixture(scope="module")
def program() -> Path:
    """golang-migrate, built once a machine."""
    kept = Path(tempfile.gettempdir()) / f"mailroom-golang-migrate-{os.getuid()}-{VERSION}"
    kept.mkdir(mode=0o700, exist_ok=True)
    assert os.getuid() == kept.stat().st_uid, f"{kept} is somebody else's, and would be executed here"
    if not (kept / "migrate").exists():
        # Beside it and then into its place, so that nobody sees half of it.
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            done = subprocess.run(
                ["go", "install", "-p", "2", "-tags", "postgres", f"{MODULE}@{VERSION}"],
                env=os.environ | {"GOBIN": folder, "GOFLAGS": "-mod=mod"},
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode and any(word in done.stderr for word in OFFLINE):
                pytest.skip("the Go module proxy does not answer")
            assert 0 == done.returncode, done.stderr
            shutil.move(Path(folder) / "migrate", kept / "migrate")
    return kept / "migrate"


class Migrate:
    """golang-migrate's command line on one database."""

    def __init__(self, program: Path, url: str, **options: str) -> None:
        given = {name: str(value) for name, value in conninfo_to_dict(url).items()}
        query = urlencode({"sslmode": "disable", "host": given["host"], "port": given["port"]} | options)
        password = f":{given['password']}" if "password" in given else ""
        self._command = [
            str(program),
            *("-path", str(ROOT / "migrations")),
            *("-database", f"postgres://{given['user']}{password}@/{given['dbname']}?{query}"),
        ]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._command, *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*self._command, *arguments], stderr=subprocess.DEVNULL)

    def __call__(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert 0 == done.returncode, done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def golang(program: Path, empty_database: str) -> Migrate:
    return Migrate(program, empty_database)


@pytest.fixture
def ours(empty_database: str) -> Iterator[psycopg.Connection]:
    with sync.connected(empty_database) as connection:
        yield connection


def schema(connection: psycopg.Connection) -> list[tuple[object, ...]]:
    """All that a migration makes, and who may call its functions."""
    return connection.execute(
        """
        SELECT 'column', table_schema || '.' || table_name, column_name, data_type, column_default
        FROM information_schema.columns WHERE table_schema IN ('public', 'mailroom')
        UNION ALL
        SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid), ''
        FROM pg_constraint WHERE connamespace IN (SELECT oid FROM ours)
        UNION ALL
        SELECT 'index', schemaname, indexname, indexdef, '' FROM pg_indexes
        WHERE schemaname IN ('public', 'mailroom')
        UNION ALL
        SELECT 'trigger', tgrelid::regclass::text, tgname, pg_get_triggerdef(oid), '' FROM pg_trigger
        WHERE NOT tgisinternal
        UNION ALL
        SELECT 'function', oid::regprocedure::text, '', pg_get_functiondef(oid), proacl::text FROM pg_proc
        WHERE pronamespace IN (SELECT oid FROM ours)
        UNION ALL
        SELECT 'type', typnamespace::regnamespace::text, typname, '', '' FROM pg_type
        WHERE typnamespace IN (SELECT oid FROM ours)
        ORDER BY 1, 2, 3, 4, 5
    """.replace("SELECT oid FROM ours", "'public'::regnamespace, 'mailroom'::regnamespace").encode()
    ).fetchall()


def silent(_: str) -> None:
    pass


def test_up_down_up(golang: Migrate, ours: psycopg.Connection) -> None:
    golang("up")
    first = schema(ours)
    assert migrate.State(NEWEST, dirty=False) == migrate.state(ours)
    assert 0 == migrate.up(ours, None, silent)
    golang("down", "-all")
    assert migrate.State(0, dirty=False) == migrate.state(ours)
    assert [("public", "schema_migrations")] == ours.execute(
        "SELECT schemaname, tablename FROM pg_tables"
        " WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
    ).fetchall()
    assert [] == ours.execute("SELECT FROM pg_namespace WHERE nspname = 'mailroom'").fetchall()
    golang("up")
    assert first == schema(ours)
    token = sign_up(ours, "zoe")
    assert [token] == claimed_tokens(ours)


def test_an_action_is_added_to_what_it_made_and_goes_with_it(
    golang: Migrate, ours: psycopg.Connection
) -> None:
    golang("up")
    chosen = {"invitation": load_actions()["invitation"]}
    for _ in range(2):
        actions.apply(ours, chosen)
    assert chosen.items() <= actions.in_database(ours).items()
    assert "no change" in golang("up")
    golang("down", "-all")
    golang("up")
    assert "invitation" not in actions.in_database(ours)


def test_it_makes_what_mailroom_makes(golang: Migrate, ours: psycopg.Connection) -> None:
    migrate.up(ours, None, silent)
    by_mailroom = schema(ours)
    assert "no change" in golang("up")
    golang("down", "-all")
    golang("up")
    assert by_mailroom == schema(ours)


def test_mailroom_goes_on_from_where_it_stopped(golang: Migrate, ours: psycopg.Connection) -> None:
    golang("up", "3")
    assert migrate.State(3, dirty=False) == migrate.state(ours)
    assert NEWEST - 3 == migrate.up(ours, None, silent)
    assert 1 == migrate.down(ours, 1, silent)
    assert str(NEWEST - 1) == golang("version").strip()
    golang("up")
    assert migrate.State(NEWEST, dirty=False) == migrate.state(ours)
    assert NEWEST == migrate.down(ours, NEWEST, silent)
    assert "no migration" in golang.run("version").stderr
    golang("up")
    assert 0 == migrate.up(ours, None, silent)


def test_they_never_migrate_at_the_same_time(
    golang: Migrate, ours: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.ExitStack() as stack:
        others: list[subprocess.Popen[bytes]] = []

        def meanwhile(connection: psycopg.Connection, *_: object) -> int:
            others.append(stack.enter_context(golang.start("up")))
            waiting = (
                "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database"
                " WHERE locktype = 'advisory' AND NOT granted AND d.datname = current_database()"
            )
            wait_until(connection, waiting, 1)
            return NEWEST  # for us there is nothing to do

        monkeypatch.setattr(migrate, "_clean_version", meanwhile)
        assert 0 == migrate.up(ours, None, silent)
        assert 0 == others[0].wait(PATIENCE_S)
    assert migrate.State(NEWEST, dirty=False) == migrate.state(ours)


def test_a_dirty_state_of_its_is_refused(golang: Migrate, ours: psycopg.Connection) -> None:
    golang("up", "2")
    ours.execute("CREATE FUNCTION mailroom.leave(text) RETURNS integer LANGUAGE sql AS 'SELECT 1'")
    # Its output quotes the migration, whose patterns look like addresses.
    assert 0 != golang.start("up").wait(PATIENCE_S)
    assert migrate.State(3, dirty=True) == migrate.state(ours)
    with contextlib.suppress(MigrationError):
        migrate.up(ours, None, silent)
        pytest.fail("a dirty schema was migrated")
    ours.execute("DROP FUNCTION mailroom.leave")
    golang("force", "2")
    assert NEWEST - 2 == migrate.up(ours, None, silent)


@pytest.mark.parametrize("options", [{"search_path": "mail"}, {"options": "-csearch_path=mail"}])
def test_it_puts_everything_into_a_schema_of_its_own(
    program: Path, empty_database: str, options: dict[str, str]
) -> None:
    golang = Migrate(program, empty_database, **options)
    with psycopg.connect(empty_database, autocommit=True) as admin:
        admin.execute("CREATE SCHEMA mail; CREATE TABLE accounts (id uuid); CREATE TABLE tokens (id uuid)")
        golang("up")
        in_public = (
            "SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace ORDER BY 1"
        )
        assert [("accounts",), ("tokens",)] == admin.execute(in_public).fetchall()
        with sync.connected(make_conninfo(empty_database, options="-csearch_path=mail")) as ours:
            assert migrate.State(NEWEST, dirty=False) == migrate.state(ours)
            assert [sign_up(ours, "zoe")] == claimed_tokens(ours)
            assert 1 == migrate.down(ours, 1, silent)
        golang("up")
        golang("down", "-all")
        assert [("accounts",), ("tokens",)] == admin.execute(in_public).fetchall()
        left = admin.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'mail'").fetchall()
        assert [("schema_migrations",)] == left


def test_both_use_another_table_of_versions(program: Path, empty_database: str) -> None:
    golang = Migrate(program, empty_database, **{"x-migrations-table": "mailroom_migrations"})
    with sync.connected(empty_database) as ours:
        ours.execute("CREATE TABLE schema_migrations (version bigint PRIMARY KEY, dirty boolean NOT NULL)")
        ours.execute("INSERT INTO schema_migrations VALUES (3, false)")
        golang("up", "2")
        assert NEWEST - 2 == migrate.up(ours, None, silent, table="mailroom_migrations")
        assert "no change" in golang("up")
        golang("down", "1")
        assert NEWEST - 1 == migrate.down(ours, 99, silent, table="mailroom_migrations")
        assert [(3, False)] == ours.execute("SELECT version, dirty FROM schema_migrations").fetchall()
