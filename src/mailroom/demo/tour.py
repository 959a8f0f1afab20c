"""The tour: sign-ups trickle into an embedded PostgreSQL, and the collector's lines appear.

Everything is real: the server, the triggers, the collector in a process of its own. The tour reads
the collector's lines as a sender would and checks every token it saw, and that none is missing.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

import psycopg

from mailroom import migrate
from mailroom.actions import BY_NAME
from mailroom.demo.postgres import PostgresServer
from mailroom.errors import TokenError
from mailroom.tokens import new_key, verify
from mailroom.wire import Message, decode

RECOVERY_EVERY: Final = 7
PATIENCE_S: Final = 30.0

Tell = Callable[[str], None]


def run_tour(signups: int, tell: Tell) -> int:
    """Run the tour; gives back 0 when every mail appeared and every token verified, else 1."""
    tell("Starting an embedded PostgreSQL …")
    with PostgresServer() as server:
        with migrate.connected(server.url()) as connection:
            migrate.up(connection, None, lambda name: tell(f"  migration {name}"))
        key = new_key()
        lines = _CollectorLines(server.url(), key, tell)
        try:
            tell(f"{signups} people sign up, some of them forget their password:\n")
            committed = _trickle(server.url(), signups)
            lines.wait_for(committed)
        finally:
            exit_code = lines.stop()
    return _sum_up(lines.messages, committed, key, exit_code, tell)


class _CollectorLines:
    """A collector process and the messages that it printed so far."""

    def __init__(self, url: str, key: str, tell: Tell) -> None:
        self.messages: list[Message] = []
        self._tell = tell
        self._grown = threading.Condition()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MAILROOM_")}
        environment |= {
            "MAILROOM_DATABASE_URL": url,
            "MAILROOM_SECRET_KEY": key,
            "MAILROOM_BATCH_TIMEOUT": "300",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mailroom", "--log-level", "warning", "collector"],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, count: int) -> None:
        with self._grown:
            self._grown.wait_for(
                lambda: len(self.messages) >= count or self._process.poll() is not None, PATIENCE_S
            )

    def stop(self) -> int:
        self._process.terminate()
        code = self._process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return code

    def _read(self) -> None:
        if self._process.stdout is None:
            return
        for line in self._process.stdout:
            batch = decode(line)
            self._tell(_shortened(batch))
            with self._grown:
                self.messages += batch
                self._grown.notify_all()


def _trickle(url: str, signups: int) -> int:
    """Sign people up, and let every seventh recover; gives back how many mails that makes."""
    pause = random.Random(0)  # noqa: S311 - no secret
    mails = 0
    with psycopg.connect(url, autocommit=True) as connection:
        for number in range(1, signups + 1):
            connection.execute(
                "INSERT INTO accounts (email, login) VALUES (%s, %s)",
                [f"person{number}@example.com", f"person{number}"],
            )
            mails += 1
            if number % RECOVERY_EVERY == 0:
                with connection.transaction():
                    account = connection.execute(
                        "INSERT INTO accounts (email, login, status) VALUES (%s, %s, 'active') RETURNING id",
                        [f"forgetful{number}@example.com", f"forgetful{number}"],
                    ).fetchone()
                    connection.execute(
                        "INSERT INTO tokens (action, account) VALUES ('password_recovery', %s)", account
                    )
                mails += 1
            time.sleep(pause.uniform(0, 0.1))
    return mails


def _shortened(batch: list[Message]) -> str:
    """A line as it was printed, with most of the tokens left out."""
    first = batch[0]
    number = BY_NAME[first.action].number
    rest = f"  … and {len(batch) - 1} more" if len(batch) > 1 else ""
    return f"  {number},{first.email},{first.username},{first.secret[:12]}…,{first.code}{rest}"


def _sum_up(messages: list[Message], committed: int, key: str, exit_code: int, tell: Tell) -> int:
    genuine = 0
    for message in messages:
        try:
            verify(message.secret, message.action, keys=key, code=message.code)
        except TokenError as error:
            tell(f"a token of {message.email} does not verify: {error}")
        else:
            genuine += 1
    different = len({message.secret for message in messages})
    tell(
        f"\n{committed} mails were due, {len(messages)} appeared on the collector's lines"
        f" ({different} different), {genuine} tokens verified."
    )
    whole = committed == len(messages) == different == genuine and exit_code == 0
    tell("Nothing was lost, nothing was sent twice." if whole else "Something went wrong: see above.")
    return 0 if whole else 1
