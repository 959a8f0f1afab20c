"""A Django project in a folder: made by ``startproject``, changed as its author would, and served."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import httpx
from psycopg.conninfo import conninfo_to_dict

from mailroom.demo.postgres import free_port
from support.processes import KEY, PATIENCE_S
from support.web import wait_until_served


class Project:
    """A project named acme, whose database is the one at ``url``."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self._log = folder / "log"
        folder.mkdir()
        self._run("-m", "django", "startproject", "acme", ".")
        options = {name: value for name, value in conninfo_to_dict(url).items() if name != "dbname"}
        database = {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": conninfo_to_dict(url)["dbname"],
            "OPTIONS": options,
        }
        self.add("acme/settings.py", f"DATABASES['default'] = {database!r}")

    def add(self, path: str, text: str) -> None:
        """Add text to a file."""
        (self.folder / path).parent.mkdir(exist_ok=True)
        with (self.folder / path).open("a") as file:
            file.write(f"\n{text}\n")

    def manage(self, *arguments: str, expected: int = 0, **variables: str) -> str:
        """Run ``manage.py`` and return what it printed."""
        return self._run("manage.py", *arguments, expected=expected, **variables)

    def run(self, code: str) -> str:
        """Run code in the project's shell, and return what it printed."""
        return self.manage("shell", "--no-imports", "-c", code)

    @contextmanager
    def served(self) -> Iterator[httpx.Client]:
        """A browser at the project's server, which follows redirects."""
        port = free_port()
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "manage.py", "runserver", "--noreload", str(port)],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            wait_until_served(port, process, self._log)
            url = f"http://127.0.0.1:{port}"
            with httpx.Client(base_url=url, timeout=60, follow_redirects=True) as browser:
                yield browser
        finally:
            process.terminate()
            process.wait(30)

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the project's programs."""
        return os.environ | {"MAILROOM_SECRET_KEY": KEY, "PYTHONDONTWRITEBYTECODE": "1"}

    def _run(self, *command: str, expected: int = 0, **variables: str) -> str:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=self.folder,
            env=self.environment | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert expected == done.returncode, done.stdout
        return done.stdout


def submit(browser: httpx.Client, path: str, without: str = "", **data: str) -> httpx.Response:
    """Open a page with a form, fill it in and submit it; ``without`` is a box that is unchecked."""
    page = browser.get(path)
    assert page.is_success, page.text
    form = _Form()
    form.feed(page.text)
    form.fields.pop(without, None)
    return browser.post(page.url, data=form.fields | data)


class _Form(HTMLParser):
    """The fields of a page's forms, with the values that a browser would submit."""

    def __init__(self) -> None:
        super().__init__()
        self.fields: dict[str, str] = {}
        self._select = ""
        self._text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        name, kind = given.get("name", ""), given.get("type", "text")
        if tag == "select":
            self._select = name
        elif tag == "option" and "selected" in given:
            self.fields[self._select] = given.get("value", "")
        elif tag == "textarea":
            self._text = name
            self.fields[name] = ""
        elif tag == "input" and name and (kind not in {"checkbox", "radio", "submit"} or "checked" in given):
            self.fields[name] = given.get("value", "on" if kind == "checkbox" else "")

    def handle_data(self, data: str) -> None:
        if self._text:
            self.fields[self._text] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea":
            self._text = ""
