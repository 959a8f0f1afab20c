"""What sessions do to the server: idle ones hold no snapshot, and nothing goes on that was given up."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psycopg
import pytest

from mailroom.console.server import ConsoleServer
from mailroom.demo.postgres import PostgresServer, free_port
from mailroom.inbox.server import InboxServer
from mailroom.settings.collector import QueueSettings
from support import postgres, processes, senders
from support.doorbell import wait_for_holder
from support.inbox import ask
from support.processes import PATIENCE_S, CollectorProcess
from support.queue_sql import Db, sign_up, sign_up_many
from support.runs import RunProcess, fetch, readiness, wait_for_readiness, wait_until

LOOK_S = 0.05
OURS = "datname = current_database() AND application_name LIKE 'mailroom%'"
SNAPSHOTS = f"""
SELECT application_name, state, query FROM pg_stat_activity
WHERE {OURS} AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL OR wait_event_type = 'Lock'
                  OR state LIKE 'idle in transaction%') AND clock_timestamp() - xact_start > '500 ms'
"""
CONNECTED = f"SELECT count(*) FROM pg_stat_activity WHERE {OURS}"
STATUS_WAITS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND application_name = 'mailroom' AND wait_event_type = 'Lock'"
)


@pytest.fixture
def logging_server(cluster: PostgresServer) -> Iterator[PostgresServer]:
    """A server that logs each wait for a lock soon."""
    waits = {"log_lock_waits": "on", "deadlock_timeout": "100ms", "log_min_error_statement": "error"}
    with postgres.copy_of(cluster, postgres.FAST | waits) as server:
        yield server


Runs = Callable[..., RunProcess]


@pytest.fixture
def run(ses: InboxServer, tmp_path: Path) -> Iterator[Runs]:
    """Starts ``mailroom run`` on a database."""
    with ExitStack() as stack:

        def start(url: str, **variables: str | int) -> RunProcess:
            given = senders.environment(tmp_path / "output", SEND_RATE=10_000, **variables)
            environment = processes.environment(url) | given | senders.aws(ses.url)
            return stack.enter_context(RunProcess(environment, tmp_path / f"run-{time.monotonic_ns()}"))

        yield start


def connections(db: Db) -> int:
    ((count,),) = db.execute(CONNECTED.encode()).fetchall()
    return int(count)


def snapshots(db: Db, seconds: float) -> list[tuple[object, ...]]:
    """Sessions that had a snapshot or a transaction, or waited for a lock, for longer than a moment."""
    until, found = time.monotonic() + seconds, []
    while time.monotonic() < until:
        found += db.execute(SNAPSHOTS.encode()).fetchall()
        time.sleep(LOOK_S)
    return found


def connections_of(program: str) -> str:
    return f"{CONNECTED} AND application_name = 'mailroom {program}'"


@pytest.mark.slow
def test_a_collector_has_three_connections(database: str, db: Db, tmp_path: Path) -> None:
    with CollectorProcess(database, log=tmp_path / "log", BATCH_TIMEOUT=0) as collector:
        wait_for_holder(db, "sleep_lock")
        sign_up_many(db, 1000)
        collector.wait_for_messages(1000)
        wait_for_holder(db, "sleep_lock")
        sign_up(db, "zoe")
        collector.wait_for_messages(1001)
        wait_until(db, connections_of("collector"), 3)


@pytest.mark.slow
@pytest.mark.parametrize(("health", "expected"), [(False, 3), (True, 4)])
def test_run_has_three_connections_and_a_fourth_with_health(
    database: str, db: Db, ses: InboxServer, run: Runs, health: bool, expected: int
) -> None:
    port = free_port()
    run(database, BATCH_TIMEOUT=0, **({"HTTP": port} if health else {})).wait_for_log("run.started")
    wait_for_holder(db, "sleep_lock")
    sign_up_many(db, 100)
    ses.wait_for(lambda inbox: inbox.counts.accepted == 100)
    wait_for_holder(db, "sleep_lock")
    sign_up(db, "zoe")
    ses.wait_for(lambda inbox: inbox.counts.accepted == 101)
    if health:
        wait_for_readiness(port, None)
        assert 200 == fetch(port, "/metrics")[0]
    wait_until(db, connections_of("run"), expected)


@pytest.mark.slow
def test_idle_workers_hold_no_snapshot_and_log_no_wait(
    logging_server: PostgresServer, run: Runs, tmp_path: Path
) -> None:
    """A leader and those in line, of both programs; CREATE INDEX CONCURRENTLY beside them ends at once."""
    url = logging_server.url()
    with ExitStack() as stack:
        db = stack.enter_context(psycopg.connect(url, autocommit=True))
        workers = [run(url), run(url)]
        for worker in workers:
            worker.wait_for_log("run.started")
        for number in range(2):
            collector = CollectorProcess(url, log=tmp_path / f"log{number}")
            stack.enter_context(collector).wait_until_listening()
        wait_for_holder(db, "sleep_lock")
        assert [] == snapshots(db, 20)
        began = time.monotonic()
        db.execute("CREATE INDEX CONCURRENTLY ON accounts (login, id)")
        assert time.monotonic() - began < 3
        workers[0].process.kill()  # and after another took over
        wait_for_holder(db, "sleep_lock")
        assert [] == snapshots(db, 5)
    assert 0 == logging_server.log.read_text().count("still waiting")


@pytest.mark.slow
def test_one_that_falls_asleep_holds_no_snapshot_for_long_and_logs_no_wait(
    logging_server: PostgresServer, tmp_path: Path
) -> None:
    """A transaction that inserted and stays open keeps it from sleeping; later inserts notify."""
    url = logging_server.url()
    with (
        psycopg.connect(url, autocommit=True) as db,
        psycopg.connect(url) as long,
        psycopg.connect(url, autocommit=True) as listening,
    ):
        sign_up(long, "long")
        with CollectorProcess(url, log=tmp_path / "log", BATCH_TIMEOUT=0) as collector:
            collector.wait_until_listening()
            assert [] == snapshots(db, 2)
            listening.execute("LISTEN token_insert")
            for number in range(10):
                sign_up(db, f"short{number}")
            collector.wait_for_messages(10)
            rung = [one.payload for one in listening.notifies(timeout=0.5)]
            assert len(rung) >= 8
            long.commit()
            collector.wait_for_messages(11)
            wait_for_holder(db, "sleep_lock")
    log = logging_server.log.read_text()
    assert (0, 0) == (log.count("still waiting"), log.count("canceling statement"))


@pytest.mark.slow
def test_what_is_given_up_ends_in_the_server(logging_server: PostgresServer, run: Runs) -> None:
    """A long lock on accounts, a probe every moment, commands, and clients that are killed."""
    url, port = logging_server.url(), free_port()
    environment = processes.environment(url)
    with (
        psycopg.connect(url, autocommit=True) as db,
        psycopg.connect(url) as locking,
        ConsoleServer(QueueSettings(url, "token_insert")) as console,
    ):
        run(url, HTTP=port).wait_for_log("run.started")
        wait_for_readiness(port, None)
        ask(console.url, "/")
        wait_for_holder(db, "sleep_lock")
        before = connections(db)
        locking.execute("LOCK TABLE accounts, tokens, mailroom.deliveries IN ACCESS EXCLUSIVE MODE")
        commands = [
            subprocess.Popen(
                [sys.executable, "-m", "mailroom", "status"],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for _ in range(3)
        ]
        wait_until(db, STATUS_WAITS, len(commands))
        for command in commands:
            command.kill()
            command.wait(PATIENCE_S)
        counts = []
        wait_for_readiness(port, "database")
        until = time.monotonic() + 12  # longer than the server needs to see that a client is gone
        while time.monotonic() < until:
            assert "database" in (readiness(port) or {})
            ask(console.url, "/")
            counts.append(connections(db))
            time.sleep(LOOK_S)
        assert before >= counts[-1], counts
        assert before + len(commands) >= max(counts), counts
        locking.rollback()
        wait_for_readiness(port, None)


def fill(server: PostgresServer, stack: ExitStack) -> None:
    """Connect until the server has no free connection."""
    with suppress(psycopg.OperationalError):
        while True:
            stack.enter_context(psycopg.connect(server.url()))


@pytest.mark.slow
def test_a_probe_without_a_free_connection_leaves_the_workers_alone(
    cluster: PostgresServer, ses: InboxServer, run: Runs
) -> None:
    few = postgres.FAST | {"max_connections": "12", "superuser_reserved_connections": "0"}
    with postgres.copy_of(cluster, few) as server, ExitStack() as stack:
        db = stack.enter_context(psycopg.connect(server.url(), autocommit=True))
        port = free_port()
        worker = run(server.url(), HTTP=port).wait_for_log("run.started")
        wait_for_holder(db, "sleep_lock")
        own = sorted(pids(db))
        fill(server, stack)
        for _ in range(3):
            found = readiness(port)
            assert found
            assert "too many clients" in found["database"]
            assert 200 == fetch(port, "/metrics")[0]
            time.sleep(1.1)  # a reading is kept for a second
        sign_up(db, "zoe")
        ses.wait_for(lambda inbox: inbox.counts.accepted == 1)
        assert own == sorted(pids(db))
        assert "database.lost" not in worker.log()


def pids(db: Db) -> list[int]:
    return [pid for (pid,) in db.execute(f"SELECT pid FROM pg_stat_activity WHERE {OURS}".encode())]


@pytest.mark.slow
def test_a_session_that_finds_no_free_connection_leaves_the_others_alone(
    cluster: PostgresServer, ses: InboxServer, run: Runs
) -> None:
    few = postgres.FAST | {"max_connections": "12", "superuser_reserved_connections": "0"}
    with postgres.copy_of(cluster, few) as server, ExitStack() as stack:
        db = stack.enter_context(psycopg.connect(server.url(), autocommit=True))
        worker = run(server.url()).wait_for_log("run.started")
        wait_for_holder(db, "sleep_lock")
        held = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted"
        ((leader,), *_) = db.execute(held.encode()).fetchall()
        others = set(pids(db)) - {leader}
        fill(server, stack)
        while True:
            for pid in set(pids(db)) - others:
                db.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
            with suppress(psycopg.OperationalError):  # the worker was faster
                stack.enter_context(psycopg.connect(server.url()))  # somebody else takes its place
                break
        worker.wait_for_log("database.refused")
        sign_up(db, "zoe")
        ses.wait_for(lambda inbox: inbox.counts.accepted == 1)
        assert others <= set(pids(db))
        assert "database.lost" not in worker.log()
