"""Mailroom in a schema of its own: all that it makes lies there and in ``mailroom``, and every program works."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

import mailroom
from mailroom.database import migrate, sync
from mailroom.inbox.server import InboxServer
from support import commands, processes, senders
from support.postgres import migrated
from support.queue_sql import Db
from support.runs import UNSETTLED, RunProcess, wait_until

TABLES = {"accounts", "tokens", "jobs", "schema_migrations"}
TYPES = {"account_status", "token_action", "job_type"}
OWN = "Mail 1"  # needs quotes

RELATIONS = """
SELECT c.relname FROM pg_class c WHERE c.relnamespace = %s::regnamespace AND c.relkind = 'r'
UNION ALL SELECT t.typname FROM pg_type t WHERE t.typnamespace = %s::regnamespace AND t.typtype = 'e'
"""
EVERYTHING = """
SELECT n.nspname, i.type, i.identity
FROM pg_depend d, LATERAL pg_identify_object(d.classid, d.objid, 0) i JOIN pg_namespace n ON n.nspname = i.schema
WHERE i.schema IN ('public', 'acme')
UNION SELECT 'public', 'relation', relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
UNION SELECT 'public', 'function', proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
UNION SELECT 'public', 'type', typname FROM pg_type WHERE typnamespace = 'public'::regnamespace
"""


def in_schema(url: str, schema: str = "mail") -> str:
    """The address with a search_path; a blank in an option needs a backslash."""
    quoted = schema if schema.isalnum() else '"' + schema.replace(" ", "\\ ") + '"'
    return make_conninfo(url, options=f"-csearch_path={quoted}")


def made_in(db: Db, schema: str) -> set[str]:
    return {name for (name,) in db.execute(RELATIONS, [schema, schema])}


@pytest.fixture(params=["mail", OWN])
def own(empty_database: str, request: pytest.FixtureRequest) -> str:
    """The address of a database with Mailroom in a schema of its own."""
    with psycopg.connect(empty_database, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(request.param)))
    return migrated(in_schema(empty_database, request.param))


@pytest.fixture
def owner(own: str) -> Iterator[Db]:
    with psycopg.connect(own, autocommit=True) as connection:
        yield connection


def test_nothing_is_made_in_public(owner: Db) -> None:
    assert [] == owner.execute(EVERYTHING).fetchall()
    ((schema, quoted),) = owner.execute("SELECT current_schema(), mailroom.user_schema()").fetchall()
    assert TABLES | TYPES == made_in(owner, quoted)
    bodies = owner.execute("SELECT proname, prosrc FROM pg_proc WHERE pronamespace = 'mailroom'::regnamespace")
    assert [] == [name for name, body in bodies if re.search(r"\bpublic\.", body)]
    assert sql.Identifier(schema).as_string() in {quoted, f'"{quoted}"'}


def test_functions_keep_their_rights_comments_and_settings(own: str, owner: Db, database: str) -> None:
    """But for the schema's name they are those of a database in public."""
    query = (
        "SELECT p.oid::regprocedure::text, pg_get_functiondef(p.oid), p.proacl::text, p.proconfig::text,"
        " obj_description(p.oid) FROM pg_proc p WHERE p.pronamespace = 'mailroom'::regnamespace ORDER BY 1, 2"
    )
    ((schema,),) = owner.execute("SELECT mailroom.user_schema()").fetchall()
    with sync.connected(database) as other:
        other.execute("SET search_path = pg_catalog")
        owner.execute("SET search_path = pg_catalog")
        expected = [[cell and cell.replace("public.", f"{schema}.") for cell in row] for row in other.execute(query)]
        assert expected == [list(row) for row in owner.execute(query)]


def test_down_leaves_only_the_table_of_versions(own: str, owner: Db) -> None:
    ((schema,),) = owner.execute("SELECT mailroom.user_schema()").fetchall()
    done = commands.run("migrate", "down", "--yes", "4", env=processes.environment(own))
    assert (0, "") == (done.returncode, done.stderr)
    assert {"schema_migrations"} == made_in(owner, schema)
    assert [] == owner.execute("SELECT FROM pg_namespace WHERE nspname = 'mailroom'").fetchall()
    migrated(own)
    assert TABLES | TYPES == made_in(owner, schema)


def test_a_sign_up_ends_as_a_mail(own: str, owner: Db, ses: InboxServer, tmp_path: Path) -> None:
    """From the sign-up to the click, with every program's own command and the same address."""
    variables = processes.environment(own)
    variables |= senders.environment(tmp_path / "output", SEND_RATE=100) | senders.aws(ses.url)

    def run(*arguments: str, expected: int = 0) -> str:
        done = commands.run(*arguments, env=variables)
        assert expected == done.returncode, done.stderr
        return done.stdout

    run("actions", "apply", "--yes", "invitation")
    assert "invitation" in run("actions", "diff")
    with RunProcess(variables, tmp_path / "log") as worker:
        worker.wait_for_log("run.started")
        owner.execute("INSERT INTO accounts (email, login) VALUES ('zoe@example.com', 'zoe')")
        wait_until(owner, UNSETTLED, 0)
        assert "0 faults" in run("doctor", "--only", "database")
        assert 0 == worker.stop()
    ((token, secret),) = owner.execute("SELECT id, secret FROM tokens").fetchall()
    assert f"token {token}: activation" in run("why", "zoe@example.com")
    consumed = mailroom.consume(owner, secret, "activation")
    assert token == consumed.id
    assert [("active",)] == owner.execute("SELECT status::text FROM accounts").fetchall()
    owner.execute("UPDATE accounts SET email = 'zoe@example.org'")
    owner.execute("UPDATE accounts SET status = 'suspended'")
    owner.execute("UPDATE accounts SET status = 'active'")
    owner.execute("SELECT mailroom.send('password_recovery', account => (SELECT min(id) FROM accounts))")
    assert "waiting    1" in run("status")
    run("pause", "--reason", "a drill")
    run("resume")
    assert "no dead letters" in run("dead", "list")
    run("prune", "--older-than", "1h")
    run("roles", "--apply")
