"""The roles of ``mailroom roles``: each does its work, and is refused whatever else it tries."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import sql
from psycopg.conninfo import make_conninfo

import mailroom
from mailroom.cli.main import cli
from mailroom.console.server import ConsoleServer
from mailroom.consumption import CONSUME
from mailroom.database import migrate, sync
from mailroom.demo.postgres import embedded_binaries, free_port
from mailroom.doctor.diagnosis import diagnose
from mailroom.doctor.report import Status
from mailroom.inbox.server import InboxServer
from mailroom.queue.pulse import PULSE
from mailroom.settings.collector import QueueSettings
from mailroom.wire import Message
from support import commands, processes, senders
from support.inbox import ask
from support.postgres import bindir
from support.processes import KEY, CollectorProcess
from support.queue_sql import Db, claim, expire_leases, sign_up
from support.runs import UNSETTLED, RunProcess, fetch, wait_for_readiness, wait_until

SOURCES = Path(mailroom.__file__).parent
WORKER, APP, ONCALL = "mailroom_worker", "mailroom_app", "mailroom_oncall"
# Users with such a role, as an operator makes them; roles are the cluster's, so they outlive a test.
USERS = {WORKER: "acme_worker", APP: "acme_app", ONCALL: "acme_oncall"}
# What the modules name and do not call: the trigger's function, and the schema's own type.
NOT_CALLED = {"ring", "message", "take_over"}


def roles_sql() -> str:
    done = CliRunner().invoke(cli, ["roles"])
    assert 0 == done.exit_code
    return done.output


def set_up(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute(roles_sql().encode())
        for role, user in USERS.items():
            if not owner.execute("SELECT FROM pg_roles WHERE rolname = %s", [user]).fetchall():
                owner.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'acme'").format(sql.Identifier(user)))
            owner.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(role), sql.Identifier(user)))


@pytest.fixture
def with_roles(database: str, server_url: str) -> Iterator[str]:
    set_up(database)
    yield database
    clean_up(database)


def clean_up(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as owner:
        for role in (*USERS.values(), *USERS):
            owner.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role)))
            # A test in another process may be using it, where all share a server.
            with suppress(psycopg.errors.DependentObjectsStillExist, psycopg.errors.ObjectInUse):
                owner.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def as_(url: str, role: str) -> str:
    return make_conninfo(url, user=USERS[role], password="acme")


@pytest.fixture
def app(with_roles: str) -> Iterator[Db]:
    with psycopg.connect(as_(with_roles, APP), autocommit=True) as connection:
        yield connection


def allowed(db: Db, role: str) -> set[str]:
    """The functions of the schema that were granted to a role."""
    rows = db.execute(
        "SELECT DISTINCT p.proname FROM pg_proc p, aclexplode(p.proacl) a"
        " WHERE p.pronamespace = 'mailroom'::regnamespace AND a.grantee = %s::regrole"
        " AND a.privilege_type = 'EXECUTE'",
        [role],
    ).fetchall()
    return {name for (name,) in rows}


def named(*modules: str) -> set[str]:
    """The functions that modules call."""
    text = "".join((SOURCES / name).read_text() for name in modules)
    return set(re.findall(r"(?:SELECT|FROM|WHEN|[,(])[\s\"]*mailroom\.(\w+)\(", text))


def refused(url: str, role: str, *statements: str) -> None:
    """Each of them is refused for want of a privilege, and for nothing else."""
    with psycopg.connect(as_(url, role), autocommit=True) as connection:
        for statement in statements:
            try:
                connection.execute(statement.encode())
            except psycopg.errors.InsufficientPrivilege:
                continue
            pytest.fail(f"{role} may: {statement}")


TABLES = """
SELECT c.oid::regclass::text FROM pg_class c
WHERE c.relnamespace IN ('public'::regnamespace, 'mailroom'::regnamespace)
  AND c.relkind IN ('r', 'v', 'm', 'p', 'S')
