"""``mailroom roles --apply``: what its SQL does through psql, in one transaction, for images without psql."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import suppress

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from database.test_roles import APP, ONCALL, WORKER, allowed
from mailroom.cli.main import cli
from mailroom.demo.postgres import free_port
from support import commands, processes
from support.postgres import migrated
from support.queue_sql import Db

DONE = "created or updated: mailroom_worker, mailroom_app, mailroom_oncall\n"


def roles(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    return commands.run("roles", *options, env=processes.environment(url))


def user_of(url: str) -> str:
    return str(conninfo_to_dict(url)["user"])


def exists(db: Db, role: str) -> bool:
    return bool(db.execute("SELECT FROM pg_roles WHERE rolname = %s", [role]).fetchall())


@pytest.fixture
def cleaned(database: str, db: Db) -> Iterator[str]:
    """Roles are the cluster's, and rights in a database keep them there."""
    yield database
    for role in ("acme_worker", WORKER, APP, ONCALL):
        if exists(db, role):
            db.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role)))
            with suppress(psycopg.errors.DependentObjectsStillExist, psycopg.errors.ObjectInUse):
                db.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def test_they_are_applied_and_again(cleaned: str, db: Db) -> None:
    for _ in range(2):
        done = roles(cleaned, "--apply")
        assert (0, DONE, "") == (done.returncode, done.stdout, done.stderr)
    assert "claim" in allowed(db, WORKER)
    assert "consume" in allowed(db, APP)
    assert "overview" in allowed(db, ONCALL)


def test_a_user_who_was_there_before_gets_the_rights(cleaned: str, db: Db) -> None:
    """As docs/deploy.md makes it for Kubernetes: the role first, without any."""
    for role in (WORKER, "acme_worker"):
        if not exists(db, role):
            db.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'acme'").format(sql.Identifier(role)))
    db.execute("GRANT mailroom_worker TO acme_worker")
    assert 0 == roles(cleaned, "--apply").returncode
    with psycopg.connect(make_conninfo(cleaned, user="acme_worker", password="acme")) as worker:
        assert [] == worker.execute("SELECT FROM mailroom.claim('w', 1, 1, 60000)").fetchall()


def test_without_the_option_it_prints_and_asks_no_database() -> None:
    done = CliRunner().invoke(cli, ["roles"], env={"MAILROOM_DATABASE_URL": None})
    assert 0 == done.exit_code
    assert "CREATE ROLE" in done.output


def test_they_may_use_a_schema_that_public_may_not(cleaned: str, db: Db) -> None:
    db.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    assert 0 == roles(cleaned, "--apply").returncode
    for role, privileges in ((APP, True), (WORKER, False), (ONCALL, False)):
        ((found,),) = db.execute("SELECT has_schema_privilege(%s, 'public', 'USAGE')", [role]).fetchall()
        assert privileges == found, role
    with psycopg.connect(cleaned) as application:
        application.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(APP)))
        application.execute("INSERT INTO accounts (email, login) VALUES ('zoe@example.com', 'zoe')")


def test_a_schema_that_the_owner_may_not_open_is_named(empty_database: str, owned_database: str) -> None:
    """As where the database is another's, who has taken USAGE on public from everybody else."""
    with psycopg.connect(empty_database, autocommit=True) as other:
        other.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
        other.execute(sql.SQL("ALTER ROLE {} CREATEROLE").format(sql.Identifier(user_of(owned_database))))
    done = roles(migrated(owned_database), "--apply")
    assert 78 == done.returncode
    assert "mailroom_app may not use the schema public" in done.stderr
    assert "or as a superuser" in done.stderr


def test_restricted_functions_of_postgresql_are_named(empty_database: str, owned_database: str) -> None:
    grant = "GRANT EXECUTE ON FUNCTION pg_catalog.pg_control_system TO"
    owner = user_of(owned_database)
    env = processes.environment(owned_database)
    with psycopg.connect(empty_database, autocommit=True) as admin:
        admin.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
        refused = commands.run("migrate", "up", env=env)
        assert (78, True) == (refused.returncode, grant in refused.stderr), refused.stderr
        admin.execute((grant + " " + owner).encode())
        migrated(owned_database)
        admin.execute(f"REVOKE EXECUTE ON FUNCTION pg_control_system() FROM {owner}".encode())
    refused = commands.run("collector", env=env)
    assert (78, True) == (refused.returncode, grant in refused.stderr), refused.stderr
    assert "GRANT mailroom_worker" not in refused.stderr
    found = commands.run("doctor", "--only", "database", env=env)
    assert grant in found.stdout


def test_what_fails_in_the_middle_is_rolled_back(cleaned: str, db: Db) -> None:
    db.execute("ALTER TABLE tokens RENAME COLUMN consumed_at TO consumed")  # the last statement names it
    done = roles(cleaned, "--apply")
    assert 78 == done.returncode
    assert "nothing was changed" in done.stderr
    query = "SELECT FROM pg_proc p, aclexplode(p.proacl) a WHERE a.grantee::regrole::text ~ '^mailroom_'"
    assert [] == db.execute(query).fetchall()
    db.execute("ALTER TABLE tokens RENAME COLUMN consumed TO consumed_at")
    assert 0 == roles(cleaned, "--apply").returncode


def test_without_the_schema_it_names_the_migrations(empty_database: str) -> None:
    done = roles(empty_database, "--apply")
    assert 78 == done.returncode
    assert "Try: run `mailroom migrate up` first" in done.stderr


def test_a_server_that_does_not_answer_is_to_be_tried_again() -> None:
    done = roles(f"postgresql://nobody@127.0.0.1:{free_port()}/app", "--apply")
    assert 75 == done.returncode
    assert "cannot connect to PostgreSQL" in done.stderr


def test_without_an_address_it_says_so() -> None:
    done = CliRunner().invoke(cli, ["roles", "--apply"], env={"MAILROOM_DATABASE_URL": ""})
    assert "MAILROOM_DATABASE_URL" in str(done.exception)
