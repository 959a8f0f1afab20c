"""The examples for frameworks, each served by its own server: a user signs up, activates and recovers."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from mailroom import sign
from mailroom.demo.postgres import free_port
from mailroom.inbox.server import InboxServer
from support.django_project import submit
from support.processes import KEY
from support.queue_sql import Db
from support.runs import Start
from support.web import wait_until_served

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
COMMANDS = {
    "flask": ["-m", "flask", "--app", "app", "run", "--port"],
    "fastapi": ["-m", "uvicorn", "app:app", "--port"],
    "django": ["app.py", "runserver", "--noreload"],
}


def variables(database: str) -> dict[str, str]:
    """The environment of an example."""
    return os.environ | {
        "MAILROOM_DATABASE_URL": database,
        "MAILROOM_SECRET_KEY": KEY,
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@contextmanager
def served(framework: str, database: str, log: Path) -> Iterator[httpx.Client]:
    """A browser at the example, served as its head says."""
    if not importlib.util.find_spec(framework):
        pytest.skip(f"{framework} is not installed")
    port = str(free_port())
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, *COMMANDS[framework], port],
            cwd=EXAMPLES / framework,
            env=variables(database),
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
        )
    try:
        wait_until_served(int(port), process, log)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as browser:
            yield browser
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize("framework", ["flask", "fastapi"])
def test_a_user_signs_up_activates_and_recovers(
    framework: str, database: str, db: Db, ses: InboxServer, start: Start, tmp_path: Path
) -> None:
    with served(framework, database, tmp_path / "log") as browser:
        start(BATCH_TIMEOUT=0)

        def mailed(count: int) -> str:
            ses.wait_for(lambda inbox: inbox.counts.accepted == count)
            rendered = ses.inbox.render(ses.inbox.mails.find()[-1])
            assert rendered
            return rendered.text

        def token_in(text: str) -> str:
            return str(re.findall(r"token=([\w-]{86})", text)[0])

        person = {"email": "zoe@example.com", "login": "zoë, 'z'"}
        assert browser.post("/sign-up", data=person).is_success
        assert browser.post("/sign-up", data=person).is_success  # answers the same, and mails nobody
        token = token_in(mailed(1))

        page = browser.get("/activate", params={"token": token})
        assert page.is_success
        assert token in page.text
        assert "no-referrer" == page.headers["referrer-policy"]
        assert [("provisioned",)] == db.execute("SELECT status::text FROM accounts").fetchall()
        assert {"active": 1} == browser.post("/activate", data={"token": token}).json()
        again = browser.post("/activate", data={"token": token})
        assert (403, "used") == (again.status_code, again.json()["error"])
        forged = sign(bytes(32), "activation", keys="cafe" * 16)
        assert "forged" == browser.get("/activate", params={"token": forged}).json()["error"]

        assert browser.post("/forgot", data={"email": "nobody@example.com"}).is_success
        assert browser.post("/forgot", data={"email": "Zoe@Example.com"}).is_success
        text = mailed(2)
        token, code = token_in(text), re.findall(r"^(\d{5})$", text, re.MULTILINE)[0]
        wrong = {"token": token, "code": f"{(int(code) + 1) % 100_000:05d}"}
        assert "wrong code" == browser.post("/recover", data=wrong).json()["error"]
        assert [(1,)] == db.execute("SELECT wrong_codes FROM tokens ORDER BY id DESC LIMIT 1").fetchall()
        assert {"recovered": 1} == browser.post("/recover", data={"token": token, "code": code}).json()
        assert 2 == ses.inbox.counts.accepted


def test_the_project_in_one_file_mails_djangos_users(
    database: str, db: Db, ses: InboxServer, start: Start, tmp_path: Path
) -> None:
    subprocess.run(
        [sys.executable, "app.py", "migrate"],
        cwd=EXAMPLES / "django",
        env=variables(database),
        stdin=subprocess.DEVNULL,
        check=True,
    )
    with served("django", database, tmp_path / "log") as browser:
        start(BATCH_TIMEOUT=0)
        browser.follow_redirects = True

        def mailed(count: int) -> str:
            ses.wait_for(lambda inbox: inbox.counts.accepted == count)
            rendered = ses.inbox.render(ses.inbox.mails.find()[-1])
            assert rendered
            return rendered.text

        def path_in(text: str) -> str:
            return str(re.findall(r"https://acme.example(/\S+token=[\w-]{86})", text)[0])

        password = "correct horse battery"
        person = {"username": "zoe", "email": "zoe@example.com", "password1": password, "password2": password}
        assert "on its way" in submit(browser, "/sign-up", **person).text
        assert "Your account is active" in submit(browser, path_in(mailed(1))).text
        assert "on its way" in submit(browser, "/password_reset/", email="nobody@example.com").text
        assert "on its way" in submit(browser, "/password_reset/", email="Zoe@Example.com").text
        text = mailed(2)
        code = re.findall(r"^(\d{5})$", text, re.MULTILINE)[0]
        new = {"new_password1": password + "!", "new_password2": password + "!"}
        wrong = submit(browser, path_in(text), code=f"{(int(code) + 1) % 100_000:05d}", **new)
        assert "You have 4 more tries" in wrong.text
        assert [(1,)] == db.execute("SELECT wrong_codes FROM tokens ORDER BY id DESC LIMIT 1").fetchall()
        assert "Your password is set" in submit(browser, path_in(text), code=code, **new).text
        assert 2 == ses.inbox.counts.accepted