"""


def every_table(db: Db) -> list[str]:
    return [name for (name,) in db.execute(TABLES).fetchall()]


def test_each_role_may_call_what_its_programs_call_and_nothing_else(with_roles: str, db: Db) -> None:
    worker = (
        named(
            "queue/client.py",
            "queue/start_check.py",
            "queue/known_actions.py",
            "queue/pulse.py",
            "queue/leader.py",
            "queue/listener.py",
            "runner/ledger.py",
            "runner/shared_rate.py",
            "doctor/triggers.py",
        )
        - NOT_CALLED
    )
    console = [f"console/{path.name}" for path in (SOURCES / "console").glob("*.py")]
    oncall = named(
        "operations/reports.py",
        "operations/prune.py",
        "operations/dead.py",
        "operations/pause.py",
        "operations/suppressions.py",
        "operations/forgetting.py",
        "operations/fates.py",
        "queue/known_actions.py",  # mailroom dead --action
        "queue/pulse.py",
        *console,
    )
    # The doctor, whom a worker's user runs, asks these besides.
    worker |= {"paused", "paused_actions", "recent_workers", "suppressed"}
    # The reader of events.
    worker |= {"record_events", "keep_unreadable"}
    assert {"claim", "pulse", "bell_lock", "record"} <= worker
    assert "pulse" in PULSE
    assert worker == allowed(db, WORKER)
    # Django's admin page asks this.
    oncall |= named("contrib/django/tokens.py") - {"send"}
    oncall |= {"suppressed"}
    assert oncall == allowed(db, ONCALL)
    assert set(re.findall(r"mailroom\.(\w+)\(", CONSUME)) | {
        "send",
        "consume_code",
        "suppressed",
        "status_of",
        "random_secret",
        "random_code",
        "is_sound",
        "is_incomplete",
    } == allowed(db, APP)


def test_the_roles_have_no_more_than_that(with_roles: str, db: Db) -> None:
    for role in USERS:
        attributes = db.execute(
            "SELECT rolcanlogin, rolsuper, rolcreatedb, rolcreaterole, rolbypassrls, rolreplication"
            " FROM pg_roles WHERE rolname = %s",
            [role],
        ).fetchone()
        assert (False,) * 6 == attributes
    granted = db.execute(
        "SELECT DISTINCT a.grantee::regrole::text FROM pg_class c, aclexplode(c.relacl) a"
        " WHERE a.grantee <> c.relowner AND a.grantee <> 0 AND c.relnamespace IN"
        " ('public'::regnamespace, 'mailroom'::regnamespace)"
    ).fetchall()
    assert [] == granted or [(APP,)] == granted


def test_nobody_else_may_call_more_than_the_defaults(db: Db) -> None:
    """A role that inserts into tokens needs defaults and checks; no role can call a trigger's function."""
    rows = db.execute(
        "SELECT p.proname FROM pg_proc p WHERE p.pronamespace = 'mailroom'::regnamespace"
        " AND has_function_privilege('public', p.oid, 'execute') AND p.prorettype <> 'trigger'::regtype"
    ).fetchall()
    assert {"random_secret", "random_code", "is_sound", "is_incomplete"} == {name for (name,) in rows}


def test_no_function_calls_what_its_caller_put_in_its_way(db: Db) -> None:
    """Each has a search_path of its own, or was bound when it was made; those of tokens name schemas."""
    rows = db.execute(
        "SELECT p.proname FROM pg_proc p WHERE p.pronamespace = 'mailroom'::regnamespace"
        " AND p.prosqlbody IS NULL"
        " AND NOT coalesce(p.proconfig && ARRAY['search_path=pg_catalog, pg_temp'], false)"
    ).fetchall()
    assert {"ring", "is_sound", "is_incomplete"} == {name for (name,) in rows}


def test_the_application_chooses_no_secret_by_functions_of_its_own(with_roles: str, app: Db, db: Db) -> None:
    db.execute(sql.SQL("CREATE SCHEMA acme AUTHORIZATION {}").format(sql.Identifier(USERS[APP])))
    app.execute(
        "CREATE FUNCTION acme.sha256(bytea) RETURNS bytea LANGUAGE sql AS"
        " $$ SELECT decode(repeat('ab', 32), 'hex') $$"
    )
    app.execute(
        "CREATE FUNCTION acme.lpad(text, integer, text) RETURNS text LANGUAGE sql AS $$ SELECT '00000' $$"
    )
    app.execute("SET search_path = acme, pg_catalog, public")
    app.execute("INSERT INTO accounts (email, login, status) VALUES ('zoe@example.com', 'zoe', 'active')")
    app.execute("INSERT INTO tokens (action, account) SELECT 'password_recovery', id FROM accounts")
    ((secret, code),) = db.execute("SELECT secret, code FROM tokens").fetchall()
    assert b"\xab" * 32 != secret
    assert "00000" != code  # but for one time in 100,000


