"""``mailroom.worker``: an application runs the worker in its own event loop."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest

import mailroom
from mailroom.demo.postgres import PostgresServer, free_port
from mailroom.errors import DatabaseError, SettingsError, TemplateError
from mailroom.inbox.faults import Fault
from mailroom.inbox.server import InboxServer
from mailroom.runner import embedded
from mailroom.runner.program import CLOSE_S, Runner
from support import processes, senders
from support.processes import PATIENCE_S
from support.queue_sql import Db, sign_up, sign_up_many
from support.runs import UNSETTLED, fetch, ledger, wait_until
from support.smtp import HANG, mail_server
from support.web import wait_until_served

Make = Callable[..., dict[str, str]]
WORKERS = "SELECT count(*) FROM mailroom.workers"
IN_HAND = "SELECT count(*) FROM mailroom.leases WHERE due_at > clock_timestamp()"


@pytest.fixture
def settings(database: str, ses: InboxServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a worker's settings, on the test's database; botocore's are in the process's environment."""
    for name, value in senders.aws(ses.url).items():
        monkeypatch.setenv(name, value)

    def make(url: str = database, **variables: str | int) -> dict[str, str]:
        given = senders.environment(tmp_path / "output", **({"SEND_RATE": 10_000} | variables))
        return processes.environment(url, BATCH_TIMEOUT=0) | given

    return make


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """No task is left that was not there before."""
    before = asyncio.all_tasks()
    try:
        yield
    finally:
        assert before == asyncio.all_tasks()


async def accepted(ses: InboxServer, mails: int) -> None:
    await asyncio.to_thread(ses.wait_for, lambda inbox: inbox.counts.accepted == mails)


async def called(ses: InboxServer, calls: int) -> None:
    await asyncio.to_thread(ses.wait_for, lambda inbox: inbox.counts.calls == calls)


