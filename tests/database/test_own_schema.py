"""Mailroom in a schema of its own: all that it makes is there or in ``mailroom``, and every program works."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

import mailroom
from mailroom.database import migrate, sync
from mailroom.demo import signup
from mailroom.demo.postgres import PostgresServer
from mailroom.inbox.server import InboxServer
from support import commands, processes, senders
from support.postgres import migrated
from support.processes import CollectorProcess
from support.queue_sql import Db, claimed_tokens
from support.runs import UNSETTLED, RunProcess, wait_until

TABLES = {"accounts", "tokens", "jobs", "schema_migrations"}
TYPES = {"account_status", "token_action", "job_type"}
OWN = "Mail 1"  # needs quotes

RELATIONS = """
SELECT c.relname FROM pg_class c WHERE c.relnamespace = %s::regnamespace AND c.relkind = 'r'
UNION ALL SELECT t.typname FROM pg_type t WHERE t.typnamespace = %s::regnamespace AND t.typtype = 'e'
"""
IN_PUBLIC = """
SELECT 'relation', c.relname::text FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace
UNION ALL SELECT 'type', t.typname FROM pg_type t WHERE t.typnamespace = 'public'::regnamespace
UNION ALL SELECT 'function', p.proname FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace
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
    assert [] == owner.execute(IN_PUBLIC).fetchall()
    ((quoted,),) = owner.execute("SELECT mailroom.user_schema()").fetchall()
    assert TABLES | TYPES == made_in(owner, quoted)
    bodies = owner.execute(
        "SELECT proname, prosrc FROM pg_proc WHERE pronamespace = 'mailroom'::regnamespace"
    )
    assert [] == [name for name, body in bodies if re.search(r"\bpublic\.", body)]


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
        expected = [
            (name.replace("public.", f"{schema}."), text.replace("public.", f"{schema}."), *rest)
            for name, text, *rest in other.execute(query)
        ]
        assert expected == owner.execute(query).fetchall()


def test_down_leaves_only_the_table_of_versions(own: str, owner: Db) -> None:
    ((schema,),) = owner.execute("SELECT mailroom.user_schema()").fetchall()
    done = commands.run("migrate", "down", "--yes", "4", env=processes.environment(own))
    assert (0, "") == (done.returncode, done.stderr)
    assert {"schema_migrations"} == made_in(owner, schema)
    assert [] == owner.execute("SELECT FROM pg_namespace WHERE nspname = 'mailroom'").fetchall()
    migrated(own)
    assert TABLES | TYPES == made_in(owner, schema)


@pytest.mark.slow
def test_a_sign_up_ends_as_a_mail(own: str, owner: Db, ses: InboxServer, tmp_path: Path) -> None:
    """From the sign-up to the click, with every program's own command and the same address."""
    variables = processes.environment(own)
    variables |= senders.environment(tmp_path / "output", SEND_RATE=100) | senders.aws(ses.url)

    def run(*arguments: str, expected: int = 0) -> str:
        done = commands.run(*arguments, env=variables)
        assert expected == done.returncode, done.stderr
        return done.stdout

    run("actions", "apply", "--yes", "invitation")
    assert "nothing to apply" in run("actions", "apply", "--yes", "invitation")
    with RunProcess(variables, tmp_path / "log") as worker:
        worker.wait_for_log("run.started")
        owner.execute("INSERT INTO accounts (email, login) VALUES ('zoe@example.com', 'zoe')")
        wait_until(owner, UNSETTLED, 0)
        assert "0 faults" in run("doctor", "--only", "database")
        assert 0 == worker.stop()
    (mail,) = ses.inbox.mails.find(template="activationv1")
    assert "zoe@example.com" == mail.recipient
    signed = json.loads(mail.own or "{}")["secret"]
    token = mailroom.consume(owner, signed, "activation", keys=processes.KEY).token
    assert f"token {token}: activation" in run("why", "zoe@example.com")
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