def test_a_worker_collects_and_reads_no_table(with_roles: str, db: Db, tmp_path: Path) -> None:
    sign_up(db, "early")
    with CollectorProcess(as_(with_roles, WORKER), log=tmp_path / "log") as collector:
        collector.wait_for_messages(1)
        sign_up(db, "zoe")
        assert ["early@example.com", "zoe@example.com"] == [
            message.email for message in collector.wait_for_messages(2)
        ]
        wait_until(db, UNSETTLED, 0)
        assert 0 == collector.stop()
    for table in every_table(db):
        refused(with_roles, WORKER, f"SELECT FROM {table}")


def test_a_worker_runs_to_the_end(with_roles: str, db: Db, ses: InboxServer, tmp_path: Path) -> None:
    sign_up(db, "early")
    port = free_port()
    variables = processes.environment(as_(with_roles, WORKER), HTTP=port)
    variables |= senders.environment(tmp_path / "output", SEND_RATE=100) | senders.aws(ses.url)
    with RunProcess(variables, tmp_path / "log") as worker:
        worker.wait_for_log("run.started")
        sign_up(db, "zoe")
        wait_until(db, UNSETTLED, 0)
        wait_for_readiness(port, None)
        assert "mailroom_database_up 1.0" in fetch(port, "/metrics")[1]
        assert 0 == worker.stop()
    assert 2 == ses.inbox.counts.accepted
    assert "refused" not in worker.log()


def test_a_worker_may_not_do_what_others_do(with_roles: str, db: Db) -> None:
    sign_up(db, "zoe")
    refused(
        with_roles,
        WORKER,
        "INSERT INTO accounts (email, login) VALUES ('a@b', 'a')",
        "INSERT INTO tokens (action, account) VALUES ('activation', 1)",
        "UPDATE tokens SET consumed_at = now()",
        "DELETE FROM tokens",
        "UPDATE jobs SET paused_at = now()",
        "UPDATE mailroom.cursors SET last_seq = 0",
        "INSERT INTO mailroom.deliveries (token) VALUES (1)",
        *(f"TRUNCATE {table}" for table in every_table(db) if not table.endswith("_seq")),
        "COPY tokens TO STDOUT",
        "SELECT setval('tokens_id_seq', 1)",
        "SELECT mailroom.consume('\\x00', 'activation', NULL)",
        "SELECT mailroom.pause('because')",
        "SELECT mailroom.prune_deliveries('1 day', 10)",
        "SELECT * FROM mailroom.tokens_of('zoe', 10)",
        "SELECT mailroom.record_skipped(ARRAY[1], 0, 'w')",
        "SELECT mailroom.restart_cursor(NULL)",
        "CREATE TABLE mailroom.mine (id integer)",
        "CREATE TRIGGER mine AFTER INSERT ON tokens EXECUTE FUNCTION mailroom.ring('x')",
    )


def test_the_application_signs_up_and_consumes(with_roles: str, app: Db, db: Db, tmp_path: Path) -> None:
    ((account,),) = app.execute(
        "INSERT INTO accounts (email, login) VALUES ('zoe@example.com', 'zoe')"
        " ON CONFLICT (lower(email)) DO NOTHING RETURNING id"
    ).fetchall()

    def mailed() -> Message:
        with CollectorProcess(as_(with_roles, WORKER), log=tmp_path / "log") as collector:
            found = collector.wait_for_messages(1)[-1]
            assert 0 == collector.stop()
        return found

    activation = mailed()
    assert "activation" == activation.action.name
    assert account == mailroom.consume(app, activation.token, "activation", keys=KEY).account
    app.execute("SELECT FROM tokens WHERE user_table IS NULL AND subject = '1' AND created_at < now()")
    app.execute("INSERT INTO tokens (action, account) VALUES ('password_recovery', %s)", [account])
    recovery = mailed()
    with pytest.raises(mailroom.TokenError):
        mailroom.consume(app, recovery.token, "password_recovery", keys=KEY, code="x")
    mailroom.consume(app, recovery.token, "password_recovery", keys=KEY, code=recovery.code)
    assert [("active",)] == app.execute("SELECT status::text FROM accounts").fetchall()
    app.execute("UPDATE accounts SET status = 'suspended', email = 'z@example.com' WHERE id = %s", [account])
    assert [(2,)] == app.execute("SELECT count(*) FROM tokens WHERE consumed_at < now()").fetchall()


