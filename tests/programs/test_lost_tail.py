"""A streaming failover that loses the last commits, while `mailroom run` works."""

from __future__ import annotations

import contextlib
import itertools
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from mailroom.demo.postgres import PostgresServer
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.server import InboxServer
from mailroom.inbox.ses import reply
from support import postgres, processes, senders
from support.postgres import DURABLE, migrated
from support.runs import RunProcess, wait_until

ROUNDS = 3
LOAD_S = 1.5


@pytest.fixture(scope="module")
def streaming() -> Path:
    """The folder of a PostgreSQL that has pg_basebackup."""
    named = postgres.bindir()
    folders = [named] if named else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = [folder for folder in folders if (folder / "pg_basebackup").exists()]
    if not found:
        pytest.skip(
            "no PostgreSQL with pg_basebackup: set MAILROOM_TEST_POSTGRES_BINDIR, or install postgresql"
        )
    return found[0]


class SignUps:
    """Signs people up, one commit each, at the first host that takes writes, until it is ended."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(60)

    def _run(self) -> None:
        numbers = itertools.count()
        while not self._end.is_set():
            with (
                contextlib.suppress(psycopg.OperationalError),
                psycopg.connect(
                    self._url, autocommit=True, target_session_attrs="read-write", connect_timeout=2
                ) as db,
            ):
                while not self._end.is_set():
                    name = f"u{next(numbers)}"
                    db.execute(
                        "INSERT INTO accounts (email, login) VALUES (%s, %s)", [f"{name}@example.com", name]
                    )
                    time.sleep(0.002)


@contextlib.contextmanager
def standby_of(primary: PostgresServer) -> Iterator[PostgresServer]:
    one = PostgresServer(
        bindir=primary.bindir, settings=DURABLE, password=primary.password, below=postgres.below()
    )
    try:
        one.run_tool("pg_basebackup", "-D", str(one.data), "-R", "-c", "fast", "-d", primary.url())
        one.start()
        yield one
    finally:
        one.remove()


def load() -> None:
    time.sleep(LOAD_S)  # what is to be lost, and what is to come after


@pytest.mark.slow
@pytest.mark.timeout(280)
@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
def test_nothing_is_missing_and_the_ledger_is_true(
    streaming: Path,
    tmp_path: Path,
    number: int,
    figures: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first worker stands still over the failover, and then reports what it sent before."""
    monkeypatch.setattr("mailroom.inbox.app.reply", slow(reply))
    with (
        PostgresServer(bindir=streaming, settings=DURABLE, below=postgres.below()) as primary,
        InboxServer(inbox=senders.with_templates(Inbox())) as ses,
    ):
        migrated(primary.url())
        with standby_of(primary) as standby:
            here = f"127.0.0.1:{primary.port}"
            url = primary.url().replace(here, f"{here},127.0.0.1:{standby.port}")
            given = senders.environment(tmp_path / "output", SEND_RATE=10_000)
            variables = processes.environment(url) | given | senders.aws(ses.url)
            with RunProcess(variables, tmp_path / "first") as first, SignUps(url):
                first.wait_for_log("run.started")
                load()
                with psycopg.connect(primary.url(), autocommit=True) as db:
                    cut_off(standby, db)
                    load()
                    first.process.send_signal(signal.SIGSTOP)
                    before: dict[int, bytes] = dict(db.execute("SELECT id, secret FROM tokens").fetchall())
                primary.stop("immediate")
                with psycopg.connect(standby.url(), autocommit=True) as db:
                    db.execute("SELECT pg_promote()")
                    with RunProcess(variables, tmp_path / "second") as second:
                        second.wait_for_log("run.started")
                        load()
                        first.process.send_signal(signal.SIGCONT)
                        load()
                        assert 0 == second.stop()
            with psycopg.connect(standby.url(), autocommit=True) as db:
                with RunProcess(variables, tmp_path / "third") as third:
                    third.wait_for_log("run.started")
                    wait_until(db, "SELECT waiting + in_flight FROM mailroom.backlog()", 0)
                    assert 0 == third.stop()
                figures(compared(db, ses, before, first.log()))


def slow(answer: Callable[..., Any]) -> Callable[..., Any]:
    """Answers take a while, so that leases are in flight when the worker stands still."""

    def late(*arguments: Any) -> Any:
        time.sleep(0.05)
        return answer(*arguments)

    return late


def cut_off(standby: PostgresServer, primary: psycopg.Connection) -> None:
    """End the replication; what the primary commits from now on is lost."""
    with psycopg.connect(standby.url(), autocommit=True) as db:
        db.execute("ALTER SYSTEM SET primary_conninfo = ''")
        db.execute("SELECT pg_reload_conf()")
    wait_until(primary, "SELECT count(*) FROM pg_stat_replication", 0)


def compared(db: psycopg.Connection, ses: InboxServer, before: dict[int, bytes], log: str) -> str:
    """Check what the ledger says of each token against what the inbox got; the figures."""
    mails = list(ses.inbox.mails.find())
    recipients = {mail.id: mail.recipient for mail in mails}
    got = Counter(recipients.values())
    tokens = db.execute(
        "SELECT t.id, t.secret, a.email FROM tokens t JOIN accounts a ON a.id = t.account"
    ).fetchall()
    owners = {token: email for token, _, email in tokens}
    assert set() == set(owners.values()) - got.keys()

    told: Counter[int] = Counter()
    for token, message_id in db.execute(
        "SELECT token, message_id FROM mailroom.deliveries_of(ARRAY(SELECT id FROM tokens))"
        " WHERE outcome = 'sent'"
    ):
        assert owners[token] == recipients[message_id]
        told[token] += 1
    assert owners.keys() == told.keys()
    assert all(told[token] <= got[email] for token, email in owners.items())

    lost = before.items() - {(token, secret) for token, secret, _ in tokens}
    again = sum(token in owners for token, _ in lost)
    assert again > 0
    late = sum(map(int, re.findall(r"queue.tokens_lost .*tokens=(\d+)", log)))
    return (
        f"{len(tokens)} tokens, {len(lost)} lost, {again} of their ids given again, {len(mails)} mails,"
        f" {sum(got[email] - 1 for email in owners.values())} of them twice,"
        f" {len(got.keys() - set(owners.values()))} to lost accounts, {late} answers for ids given again"
    )
