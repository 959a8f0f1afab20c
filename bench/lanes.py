"""Measures how long a recovery waits while an import is mailed, and what that costs the import.

100,000 activations in the lane *bulk* wait. SES answers in 30 ms, and the rate is 100 a second. Meanwhile
recoveries are requested, at any moment. The time runs from the answer to COMMIT until SES accepts the mail.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from unittest import mock

import psycopg
from starlette.types import ASGIApp, Receive, Scope, Send

from bench import database
from bench.options import Options
from bench.programs import environment, mailroom, running
from bench.sending import push_templates, ses_environment
from bench.tell import tell
from mailroom.inbox import app, protocol
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.server import InboxServer

RATE: Final = 100
ANSWER_S: Final = 0.03
PATIENCE_S: Final = 60.0
ACTIVE: Final = """
INSERT INTO accounts (email, login, status)
SELECT 'active' || g || '@example.com', 'active' || g, 'active' FROM generate_series(1, %s) g
"""
RECOVER: Final = """
INSERT INTO tokens (action, account) SELECT 'password_recovery', id FROM accounts WHERE email = %s
"""


def measure(options: Options) -> dict[str, Any]:
    """A row for `run` and one for the pipe."""
    tokens, recoveries = options.sized(100_000, 5_000), options.sized(50, 10)
    rows = []
    with database.durable() as server:
        database.filled(server, "filled", tokens, "bulk")
        for command in ("run", "collector | sender"):
            url = database.clone(server, "filled", "lanes")
            with slow_inbox() as ses, TemporaryDirectory() as folder:
                variables = environment(url) | ses_environment(ses.url, Path(folder))
                variables["MAILROOM_SEND_RATE"] = str(RATE)
                push_templates(variables)
                with started(command, variables):
                    rows.append({"command": command} | waits(url, ses, recoveries))
            database.drop(server, "lanes")
            tell(f"{command}: {rows[-1]}")
    return {"tokens": tokens, "rate": RATE, "rows": rows}


@contextmanager
def slow_inbox() -> Iterator[InboxServer]:
    """A local SES that answers after ``ANSWER_S``."""

    def create_slow_app(*arguments: Any) -> ASGIApp:
        quick = app.create_app(*arguments)

        async def slow(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and (scope["method"], scope["path"]) == ("POST", "/"):
                await asyncio.sleep(ANSWER_S)
            await quick(scope, receive, send)

        return slow

    with (
        mock.patch.object(protocol, "create_app", create_slow_app),
        InboxServer(inbox=Inbox(keep=1_000_000)) as server,
    ):
        yield server


@contextmanager
def started(command: str, variables: dict[str, str]) -> Iterator[None]:
    if command == "run":
        with running(mailroom("run"), variables):
            yield
        return
    with running(mailroom("collector"), variables) as collector:
        sender = subprocess.Popen(mailroom("sender"), stdin=collector.stdout, env=variables)
        try:
            yield
        finally:
            sender.kill()
            sender.wait()


def waits(url: str, ses: InboxServer, recoveries: int) -> dict[str, Any]:
    """How long the recoveries waited, in milliseconds, and how many mails were accepted a second."""
    with database.connected(url) as connection:
        connection.execute(ACTIVE, [recoveries])
        ses.wait_for(lambda inbox: inbox.counts.accepted >= 3 * RATE, PATIENCE_S)
        before, began = ses.inbox.counts.accepted, time.monotonic()
        committed = recover(connection, recoveries)
        ses.wait_for(lambda inbox: all(one in inbox.counts.by_recipient for one in committed), PATIENCE_S)
        per_s = (ses.inbox.counts.accepted - before) / (time.monotonic() - began)
    accepted = {mail.recipient: mail.time.timestamp() for mail in ses.inbox.mails.find()}
    waited_ms = [1000 * (accepted[email] - at) for email, at in committed.items()]
    return {
        "recoveries": recoveries,
        "p50_ms": round(statistics.median(waited_ms)),
        "max_ms": round(max(waited_ms)),
        "mails_per_s": round(per_s, 1),
    }


def recover(connection: psycopg.Connection, recoveries: int) -> dict[str, float]:
    """Request recoveries, one a second on average; returns when each was committed, by its address."""
    committed = {}
    for number in range(1, recoveries + 1):
        time.sleep(random.uniform(0, 2))  # noqa: S311 - no secret
        email = f"active{number}@example.com"
        connection.execute(RECOVER, [email])
        committed[email] = time.time()
    return committed
