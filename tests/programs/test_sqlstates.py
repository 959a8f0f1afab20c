"""An error that may pass is retried with its reason; one that cannot pass ends the program."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import psycopg
import pytest

from mailroom.console.server import ConsoleServer
from mailroom.database.sqlstates import is_permanent
from mailroom.demo.postgres import free_port
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.server import InboxServer
from mailroom.settings.collector import QueueSettings
from support import commands
from support.inbox import ask
from support.processes import CollectorProcess, environment
from support.queue_sql import Db, sign_up
from support.refusals import refuse
from support.runs import UNSETTLED, Start, readiness, wait_until

PASSING = (
    "08P01", "0A000", "22003", "22021", "23505", "25P02", "25P03", "25P04", "26000", "40001", "40P01",
    "42P05", "53000", "53100", "53200", "53400", "54000", "55000", "55P03", "57014", "58030", "F0000",
    "P0001",
    "XX000", "XX001", "XX002",
)  # fmt: skip
PERMANENT = ("28000", "3D000", "3F000", "42501", "42601", "42703", "42883", "42P01")
# One of each class, where a case takes seconds.
SOME = (
    "0A000",
    "22003",
    "25P04",
    "26000",
    "40001",
    "53100",
    "55P03",
    "57014",
    "72000",
    "P0001",
    "XX000",
    "XX001",
)


@pytest.mark.parametrize("code", PASSING + PERMANENT)
def test_the_table(code: str) -> None:
    assert (code in PERMANENT) is is_permanent(psycopg.errors.lookup(code)("injected"))


def accepted(number: int, inbox: Inbox) -> bool:
    return inbox.counts.accepted == number


# Where each program speaks to the database, and with which function.
RUN = ("claim", "next_due", "record", "heartbeat", "reserve", "bell_lock", "request_sleep", "sleep_lock")
COLLECTOR = ("claim", "settle", "next_due")


@pytest.mark.slow
@pytest.mark.parametrize("code", SOME)
def test_run_goes_on(db: Db, ses: InboxServer, start: Start, code: str) -> None:
    """A refusal in one place after the other, while mail comes in."""
    worker = start()
    worker.wait_for_log("run.started")
    for number, function in enumerate(("claim", "record", "reserve"), 1):
        refuse(db, function, code, 2)
        sign_up(db, f"u{number}")
        ses.wait_for(partial(accepted, number))
        wait_until(db, UNSETTLED, 0)
    assert worker.process.poll() is None
    assert f"injected (SQLSTATE {code})" in worker.log()
    assert "database.lost" not in worker.log()
    assert 0 == worker.stop()


@pytest.mark.slow
@pytest.mark.parametrize("function", RUN)
def test_run_goes_on_after_a_refusal_of_each_function(
    db: Db, ses: InboxServer, start: Start, function: str
) -> None:
    refuse(db, function, "XX000", 2)
    worker = start()
    sign_up(db, "zoe")
    ses.wait_for(lambda inbox: inbox.counts.accepted == 1)
    wait_until(db, UNSETTLED, 0)
    worker.wait_for_log("injected (SQLSTATE XX000)")
    assert 0 == worker.stop()


@pytest.mark.slow
@pytest.mark.parametrize("code", SOME)
def test_the_collector_goes_on(db: Db, database: str, tmp_path: Path, code: str) -> None:
    for function in COLLECTOR:
        refuse(db, function, code, 1)
    with CollectorProcess(database, log=tmp_path / "log") as collector:
        sign_up(db, "zoe")
        collector.wait_for_messages(1)
        wait_until(db, UNSETTLED, 0)
        assert f"injected (SQLSTATE {code})" in collector.log()
        assert 0 == collector.stop()


@pytest.mark.slow
@pytest.mark.parametrize("code", ["42501", "42883"])
def test_what_cannot_pass_ends_a_worker(
    db: Db, database: str, start: Start, tmp_path: Path, code: str
) -> None:
    refuse(db, "claim", code, 1000)
    worker = start()
    worker.process.wait(30)
    assert 78 == worker.process.returncode
    assert "Try: " in worker.log()
    with CollectorProcess(database, log=tmp_path / "log") as collector:
        assert 78 == collector.wait()


@pytest.mark.parametrize("code", PASSING)
def test_status_says_to_run_it_again(db: Db, database: str, code: str) -> None:
    refuse(db, "overview", code, 1)
    env = environment(database)
    refused = commands.run("status", env=env)
    assert 75 == refused.returncode
    assert "injected" in refused.stderr
    assert 0 == commands.run("status", env=env).returncode


@pytest.mark.parametrize("code", ["0A000", "22003", "40001", "57014", "XX000"])
def test_the_console_shows_the_reason_and_comes_back(db: Db, database: str, code: str) -> None:
    with ConsoleServer(QueueSettings(database, "token_insert")) as console:
        assert 200 == ask(console.url, "/").status
        refuse(db, "dead_letters", code, 2)
        assert "injected" in ask(console.url, "/dead").text
        while "injected" in ask(console.url, "/dead").text:
            pass
        assert 200 == ask(console.url, "/dead").status


@pytest.mark.slow
@pytest.mark.parametrize("code", ["0A000", "22003", "57014", "XX000"])
def test_a_probe_tells_the_reason_and_comes_back(db: Db, start: Start, code: str) -> None:
    refuse(db, "pulse", code, 1)
    port = free_port()
    start(HTTP=port).wait_for_log("run.started")
    found = readiness(port)
    while found is None or "worker" in found or "listener" in found:
        found = readiness(port)
    assert f"injected (SQLSTATE {code})" in found["database"]
    while readiness(port):
        pass