def test_a_table_of_users_in_public_is_adopted(own: str, owner: Db) -> None:
    owner.execute(
        "CREATE TABLE public.users (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), email text,"
        " confirmed_at timestamptz)"
    )
    owner.execute("INSERT INTO public.users (email) VALUES ('early@example.com')")
    meaning = ("--pending-when", "confirmed_at IS NULL", "--active-when", "confirmed_at IS NOT NULL")
    assignment = ("--on-activation", "confirmed_at = now()")
    variables = processes.environment(own)
    for options in (("--email", "email", *meaning, *assignment, "--apply"), ("--mail-existing", "--yes")):
        done = commands.run("adopt", "public.users", *options, env=variables)
        assert 0 == done.returncode, done.stderr
    owner.execute("INSERT INTO public.users (email) VALUES ('zoe@example.com')")
    for (secret,) in owner.execute("SELECT secret FROM tokens ORDER BY id").fetchall():
        ((outcome,),) = owner.execute(
            "SELECT outcome FROM mailroom.consume(%s, 'activation')", [secret]
        ).fetchall()
        assert "consumed" == outcome
    assert [(2,)] == owner.execute("SELECT count(confirmed_at) FROM public.users").fetchall()


def test_only_migrations_need_the_path(own: str, owner: Db, tmp_path: Path) -> None:
    plain = make_conninfo(own, options="")
    variables = processes.environment(plain)
    for arguments in (("roles", "--apply"), ("actions", "apply", "--yes", "invitation"), ("status",)):
        done = commands.run(*arguments, env=variables)
        assert 0 == done.returncode, done.stderr
    with CollectorProcess(plain, log=tmp_path / "log") as collector:
        owner.execute("INSERT INTO accounts (email, login) VALUES ('zoe@example.com', 'zoe')")
        assert ["zoe"] == [message.username for message in collector.wait_for_messages(1)]
        wait_until(owner, UNSETTLED, 0)
        assert 0 == collector.stop()


def test_the_example_runs_beside_it(own: str, owner: Db) -> None:
    owner.execute(Path(signup.__file__).with_name("schema.sql").read_bytes())
    ((table,),) = owner.execute(
        "SELECT confrelid::regclass::text FROM pg_constraint WHERE conrelid = 'example.passwords'::regclass"
        " AND contype = 'f'"
    ).fetchall()
    assert "accounts" == table  # the first of search_path


