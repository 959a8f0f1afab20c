"""The pytest plugin: an application's end-to-end tests with the fixture ``mailroom_inbox``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from support.actions import add_actions
from support.processes import KEY, PATIENCE_S
from support.queue_sql import Db

# An application, and what its tests do with it.
APPLICATION = """
import os
import psycopg
import mailroom


def connected():
    return psycopg.connect(os.environ["MAILROOM_DATABASE_URL"], autocommit=True)


def execute(query, *parameters):
    with connected() as connection:
        connection.execute(query, parameters)


def sign_up(email, locale=None):
    execute("INSERT INTO accounts (email, login, locale) VALUES (%s, %s, %s)", email, email, locale)


def activate(token):
    with connected() as connection:
        return mailroom.consume(connection, token, "activation", keys=os.environ["MAILROOM_SECRET_KEY"])
"""
FIVE_LINES = """
import application

def test_somebody_signs_up(mailroom_inbox):
    application.sign_up("zoe@example.com")
    mail = mailroom_inbox.wait(to="zoe@example.com", action="activation")
    assert application.activate(mail.token).email == "zoe@example.com"
"""


def run(
    folder: Path, tests: str, *options: str, conftest: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run these tests of the application with pytest, in a process of its own."""
    (folder / "application.py").write_text(APPLICATION)
    (folder / "conftest.py").write_text(conftest)
    (folder / "test_application.py").write_text(tests)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAILROOM_", "PYTEST"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", *options],
        cwd=folder,
        env=kept | {"MAILROOM_SECRET_KEY": KEY} | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_S,
        check=False,
    )


@pytest.mark.slow
def test_the_test_of_a_sign_up_is_five_lines(database: str, tmp_path: Path) -> None:
    done = run(tmp_path, FIVE_LINES, MAILROOM_DATABASE_URL=database)
    assert 0 == done.returncode, done.stdout
    assert 5 == sum(line != "" for line in FIVE_LINES.splitlines())


PARTS = """
import pytest
import application

def test_a_link(mailroom_inbox):
    application.sign_up("Zoe@example.com", "de-AT")
    mail = mailroom_inbox.wait(to="zoe@example.com")
    assert (mail.to, mail.action, mail.locale) == ("Zoe@example.com", "activation", "de")
    assert mail.link == f"http://testserver/activate?token={mail.token}"
    assert mail.link in mail.links and mail.link in mail.text and "<html" in mail.html
    assert "Test" in mail.subject and mail.code == ""
    assert mail.token not in repr(mail)

def test_a_code(mailroom_inbox):
    application.sign_up("max@example.com")
    application.activate(mailroom_inbox.wait(to="max@example.com").token)
    application.execute("SELECT mailroom.send('password_recovery', account => max(id)) FROM accounts")
    mail = mailroom_inbox.wait(action="password_recovery")
    assert len(mail.code) == 5 and mail.code in mail.text and mail.token in mail.link

def test_a_code_without_a_link(mailroom_inbox):
    application.execute("SELECT mailroom.send('reauthentication', account => max(id)) FROM accounts")
    mail = mailroom_inbox.wait(to="max@example.com", action="reauthentication")
    assert mail.code in mail.text and (mail.link, mail.token) == ("", "")

def test_a_notice(mailroom_inbox):
    application.execute("SELECT mailroom.send('password_changed', account => max(id)) FROM accounts")
    mail = mailroom_inbox.wait(to="max@example.com", action="password_changed")
    assert (mail.action, mail.code, mail.link, mail.token) == ("password_changed", "", "", "")

def test_each_mail_is_returned_once(mailroom_inbox):
    for name in ("ada", "bob"):
        application.sign_up(f"{name}@example.com")
    for name in ("bob", "ada"):
        assert mailroom_inbox.wait(to=f"{name}@example.com").to == f"{name}@example.com"
    assert len(mailroom_inbox.mails) == 2
    application.execute("UPDATE accounts SET email = 'eve@example.com' WHERE login = 'ada@example.com'")
    assert mailroom_inbox.wait(action="activation").to == "eve@example.com"

@pytest.mark.anyio
async def test_in_an_event_loop(mailroom_inbox):
    application.sign_up("kim@example.com")
    mail = mailroom_inbox.wait(to="kim@example.com")
    assert application.activate(mail.token).email == "kim@example.com"
"""
ANYIO = """
import pytest

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""


@pytest.mark.slow
def test_a_mail_has_the_parts_that_a_test_needs(database: str, db: Db, tmp_path: Path) -> None:
    """Whatever the environment says of the transport: the application's may be the real one."""
    add_actions(db, "reauthentication", "password_changed")
    real = {
        "MAILROOM_TRANSPORT": "ses",
        "MAILROOM_DEBUG": "true",
        "MAILROOM_HTTP": "1",
        "MAILROOM_SEND_RATE": "1",
    }
    done = run(tmp_path, PARTS, conftest=ANYIO, MAILROOM_DATABASE_URL=database, **real)
    assert 0 == done.returncode, done.stdout
    assert "6 passed" in done.stdout


