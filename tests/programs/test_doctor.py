"""The doctor: what is healthy is said to be, each fault is found with its remedy, and no secret is told."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from conftest import database_of
from mailroom.actions import BUILT_IN
from mailroom.cli.doctor import as_json_text, as_table, doctor
from mailroom.database import migrate, sync
from mailroom.demo.postgres import PostgresServer, free_port
from mailroom.doctor import clocks, queue, report, server, ses
from mailroom.doctor.diagnosis import diagnose
from mailroom.doctor.probe import Probe
from mailroom.doctor.report import Finding, Report, Status
from mailroom.doctor.ses_probe import SesProbe
from mailroom.inbox import ses as inbox_actions
from mailroom.inbox import sesv2
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.server import InboxServer
from mailroom.inbox.ses_protocol import Refusal
from mailroom.operations.action_files import write_built_in
from mailroom.queue.start_check import CALLED
from mailroom.sender.rejected import Rejected, RejectedRow
from mailroom.settings.collector import CollectorSettings
from mailroom.settings.sender import SenderSettings
from mailroom.settings.variables import read_settings
from mailroom.templates.mails import for_ses
from mailroom.templates.sources import load
from support import commands
from support.adopting import adopt
from support.inbox import sesv2_client
from support.moto import moto_server
from support.queue_sql import Db, sign_up
from support.smtp import MailServer, mail_server
from support.sqs import QuietServer, scripted_sqs

OK, WARNING, FAULT, SKIPPED = Status.OK, Status.WARNING, Status.FAULT, Status.SKIPPED
KEY = "deadbeef" * 8
NEWEST = migrate.shipped()[-1].version
DB_PASSWORD = "dbpass-31337"
SMTP_PASSWORD = "smtppass-31337"
ACCESS_KEY, SECRET_ACCESS_KEY = "AKIAEXAMPLE31337", "awssecret-31337"
SECRETS = (KEY, DB_PASSWORD, SMTP_PASSWORD, ACCESS_KEY, SECRET_ACCESS_KEY)
NAMES = {"app_name": "Example", "app_url": "https://example.com"}
DATABASE = [
    "collector-settings", "keys", "server", "encoding", "writable", "two-phase", "clock",
    "functions",
    "row-security", "queue", "cursor",
    "pause", "tokens-trigger", "accounts-trigger", "other-triggers",
    "adopted-tables", "replication-role", "subscriptions", "notifications", "backlog", "collectors",
    "workers", "actions",
]  # fmt: skip
SENDING = ["sender-settings", "output-folder", "set-aside"]
SES = [
    "credentials", "region", "ses", "ses-clock", "quota", "sandbox", "sending-enabled", "sender",
    "configuration-set", "templates",
]  # fmt: skip
EVENTS = ["events-settings", "events-queue", "events-published", "suppression-list"]


@pytest.fixture(autouse=True)
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine's AWS settings, and credentials that no output may show."""
    for name in os.environ:
        if name.startswith(("AWS_", "MAILROOM_", "PG")) and not name.startswith("MAILROOM_TEST_"):
            monkeypatch.delenv(name)
    for name, value in {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> Iterator[Inbox]:
    """A healthy account of SES's."""
    box = Inbox(rate=14, quota_24h=50_000, identities=["example.com"])
    box.publish(load(None, NAMES).values())
    with InboxServer(inbox=box) as server:
        for service in ("SES", "SESV2", "SQS"):
            monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", server.url)
        yield box


def put(box: Inbox, action: str, parts: dict[str, str]) -> None:
    name = {"activation": "activationv1", "password_recovery": "passwordrecoveryv1"}[action]
    box.account.templates.pop(name, None)
    box.account.put_template(
        name, (parts["SubjectPart"], parts["TextPart"], parts.get("HtmlPart", "")), new=True
    )


@pytest.fixture
def sending(tmp_path: Path) -> dict[str, str]:
    """The sender's variables, when all is well, with a folder that has two actions."""
    folder = tmp_path / "mails"
    folder.mkdir()
    for path in [
        *BUILT_IN.glob("activation.*"),
        *BUILT_IN.glob("password_recovery.*"),
        *BUILT_IN.glob("layout*"),
    ]:
        shutil.copy(path, folder)
    return {
        "MAILROOM_TEMPLATES": str(folder),
        "MAILROOM_SES_SOURCE": "Example <noreply@mail.example.com>",
        "MAILROOM_SES_OUTPUT_PATH": str(tmp_path / "output"),
        "MAILROOM_APP_NAME": NAMES["app_name"],
        "MAILROOM_APP_URL": NAMES["app_url"],
        "MAILROOM_EVENTS": "mailroom-events",
    }


@pytest.fixture(params=["ses", "sesv2"])
def by_either(request: pytest.FixtureRequest, sending: dict[str, str]) -> dict[str, str]:
    """The sender's variables, by each version of SES's API."""
    return sending | {"MAILROOM_TRANSPORT": request.param}


def collecting(database: str, **variables: str) -> dict[str, str]:
    password = conninfo_to_dict(database).get("password") or DB_PASSWORD
    settings = {"DATABASE_URL": make_conninfo(database, password=password), "SECRET_KEY": KEY} | variables
    return {f"MAILROOM_{name}": value for name, value in settings.items()}


def password_in(environment: dict[str, str]) -> str:
    """The database's, if there is one and it can be read."""
    with suppress(psycopg.ProgrammingError):
        return str(conninfo_to_dict(environment.get("MAILROOM_DATABASE_URL", "")).get("password") or "")
    return ""


def examined(environment: dict[str, str], only: str | None = None, **limits: float) -> dict[str, Finding]:
    """The findings by their names; in no form do they tell a secret."""
    whole = diagnose(environment, only, **limits)
    for form in (as_table(whole), as_json_text(whole)):
        assert [] == [secret for secret in [*SECRETS, password_in(environment)] if secret and secret in form]
    for finding in whole.findings:
        assert (finding.state in (WARNING, FAULT)) == bool(finding.remedy), finding
        assert "bug" not in finding.remedy, finding
    assert len({finding.name for finding in whole.findings}) == len(whole.findings)
    return {finding.name: finding for finding in whole.findings}


def the_database(database: str, **variables: str) -> dict[str, Finding]:
    return examined(collecting(database, **variables), "database")


def faults(findings: dict[str, Finding]) -> list[str]:
    return [name for name, finding in findings.items() if finding.state is FAULT]


def not_ok(findings: dict[str, Finding]) -> list[str]:
    return [name for name, finding in findings.items() if finding.state is not OK]


@pytest.fixture
def collector(database: str) -> Iterator[Db]:
    """A connection that looks like a collector's."""
    url = make_conninfo(database, application_name="mailroom collector")
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


# The whole


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return commands.run("doctor", *arguments, env=os.environ | environment)


def test_all_is_well(database: str, collector: Db, box: Inbox, by_either: dict[str, str]) -> None:
    findings = examined(collecting(database) | by_either)
    assert [*DATABASE, *SENDING, *SES, *EVENTS] == list(findings)
    assert ["ses-clock"] == not_ok(findings)  # the inbox tells no time


def is_ok(line: str) -> bool:
    return line.startswith("ok ")


def test_a_table_and_exit_code_0(database: str, collector: Db, box: Inbox, sending: dict[str, str]) -> None:
    done = run(collecting(database) | sending)
    assert (0, "") == (done.returncode, done.stderr)
    lines = done.stdout.splitlines()
    assert f"0 faults, 0 warnings, {sum(map(is_ok, lines))} ok, 1 skipped" == lines[-1]
    assert (
        f"ok       functions           version {NEWEST}, and this user may call its {len(CALLED)} functions"
        in lines
    )
    assert "\x1b" not in done.stdout


def test_faults_have_remedies_and_exit_code_1(database: str, db: Db, box: Inbox) -> None:
    db.execute("ALTER TABLE tokens DISABLE TRIGGER tokens_ring")
    done = run(collecting(database), "--only", "database")
    assert (1, "") == (done.returncode, done.stderr)
    lines = done.stdout.splitlines()
    at = next(at for at, line in enumerate(lines) if line.startswith("fault "))
    assert lines[at].startswith("fault    tokens-trigger ")
    assert "         try: ALTER TABLE public.tokens ENABLE TRIGGER tokens_ring" == lines[at + 1]
    assert f"1 fault, 1 warning, {sum(map(is_ok, lines))} ok" == lines[-1]
    assert [] == [secret for secret in SECRETS if secret in done.stdout]


def test_json(database: str, box: Inbox, sending: dict[str, str]) -> None:
    del box.account.templates["activationv1"]
    done = run(collecting(database) | sending, "--json")
    assert (1, "") == (done.returncode, done.stderr)
    told = json.loads(done.stdout)
    assert ["faults", "warnings", "checks"] == list(told)
    assert (1, 1) == (told["faults"], told["warnings"])
    by_name = {check.pop("name"): check for check in told["checks"]}
    assert {"state": "ok", "detail": "UTF8", "remedy": ""} == by_name["encoding"]
    assert "fault" == by_name["templates"]["state"]
    assert "`mailroom templates push`" in by_name["templates"]["remedy"]


def test_colour_is_for_terminals(database: str) -> None:
    for colour in (True, False):
        result = CliRunner().invoke(doctor, ["--only", "database"], env=collecting(database), color=colour)
        assert (0, colour) == (result.exit_code, "\x1b[" in result.stdout)


def test_help_tells_the_exit_codes() -> None:
    assert "Exits with 1 if there are faults" in CliRunner().invoke(doctor, ["--help"]).stdout


def test_a_part_alone_needs_nothing_of_the_other(
    database: str, collector: Db, box: Inbox, sending: dict[str, str]
) -> None:
    findings = examined(collecting(database), "database")
    assert (DATABASE, []) == (list(findings), not_ok(findings))
    findings = examined(sending, "sending")
    assert ([*SENDING, *SES], []) == (list(findings), faults(findings))


def test_one_checks_bug_hides_no_other_check() -> None:
    def broken(_: None) -> Finding:
        raise ValueError(SECRET_ACCESS_KEY)

    whole = Report()
    whole.run(
        (report.Check("broken", broken), report.Check("good", lambda _: report.ok("fine\r\n\x1b[31m"))), None
    )
    broke, good = whole.findings
    assert (FAULT, True) == (broke.state, broke.detail.startswith("ValueError at test_doctor.py:"))
    assert SECRET_ACCESS_KEY not in broke.detail
    assert (OK, "fine \ufffd[31m") == (good.state, good.detail)


@pytest.mark.slow
def test_who_does_not_answer_does_not_keep_us(
    sending: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as deaf:
        port = deaf.getsockname()[1]
        monkeypatch.setenv("AWS_ENDPOINT_URL_SES", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", f"http://127.0.0.1:{port}")
        started_at = time.monotonic()
        findings = examined(collecting(f"postgresql://app@127.0.0.1:{port}/app") | sending, patience_s=3)
        assert time.monotonic() - started_at < 12
    assert [*DATABASE, *SENDING, *SES, *EVENTS] == list(findings)
    assert ["server", "ses", "events-queue"] == faults(findings)
    assert "no answer within 3 s" == findings["ses"].detail == findings["events-queue"].detail
    assert SKIPPED is findings["quota"].state


# Settings


def test_each_setting_at_fault_is_a_fault_and_the_rest_goes_on(box: Inbox, sending: dict[str, str]) -> None:
    findings = examined(
        sending
        | {
            "MAILROOM_SECRET_KEY": KEY[1:],
            "MAILROOM_BATCH_LIMIT": "many",
            "MAILROOM_SEND_RATE": "fast",
            "MAILROOM_SES_SOURCE": "nobody",
        }
    )
    wrong = ["SECRET_KEY", "BATCH_LIMIT", "SES_SOURCE", "SEND_RATE"]
    assert ["MAILROOM_DATABASE_URL", *(f"MAILROOM_{name}" for name in wrong)] == faults(findings)
    assert findings["MAILROOM_DATABASE_URL"].detail.startswith("not set; ")
    assert "needs MAILROOM_DATABASE_URL" == findings["server"].detail
    assert (SKIPPED, SKIPPED) == (findings["keys"].state, findings["sender"].state)
    assert (OK, OK) == (findings["quota"].state, findings["templates"].state)


def test_a_channel_at_fault_keeps_only_its_check(database: str, collector: Db) -> None:
    findings = the_database(database, CHANNEL_NAME="x" * 64)
    assert ["MAILROOM_CHANNEL_NAME", "tokens-trigger"] == not_ok(findings)
    assert SKIPPED is findings["tokens-trigger"].state


def test_a_transport_at_fault_is_not_guessed(sending: dict[str, str]) -> None:
    findings = examined(sending | {"MAILROOM_TRANSPORT": f"smtp://u:{SMTP_PASSWORD}@:x"}, "sending")
    assert ["MAILROOM_TRANSPORT", "output-folder", "set-aside"] == list(findings)


def test_a_password_may_be_in_a_file(database: str, collector: Db, tmp_path: Path) -> None:
    (tmp_path / "url").write_text(database)
    variables = {"MAILROOM_DATABASE_URL_FILE": str(tmp_path / "url"), "MAILROOM_SECRET_KEY": KEY}
    assert [] == not_ok(examined(variables, "database"))


def test_keys_under_rotation_are_counted(database: str) -> None:
    findings = the_database(database, SECRET_KEY=f"{KEY},{'0a' * 32}")
    assert (OK, True) == (findings["keys"].state, findings["keys"].detail.startswith("2 keys; "))


# The database


def test_no_server() -> None:
    findings = the_database(f"postgresql://app@127.0.0.1:{free_port()}/app")
    assert ["server"] == faults(findings)
    assert "cannot connect" in findings["server"].detail
    assert {SKIPPED} == {findings[name].state for name in DATABASE[3:]}


def test_no_such_database(database: str) -> None:
    finding = the_database(make_conninfo(database, dbname="nowhere"))["server"]
    assert 'database "nowhere" does not exist' in finding.detail
    assert "create the database" in finding.remedy


@pytest.mark.parametrize("password", ["31337/word", "pass@word-31337", "1234/word-31337", "p:@w@31337"])
def test_a_password_that_libpq_reads_otherwise_is_not_shown(password: str) -> None:
    variables = {
        "MAILROOM_DATABASE_URL": f"postgresql://app:{password}@127.0.0.1:1/app",
        "MAILROOM_SECRET_KEY": KEY,
    }
    whole = diagnose(variables, "database")
    finding = {finding.name: finding for finding in whole.findings}["MAILROOM_DATABASE_URL"]
    assert (FAULT, True) == (finding.state, "percent-encode" in finding.detail)
    for piece in ("31337", "1234", "word"):
        assert piece not in as_table(whole).replace("password", "")


def test_a_wrong_password(own_server: PostgresServer) -> None:
    with psycopg.connect(own_server.url(), autocommit=True) as connection:
        connection.execute("CREATE ROLE guarded LOGIN PASSWORD 'right'")
    finding = the_database(make_conninfo(own_server.url(), user="guarded"))["server"]
    assert "password authentication failed" in finding.detail
    assert "MAILROOM_DATABASE_URL" in finding.remedy


def test_an_old_server(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "OLDEST_VERSION", 99)
    findings = the_database(database)
    assert (["server"], SKIPPED) == (faults(findings), findings["functions"].state)


def test_a_database_without_an_encoding(server_url: str) -> None:
    name = f"mailroom_ascii_{secrets.token_hex(4)}"
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'".encode())
        try:
            findings = the_database(database_of(server_url, name))
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
    assert ["encoding", "functions"] == faults(findings)
    assert "ENCODING 'UTF8'" in findings["encoding"].remedy


def test_any_disabled_trigger_is_reported(database: str, db: Db, collector: Db) -> None:
    db.execute("ALTER TABLE tokens DISABLE TRIGGER tokens_prepare")
    db.execute("ALTER TABLE accounts ENABLE REPLICA TRIGGER accounts_keep_status_times_update")
    findings = the_database(database)
    assert ["other-triggers"] == faults(findings)
    for remedy in findings["other-triggers"].remedy.split("; "):
        db.execute(remedy.encode())
    assert [] == faults(the_database(database))


@pytest.mark.parametrize(
    ("break_it", "said", "remedy"),
    [
        ("ALTER TABLE people DROP COLUMN email", "\"email\" does not exist", "mailroom adopt public.people"),
        ("ALTER TABLE people RENAME ok TO done", 'column "ok" does not exist', "--apply` again"),
        ("ALTER TABLE people DISABLE TRIGGER USER", "is disabled", "ENABLE TRIGGER mailroom_insert"),
        ("DROP TRIGGER mailroom_update ON people", "lacks the trigger mailroom_update", "--apply` again"),
        ("DROP FUNCTION mailroom.lock_people", "lock_people(text) does not exist", "--apply` again"),
        ("DROP FUNCTION mailroom.watch_people CASCADE", "people_1 lacks the trigger", "--apply` again"),
        ("DROP TABLE people", "was dropped, and is adopted", "--drop`"),
        ("CREATE TABLE x PARTITION OF people FOR VALUES IN (2)", "x lacks the trigger", "--apply` again"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_adopted_table(
    database: str, db: Db, collector: Db, break_it: str, said: str, remedy: str
) -> None:
    db.execute(
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC;"
        "CREATE TABLE people (id int PRIMARY KEY, email text, ok boolean) PARTITION BY LIST (id);"
        " CREATE TABLE people_1 PARTITION OF people FOR VALUES IN (1)"
    )
    adopt(db, "people", pending_when="NOT ok", on_activation="ok = true")
    findings = the_database(database)
    assert ([], "1 table adopted, in order") == (faults(findings), findings["adopted-tables"].detail)
    db.execute(break_it.encode())
    findings = the_database(database)
    assert ["adopted-tables"] == faults(findings)
    assert said in findings["adopted-tables"].detail
    assert remedy in findings["adopted-tables"].remedy


def test_an_adopted_table_whose_path_everybody_may_write_to(database: str, db: Db, collector: Db) -> None:
    db.execute(
        "CREATE TABLE people (id int PRIMARY KEY, email text); GRANT CREATE ON SCHEMA public TO PUBLIC"
    )
    adopt(db, "people")
    finding = the_database(database)["adopted-tables"]
    assert Status.WARNING == finding.state
    assert (
        "every user may CREATE in the schema public, which the search_path of public.people reaches"
        == finding.detail
    )
    db.execute(finding.remedy.encode())
    assert Status.OK == the_database(database)["adopted-tables"].state


@pytest.mark.parametrize(
    "where",
    ["ROLE application", "ROLE application IN DATABASE {}", "DATABASE {}"],
)
def test_sessions_that_fire_no_trigger_are_reported(database: str, db: Db, collector: Db, where: str) -> None:
    name = sql.Identifier(db.info.dbname)
    db.execute("CREATE ROLE application")
    try:
        db.execute(sql.SQL("ALTER " + where + " SET session_replication_role = replica").format(name))
        findings = the_database(database)
        assert ["replication-role"] == faults(findings)
        for remedy in findings["replication-role"].remedy.split("; "):
            if remedy.startswith("ALTER"):
                db.execute(remedy.encode())
        assert [] == faults(the_database(database))
    finally:
        db.execute("DROP ROLE application")


def test_tables_that_a_subscription_fills_are_reported(database: str, db: Db, collector: Db) -> None:
    db.execute(
        "CREATE SUBSCRIPTION copied CONNECTION 'dbname=none' PUBLICATION none"
        " WITH (connect = false, slot_name = NONE)"
    )
    try:
        assert [] == faults(the_database(database))
        db.execute(
            "INSERT INTO pg_subscription_rel (srsubid, srrelid, srsubstate)"
            " SELECT oid, 'accounts'::regclass, 'r' FROM pg_subscription"
        )
        findings = the_database(database)
        assert ["subscriptions"] == faults(findings)
        assert "a subscription fills public.accounts" in findings["subscriptions"].detail
    finally:
        db.execute("DROP SUBSCRIPTION copied")


def test_a_restore_without_the_cursor(database: str, db: Db, collector: Db) -> None:
    sign_up(db, "zoe")
    db.execute("UPDATE tokens SET txid = '4000000000'")
    finding = the_database(database)["cursor"]
    assert (FAULT, True) == (finding.state, "the mail of 1 waiting token would not be sent" in finding.detail)
    assert "mailroom.take_over()" in finding.remedy
    db.execute("SELECT mailroom.take_over()")
    assert OK is the_database(database)["cursor"].state


def test_a_paused_queue_is_reported_with_the_reason(database: str, db: Db, collector: Db) -> None:
    db.execute("SELECT mailroom.pause('zoe@example.com complained')")
    findings = the_database(database)
    assert ["pause"] == not_ok(findings)
    assert WARNING is findings["pause"].state
    assert findings["pause"].detail.startswith("paused since ")
    assert findings["pause"].detail.endswith(": z…@example.com complained")
    assert "`mailroom resume`" in findings["pause"].remedy


def test_a_paused_action_is_reported_with_the_reason(database: str, db: Db, collector: Db) -> None:
    db.execute(
        "UPDATE mailroom.actions SET paused_at = now(), pause_reason = 'no field app' WHERE number = 1"
    )
    findings = the_database(database)
    assert ["pause"] == not_ok(findings)
    assert findings["pause"].detail.startswith("the action activation is paused since ")
    assert findings["pause"].detail.endswith(": no field app")
    assert "`mailroom dead retry`" in findings["pause"].remedy


def test_the_troubles_of_workers_that_are_alive_are_reported(database: str, db: Db, collector: Db) -> None:
    for worker, trouble in (("a:1", ""), ("b:2", "Sending paused for zoe@example.com"), ("c:3", "no route")):
        db.execute("SELECT mailroom.heartbeat(%s, '1', %s)", [worker, trouble])
    db.execute("UPDATE mailroom.workers SET seen_at = now() - interval '1 minute' WHERE worker = 'c:3'")
    findings = the_database(database)
    assert ["workers"] == not_ok(findings)
    told = findings["workers"].detail
    assert WARNING is findings["workers"].state
    assert told.startswith("1 of 2 workers in trouble: b:2 since ")
    assert told.endswith(": Sending paused for z…@example.com")
    db.execute("SELECT mailroom.heartbeat('b:2', '1', '')")
    assert "2 workers of `mailroom run` alive, none in trouble" == the_database(database)["workers"].detail


def test_workers_that_cannot_be_looked_at_in_time_are_not_at_fault(
    database: str, db: Db, collector: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailroom.doctor.probe.STATEMENT_LIMIT_MS", 300)
    with db.transaction():
        db.execute("LOCK TABLE mailroom.workers")
        findings = the_database(database)
    assert ["workers"] == not_ok(findings)
    assert WARNING is findings["workers"].state
    assert findings["workers"].detail.startswith("not known: ")
    assert "statement timeout" in findings["workers"].detail


def test_a_variable_that_no_command_reads_is_reported(database: str, db: Db, collector: Db) -> None:
    findings = the_database(
        database,
        BATCH_LIMTI="sesame-31337",
        SEKRET_KEY=KEY,
        QUACK="x",
        TEST_ANYTHING="1",
        PORT="tcp://10.0.0.1:8027",
        PORT_8027_TCP_ADDR="10.0.0.1",
        HTTP_PORT="8027",
        SERVICE_HOST="10.0.0.1",
        LOG_FORMAT="json",
        TRANSPORT_FILE="",
    )
    unknown = ["MAILROOM_BATCH_LIMTI", "MAILROOM_HTTP_PORT", "MAILROOM_QUACK", "MAILROOM_SEKRET_KEY"]
    assert unknown == not_ok(findings)
    assert {WARNING} == {findings[name].state for name in unknown}
    assert "did you mean MAILROOM_BATCH_LIMIT?" == findings["MAILROOM_BATCH_LIMTI"].remedy
    assert "did you mean MAILROOM_SECRET_KEY?" == findings["MAILROOM_SEKRET_KEY"].remedy
    assert "sesame" not in str(findings)


def test_a_missing_key_is_reported_with_how_to_make_one(database: str) -> None:
    finding = the_database(database, SECRET_KEY="ab")["MAILROOM_SECRET_KEY"]
    assert "`mailroom key new`" in finding.remedy


def test_short_credentials_leave_the_words_of_an_answer_whole(
    monkeypatch: pytest.MonkeyPatch, sending: dict[str, str]
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "e")
    with SesProbe(read_settings(SenderSettings, sending)) as probe:
        assert "Access denied" in str(probe.explained(RuntimeError("Access denied")))


def test_read_only(database: str, collector: Db) -> None:
    findings = the_database(make_conninfo(database, options="-c default_transaction_read_only=on"))
    assert ["writable"] == faults(findings)
    assert "default_transaction_read_only" in findings["writable"].remedy
    assert ["writable", "notifications"] == not_ok(findings)


def test_a_standby_is_distinguished_from_a_read_only_primary(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Probe, "ask", lambda *_: [(True, True)])
    with psycopg.connect(database) as connection:
        finding = server.writable(Probe(read_settings(CollectorSettings, collecting(database)), connection))
    assert (FAULT, True) == (finding.state, "standby" in finding.detail)


def test_no_schema(empty_database: str) -> None:
    findings = the_database(empty_database)
    assert ["functions"] == faults(findings)
    assert "the database lacks Mailroom's schema" == findings["functions"].detail
    assert "`mailroom migrate up`" in findings["functions"].remedy
    assert {SKIPPED} == {findings[name].state for name in ("queue", "pause", "tokens-trigger", "backlog")}
    assert OK is findings["notifications"].state


def test_a_migration_is_pending(database: str) -> None:
    with sync.connected(database) as connection:
        migrate.down(connection, 1, lambda _: None)
    findings = the_database(database)
    assert ["functions"] == faults(findings)
    assert (
        f"the schema is at version {NEWEST - 1}, and this Mailroom needs {NEWEST}"
        == findings["functions"].detail
    )


def test_a_newer_schema(database: str, db: Db) -> None:
    db.execute("CREATE OR REPLACE FUNCTION mailroom.schema_version() RETURNS integer LANGUAGE sql RETURN 999")
    findings = the_database(database)
    assert ["functions"] == faults(findings)
    assert "use the Mailroom that migrated it" in findings["functions"].remedy


def test_a_function_is_missing(database: str, db: Db) -> None:
    db.execute("DROP FUNCTION mailroom.backlog")
    findings = the_database(database)
    assert ["functions"] == faults(findings)
    assert "it has no mailroom.backlog" in findings["functions"].detail


@pytest.fixture
def stranger(database: str, db: Db) -> Iterator[str]:
    """A database as a role sees it that may do nothing."""
    role = f"mailroom_stranger_{secrets.token_hex(4)}"
    db.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(role), DB_PASSWORD))
    yield make_conninfo(database, user=role, password=DB_PASSWORD)
    db.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role)))
    db.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def test_a_role_without_privileges(stranger: str, db: Db) -> None:
    findings = the_database(stranger)
    assert ["functions"] == faults(findings)
    assert "permission denied" in findings["functions"].detail
    assert "GRANT" in findings["functions"].remedy
    db.execute("GRANT USAGE ON SCHEMA mailroom TO PUBLIC")
    findings = the_database(stranger)
    assert ["functions"] == faults(findings)
    assert findings["functions"].detail.startswith("the user may not call mailroom.claim, mailroom.settle")


def test_a_role_that_may_collect_and_no_more(stranger: str, db: Db, collector: Db) -> None:
    db.execute("GRANT USAGE ON SCHEMA mailroom TO PUBLIC")
    db.execute("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA mailroom TO PUBLIC")
    db.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    assert [] == not_ok(the_database(stranger))


def test_another_queue(database: str) -> None:
    findings = the_database(database, QUEUE_NAME="letters")
    assert ["MAILROOM_QUEUE_NAME"] == faults(findings)
    assert "a database has one queue, called mailroom" in findings["MAILROOM_QUEUE_NAME"].detail


def test_another_channel(database: str) -> None:
    findings = the_database(database, CHANNEL_NAME="letters")
    assert ["tokens-trigger"] == faults(findings)
    assert (
        "no trigger notifies 'letters'; the trigger on tokens notifies 'token_insert'"
        == findings["tokens-trigger"].detail
    )
    assert "MAILROOM_CHANNEL_NAME" in findings["tokens-trigger"].remedy


@pytest.mark.parametrize(
    ("statement", "name", "remedy"),
    [
        ("DROP TRIGGER tokens_ring ON tokens", "tokens-trigger", "create the trigger tokens_ring again"),
        ("DROP TRIGGER accounts_issue_activation ON accounts", "accounts-trigger", "create the trigger acc"),
        ("ALTER TABLE tokens DISABLE TRIGGER ALL", "tokens-trigger", "ALTER TABLE public.tokens"),
        ("ALTER TABLE tokens ENABLE REPLICA TRIGGER tokens_ring", "tokens-trigger", "ALTER TABLE public"),
        ("ALTER TABLE accounts DISABLE TRIGGER ALL", "accounts-trigger", "ALTER TABLE public.accounts"),
    ],
)  # fmt: skip
def test_a_trigger_that_does_not_fire(database: str, db: Db, statement: str, name: str, remedy: str) -> None:
    db.execute(statement.encode())
    findings = the_database(database)
    assert [name] == [other for other in faults(findings) if other != "other-triggers"]
    assert findings[name].remedy.startswith(remedy)


def test_the_remedy_for_a_disabled_trigger_helps(database: str, db: Db) -> None:
    db.execute('CREATE SCHEMA "Old"; ALTER TABLE tokens DISABLE TRIGGER tokens_ring; ALTER TABLE tokens'
               ' RENAME TO "Tokens"; ALTER TABLE "Tokens" SET SCHEMA "Old"; ALTER TRIGGER tokens_ring ON'
               ' "Old"."Tokens" RENAME TO "Ring!"')  # fmt: skip
    remedy = the_database(database)["tokens-trigger"].remedy
    assert 'ALTER TABLE "Old"."Tokens" ENABLE TRIGGER "Ring!"' == remedy
    db.execute(remedy.encode())
    assert OK is the_database(database)["tokens-trigger"].state


def test_collectors_are_not_disturbed(database: str, db: Db) -> None:
    with psycopg.connect(database, autocommit=True) as listener:
        listener.execute("LISTEN token_insert")
        listener.execute("SELECT pg_advisory_lock(mailroom.sleep_lock('token_insert'))")  # as a sleeper does
        the_database(database)
        sign_up(db, "after")
        assert ["1"] == [note.payload for note in listener.notifies(timeout=30, stop_after=1)]


def test_notifications_that_do_not_arrive(database: str, db: Db, monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind a pooler: the session that listened is another one by then."""
    monkeypatch.setattr(queue, "DELIVERY_S", 0.05)
    monkeypatch.setattr(queue, "RING", "SELECT %s::text, %s::text")
    findings = the_database(database)
    assert ["notifications"] == faults(findings)
    assert "PgBouncer" in findings["notifications"].remedy


def test_the_backlog(database: str, db: Db) -> None:
    sign_up(db, "waiting")
    finding = the_database(database)["backlog"]
    assert (OK, True) == (finding.state, finding.detail.startswith("1 waiting, 0 in flight, the oldest for "))
    db.execute("UPDATE tokens SET created_at = created_at - interval '6 minutes'")
    finding = the_database(database)["backlog"]
    assert (WARNING, True) == (finding.state, "collector" in finding.remedy)


def test_no_collector(database: str) -> None:
    finding = the_database(database)["collectors"]
    assert (WARNING, True) == (finding.state, "`mailroom run`" in finding.remedy)
    for option in ("application_name", "fallback_application_name"):
        assert SKIPPED is the_database(f"{database} {option}=app")["collectors"].state


@pytest.mark.parametrize(
    ("off_by_s", "state"), [(0, OK), (-1.9, OK), (30, WARNING), (-30, WARNING), (61, FAULT), (-3600, FAULT)]
)
def test_clocks(off_by_s: float, state: Status) -> None:
    finding = clocks.compared("the database", 1000.0 + off_by_s, 999.99, 1000.01)
    assert state is finding.state
    if state is not OK:
        assert ("behind" if off_by_s > 0 else "ahead of") in finding.detail
        assert "NTP" in finding.remedy


def test_a_slow_answer_is_no_skew() -> None:
    assert OK is clocks.compared("the database", 1000.0, 1000.0, 1009.0).state


def test_a_wrong_clock_is_found(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time
    monkeypatch.setattr(server, "time", lambda: now() - 120)
    findings = the_database(database)
    assert ["clock"] == faults(findings)
    assert "this machine's clock is 120.0 s behind the database's" == findings["clock"].detail


def test_a_statement_that_hangs_is_given_up(database: str, db: Db, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailroom.doctor.probe.STATEMENT_LIMIT_MS", 50)
    with psycopg.connect(database) as other:
        other.execute("LOCK TABLE jobs")
        findings = the_database(database)
    assert ["queue"] == faults(findings)
    assert "statement timeout" in findings["queue"].detail
    assert OK is findings["tokens-trigger"].state


# SES


def the_account(sending: dict[str, str], **variables: str) -> dict[str, Finding]:
    more = {f"MAILROOM_{name}": value for name, value in variables.items()}
    return examined(sending | more, "sending")


def refuse(
    monkeypatch: pytest.MonkeyPatch, action: str, code: str, message: str = "no", times: int = 99
) -> None:
    answer, left = inbox_actions.ACTIONS[action], [None] * times

    def refusing(box: Inbox, given: Any) -> Any:
        if not left:
            return answer(box, given)
        left.pop()
        raise Refusal(code, message, 403)

    monkeypatch.setitem(inbox_actions.ACTIONS, action, refusing)


def refuse_second(monkeypatch: pytest.MonkeyPatch, path: str, code: str = "AccessDenied") -> None:
    def refusing(box: Inbox, name: str) -> Any:
        raise Refusal(code, "no")

    monkeypatch.setitem(sesv2.LOOKS, f"/v2/email/{path}", refusing)


def test_no_credentials_and_no_region(monkeypatch: pytest.MonkeyPatch, by_either: dict[str, str]) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    findings = the_account(by_either)
    assert ["credentials", "region"] == faults(findings)
    assert "AWS_PROFILE" in findings["credentials"].remedy
    assert "AWS_DEFAULT_REGION" in findings["region"].remedy
    asked = SES[2:] if by_either["MAILROOM_TRANSPORT"] == "ses" else SES[2:-1]
    assert {SKIPPED} == {findings[name].state for name in asked}


def test_half_of_the_credentials(monkeypatch: pytest.MonkeyPatch, by_either: dict[str, str]) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    findings = the_account(by_either)
    assert ["credentials"] == faults(findings)
    assert "Partial credentials" in findings["credentials"].detail


@pytest.mark.parametrize("program", ["/nonexistent/program", "false", "echo {"])
def test_a_program_that_prints_no_credentials(
    monkeypatch: pytest.MonkeyPatch, sending: dict[str, str], tmp_path: Path, program: str
) -> None:
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {program}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert ["credentials"] == faults(the_account(sending))


def test_an_endpoint_that_is_not_there(monkeypatch: pytest.MonkeyPatch, sending: dict[str, str]) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SES", f"http://u:{SMTP_PASSWORD}@127.0.0.1:{free_port()}")
    findings = the_account(sending)
    assert ["ses"] == faults(findings)
    assert "AWS_ENDPOINT_URL_SES" in findings["ses"].remedy
    assert {SKIPPED} == {findings[name].state for name in SES[3:]}


def test_an_endpoint_that_is_none(monkeypatch: pytest.MonkeyPatch, sending: dict[str, str]) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SES", f"u:{SMTP_PASSWORD}@nowhere")
    assert ["region"] == faults(the_account(sending))


def test_an_endpoint_that_is_not_ses(
    monkeypatch: pytest.MonkeyPatch, box: Inbox, sending: dict[str, str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SES", f"{os.environ['AWS_ENDPOINT_URL_SES']}/nowhere")
    findings = the_account(sending)
    assert ["ses"] == faults(findings)
    assert "SES: the answer cannot be read, so it is not from SES" == findings["ses"].detail
    assert "HTTPS_PROXY" in findings["ses"].remedy


def test_credentials_that_ses_refuses(
    monkeypatch: pytest.MonkeyPatch, box: Inbox, sending: dict[str, str]
) -> None:
    words = f"The security token is invalid: {ACCESS_KEY}, {SECRET_ACCESS_KEY}"
    refuse(monkeypatch, "GetSendQuota", "InvalidClientTokenId", words)
    findings = the_account(sending)
    assert ["ses"] == faults(findings)
    assert "InvalidClientTokenId" in findings["ses"].detail


def test_what_the_role_may_not_read_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, box: Inbox, sending: dict[str, str]
) -> None:
    read = ["GetSendQuota", "GetAccountSendingEnabled", "GetIdentityVerificationAttributes",
            "DescribeConfigurationSet", "GetTemplate"]  # fmt: skip
    for action in read:
        refuse(monkeypatch, action, "AccessDenied")
    findings = the_account(sending)
    assert (OK, SKIPPED) == (findings["ses"].state, findings["sandbox"].state)
    names = ["quota", "sending-enabled", "sender", "configuration-set", "templates"]
    for name, action in zip(names, read, strict=True):
        assert WARNING is findings[name].state
        assert f"ses:{action}" in findings[name].detail
    assert [] == faults(findings)


def test_what_the_role_may_not_read_by_the_second_api_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, box: Inbox, sending: dict[str, str]
) -> None:
    for path in ("account", "identities/{name}", "configuration-sets/{name}"):
        refuse_second(monkeypatch, path)
    findings = the_account(sending, TRANSPORT="sesv2")
    assert (OK, SKIPPED) == (findings["ses"].state, findings["sandbox"].state)
    permissions = {
        "quota": "GetAccount",
        "sending-enabled": "GetAccount",
        "sender": "GetEmailIdentity",
        "configuration-set": "GetConfigurationSet",
    }
    for name, permission in permissions.items():
        assert (WARNING, True) == (findings[name].state, f"ses:{permission}" in findings[name].detail)
    assert [] == faults(findings)
    refuse_second(monkeypatch, "configuration-sets/{name}/event-destinations")
    finding = the_events(sending, TRANSPORT="sesv2")["events-published"]
    assert (WARNING, True) == (
        finding.state,
        "ses:GetConfigurationSetEventDestinations" in finding.detail,
    )


def test_the_second_api_needs_no_template_in_ses(box: Inbox, sending: dict[str, str], tmp_path: Path) -> None:
    box.account.templates.clear()
    assert ["ses-clock"] == not_ok(the_account(sending, TRANSPORT="sesv2"))
    (tmp_path / "mails" / "activation.txt").write_text("{{nickname}}")
    findings = the_account(sending, TRANSPORT="sesv2")
    assert ["templates"] == faults(findings)
    assert "`mailroom templates check`" in findings["templates"].remedy


def test_the_second_api_is_not_there(monkeypatch: pytest.MonkeyPatch, sending: dict[str, str]) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SESV2", f"http://u:{SMTP_PASSWORD}@127.0.0.1:{free_port()}")
    findings = the_account(sending, TRANSPORT="sesv2")
    assert ["ses"] == faults(findings)
    assert "this machine reaches SES, and that AWS_ENDPOINT_URL_SESV2" in findings["ses"].remedy


def test_moto_answers_what_is_asked_by_the_second_api(
    monkeypatch: pytest.MonkeyPatch, sending: dict[str, str]
) -> None:
    """It has configuration sets and identities, none of which may send; it has no account."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with moto_server() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SESV2", url)
        client = sesv2_client(url)
        client.create_email_identity(EmailIdentity="example.com")
        client.create_configuration_set(ConfigurationSetName="default")
        with SesProbe(read_settings(SenderSettings, sending | {"MAILROOM_TRANSPORT": "sesv2"})) as probe:
            finding = ses.sender(probe)
            assert (FAULT, True) == (finding.state, finding.detail.endswith("; example.com: SUCCESS"))
            assert "sending is paused for the configuration set 'default'" == ses.config_set(probe).detail
        chosen = sending | {"MAILROOM_TRANSPORT": "sesv2", "MAILROOM_SES_CONFIG_SET": "letters"}
        with SesProbe(read_settings(SenderSettings, chosen)) as probe:
            assert ses.config_set(probe).detail.startswith("there is no configuration set 'letters'")


def test_a_throttled_question_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, box: Inbox, sending: dict[str, str]
) -> None:
    monkeypatch.setattr("mailroom.transports.aws_client.PAUSE_S", 0.01)
    refuse(monkeypatch, "GetTemplate", "Throttling", times=1)
    assert [] == faults(the_account(sending))


def test_the_quota(box: Inbox, by_either: dict[str, str]) -> None:
    assert "0 sent in 24 hours, of 50000; 14 a second" == the_account(by_either)["quota"].detail
    finding = the_account(by_either, SEND_RATE="50")["quota"]
    assert (WARNING, True) == (finding.state, "SES will throttle" in finding.detail)
    box.limits.count(45_000)
    assert WARNING is the_account(by_either)["quota"].state
    box.limits.count(5_000)
    findings = the_account(by_either)
    assert ["quota"] == faults(findings)
    assert findings["quota"].detail.startswith("used up: 50000 sent")
    box.limits.quota_24h = None
    assert "50000 sent in 24 hours, of any number; 14 a second" == the_account(by_either)["quota"].detail


def test_the_sandbox(box: Inbox, by_either: dict[str, str]) -> None:
    box.limits.quota_24h, box.limits.rate = 200, 1.0
    finding = the_account(by_either)["sandbox"]
    assert (WARNING, True) == (finding.state, "production access" in finding.remedy)


def test_a_paused_account(box: Inbox, by_either: dict[str, str]) -> None:
    box.account.paused = True
    assert ["sending-enabled"] == faults(the_account(by_either))


def test_the_senders_identity(box: Inbox, by_either: dict[str, str]) -> None:
    assert "example.com is verified" == the_account(by_either)["sender"].detail
    box.account.identities = set()
    findings = the_account(by_either)
    assert ["sender"] == faults(findings)
    assert "MAILROOM_SES_SOURCE" in findings["sender"].remedy
    box.account.identities.add("noreply@mail.example.com")
    assert "noreply@mail.example.com is verified" == the_account(by_either)["sender"].detail
    assert ["sender"] == faults(the_account(by_either, SES_SOURCE="noreply@localhost"))
    box.account.identities = None
    assert WARNING is the_account(by_either, SES_SOURCE="noreply@localhost")["sender"].state
    found = the_account(by_either, SES_SOURCE="noreply@-ü-.example")
    assert (FAULT, SKIPPED) == (found["MAILROOM_SES_SOURCE"].state, found["sender"].state)


def test_the_configuration_set(box: Inbox, by_either: dict[str, str]) -> None:
    findings = the_account(by_either, SES_CONFIG_SET="letters")
    assert ["configuration-set"] == faults(findings)
    finding = findings["configuration-set"]
    assert "there is no configuration set 'letters' in this region" == finding.detail
    assert "MAILROOM_SES_CONFIG_SET" in finding.remedy
    assert "to none" in finding.remedy
    assert "none is set" == the_account(by_either, SES_CONFIG_SET="none")["configuration-set"].detail


def test_a_paused_configuration_set(
    monkeypatch: pytest.MonkeyPatch, box: Inbox, by_either: dict[str, str]
) -> None:
    answer = {"ConfigurationSet": {"Name": "default"}, "ReputationOptions": {"SendingEnabled": "false"}}
    monkeypatch.setitem(inbox_actions.ACTIONS, "DescribeConfigurationSet", lambda *_: answer)
    second = {"ConfigurationSetName": "default", "SendingOptions": {"SendingEnabled": False}}
    monkeypatch.setitem(sesv2.LOOKS, "/v2/email/configuration-sets/{name}", lambda *_: second)
    assert ["configuration-set"] == faults(the_account(by_either))


def test_actions_of_folder_and_database(db: Db, database: str, sending: dict[str, str]) -> None:
    def finding() -> Finding:
        variables = {"TEMPLATES": sending["MAILROOM_TEMPLATES"]}
        return the_database(database, **variables)["actions"]

    assert OK is finding().state
    db.execute("UPDATE mailroom.actions SET lane = 'bulk' WHERE action = 'activation'")
    assert (WARNING, True) == (finding().state, "`mailroom actions diff`" in finding().remedy)
    db.execute("UPDATE mailroom.actions SET lane = 'normal' WHERE action = 'activation'")
    db.execute("ALTER TYPE token_action ADD VALUE 'join'")
    assert (WARNING, True) == (finding().state, "without a row" in finding().detail)
    db.execute("INSERT INTO mailroom.actions (action, number, prefix) VALUES ('join', 30, '/join')")
    assert (WARNING, True) == (
        finding().state,
        "database: join" in finding().detail,
    )
    db.execute("UPDATE mailroom.actions SET prefix = '/enter' WHERE action = 'activation'")
    assert (WARNING, True) == (finding().state, "cannot take" in finding().detail)


def test_templates_in_ses_are_those_of_the_databases_actions(
    db: Db, database: str, box: Inbox, sending: dict[str, str]
) -> None:
    del sending["MAILROOM_TEMPLATES"]
    assert OK is the_account(sending)["templates"].state
    assert OK is examined(collecting(database) | sending, "sending")["templates"].state
    db.execute("ALTER TYPE token_action ADD VALUE 'join'")
    db.execute("INSERT INTO mailroom.actions (action, number, prefix) VALUES ('join', 30, '/join')")
    finding = examined(collecting(database) | sending, "sending")["templates"]
    assert (FAULT, "there is no template 'joinv1' in this region") == (finding.state, finding.detail)


def test_templates_in_ses(box: Inbox, sending: dict[str, str], tmp_path: Path) -> None:
    good = for_ses(load(None, NAMES)["activation"], "")
    names = ["activationv1", "activationv1-de", "passwordrecoveryv1", "passwordrecoveryv1-de"]
    whole = ", ".join(f"{name} (the same as the local files)" for name in names)
    assert whole == the_account(sending)["templates"].detail

    put(box, "activation", good | {"TextPart": "{{secret}} {{nickname}}"})
    findings = the_account(sending)
    assert ["templates"] == faults(findings)
    assert "{{nickname}}" in findings["templates"].detail
    assert "`mailroom templates push`" in findings["templates"].remedy

    put(box, "activation", good | {"HtmlPart": "{{secret}} {{login}}"})
    finding = the_account(sending)["templates"]
    assert (WARNING, True) == (finding.state, "without escaping" in finding.detail)

    put(box, "activation", good | {"TextPart": "Another: {{login}} {{secret}}"})
    finding = the_account(sending)["templates"]
    assert (WARNING, True) == (finding.state, "`mailroom templates diff`" in finding.remedy)
    assert OK is the_account(sending, APP_URL="")["templates"].state  # the files are no measure

    (tmp_path / "mails" / "activation.txt").write_text("Another: {{login}} {{secret}}")
    assert OK is the_account(sending)["templates"].state

    del box.account.templates["activationv1-de"]
    finding = the_account(sending)["templates"]
    assert (WARNING, True) == (finding.state, "so mails in de are sent in en" in finding.detail)

    del box.account.templates["activationv1"]
    findings = the_account(sending)
    assert ["templates"] == faults(findings)
    assert "there is no template 'activationv1' in this region" == findings["templates"].detail


@pytest.mark.parametrize(
    ("date", "state"),
    [
        ("Thu, 01 Jan 1970 00:16:40 GMT", OK),
        ("Thu, 01 Jan 1970 00:17:10 GMT", WARNING),
        ("Thu, 01 Jan 1970 00:10:00 GMT", FAULT),
        ("yesterday", SKIPPED),
        ("", SKIPPED),
    ],
)
def test_the_clock_of_ses(sending: dict[str, str], date: str, state: Status) -> None:
    with SesProbe(read_settings(SenderSettings, sending)) as probe:
        probe.answered = (1000.4, 1000.6, date)
        assert state is ses.clock(probe).state


# Other transports, and this machine


def test_debug_sends_nothing(sending: dict[str, str]) -> None:
    findings = the_account(sending, TRANSPORT="debug")
    assert ([*SENDING, "transport"], WARNING) == (list(findings), findings["transport"].state)
    assert "transport" in the_account(sending, DEBUG="true")


def by_smtp(server: MailServer, user: str = "", *, scheme: str = "smtp", options: str = "") -> str:
    return f"{scheme}://{f'{user}:{SMTP_PASSWORD}@' if user else ''}127.0.0.1:{server.port}{options}"


def test_a_healthy_mail_server(sending: dict[str, str]) -> None:
    with mail_server(password=SMTP_PASSWORD) as server:
        findings = the_account(sending, TRANSPORT=by_smtp(server, "app"))
    names = ["mail-server", "encryption", "login", "templates", "sender"]
    assert ([*SENDING, *names], []) == (list(findings), not_ok(findings))
    assert [] == server.mails


def test_the_second_transport_is_checked_too(sending: dict[str, str]) -> None:
    with mail_server() as first, mail_server() as second:
        addresses = f"{by_smtp(first)},{by_smtp(second)}"
        findings = the_account(sending, TRANSPORT=addresses)
        names = ["mail-server", "encryption", "login", "templates", "sender"]
        assert [*SENDING, *names, *(f"second-{name}" for name in names)] == list(findings)
        assert [] == not_ok(findings)
        second.answer("banner", "554 go away")
        findings = the_account(sending, TRANSPORT=addresses)
        assert ["second-mail-server"] == faults(findings)
        assert (SKIPPED, OK) == (findings["second-login"].state, findings["login"].state)
    with mail_server() as second:
        assert ["MAILROOM_SEND_RATE"] == faults(
            the_account(sending, TRANSPORT=by_smtp(second), SEND_RATE="7,8")
        )
        findings = the_account(sending, TRANSPORT=f"ses,{by_smtp(second)}", SEND_RATE="7,8")
        assert {"credentials", "second-mail-server"} <= set(findings)


def test_mail_servers_over_tls(
    sending: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trustme

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with mail_server(tls=context) as server:
        transport = by_smtp(server, scheme="smtps")
        findings = the_account(sending, TRANSPORT=transport)
        assert ["mail-server"] == faults(findings)
        assert "SSL_CERT_FILE" in findings["mail-server"].remedy
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert [] == not_ok(the_account(sending, TRANSPORT=transport))
    with mail_server(starttls=context) as server:
        findings = the_account(sending, TRANSPORT=by_smtp(server, options="?tls=required"))
        assert ([], True) == (not_ok(findings), "STARTTLS" in findings["encryption"].detail)


def test_a_mail_server_at_fault(sending: dict[str, str]) -> None:
    with mail_server(password="another") as server:
        findings = the_account(sending, TRANSPORT=by_smtp(server, "app"))
        assert ["login"] == faults(findings)
        assert "535" in findings["login"].detail
        server.answer("AUTH", f"535 not {SMTP_PASSWORD}")
        the_account(sending, TRANSPORT=by_smtp(server, "app"))
        findings = the_account(sending, TRANSPORT=by_smtp(server, options="?tls=required"))
        assert (["encryption"], SKIPPED) == (faults(findings), findings["login"].state)
        server.answer("banner", "554 go away")
        findings = the_account(sending, TRANSPORT=by_smtp(server))
        assert ["mail-server"] == faults(findings)
        assert "554 go away" in findings["mail-server"].detail
    assert ["mail-server"] == faults(the_account(sending, TRANSPORT=by_smtp(server)))


def test_templates_and_sender_of_smtp(sending: dict[str, str], tmp_path: Path) -> None:
    write_built_in(tmp_path / "files")
    with mail_server() as server:
        variables = {"TRANSPORT": by_smtp(server), "TEMPLATES": str(tmp_path / "files")}
        assert WARNING is the_account(sending, **variables, SES_SOURCE="noreply@localhost")["sender"].state
        findings = the_account(sending, **variables, SES_SOURCE="nö@example.com")
        assert ["MAILROOM_SES_SOURCE"] == faults(findings)
        (tmp_path / "files" / "activation.txt").write_text("{{nickname}}")
        findings = the_account(sending, **variables)
        assert (["templates"], SKIPPED) == (faults(findings), findings["sender"].state)
        assert "`mailroom templates check`" in findings["templates"].remedy
        (tmp_path / "files" / "activation.txt").unlink()
        assert ["templates"] == faults(the_account(sending, **variables))


def test_the_output_folder(sending: dict[str, str], tmp_path: Path) -> None:
    sending |= {"MAILROOM_TRANSPORT": "debug"}
    assert "does not exist yet" in the_account(sending)["output-folder"].detail
    assert not (tmp_path / "output").exists()
    (tmp_path / "output").mkdir()
    assert "can be written" in the_account(sending)["output-folder"].detail
    assert [] == list((tmp_path / "output").iterdir())
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        findings = the_account(sending, SES_OUTPUT_PATH=str(path))
        assert ["MAILROOM_SES_OUTPUT_PATH"] == faults(findings)
        assert SKIPPED is findings["output-folder"].state


def test_mails_that_were_set_aside(sending: dict[str, str], tmp_path: Path) -> None:
    sending |= {"MAILROOM_TRANSPORT": "debug"}
    folder = tmp_path / "output"
    rejected = Rejected(folder)
    assert OK is the_account(sending)["set-aside"].state
    rejected.add(
        [
            RejectedRow("expired", "late", b"a@b"),
            RejectedRow("expired", "late", b"c@d"),
            RejectedRow("rejected", "x", b"e@f"),
        ]
    )
    finding = the_account(sending)["set-aside"]
    assert (WARNING, True) == (
        finding.state,
        "3 mails not sent: 2 expired, 1 rejected" in finding.detail,
    )
    assert "`mailroom replay --help`" in finding.remedy
    rejected.path.write_text("something else")
    assert WARNING is the_account(sending)["set-aside"].state


# Events


def the_events(sending: dict[str, str], **variables: str) -> dict[str, Finding]:
    more = {f"MAILROOM_{name}": value for name, value in variables.items()}
    return examined(sending | more, "events")


def test_the_queue_of_events_and_what_is_published_to_it(box: Inbox, by_either: dict[str, str]) -> None:
    box.queue.put("an event")
    findings = the_events(by_either)
    assert (EVENTS, ["suppression-list"]) == (list(findings), not_ok(findings))  # needs the database
    assert "mailroom-events: about 1 wait, and 0 are being read" == findings["events-queue"].detail
    assert "default: by mailroom-events" == findings["events-published"].detail
    by_url = the_events(by_either, EVENTS="http://127.0.0.1/000000000000/mailroom-events")
    assert OK is by_url["events-queue"].state


def test_without_a_queue_nobody_sees_a_bounce(box: Inbox, by_either: dict[str, str]) -> None:
    findings = the_events(by_either, EVENTS="")
    assert EVENTS[1:] == not_ok(findings)
    assert (WARNING, SKIPPED) == (findings["events-queue"].state, findings["events-published"].state)
    assert "docs/how-to/events.md" in findings["events-queue"].remedy
    assert [] == not_ok(the_events(by_either, EVENTS="", TRANSPORT="smtp://127.0.0.1"))


def test_a_setting_of_the_queue_at_fault(sending: dict[str, str]) -> None:
    findings = the_events(sending, EVENTS="two words")
    assert ["MAILROOM_EVENTS"] == faults(findings)
    assert {SKIPPED} == {findings[name].state for name in EVENTS[1:]}


def test_a_queue_that_is_not_there(box: Inbox, sending: dict[str, str]) -> None:
    findings = the_events(sending, EVENTS="other")
    assert ["events-queue"] == faults(findings)
    assert "NonExistentQueue" in findings["events-queue"].detail
    assert "correct MAILROOM_EVENTS" in findings["events-queue"].remedy


def test_a_queue_that_does_not_answer(
    box: Inbox, sending: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", f"http://127.0.0.1:{free_port()}")
    findings = the_events(sending)
    assert ["events-queue"] == faults(findings)
    assert "AWS_ENDPOINT_URL_SQS" in findings["events-queue"].remedy


def test_a_role_that_may_not_look_at_the_queue(
    box: Inbox, sending: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with scripted_sqs() as sqs:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", sqs.url)
        sqs.refuses["GetQueueAttributes"] = "no right"
        finding = the_events(sending)["events-queue"]
    assert (WARNING, True) == (finding.state, "sqs:GetQueueAttributes" in finding.remedy)


def test_a_configuration_set_without_events(
    box: Inbox, by_either: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ["events-published"] == faults(the_events(by_either, SES_CONFIG_SET="none"))
    assert ["events-published"] == faults(the_events(by_either, SES_CONFIG_SET="letters"))
    monkeypatch.setattr("mailroom.inbox.ses.PUBLISHED", ("send", "delivery", "reject"))
    monkeypatch.setattr("mailroom.inbox.sesv2.PUBLISHED", ("SEND", "DELIVERY", "REJECT"))
    finding = the_events(by_either)["events-published"]
    assert WARNING is finding.state
    assert (
        "the configuration set 'default' publishes no events of these types:"
        " bounce, complaint, renderingFailure" == finding.detail
    )


@pytest.mark.parametrize("right", [True, False])
def test_the_accounts_own_list_is_compared(
    database: str, db: Db, box: Inbox, sending: dict[str, str], monkeypatch: pytest.MonkeyPatch, right: bool
) -> None:
    findings = the_events(collecting(database) | sending)
    nobody = "SES suppresses 0 addresses for this account, and all of them are suppressed here"
    assert ([], nobody) == (not_ok(findings), findings["suppression-list"].detail)
    db.execute("SELECT mailroom.suppress('ada@example.com', 'asked for it')")
    with second_ses(["Ada@Example.com", "max@example.com"] if right else None) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SESV2", url)
        finding = the_events(collecting(database) | sending)["suppression-list"]
    if not right:
        assert (SKIPPED, True) == (finding.state, "ListSuppressedDestinations" in finding.detail)
        return
    assert WARNING is finding.state
    assert "suppresses 2 addresses for this account, and 1 of them are not suppressed here" in finding.detail
    assert "`mailroom suppressions import`" in finding.remedy


@contextmanager
def second_ses(addresses: list[str] | None) -> Iterator[str]:
    """Version 2 of SES's API, which lists suppressed addresses one a page; None may not be read."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            at = int((parse_qs(urlsplit(self.path).query).get("NextToken") or ["0"])[0])
            content: dict[str, Any] = {"message": "not authorized to perform: ses:ListSuppressedDestinations"}
            self.send_response(200 if addresses else 403)
            if addresses:
                time = {"LastUpdateTime": 1_700_000_000, "Reason": "BOUNCE"}
                content = {"SuppressedDestinationSummaries": [{"EmailAddress": addresses[at]} | time]}
                if addresses[at + 1 :]:
                    content["NextToken"] = str(at + 1)
            else:
                self.send_header("x-amzn-ErrorType", "AccessDeniedException")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_: object) -> None:
            pass

    with QuietServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
