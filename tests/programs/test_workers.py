"""Which workers are alive, as they say it themselves, and `status` while the database comes and goes."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from mailroom import __version__
from mailroom.database import sync
from mailroom.database.connection import Database
from mailroom.database.sync import answering_within
from mailroom.demo.postgres import PostgresServer
from mailroom.errors import DatabaseUnavailable
from mailroom.operations.mail_state import span
from mailroom.operations.reports import overview
from mailroom.queue.client import Queue
from mailroom.runner import ledger
from support import commands
from support.processes import PATIENCE_S, environment
from support.proxy import Proxy
from support.queue_sql import Db, claim, sign_up_many
from support.runs import Start, wait_until

TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC")
SECONDS_UP = re.compile(r"  up \d s,")
NOBODY = (
    "no worker: 3 tokens to be mailed, and no `mailroom run` is alive"
    " (a collector in a pipe does not show here)"
)


def beat(db: Db, worker: str, trouble: str = "") -> None:
    db.execute("SELECT mailroom.heartbeat(%s, '1.2.3', %s)", [worker, trouble])


def age(db: Db, worker: str, seen: str, started: str = "0 seconds") -> None:
    """Move the times when a worker was seen and started into the past."""
    db.execute(
        "UPDATE mailroom.workers SET seen_at = seen_at - %s::interval, started_at = started_at - %s::interval"
        " WHERE worker = %s",
        [seen, started, worker],
    )


def told(db: Db) -> list[str]:
    """What `status` says of the workers, with T for each time, and 0 s for each up for less than ten."""
    lines = SECONDS_UP.sub("  up 0 s,", TIME.sub("T", overview(db).text())).splitlines()
    return lines[next(number for number, line in enumerate(lines) if line.startswith("workers ")) :]


def names(db: Db) -> list[object]:
    return [row[0] for row in db.execute("SELECT worker FROM mailroom.workers ORDER BY worker")]


def test_the_living_and_those_that_stopped_answering_are_shown(db: Db) -> None:
    sign_up_many(db, 3)
    beat(db, "host:1:ab")
    age(db, "host:1:ab", "0 seconds", "3 hours")
    claim(db, 2, worker="host:1:ab", lease_tokens=1)
    beat(db, "host:2:cd")
    age(db, "host:2:cd", "40 minutes", "50 minutes")
    claim(db, 1, worker="host:2:cd")
    beat(db, "host:3:ef")
    assert [
        "workers    2 alive",
        "           host:1:ab  up 3 h, 2 tokens in 2 leases in hand",
        "           host:2:cd  stopped answering 40 min ago, at T, 1 token in 1 lease in hand",
        "           host:3:ef  up 0 s, nothing in hand",
    ] == told(db)


@pytest.mark.parametrize(
    ("seen", "alive", "shown"), [("14 seconds", 1, 1), ("16 seconds", 0, 1), ("61 minutes", 0, 0)]
)
def test_alive_is_seen_within_fifteen_seconds(db: Db, seen: str, alive: int, shown: int) -> None:
    beat(db, "w")
    age(db, "w", seen)
    found = overview(db)
    assert (alive, shown) == (found.workers_alive, len(found.workers))


def test_that_nobody_is_alive_is_said_while_something_waits(db: Db) -> None:
    assert ["workers    0 alive"] == told(db)
    sign_up_many(db, 3)
    assert NOBODY == told(db)[-1]
    claim(db, 1, worker="other")
    assert NOBODY == told(db)[-1]
    beat(db, "w")
    assert ["workers    1 alive", "           w  up 0 s, nothing in hand"] == told(db)
    age(db, "w", "16 seconds")
    assert NOBODY == told(db)[-1]


def test_trouble_is_shown_with_its_beginning_and_without_addresses(db: Db) -> None:
    beat(db, "w", "ses: AccountSendingPaused: ask zoe@example.com\x1b[31m")
    since = "SELECT trouble_since FROM mailroom.workers"
    began = db.execute(since).fetchone()
    beat(db, "w", "ses: AccountSendingPaused: still")
    assert began == db.execute(since).fetchone()
    beat(db, "w", "ses: AccountSendingPaused: ask zoe@example.com\x1b[31m")
    expected = "in trouble since T: ses: AccountSendingPaused: ask z…@example.com [31m"
    assert f"           w  up 0 s, nothing in hand; {expected}" == told(db)[-1]
    beat(db, "w")
    assert "           w  up 0 s, nothing in hand" == told(db)[-1]
    assert (None,) == db.execute(since).fetchone()
    beat(db, "w", "again")
    assert began != db.execute(since).fetchone() != (None,)


def test_who_leaves_is_forgotten_and_who_is_not_seen_for_a_day(db: Db) -> None:
    for worker in ("left", "old", "young"):
        beat(db, worker)
    db.execute("SELECT mailroom.leave('left'), mailroom.leave('nobody')")
    age(db, "old", "25 hours")
    age(db, "young", "23 hours")
    beat(db, "new")
    assert ["new", "young"] == names(db)


def test_a_queue_says_it(database: str, db: Db) -> None:
    async def scenario() -> None:
        queue = Queue(Database(database, program="test", answer_limit_s=30), channel="token_insert")
        try:
            await ledger.heartbeat(queue, "")
            await ledger.heartbeat(queue, "ses: paused")
            (worker,) = overview(db).workers
            assert (queue.worker, __version__, True, "ses: paused") == (
                worker.worker,
                worker.version,
                worker.alive,
                worker.trouble,
            )
            await ledger.leave(queue)
            assert () == overview(db).workers
        finally:
            await queue.close()

    asyncio.run(scenario())


@pytest.mark.slow
def test_run_says_that_it_lives_and_that_it_ends(db: Db, start: Start) -> None:
    killed, stopped = start(), start()
    for worker in (killed, stopped):
        worker.wait_for_log("run.started")
    wait_until(db, "SELECT count(*) FROM mailroom.recent_workers() WHERE alive", 2)
    assert 0 == stopped.stop()
    (left,) = overview(db).workers
    assert left.worker in killed.log()
    killed.process.kill()
    killed.process.wait()
    age(db, left.worker, "15 seconds")
    assert "workers    0 alive" == told(db)[0]
    assert "stopped answering" in told(db)[1]


def test_heartbeats_update_in_place(db: Db) -> None:
    for number in range(5):
        beat(db, f"w{number}")
    size = "SELECT pg_relation_size('mailroom.workers') + pg_relation_size('mailroom.workers_pkey')"
    before = db.execute(size).fetchone()
    for number in range(3000):
        beat(db, f"w{number % 5}", "trouble" * (number % 2))
    assert before == db.execute(size).fetchone()


def test_a_claim_and_a_heartbeat_do_not_wait_for_each_other(db: Db, database: str) -> None:
    with psycopg.connect(database) as claiming:
        claim(claiming)
        db.execute("SET statement_timeout = '10s'")
        beat(db, "w")


def test_status_as_json(db: Db, database: str) -> None:
    beat(db, "w", "ses: paused")
    done = commands.run("status", "--json", env=environment(database))
    found = json.loads(done.stdout)
    assert (0, False, 1) == (found["dead"], found["dead_more"], found["workers_alive"])
    (worker,) = found["workers"]
    assert ("w", "1.2.3", True, "ses: paused", 0) == tuple(
        worker[name] for name in ("worker", "version", "alive", "trouble", "tokens")
    )
    assert worker["trouble_since"].endswith("+00:00")


def test_how_long_is_said_in_a_unit_one_can_picture() -> None:
    spans = {
        -1: "0 s",
        0.4: "0 s",
        119: "119 s",
        120: "2 min",
        7199: "120 min",
        7200: "2 h",
        172800: "2 days",
    }
    assert list(spans.values()) == [span(seconds) for seconds in spans]


class StatusWatch:
    """``mailroom status --watch`` on a terminal."""

    def __init__(self, url: str) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mailroom", "status", "--watch"],
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=subprocess.PIPE,
            env=environment(url) | {"TERM": "xterm"},
        )
        os.close(theirs)  # so that reading fails when the process is gone

    def wait_for(self, *texts: bytes) -> bytes:
        """Read on until all of these were shown; returns what was."""
        seen, deadline = b"", time.monotonic() + PATIENCE_S
        while not all(text in seen for text in texts):
            assert time.monotonic() < deadline, seen
            seen += os.read(self._ours, 4096)
        return seen

    def interrupt(self) -> tuple[int, bytes]:
        self.process.send_signal(signal.SIGINT)
        _, stderr = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, stderr

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@contextmanager
def watching(url: str) -> Iterator[StatusWatch]:
    watch = StatusWatch(url)
    try:
        yield watch
    finally:
        watch.close()


@pytest.mark.slow
def test_watch_survives_a_restart_of_the_database_and_says_so(own_server: PostgresServer) -> None:
    with watching(own_server.url()) as watch:
        watch.wait_for(b"workers    0 alive")
        own_server.stop()
        seen = watch.wait_for(b"this was the state until ", b"trying again")
        assert seen.count(b"waiting    0") >= 1  # what was known last
        own_server.start()
        with psycopg.connect(own_server.url(), autocommit=True) as connection:
            beat(connection, "w")
        watch.wait_for(b"workers    1 alive")
        assert (0, b"") == watch.interrupt()


def test_watch_without_a_database_ends_at_once() -> None:
    with watching("postgresql://127.0.0.1:1/nowhere?connect_timeout=2") as watch:
        _, stderr = watch.process.communicate(timeout=PATIENCE_S)
        assert (75, True) == (watch.process.returncode, b"cannot connect to PostgreSQL" in stderr)


def test_a_network_that_goes_deaf_is_noticed(database: str) -> None:
    port = int(conninfo_to_dict(database)["port"] or 5432)
    with (
        Proxy(port) as proxy,
        sync.connected(make_conninfo(database, host="127.0.0.1", port=proxy.port)) as connection,
    ):
        with answering_within(connection, PATIENCE_S):
            overview(connection)
        proxy.go_deaf()
        with pytest.raises(DatabaseUnavailable, match="was lost"), answering_within(connection, 0.5):
            overview(connection)