FAILING = """
import application

def test_not_committed(mailroom_inbox):
    with application.connected() as connection, connection.transaction(force_rollback=True):
        connection.execute("INSERT INTO accounts (email, login) VALUES ('zoe@example.com', 'zoe')")
        mailroom_inbox.wait(to="zoe@example.com", action="activation", timeout_s=0.5)

def test_another_mail(mailroom_inbox):
    application.sign_up("max@example.com")
    mailroom_inbox.wait(to="max@example.com")
    mailroom_inbox.wait(to="max@example.com", action="password_recovery", timeout_s=0.5)

def test_an_address_that_cannot_be_mailed(mailroom_inbox):
    application.execute("INSERT INTO accounts (email, login) VALUES ('a b@example.com', 'ab')")
    mailroom_inbox.wait(action="activation", timeout_s=1)

def test_the_worker_has_ended(mailroom_inbox):
    application.execute("ALTER FUNCTION mailroom.claim RENAME TO claim_of_old")
    application.sign_up("eve@example.com")
    mailroom_inbox.wait(to="eve@example.com", timeout_s=50)

def test_the_worker_cannot_start(mailroom_inbox):
    pass
"""


ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "how-to" / "testing-your-sign-up.md").read_text()


@pytest.mark.slow
def test_the_guide_works_in_two_processes_at_a_time(server_url: str, tmp_path: Path) -> None:
    conftest, sign_up, recovery = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    (body,) = re.findall(r"^def test_.*", sign_up, re.DOTALL | re.MULTILINE)
    assert 5 == len(body.strip().splitlines())
    server = make_conninfo(server_url, dbname="postgres")
    with psycopg.connect(server, autocommit=True) as connection:
        names = [f"app_test_{name}" for name in ("gw0", "gw1")]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        application = (ROOT / "examples" / "fastapi" / "app.py").read_text()
        (tmp_path / "app.py").write_text(application)
        try:
            done = run(
                tmp_path,
                f"{sign_up}\n\n{recovery}",
                *("--dist", "each", "-n", "2", "-W", "ignore"),
                conftest=conftest,
                TEST_SERVER=server,
                PATH=path,
            )
        finally:
            for name in names:
                drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
                connection.execute(drop.format(sql.Identifier(name)))
    assert 0 == done.returncode, done.stdout
    assert "4 passed" in done.stdout


@pytest.mark.slow
def test_a_failure_shows_what_arrived_and_what_did_not(database: str, tmp_path: Path) -> None:
    done = run(tmp_path, FAILING, MAILROOM_DATABASE_URL=database)
    sections = re.split(r"^_{3,} (.+) _{3,}$", done.stdout, flags=re.MULTILINE)
    shown = dict(zip(sections[1::2], sections[2::2], strict=True))

    def has(name: str, *texts: str) -> None:
        assert not [text for text in texts if text not in shown[name]], shown[name]

    has(
        "test_not_committed",
        "NoMail: no mail to 'zoe@example.com' of the action 'activation' arrived within 0.5 s",
        "arrived: nothing",
        "mailroom why zoe@example.com: no account or token matches 'zoe@example.com'; has the test committed",
    )
    has(
        "test_another_mail",
        "arrived: activation to max@example.com, which a wait has returned",
        "mailroom why max@example.com: sent: ",
    )
    has("test_an_address_that_cannot_be_mailed", "not sent: activation to a b@example.com: rejected: ")
    has("test_the_worker_has_ended", "will arrive: the worker has ended: ", "mailroom.claim")
    has("ERROR at teardown of test_the_worker_has_ended", "DatabaseError: ", "Try: run `mailroom migrate up`")
    has("ERROR at setup of test_the_worker_cannot_start", "DatabaseError: ", "Try: ")
    assert 6 == len(shown)
    assert KEY not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "error"),
    [
        ({}, "override the fixture mailroom_database_url"),
        (
            {"MAILROOM_DATABASE_URL": "{database}", "MAILROOM_SECRET_KEY": ""},
            "Try: .*`mailroom key new` makes a key",
        ),
        ({"MAILROOM_DATABASE_URL": "{empty}"}, "Try: run `mailroom migrate up`"),
    ],
)
def test_what_is_missing_is_named(
    database: str, empty_database: str, tmp_path: Path, variables: dict[str, str], error: str
) -> None:
    given = {name: text.format(database=database, empty=empty_database) for name, text in variables.items()}
    done = run(tmp_path, FIVE_LINES, **given)
    assert 1 == done.returncode
    assert re.search(error, done.stdout), done.stdout


UNUSED = """
import sys

def test_nothing():
    heavy = {"psycopg", "botocore", "asyncio", "starlette", "mailroom.inbox", "mailroom.runner"}
    assert "mailroom.testing" in sys.modules
    assert not heavy & set(sys.modules)
"""


def test_a_run_without_the_fixture_loads_no_worker_and_no_inbox(tmp_path: Path) -> None:
    done = run(tmp_path, UNUSED, "-p", "no:anyio")
    assert 0 == done.returncode, done.stdout
