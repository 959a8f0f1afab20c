"""PgBouncer in transaction mode: good for the application, refused by the workers, who say why."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import mailroom
from mailroom.demo.postgres import ending_with_us, free_port
from support.processes import KEY, PATIENCE_S, CollectorProcess
from support.queue_sql import Db, sign_up, sign_up_many
from support.runs import UNSETTLED, Start, wait_until

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROGRAM, reason="there is no pgbouncer: apt-get install pgbouncer"),
]

Pooled = Callable[..., str]


@contextmanager
def pgbouncer(url: str, mode: str, pool_size: int) -> Iterator[str]:
    """The same database through a pooler."""
    given = conninfo_to_dict(url)
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="mailroom-pgbouncer-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "pgbouncer.ini").write_text(f"""\
[databases]
* = host={given["host"]} port={given["port"]} user={given["user"]} password={given.get("password", "")}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {pool_size}
max_client_conn = 500
query_wait_timeout = 30
""")
        as_nobody = ["--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.geteuid() == 0 else []
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                ending_with_us([str(PROGRAM), str(folder / "pgbouncer.ini")], *as_nobody),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        address = make_conninfo(url, host="127.0.0.1", port=port)
        try:
            deadline = time.monotonic() + PATIENCE_S
            while True:
                try:
                    psycopg.connect(address).close()
                    break
                except psycopg.OperationalError:
                    if time.monotonic() > deadline or process.poll() is not None:
                        raise AssertionError((folder / "log").read_text()) from None
                    time.sleep(0.05)
            yield address
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


@pytest.fixture
def pooled(database: str) -> Iterator[Pooled]:
    with ExitStack() as stack:

        def start(mode: str = "transaction", pool_size: int = 5) -> str:
            return stack.enter_context(pgbouncer(database, mode, pool_size))

        yield start


def test_what_is_signed_up_through_it_rings_and_is_mailed(
    pooled: Pooled, database: str, db: Db, start: Start
) -> None:
    worker = start()
    worker.wait_for_log("run.started")
    asleep = (
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND granted"
    )
    wait_until(db, asleep, 2)  # the bell is ours, and we sleep: only a ring will wake us
    address = pooled(pool_size=2)
    with psycopg.connect(address, autocommit=True) as application:
        began = time.monotonic()
        sign_up(application, "zoe")
        wait_until(db, UNSETTLED, 0)
        assert time.monotonic() - began < 5  # and no look-around now and then
    with ExitStack() as stack:
        many = [stack.enter_context(psycopg.connect(address, autocommit=True)) for _ in range(20)]
        for number, connection in enumerate(many):
            sign_up_many(connection, 5, f"u{number}_")
    wait_until(db, UNSETTLED, 0)
    assert [("sent", 101)] == db.execute(
        "SELECT outcome, count(DISTINCT token) FROM mailroom.deliveries GROUP BY outcome"
    ).fetchall()
    assert 0 == worker.stop()


def test_tokens_are_consumed_through_it(pooled: Pooled, database: str, db: Db, tmp_path: Path) -> None:
    with psycopg.connect(pooled(pool_size=1), autocommit=True, prepare_threshold=None) as application:
        for number in range(10):
            sign_up(application, f"zoe{number}")
        with CollectorProcess(database, log=tmp_path / "log") as collector:
            for message in collector.wait_for_messages(10):
                assert mailroom.consume(application, message.token, message.action, keys=KEY).account
    assert [("active", 10)] == db.execute("SELECT status::text, count(*) FROM accounts GROUP BY 1").fetchall()


@pytest.mark.parametrize("pool_size", [1, 2, 20])
@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_a_collector_behind_it_says_why_it_cannot_work(
    pooled: Pooled, tmp_path: Path, mode: str, pool_size: int
) -> None:
    with CollectorProcess(pooled(mode, pool_size), log=tmp_path / "log") as collector:
        assert 78 == collector.wait()
        assert [] == collector.lines
    told = collector.log()
    assert "Error: MAILROOM_DATABASE_URL names a pooler that keeps no sessions" in told
    assert "Try: set it to PostgreSQL itself" in told
    assert "Traceback" not in told


def test_a_collector_behind_a_busy_one_says_so_too(pooled: Pooled, tmp_path: Path) -> None:
    """Others use the pooler, so that one connection meets many server processes, and some of them twice."""
    address = pooled(pool_size=4)
    with ExitStack() as stack:
        busy = [stack.enter_context(psycopg.connect(address, prepare_threshold=None)) for _ in range(3)]
        for connection in busy:
            connection.execute("SELECT 1")
        with CollectorProcess(address, log=tmp_path / "log") as collector:
            while collector.process.poll() is None:
                busy[0].commit()
                busy[0].execute("SELECT 1")
            assert 78 == collector.wait()
    assert "names a pooler" in collector.log()


def test_run_behind_it_says_why_it_cannot_work(pooled: Pooled, start: Start) -> None:
    worker = start(DATABASE_URL=pooled())
    assert 78 == worker.process.wait(PATIENCE_S)
    assert "names a pooler that keeps no sessions" in worker.log()


def test_session_mode_is_as_good_as_the_server(pooled: Pooled, db: Db, tmp_path: Path) -> None:
    with CollectorProcess(pooled("session", 20), log=tmp_path / "log") as collector:
        collector.wait_until_listening()
        sign_up(db, "zoe")
        assert "zoe" == collector.wait_for_messages(1)[0].username
        assert 0 == collector.stop()