def logged(caplog: pytest.LogCaptureFixture, text: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while text not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def renamed(db: Db) -> None:
    """Take away a function that the next claim calls, as a wrong migration would."""
    db.execute("ALTER FUNCTION mailroom.claim RENAME TO claim_of_old")
    sign_up(db, "max")


def test_an_application_mails_while_the_context_lasts(settings: Make, db: Db, ses: InboxServer) -> None:
    async def application() -> None:
        async with nothing_left(), mailroom.worker(settings()) as worker:
            assert worker.is_running
            await asyncio.to_thread(wait_until, db, WORKERS, 1)
            token = sign_up(db, "zoe")
            await accepted(ses, 1)
            await asyncio.to_thread(wait_until, db, UNSETTLED, 0)
            assert [(token, 1, "sent")] == ledger(db)
        assert (False, None) == (worker.is_running, worker.error)

    asyncio.run(application())
    assert [(0,)] == db.execute(WORKERS).fetchall()


def test_it_reads_sess_events_too_and_leaves_nothing_behind(
    settings: Make, db: Db, ses: InboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", ses.url)

    async def application() -> None:
        async with nothing_left(), mailroom.worker(settings(EVENTS="mailroom-events")):
            sign_up(db, "zoe")
            kinds = "SELECT string_agg(kind, ' ' ORDER BY kind) FROM mailroom.events"
            await asyncio.to_thread(wait_until, db, kinds, "delivered sent")

    asyncio.run(application())
    gc.collect()
    connections = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    wait_until(db, connections, 0)


def test_an_error_of_the_events_ends_no_worker(
    settings: Make,
    db: Db,
    ses: InboxServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", ses.url)
    monkeypatch.setattr("mailroom.events.program.AGAIN_S", 0.05)
    port = free_port()
    variables = settings(EVENTS="mailroom-events", HTTP=port)

    async def application() -> None:
        async with mailroom.worker(variables) as worker:
            db.execute("ALTER FUNCTION mailroom.record_events RENAME TO record_events_of_old")
            sign_up(db, "zoe")
            await asyncio.to_thread(logged, caplog, "events.failed")
            status, text = await asyncio.to_thread(fetch, port, "/readyz")
            assert (200, True) == (status, "it has no mailroom.record_events" in text)
            db.execute("ALTER FUNCTION mailroom.record_events_of_old RENAME TO record_events")
            await asyncio.to_thread(wait_until, db, "SELECT count(*) FROM mailroom.events", 2)
            sign_up(db, "max")
            await accepted(ses, 2)
            assert worker.is_running

    asyncio.run(application())


def test_the_settings_are_the_processs_own_by_default(
    settings: Make, monkeypatch: pytest.MonkeyPatch, db: Db, ses: InboxServer
) -> None:
    for name, value in settings().items():
        monkeypatch.setenv(name, value)

    async def application() -> None:
        async with mailroom.worker():
            sign_up(db, "zoe")
            await accepted(ses, 1)

    asyncio.run(application())


def test_signals_logging_and_the_collection_of_garbage_stay_the_applications(
    settings: Make, caplog: pytest.LogCaptureFixture
) -> None:
    port, access = free_port(), logging.getLogger("uvicorn.access")
    caplog.set_level(logging.INFO, "uvicorn.access")

    def state() -> list[object]:
        root, ours, botocore = (logging.getLogger(name) for name in ("", "mailroom", "botocore"))
        return [
            *(signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)),
            *((one.level, one.propagate, tuple(one.handlers)) for one in (root, ours)),
            (botocore.level, botocore.propagate),
            (access.level, access.propagate, tuple(access.handlers)),
            (gc.get_threshold(), sys.excepthook, threading.excepthook),
            asyncio.get_running_loop().get_exception_handler(),
        ]

    async def application() -> None:
        before, frozen = state(), gc.get_freeze_count()
        async with mailroom.worker(settings(HTTP=port)):
            assert await asyncio.to_thread(fetch, port, "/livez") == (200, '{"alive":true}')
            assert before == state()
            assert frozen >= gc.get_freeze_count()  # some of them may have been freed
        assert before == state()

    access.addHandler(caplog.handler)
    try:
        asyncio.run(application())
    finally:
        access.removeHandler(caplog.handler)
    assert not [record for record in caplog.records if record.name == "uvicorn.access"]


@pytest.mark.parametrize(
    ("variables", "error"),
    [
        ({"SECRET_KEY": "too short"}, SettingsError),
        ({"TRANSPORT": "smtp://127.0.0.1:9", "APP_NAME": ""}, TemplateError),
        ({"CHANNEL_NAME": "another"}, DatabaseError),
    ],
)
def test_what_cannot_be_used_is_an_error_on_entry(
    settings: Make, variables: dict[str, str], error: type[Exception], db: Db
) -> None:
    async def application() -> None:
        async with nothing_left(), mailroom.worker(settings(**variables)):
            pytest.fail("it was entered")

    with pytest.raises(error) as raised:
        asyncio.run(application())
    assert raised.value.__notes__[0].startswith("Try: ")
    assert [(0,)] == db.execute(WORKERS).fetchall()


def test_a_database_without_the_schema_is_an_error_on_entry(settings: Make, empty_database: str) -> None:
    async def application() -> None:
        async with nothing_left(), mailroom.worker(settings(empty_database)):
            pytest.fail("it was entered")

    with pytest.raises(DatabaseError, match="lacks Mailroom's schema"):
        asyncio.run(application())


@pytest.mark.slow
def test_an_application_starts_without_its_database_and_mails_once_it_is_there(
    settings: Make,
    own_server: PostgresServer,
    ses: InboxServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(embedded, "START_S", 0.5)
    own_server.stop()

    async def application() -> None:
        async with nothing_left(), mailroom.worker(settings(own_server.url())) as worker:
            assert worker.is_running
            await asyncio.to_thread(own_server.start)
            await asyncio.to_thread(sign_up_at, own_server.url())
            await accepted(ses, 1)

    asyncio.run(application())
    assert "run.not_started within=0.5s" in caplog.messages


def test_an_application_ends_without_its_database(
    settings: Make, own_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "START_S", 0.5)
    own_server.stop()

    async def application() -> None:
        async with nothing_left(), mailroom.worker(settings(own_server.url())):
            pass

    began = time.monotonic()
    asyncio.run(application())
    assert PATIENCE_S > time.monotonic() - began


def test_a_worker_that_ends_is_logged_and_is_an_error_on_exit(
    settings: Make, db: Db, caplog: pytest.LogCaptureFixture
) -> None:
    async def application() -> None:
        async with nothing_left(), mailroom.worker(settings()) as worker:
            renamed(db)
            await asyncio.wait_for(worker.ended(), PATIENCE_S)
            assert not worker.is_running
            assert isinstance(worker.error, DatabaseError)
            (failed,) = (record for record in caplog.records if record.levelno == logging.ERROR)
            assert "run.failed reason=" in failed.getMessage()
            assert "mailroom.claim" in failed.getMessage()
            assert " hint=" in failed.getMessage()

    with pytest.raises(DatabaseError, match=r"mailroom\.claim"):
        asyncio.run(application())


def test_a_fault_of_the_worker_is_logged_with_its_traceback(
    settings: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_: Runner) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(Runner, "_keep_reporting", fail)

    async def application() -> None:
        async with nothing_left(), mailroom.worker(settings()) as worker:
            await asyncio.wait_for(worker.ended(), PATIENCE_S)

    with pytest.raises(RuntimeError, match="a fault"):
        asyncio.run(application())
    (failed,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert "run.failed reason=RuntimeError" == failed.getMessage()
    assert failed.exc_info


def test_the_applications_own_exception_is_the_one_that_is_raised(settings: Make, db: Db) -> None:
    async def application() -> None:
        async with nothing_left(), mailroom.worker(settings()) as worker:
            renamed(db)
            await asyncio.wait_for(worker.ended(), PATIENCE_S)
            raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        asyncio.run(application())


def test_workers_in_two_loops_share_the_queue(settings: Make, db: Db, ses: InboxServer) -> None:
    ready = threading.Barrier(3, timeout=PATIENCE_S)
    errors: list[BaseException] = []

    async def application() -> None:
        async with nothing_left(), mailroom.worker(settings(SEND_CONCURRENCY=2)):
            await asyncio.to_thread(ready.wait)
            await accepted(ses, 200)
            await asyncio.to_thread(ready.wait)

    def run() -> None:
        try:
            asyncio.run(application())
        except BaseException as error:  # noqa: BLE001 - it is raised below
            errors.append(error)
            ready.abort()

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    ready.wait()
    wait_until(db, WORKERS, 2)
    sign_up_many(db, 200)
    ready.wait()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not errors
    assert ({1}, 200) == (set(ses.inbox.counts.by_recipient.values()), ses.inbox.counts.accepted)
    assert [(0,)] == db.execute(WORKERS).fetchall()


@pytest.mark.parametrize("how", ["exit", "cancel", "cancel twice", "error"])
def test_the_end_during_a_call_releases_the_leases(
    settings: Make, db: Db, ses: InboxServer, how: str
) -> None:
    ses.inbox.faults.add(Fault("hang", seconds=600))
    given = settings(SHUTDOWN_TIMEOUT=600_000 if how == "cancel twice" else 200)
    inside = asyncio.Event()

    async def application() -> None:
        async with mailroom.worker(given):
            sign_up_many(db, 5)
            await called(ses, 1)
            inside.set()
            if how == "error":
                raise ValueError("its own")
            if how != "exit":
                await asyncio.Event().wait()

    async def main() -> None:
        async with nothing_left():
            task = asyncio.create_task(application())
            await inside.wait()
            if how.startswith("cancel"):
                task.cancel()
            if how == "cancel twice":
                await asyncio.wait({task}, timeout=0.2)
                assert not task.done()
                task.cancel()
            await task

    expected = {"exit": None, "error": ValueError}.get(how, asyncio.CancelledError)
    if expected:
        with pytest.raises(expected):
            asyncio.run(main())
    else:
        asyncio.run(main())
    assert [(0,)] == db.execute(IN_HAND).fetchall()
    assert [(0,)] == db.execute(WORKERS).fetchall()
    outcomes = {outcome for _, _, outcome in ledger(db)}
    assert {"unknown"} == outcomes
    ses.inbox.faults.clear()

    async def another() -> None:
        async with mailroom.worker(settings()):
            await asyncio.to_thread(wait_until, db, UNSETTLED, 0)

    asyncio.run(another())
    assert {1} == set(ses.inbox.counts.by_recipient.values())


def test_a_cancellation_on_entry_leaves_nothing(
    settings: Make, own_server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    own_server.stop()

    async def application() -> None:
        async with mailroom.worker(settings(own_server.url())):
            pytest.fail("it was entered")

    async def main() -> None:
        async with nothing_left():
            task = asyncio.create_task(application())
            await asyncio.to_thread(logged, caplog, "database.lost")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())


@pytest.mark.slow
def test_a_mail_server_that_is_slow_to_answer_does_not_block_the_applications_loop(
    settings: Make, db: Db
) -> None:
    longest_s = 0.0

    async def watch() -> None:
        nonlocal longest_s
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.01)
            longest_s, last = max(longest_s, time.monotonic() - last), time.monotonic()

    async def application(port: int) -> float:
        async with mailroom.worker(settings(TRANSPORT=f"smtp://127.0.0.1:{port}", SEND_TIMEOUT=30_000)):
            sign_up(db, "zoe")
            await asyncio.to_thread(wait_until, db, "SELECT count(*) FROM mailroom.deliveries", 1)
            watching = asyncio.create_task(watch())
            began = time.monotonic()
        watching.cancel()
        return time.monotonic() - began

    with mail_server() as server:
        server.answer("QUIT", HANG)
        took_s = asyncio.run(application(server.port))
    assert CLOSE_S + 10 > took_s
    assert CLOSE_S > longest_s


DEPLOY = Path(__file__).parents[2] / "docs" / "deploy.md"


@pytest.mark.slow
def test_the_guides_application_runs_a_worker_in_its_lifespan(
    settings: Make, db: Db, ses: InboxServer, tmp_path: Path
) -> None:
    (application,) = re.findall(r"```python\n(.*?)```", DEPLOY.read_text(), re.DOTALL)
    (tmp_path / "app.py").write_text(application)
    port, log = free_port(), tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port)],
            cwd=tmp_path,
            env=settings() | senders.aws(ses.url),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        wait_until_served(port, process, log)
        assert (200, '{"mail":true}') == fetch(port, "/healthz")
        sign_up(db, "zoe")
        ses.wait_for(lambda inbox: inbox.counts.accepted == 1)
        wait_until(db, WORKERS, 1)
        renamed(db)
        deadline = time.monotonic() + PATIENCE_S
        while (503, '{"mail":false}') != fetch(port, "/healthz"):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
    assert "run.failed reason=" in log.read_text()
    assert [(0,)] == db.execute(WORKERS).fetchall()


KILLED = """
import asyncio, mailroom

async def application():
    async with mailroom.worker():
        await asyncio.Event().wait()

asyncio.run(application())
"""


@pytest.mark.slow
def test_nothing_is_lost_when_the_application_is_killed(
    settings: Make, db: Db, ses: InboxServer, tmp_path: Path
) -> None:
    ses.inbox.faults.add(Fault("hang", seconds=600))
    sign_up_many(db, 5)
    with subprocess.Popen([sys.executable, "-c", KILLED], env=settings() | senders.aws(ses.url)) as process:
        ses.wait_for(lambda inbox: inbox.counts.calls == 1)
        process.kill()
    ses.inbox.faults.clear()

    async def another() -> None:
        async with mailroom.worker(settings()):
            await accepted(ses, 5)
            await asyncio.to_thread(wait_until, db, UNSETTLED, 0)

    asyncio.run(another())
    assert {1} == set(ses.inbox.counts.by_recipient.values())


def sign_up_at(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        sign_up(connection, "zoe")
