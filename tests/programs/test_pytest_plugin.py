"""The pytest plugin: an application's end-to-end tests with the fixture ``mailroom_inbox``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.processes import KEY, PATIENCE_S

# An application: it signs somebody up, and activates.
APPLICATION = """
import os
import psycopg
import mailroom


def execute(query, *parameters):
    with psycopg.connect(os.environ["MAILROOM_DATABASE_URL"], autocommit=True) as connection:
        return connection.execute(query, parameters)


def sign_up(email):
    execute("INSERT INTO accounts (email, login) VALUES (%s, split_part(%s, '@', 1))", email, email)


def activate(token):
    with psycopg.connect(os.environ["MAILROOM_DATABASE_URL"], autocommit=True) as connection:
        return mailroom.consume(connection, token, "activation", keys=os.environ["MAILROOM_SECRET_KEY"])
"""
FIVE_LINES = """
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
    (folder / "test_application.py").write_text(f"import pytest\nimport application\n{tests}")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAILROOM_", "PYTEST"))}
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--durations=5",
            "-W",
            "error",
            *options,
        ],
        cwd=folder,
        env=kept | {"MAILROOM_SECRET_KEY": KEY} | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_the_test_of_a_sign_up_is_five_lines(database: str, tmp_path: Path) -> None:
    done = run(tmp_path, FIVE_LINES, MAILROOM_DATABASE_URL=database)
    assert 0 == done.returncode, done.stdout
    assert len(FIVE_LINES.strip().splitlines()) <= 5
