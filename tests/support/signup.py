"""The example application, served for real in this process, and a browser at it."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import psycopg
import pytest
import uvicorn
from playwright.sync_api import Page, ViewportSize

import mailroom
from mailroom.demo.signup.app import create_app
from mailroom.demo.signup.database import ACTIONS
from support.actions import add_actions
from support.processes import KEY

Db = psycopg.Connection[tuple[Any, ...]]
PASSWORD = "correct horse battery"
NEW_PASSWORD = "staple and some more"
HERE = Path(__file__).parents[2] / "src" / "mailroom" / "demo" / "signup"
PHONE, DESK = ViewportSize(width=360, height=740), ViewportSize(width=1440, height=900)
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
TOKEN = "A" * 86


@contextmanager
def served(database: str) -> Iterator[str]:
    """The example's address, while it is served."""
    app = create_app(database, KEY, session_secret="s" * 32, uniform_s=0.01, scrypt_cost=2)
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="critical", access_log=False, timeout_graceful_shutdown=3)
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


@dataclass
class Site:
    """A browser at the example, and the database behind it."""

    url: str
    db: Db
    browser: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.browser = self.new_browser()

    def new_browser(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, headers={"Sec-Fetch-Site": "same-origin"})

    def get(self, path: str) -> httpx.Response:
        return self.browser.get(path)

    def post(self, path: str, **fields: str) -> httpx.Response:
        return self.browser.post(path, content=urlencode(fields), headers=FORM)

    def sign_up(self, email: str = "zoe@example.com", login: str = "zoe", password: str = PASSWORD) -> None:
        answer = self.post("/signup", email=email, login=login, password=password)
        assert (303, "/sent/signup") == (answer.status_code, answer.headers["location"])

    def signed_up(self, email: str = "zoe@example.com", login: str = "zoe") -> None:
        """Signed up and active."""
        self.sign_up(email, login)
        assert 303 == self.post("/activate", token=self.mails("activation", email)[0][0]).status_code

    def sign_in(self, email: str = "zoe@example.com", password: str = PASSWORD) -> httpx.Response:
        return self.post("/signin", email=email, password=password)

    def mails(self, action: str, email: str = "zoe@example.com") -> list[tuple[str, str]]:
        """Tokens and codes as the mails of an address hold them, the newest first."""
        rows = self.db.execute(
            "SELECT secret, code FROM tokens WHERE email = %s AND action = %s::token_action ORDER BY id DESC",
            [email, action],
        )
        return [(mailroom.sign(secret, action, keys=KEY, code=code), code) for secret, code in rows]

    def forgotten(self) -> tuple[str, str]:
        """A link and a code for recovery."""
        assert 303 == self.post("/forgot", email="zoe@example.com").status_code
        return self.mails("password_recovery")[0]

    def status(self, email: str = "zoe@example.com") -> str:
        row = self.db.execute("SELECT status::text FROM accounts WHERE email = %s", [email]).fetchone()
        assert row
        return str(row[0])

    def link(self, path: str, action: str, email: str = "zoe@example.com") -> str:
        """The newest link that an address was mailed."""
        return f"{path}?token={self.mails(action, email)[0][0]}"

    def suspend(self) -> None:
        self.db.execute("UPDATE accounts SET status = 'suspended'")

    def is_signed_in(self) -> bool:
        return "You are signed in" in self.get("/").text

    def everything(self) -> list[tuple[object, ...]]:
        """All that a request could have changed."""
        query = "SELECT row(t.*)::text FROM {} t ORDER BY 1"
        tables = ("accounts", "tokens", "example.passwords", "example.logins", "example.sign_ups")
        return [row for table in tables for row in self.db.execute(query.format(table).encode())]


@pytest.fixture(name="site")
def site_fixture(database: str, db: Db) -> Iterator[Site]:
    add_actions(db, *ACTIONS)
    with served(database) as url:
        site = Site(url, db)
        with site.browser:
            yield site


def at_once(count: int, work: Callable[[int], httpx.Response]) -> list[httpx.Response]:
    start = threading.Barrier(count)

    def begin(number: int) -> httpx.Response:
        start.wait(30)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


def wrong(code: str) -> str:
    return f"{(int(code) + 1) % 100_000:05}"


def explained(answer: httpx.Response) -> tuple[int, str]:
    """A refusal's status and headline; there is no trace of how it came about."""
    assert "Traceback" not in answer.text
    found = re.search("<h1>(.*)</h1>", answer.text)
    assert found
    return answer.status_code, found[1]


def fill(page: Page, address: str, **fields: str) -> None:
    """Go there, unless it is here, fill in the form and send it, whatever the browser thinks of it."""
    if address:
        page.goto(address)
    page.eval_on_selector("main form", "form => { form.noValidate = true }")
    for name, value in fields.items():
        page.fill(f"#{name}", value)
    with page.expect_navigation():
        page.click("main button")