@pytest.fixture
def role(empty_database: str) -> Iterator[str]:
    """A user that may create in the database and in public."""
    name = f"acme_{secrets.token_hex(4)}"
    quoted = sql.Identifier(name)
    with psycopg.connect(empty_database, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'hunter2'").format(quoted))
        admin.execute(
            sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(sql.Identifier(admin.info.dbname), quoted)
        )
        admin.execute(sql.SQL("GRANT CREATE ON SCHEMA public TO {}").format(quoted))
        yield name
        admin.execute(sql.SQL("DROP OWNED BY {}").format(quoted))
        admin.execute(sql.SQL("DROP ROLE {}").format(quoted))


def test_a_users_search_path_counts(empty_database: str, role: str) -> None:
    user = sql.Identifier(role)
    with psycopg.connect(empty_database, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE SCHEMA post AUTHORIZATION {}").format(user))
        admin.execute(sql.SQL("ALTER ROLE {} SET search_path = post, public").format(user))
        migrated(make_conninfo(empty_database, user=role, password="hunter2"))
        assert TABLES | TYPES == made_in(admin, "post")
        assert set() == made_in(admin, "public")


def test_the_schema_of_the_users_name_counts(empty_database: str, role: str) -> None:
    """As PostgreSQL's default, "$user", public, has it."""
    url = make_conninfo(empty_database, user=role, password="hunter2")
    with psycopg.connect(empty_database, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE SCHEMA AUTHORIZATION {}").format(sql.Identifier(role)))
        migrated(url)
        assert TABLES | TYPES == made_in(admin, role)
        done = commands.run("migrate", "version", env=processes.environment(url))
        assert ("4\n", "") == (done.stdout, done.stderr)


def test_a_user_called_mailroom_puts_nothing_else_into_the_schema_mailroom(
    own_server: PostgresServer,
) -> None:
    """Which is the first of its search_path as soon as it exists."""
    with psycopg.connect(own_server.url(), autocommit=True) as admin:
        admin.execute("CREATE ROLE mailroom LOGIN SUPERUSER")
        admin.execute("CREATE DATABASE acme OWNER mailroom")
    url = make_conninfo(own_server.url("acme"), user="mailroom", password=own_server.password)
    with psycopg.connect(own_server.url(), autocommit=True) as admin:
        admin.execute(sql.SQL("ALTER ROLE mailroom PASSWORD {}").format(own_server.password))
    with sync.connected(url) as connection:
        for _ in migrate.shipped():
            assert 1 == migrate.up(connection, 1, lambda _: None)
        assert TABLES | TYPES == made_in(connection, "public")
        assert TABLES.isdisjoint(made_in(connection, "mailroom"))
        for _ in migrate.shipped():
            assert 1 == migrate.down(connection, 1, lambda _: None)
        assert migrate.State(0, dirty=False) == migrate.state(connection)


# Each matches a call in the migrations, but for its body, and PostgreSQL's own is to be called.
CAPTURING = (
    ("lower", "text", "text"), ("lower", "varchar", "text"), ("sha256", "bytea", "bytea"),
    ("char_length", "varchar", "integer"), ("octet_length", "text", "integer"),
    ("left", "text, bigint", "text"), ("gen_random_uuid", "", "uuid"),
    ("clock_timestamp", "", "timestamptz"),
    ("statement_timestamp", "", "timestamptz"), ("isfinite", "timestamp", "boolean"),
    ("least", "interval, interval", "interval"), ("array_position", "text[], text", "integer"),
    ("substring", "bytea, integer, bigint", "bytea"), ("set_config", "text, text, boolean", "text"),
    ("current_schema", "", "name"), ("format", "text, name", "text"), ("unnest", "anyarray", "text"),
    ("enum_range", "anyelement", "text[]"), ("coalesce", "boolean, boolean", "boolean"),
)  # fmt: skip
OPERATORS = (("~", "text"), ("!~", "text"), ("=", "text"), ("<>", "text"), ("<>", "text[]"), ("||", "text"))


def trap(admin: Db, name: str, arguments: str, result: str) -> None:
    """A function in the schema acme that must not be called."""
    admin.execute(
        f'CREATE FUNCTION acme."{name}"({arguments}) RETURNS {result} IMMUTABLE LANGUAGE plpgsql'
        f" AS 'BEGIN RAISE EXCEPTION ''{name} was called''; END'".encode()
    )


def test_no_function_of_the_schema_captures_a_call(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as admin:
        admin.execute("CREATE SCHEMA acme")
        for function in CAPTURING:
            trap(admin, *function)
        for operator, kind in OPERATORS:
            trap(admin, f"{operator} {kind}", f"{kind}, {kind}", "boolean")
            admin.execute(
                f'CREATE OPERATOR acme.{operator} (FUNCTION = acme."{operator} {kind}",'
                f" LEFTARG = {kind}, RIGHTARG = {kind})".encode()
            )
    url = migrated(in_schema(empty_database, "acme"))
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute("INSERT INTO accounts (email, login) VALUES ('zoe@example.com', 'zoe')")
        assert claimed_tokens(owner)
    with sync.connected(url) as owner:
        assert 4 == migrate.down(owner, 4, lambda _: None)


def test_what_would_capture_a_call_is_refused(empty_database: str) -> None:
    """An interval by an integer is PostgreSQL's interval by a float8, unless somebody has another."""
    with psycopg.connect(empty_database, autocommit=True) as admin:
        admin.execute("CREATE SCHEMA acme")
        trap(admin, "half", "interval, integer", "interval")
        admin.execute("CREATE OPERATOR acme./ (FUNCTION = acme.half, LEFTARG = interval, RIGHTARG = integer)")
    url = in_schema(empty_database, "acme")
    done = commands.run("migrate", "up", env=processes.environment(url))
    assert 78 == done.returncode
    assert (
        "function mailroom.is_over(acme.tokens,interval,timestamp with time zone) would use operator acme./"
        in done.stderr
    )
    assert "2\n" == commands.run("migrate", "version", env=processes.environment(url)).stdout
