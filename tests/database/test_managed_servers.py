"""An owner as a managed server gives it: no superuser, no CREATEROLE, no extension, and another's public."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from typing import Final

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from mailroom.demo.postgres import PostgresServer
from mailroom.doctor.diagnosis import diagnose
from mailroom.doctor.report import Status
from support import commands, processes
from support.queue_sql import claimed_tokens

PASSWORD: Final = "hunter2"


def run(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return commands.run(*arguments, env=processes.environment(url))


def statements(hint: str) -> list[str]:
    """The statements for the administrator in an error's hint."""
    asked = hint.partition("ask the administrator to run: ")[2].partition(". Or ")[0]
    return [one.strip() for one in asked.strip().split("; ")]


@pytest.fixture
def managed(empty_database: str) -> Iterator[str]:
    """The database for a user who owns nothing and may create nothing in it."""
    name = f"Acme {secrets.token_hex(4)}"  # needs quotes
    user = sql.Identifier(name)
    with psycopg.connect(empty_database, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'hunter2'").format(user))
        admin.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")  # as PostgreSQL 15 and newer have it
        yield make_conninfo(empty_database, user=name, password=PASSWORD)
        admin.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(user))
        admin.execute(sql.SQL("DROP ROLE {}").format(user))


def test_the_administrator_is_asked_for_what_is_missing_and_that_is_enough(
    empty_database: str, managed: str
) -> None:
    refused = run(managed, "migrate", "up")
    assert (78, "") == (refused.returncode, refused.stdout)
    asked = statements(refused.stderr)
    assert ["GRANT CREATE ON DATABASE", "GRANT CREATE ON SCHEMA public"] == [
        one.partition(" TO ")[0].removesuffix(str(conninfo_to_dict(managed)["dbname"])).strip()
        for one in asked
    ]
    with psycopg.connect(empty_database, autocommit=True) as admin:
        assert [] == admin.execute("SELECT FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for statement in asked:
            admin.execute(statement.encode())
    done = run(managed, "migrate", "up")
    assert (0, "") == (done.returncode, done.stderr)
    with psycopg.connect(managed, autocommit=True) as owner:
        owner.execute("INSERT INTO accounts (email, login) VALUES ('zoe@example.com', 'zoe')")
        assert claimed_tokens(owner)
        assert [(1,)] == owner.execute("SELECT count(*) FROM pg_extension").fetchall()  # plpgsql
    found = {one.name: one for one in diagnose(processes.environment(managed), "database").findings}
    assert [] == [one for one in found.values() if one.state is Status.FAULT]
    done = run(managed, "migrate", "down", "--yes", "99")
    assert (0, "") == (done.returncode, done.stderr)


def test_a_schema_of_its_own_needs_nothing_of_public(empty_database: str, managed: str) -> None:
    name = str(conninfo_to_dict(managed)["user"])
    with psycopg.connect(empty_database, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE SCHEMA mail AUTHORIZATION {}").format(sql.Identifier(name)))
        admin.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    own = make_conninfo(managed, options="-csearch_path=mail")
    refused = run(own, "migrate", "up")
    assert 78 == refused.returncode
    (asked,) = statements(refused.stderr)
    assert asked.startswith("GRANT CREATE ON DATABASE")
    with psycopg.connect(empty_database, autocommit=True) as admin:
        admin.execute(asked.encode())
    done = run(own, "migrate", "up")
    assert (0, "") == (done.returncode, done.stderr)


def test_roles_that_the_administrator_made_get_their_rights(own_server: PostgresServer) -> None:
    """The owner may create no role, and the rights are its to grant."""
    with psycopg.connect(own_server.url(), autocommit=True) as admin:
        for role in ("acme", "acme_worker"):
            admin.execute(f"CREATE ROLE {role} LOGIN".encode())
            admin.execute(
                sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), own_server.password)
            )
        admin.execute("CREATE DATABASE shop OWNER acme")
    owner = make_conninfo(own_server.url("shop"), user="acme", password=own_server.password)
    assert (
        0
        == run(
            owner,
            "migrate",
            "up",
        ).returncode
    )
    refused = run(owner, "roles", "--apply")
    assert (78, "") == (refused.returncode, refused.stdout)
    asked = statements(refused.stderr)
    assert [f"CREATE ROLE mailroom_{role}" for role in ("app", "oncall", "worker")] == asked[:3]
    with psycopg.connect(own_server.url(), autocommit=True) as admin:
        granted = (
            "SELECT FROM pg_proc p, aclexplode(p.proacl) a WHERE a.grantee::regrole::text ~ '^mailroom_'"
        )
        with psycopg.connect(owner) as connection:
            assert [] == connection.execute(granted).fetchall()
        for statement in asked:
            admin.execute(statement.encode())
        admin.execute("GRANT mailroom_worker TO acme_worker")
    for _ in range(2):
        done = run(owner, "roles", "--apply")
        assert (0, "") == (done.returncode, done.stderr)
    worker = make_conninfo(own_server.url("shop"), user="acme_worker", password=own_server.password)
    # The doctor sees the sessions of another user too.
    with psycopg.connect(owner, application_name="mailroom run"):
        findings = diagnose(processes.environment(worker), "database").findings
    assert [] == [(one.name, one.detail) for one in findings if one.state is not Status.OK]