def test_the_application_reads_no_secret_and_claims_nothing(with_roles: str, db: Db) -> None:
    sign_up(db, "zoe")
    refused(
        with_roles,
        APP,
        "SELECT secret FROM tokens",
        "SELECT code FROM tokens",
        "SELECT * FROM tokens",
        "SELECT tokens FROM tokens",
        "INSERT INTO tokens (action, account) VALUES ('activation', 1) RETURNING secret",
        "INSERT INTO tokens (action, account, secret) VALUES ('activation', 1, '\\x00')",
        "INSERT INTO tokens (action, account, code) VALUES ('activation', 1, '00000')",
        "INSERT INTO tokens (action, account, txid) VALUES ('activation', 1, '1')",
        "INSERT INTO tokens (action, account, expires_at) VALUES ('activation', 1, 'infinity')",
        "UPDATE tokens SET consumed_at = NULL",
        "UPDATE tokens SET expires_at = 'infinity'",
        "UPDATE tokens SET wrong_codes = 0",
        "DELETE FROM tokens",
        "UPDATE accounts SET activated_at = now()",
        "SELECT * FROM mailroom.claim('w', 1, 1, 1000)",
        "SELECT mailroom.settle(1, gen_random_uuid(), NULL)",
        "SELECT mailroom.release('w')",
        "SELECT mailroom.pause('because')",
        "SELECT mailroom.retry_dead('c', ARRAY[1], true, 'because', 'w')",
        "SELECT mailroom.deliveries_of(ARRAY[1])",
        *(f"SELECT FROM {table}" for table in every_table(db) if table not in {"accounts", "tokens"}),
        *(f"DELETE FROM {table}" for table in every_table(db) if not table.endswith("_seq")),
        *(f"TRUNCATE {table}" for table in every_table(db) if not table.endswith("_seq")),
        "COPY tokens TO STDOUT",
        "COPY tokens FROM STDIN",
        "SELECT nextval('tokens_id_seq')",
        "SELECT setval('tokens_id_seq', 1)",
        "ALTER TABLE tokens DISABLE TRIGGER tokens_ring",
        "CREATE TABLE mailroom.mine (id integer)",
        "CREATE OR REPLACE FUNCTION mailroom.random_code() RETURNS text LANGUAGE sql AS $$ SELECT '00000' $$",
    )


def test_the_person_on_call_looks_and_pauses_and_claims_nothing(with_roles: str, db: Db) -> None:
    token = sign_up(db, "zoe")
    claim(db)
    expire_leases(db)
    for arguments, said in (
        (["status"], "waiting"),
        (["why", "zoe"], str(token)),
        (["dead", "list"], ""),
        (["pause", "--reason", "a drill"], "paused"),
        (["resume"], "resumed"),
        (["prune", "--older-than", "30d"], ""),
    ):
        done = commands.run(*arguments, env=processes.environment(as_(with_roles, ONCALL)))
        assert 0 == done.returncode, done.stderr
        assert said in done.stdout.lower()
    refused(
        with_roles,
        ONCALL,
        "SELECT * FROM mailroom.claim('w', 1, 1, 1000)",
        "SELECT mailroom.settle(1, gen_random_uuid(), NULL)",
        "SELECT mailroom.consume('\\x00', 'activation', NULL)",
        *(f"SELECT FROM {table}" for table in every_table(db)),
    )


def test_the_person_on_call_gets_the_queues_page(with_roles: str, db: Db) -> None:
    sign_up(db, "zoe")
    settings = QueueSettings(as_(with_roles, ONCALL), "token_insert")
    with ConsoleServer(settings) as server:
        answer = ask(server.url, "/")
    assert 200 == answer.status
    assert "No answer from the database" not in answer.text
    assert "no worker" in answer.text.lower()


