"""Every program works on a database whose parameters are not those of a fresh server."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from mailroom.console.server import ConsoleServer
from mailroom.database.parameters import SET, parameters_of
from mailroom.database.sync import connected
from mailroom.inbox.server import InboxServer
from mailroom.settings.collector import QueueSettings
from support import commands, senders
from support.inbox import ask
from support.processes import CollectorProcess, environment
from support.queue_sql import Db, claim, record, sign_up
from support.runs import UNSETTLED, Start, wait_until

# Each is one that somebody sets for other reasons.
HOSTILE = {
    "DateStyle": "German",
    "IntervalStyle": "iso_8601",
    "TimeZone": "America/St_Johns",
    "bytea_output": "escape",
    "standard_conforming_strings": "off",
    "extra_float_digits": "-15",
    "client_encoding": "LATIN1",
    "client_min_messages": "debug1",
    "row_security": "off",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "quote_all_identifiers": "on",
    "transform_null_equals": "on",
    "statement_timeout": "300ms",
    "lock_timeout": "1ms",
    "idle_session_timeout": "300ms",
    "idle_in_transaction_session_timeout": "300ms",
    "transaction_timeout": "300ms",
}
# In a schema before pg_catalog, which is not Mailroom's: functions that have the names of PostgreSQL's own.
FUNCTIONS = {
    "set_config(text, text, boolean)": "text",
    "current_setting(text)": "text",
    "pg_backend_pid()": "integer",
    "pg_notify(text, text)": "void",
    "pg_try_advisory_lock(bigint)": "boolean",
    "pg_advisory_unlock(bigint)": "boolean",
    "pg_is_in_recovery()": "boolean",
    "clock_timestamp()": "timestamptz",
    "to_regclass(text)": "regclass",
    "to_regnamespace(text)": "regnamespace",
    "to_regprocedure(text)": "regprocedure",
    "has_function_privilege(oid, text)": "boolean",
    "quote_ident(text)": "text",
    "encode(bytea, text)": "text",
    "split_part(text, text, integer)": "text",
    "current_schema()": "name",
    "current_database()": "name",
}


def alter(db: Db, url: str, values: dict[str, str]) -> None:
    name = sql.Identifier(str(conninfo_to_dict(url)["dbname"]))
    for setting, value in values.items():
        if setting == "transaction_timeout" and db.info.server_version < 170000:
            continue
        db.execute(
            sql.SQL("ALTER DATABASE {} SET {} = {}").format(name, sql.Identifier(setting), sql.Literal(value))
        )


def shadow(db: Db, url: str) -> None:
    db.execute("CREATE SCHEMA shadows")
    for function, returned in FUNCTIONS.items():
        body = f"CREATE FUNCTION shadows.{function} RETURNS {returned} LANGUAGE plpgsql AS"
        db.execute(f"{body} $$ BEGIN RAISE 'a shadow was called'; END $$".encode())
    for relation in ("pg_settings", "pg_proc", "pg_trigger", "pg_stat_activity"):
        db.execute(f"CREATE VIEW shadows.{relation} AS SELECT 1 / 0 AS oid".encode())
    name = sql.Identifier(str(conninfo_to_dict(url)["dbname"]))
    db.execute(sql.SQL("ALTER DATABASE {} SET search_path = public, shadows, pg_catalog").format(name))


@pytest.fixture
def story(db: Db) -> int:
    """A database in which something has happened: sent, a dead letter, and a token that waits."""
    sent, dead = sign_up(db, "sent"), sign_up(db, "dead")
    (lease,) = claim(db)
    record(db, lease, {sent: "sent", dead: "rejected"}, detail="no such user")
    db.execute("SELECT mailroom.heartbeat('w', '1', 'in trouble')")
    sign_up(db, "waits")
    return dead


def all_work(url: str, dead: int) -> None:
    """Every command that reads or changes the queue does what it does on a fresh server."""
    env = environment(url)
    for arguments in _commands(dead):
        done = commands.run(*arguments, env=env)
        assert 0 == done.returncode, f"{arguments}: {done.stdout}{done.stderr}"
    done = commands.run("doctor", "--skip-ses", env=env | senders.CONSTANTS)
    assert "FAULT" not in done.stdout.upper().replace("FAULTS", ""), done.stdout
    with ConsoleServer(QueueSettings(url, "token_insert")) as console:
        for path in ("/", "/live", "/dead", "/?outcome=sent", "/why?who=sent", "/why?who=dead"):
            answer = ask(console.url, path)
            assert 200 == answer.status, answer.text


def _commands(dead: int) -> Iterator[Sequence[str]]:
    yield ("status",)
    yield ("status", "--json")
    for who in ("sent", "dead", "waits"):
        yield ("why", who)
    yield ("why", "sent", "--json")
    yield ("dead", "list", "--since", "1d")
    yield ("dead", "show", str(dead))
    yield ("pause", "--reason", "a test")
    yield ("resume",)
    yield ("migrate", "status")
    yield ("migrate", "up")
    yield ("roles", "--apply")
    yield ("prune", "--older-than", "1h")
    yield ("dead", "retry", str(dead))


@pytest.mark.slow
def test_commands_work_whatever_the_database_sets(database: str, db: Db, story: int) -> None:
    alter(db, database, HOSTILE)
    all_work(database, story)


@pytest.mark.slow
def test_commands_use_nothing_of_a_schema_before_pg_catalog(database: str, db: Db, story: int) -> None:
    shadow(db, database)
    all_work(database, story)


@pytest.mark.parametrize("setting", ["DateStyle", "IntervalStyle", "TimeZone", "bytea_output"])
def test_status_and_why_are_the_same_in_each_style(database: str, db: Db, story: int, setting: str) -> None:
    expected = [commands.run("why", who, env=environment(database)).stdout for who in ("sent", "dead")]
    alter(db, database, {setting: HOSTILE[setting]})
    assert 0 == commands.run("status", env=environment(database)).returncode
    found = [commands.run("why", who, env=environment(database)).stdout for who in ("sent", "dead")]
    assert expected == found


@pytest.mark.slow
@pytest.mark.parametrize("shadowed", [False, True], ids=["parameters", "search_path"])
def test_workers_send_whatever_the_database_sets(
    database: str, db: Db, ses: InboxServer, start: Start, tmp_path: Path, shadowed: bool
) -> None:
    if shadowed:
        shadow(db, database)
    else:
        alter(db, database, HOSTILE)
    worker = start()
    worker.wait_for_log("run.started")
    sign_up(db, "zoe")
    ses.wait_for(lambda inbox: inbox.counts.accepted == 1)
    wait_until(db, UNSETTLED, 0)
    time.sleep(1)  # longer than every limit of the database
    sign_up(db, "max")
    ses.wait_for(lambda inbox: inbox.counts.accepted == 2)
    assert 0 == worker.stop()
    for event in ("lost", "refused"):
        assert event not in worker.log()
    with CollectorProcess(database, log=tmp_path / "log") as collector:
        sign_up(db, "ann")
        collector.wait_for_messages(1)
        assert 0 == collector.stop()
        assert "refused" not in collector.log()


@pytest.mark.slow
def test_migrations_use_nothing_of_a_schema_before_pg_catalog(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as db:
        shadow(db, empty_database)
    for arguments in (("migrate", "up"), ("migrate", "down", "9", "--yes"), ("migrate", "up")):
        done = commands.run(*arguments, env=environment(empty_database))
        assert 0 == done.returncode, done.stderr
    with psycopg.connect(empty_database, autocommit=True) as db:
        db.execute("SET search_path = public")
        sign_up(db, "zoe")
        assert claim(db)


def test_migrations_say_that_no_schema_is_in_the_search_path(database: str, db: Db) -> None:
    name = sql.Identifier(str(conninfo_to_dict(database)["dbname"]))
    db.execute(sql.SQL("ALTER DATABASE {} SET search_path = ''").format(name))
    done = commands.run("migrate", "status", env=environment(database))
    assert 78 == done.returncode
    assert "search_path" in done.stderr
    assert 0 == commands.run("status", env=environment(database)).returncode


def test_a_connection_sets_what_its_statements_rely_on(database: str, db: Db) -> None:
    alter(db, database, HOSTILE)
    with connected(database, parameters={"statement_timeout": "7000"}) as connection:
        values: dict[str, str] = dict(connection.execute("SELECT name, setting FROM pg_settings").fetchall())
    assert "ISO" in values["DateStyle"]
    assert "UTC" == values["TimeZone"]
    assert "7000" == values["statement_timeout"]
    assert {"0"} == {
        values[name]
        for name in ("lock_timeout", "idle_session_timeout", "idle_in_transaction_session_timeout")
    }
    assert "pg_catalog, pg_temp" == values["search_path"]
    assert "read committed" == values["default_transaction_isolation"]
    assert "on" == values["standard_conforming_strings"]


def test_a_pooler_without_sessions_gets_only_what_it_restores(database: str, db: Db) -> None:
    """Behind one, the server's process id is not the one that the connection was given."""
    alter(db, database, {"IntervalStyle": "iso_8601", "DateStyle": "German"})
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(SET, parameters_of(connection.info.backend_pid + 1, {}, is_kept=False))
        values: dict[str, str] = dict(connection.execute("SELECT name, setting FROM pg_settings").fetchall())
    assert "ISO" in values["DateStyle"]
    assert "iso_8601" == values["IntervalStyle"]
    assert "public" in values["search_path"]