def test_the_doctor_looks_for_a_worker_that_is_paused_or_in_trouble(with_roles: str, db: Db) -> None:
    db.execute("SELECT mailroom.pause('a drill')")
    db.execute("SELECT mailroom.heartbeat('w', '1', 'no route')")
    variables = {"MAILROOM_DATABASE_URL": as_(with_roles, WORKER), "MAILROOM_SECRET_KEY": KEY}
    told = {finding.name: finding.detail for finding in diagnose(variables, "database").findings}
    assert told["pause"].endswith(": a drill")
    assert told["workers"].endswith("no route")


def test_the_doctor_knows_roles_of_an_older_version(with_roles: str, db: Db) -> None:
    db.execute("REVOKE EXECUTE ON FUNCTION mailroom.paused, mailroom.recent_workers FROM mailroom_worker")
    variables = {"MAILROOM_DATABASE_URL": as_(with_roles, WORKER), "MAILROOM_SECRET_KEY": KEY}
    findings = {finding.name: finding for finding in diagnose(variables, "database").findings}
    for name in ("pause", "workers"):
        assert Status.WARNING is findings[name].state
        assert findings[name].detail.startswith("not known: the user may not do this: permission denied")
        assert findings[name].remedy == "update the roles: `mailroom roles --apply`"


def test_pruning_deletes_nothing_that_is_alive(with_roles: str, db: Db) -> None:
    sign_up(db, "zoe")
    with psycopg.connect(as_(with_roles, ONCALL), autocommit=True) as oncall:
        for age in ("-1 day", "-1 month", "0"):
            oncall.execute("SELECT mailroom.prune_tokens(0, %s, 10000)", [age])
            oncall.execute("SELECT mailroom.prune_deliveries(%s, 10000)", [age])
    assert [(1,)] == db.execute("SELECT count(*) FROM tokens").fetchall()


def test_a_worker_without_its_role_is_told_what_to_do(with_roles: str, db: Db, tmp_path: Path) -> None:
    with CollectorProcess(as_(with_roles, APP), log=tmp_path / "log") as collector:
        assert 78 == collector.wait()
    assert "may not call mailroom." in collector.log()
    assert "mailroom roles" in collector.log()


def test_they_are_made_again_after_every_migration(empty_database: str, server_url: str) -> None:
    """From each version of the schema on; what is not there yet is granted by the next time."""
    newest = len(migrate.shipped())
    with sync.connected(empty_database) as owner:
        for version in range(1, newest + 1):
            migrate.up(owner, 1, lambda _: None)
            set_up(empty_database)
            expected = {"consume"} <= allowed(owner, APP), "claim" in allowed(owner, WORKER)
            assert expected == (True, version >= 3)
        granted = {role: allowed(owner, role) for role in USERS}
        for steps in range(1, newest):
            migrate.down(owner, steps, lambda _: None)
            migrate.up(owner, None, lambda _: None)
            set_up(empty_database)
            set_up(empty_database)
            assert granted == {role: allowed(owner, role) for role in USERS}
            sign_up(owner, f"zoe{steps}")
            with psycopg.connect(as_(empty_database, WORKER), autocommit=True) as worker:
                assert claim(worker)
    clean_up(empty_database)


def test_a_function_that_is_replaced_may_still_be_called(empty_database: str, server_url: str) -> None:
    """Programs go on between the migration, which replaces schema_version, and the next `mailroom roles`."""
    with sync.connected(empty_database) as owner:
        migrate.up(owner, 1, lambda _: None)
        set_up(empty_database)
        for step in (migrate.up, migrate.down):
            step(owner, 1, lambda _: None)
            assert "schema_version" in allowed(owner, WORKER)
            assert "schema_version" not in allowed(owner, APP)
            public = owner.execute(
                "SELECT has_function_privilege('public', 'mailroom.schema_version()', 'execute')"
            ).fetchall()
            assert [(False,)] == public
    clean_up(empty_database)


def test_psql_takes_them(with_roles: str) -> None:
    psql = (bindir() or embedded_binaries()) / "psql"
    if not psql.exists():
        pytest.skip("these binaries have no psql")
    for _ in range(2):
        done = subprocess.run(
            [psql, "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", f"--dbname={with_roles}"],
            input=roles_sql(), env=os.environ, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (0, "") == (done.returncode, done.stdout + done.stderr)
