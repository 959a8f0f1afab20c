"""``mailroom collector`` as a process: what comes out, when, and how it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from mailroom import verify
from support.doorbell import wait_for_holder
from support.messages import ACTIVATION, decoded
from support.processes import KEY, OWN, CollectorProcess, environment, with_password
from support.queue_sql import Db, claim, sign_up, sign_up_many

Start = Callable[..., CollectorProcess]


@pytest.fixture
def start(database: str, tmp_path: Path) -> Iterator[Start]:
    """Starts collectors on the test's database, and ends those that still run."""
    with contextlib.ExitStack() as stack:

        def start_one(url: str = database, level: str = "info", **variables: str | int) -> CollectorProcess:
            log = tmp_path / f"log-{time.monotonic_ns()}"
            return stack.enter_context(CollectorProcess(url, log=log, level=level, **variables))

        yield start_one


def backlog(db: Db) -> tuple[int, int]:
    row = db.execute("SELECT waiting, in_flight FROM mailroom.backlog()").fetchone()
    assert row
    return row[0], row[1]


def sessions(db: Db) -> list[tuple[str, str]]:
    return db.execute(
        "SELECT state, query FROM pg_stat_activity"
        " WHERE application_name = 'mailroom collector' AND datname = current_database()"
    ).fetchall()


def test_a_committed_account_comes_out_as_a_signed_line(db: Db, start: Start) -> None:
    collector = start().wait_until_listening()
    sign_up(db, "zoë")
    (message,) = collector.wait_for_messages(1)
    assert (ACTIVATION, "zoë@example.com", "zoë") == message[:3]
    secret = verify(message.token, "activation", keys=KEY)
    assert [(secret, message.code)] == db.execute("SELECT secret, code FROM tokens").fetchall()
    assert 0 == collector.stop()
    assert (0, 0) == backlog(db)


def test_forty_two_accounts_of_one_statement_go_out_at_once(db: Db, start: Start) -> None:
    collector = start(BATCH_TIMEOUT=60_000)
    wait_for_holder(db, "sleep_lock")
    sign_up_many(db, 42)
    collector.wait_for_messages(42)
    assert [10, 10, 10, 10, 2] == [len(decoded(line)) for line in collector.lines]


def test_forty_two_accounts_of_one_transaction_go_out(database: str, start: Start) -> None:
    """Forty-two statements, whose identical notifications PostgreSQL folds into one."""
    collector = start(BATCH_TIMEOUT=300).wait_until_listening()
    with psycopg.connect(database) as writer:
        for number in range(42):
            sign_up(writer, f"u{number}")
    assert 42 == len(set(collector.emails()) | {message.email for message in collector.wait_for_messages(42)})
    assert [10, 10, 10, 10, 2] == [len(decoded(line)) for line in collector.lines]


@pytest.mark.slow
def test_ten_thousand_accounts_of_one_transaction_go_out(db: Db, start: Start) -> None:
    collector = start(BATCH_TIMEOUT=60_000)
    wait_for_holder(db, "sleep_lock")
    sign_up_many(db, 10_000)
    collector.wait_for_messages(10_000)
    assert 10_000 == len(set(collector.emails()))
    assert 0 == collector.stop()
    assert (0, 0) == backlog(db)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 7, 11, 64, 1000])
def test_any_batch_limit_is_kept(db: Db, start: Start, limit: int) -> None:
    sign_up_many(db, 300)
    collector = start(BATCH_LIMIT=limit)
    collector.wait_for_messages(300)
    sizes = [len(decoded(line)) for line in collector.lines]
    assert [limit] * (300 // limit) == [size for size in sizes if size == limit]
    assert 300 == sum(sizes)


def test_a_batch_waits_for_its_time_and_not_longer(db: Db, start: Start) -> None:
    sign_up(db, "caught up")
    collector = start(BATCH_TIMEOUT=1500)
    collector.wait_for_messages(1)  # so it listens, and what follows is heard
    started = time.monotonic()
    for number in range(5):
        sign_up(db, f"u{number}")
    collector.wait_for_messages(6)
    assert 1.4 < time.monotonic() - started
    assert [1, 5] == [len(decoded(line)) for line in collector.lines]


def test_a_timeout_of_zero_is_at_once(db: Db, start: Start) -> None:
    collector = start(BATCH_TIMEOUT=0, BATCH_LIMIT=1000).wait_until_listening()
    for number in range(5):
        sign_up(db, f"u{number}")
        collector.wait_for_messages(number + 1)
    assert [1] * 5 == [len(decoded(line)) for line in collector.lines]


def test_what_was_committed_while_it_was_away_is_caught_up(db: Db, start: Start) -> None:
    sign_up_many(db, 25, "before")
    first = start()
    first.wait_for_messages(25)
    assert 0 == first.stop()
    sign_up_many(db, 25, "between")
    second = start()
    assert 25 == len(second.wait_for_messages(25))
    assert not set(first.emails()) & set(second.emails())


def test_late_commit_is_sent_while_others_flow(database: str, db: Db, start: Start) -> None:
    db.execute("ALTER TABLE tokens ALTER COLUMN id SET CACHE 50")
    collector = start(BATCH_TIMEOUT=0).wait_until_listening()
    with psycopg.connect(database) as late:
        with late.transaction(force_rollback=True):
            sign_up(late, "undone")
        sign_up(late, "late")
        with late.transaction():
            sign_up(late, "savepoint")
        for number in range(30):
            sign_up(db, f"u{number}")
            collector.wait_for_messages(number + 1)  # nobody waits for the late one
        db.execute(
            "INSERT INTO tokens (id, action, account) SELECT -5, 'activation', max(id) FROM accounts"
        )  # below the cursor
        collector.wait_for_messages(31)
        late.commit()
    emails = [message.email for message in collector.wait_for_messages(33)]
    assert {"late@example.com", "savepoint@example.com"} == set(emails[31:])
    assert "undone@example.com" not in emails


def test_two_collectors_share_a_queue_and_repeat_nothing(db: Db, start: Start) -> None:
    one, two = start(BATCH_TIMEOUT=10), start(BATCH_TIMEOUT=10)
    one.wait_until_listening()
    two.wait_until_listening()
    for round_ in range(60):
        sign_up_many(db, 50, f"r{round_}-")
    deadline = time.monotonic() + 60
    while len(one.messages) + len(two.messages) < 3000 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (0, 0) == (one.stop(), two.stop())
    emails = one.emails() + two.emails()
    assert (3000, 3000) == (len(emails), len(set(emails)))
    assert (0, 0) == backlog(db)


@pytest.mark.slow
def test_a_sleeper_takes_over_what_another_worker_left(db: Db, start: Start) -> None:
    """Nobody rings when a lease falls due: the sleeper knows the time from its last look."""
    sign_up(db, "caught up")
    collector = start(BATCH_TIMEOUT=1000)
    collector.wait_for_messages(1)
    sign_up(db, "left behind")
    (lease,) = claim(db, worker="ghost", lease_ms=2500)
    assert 1 == len(lease.tokens)
    assert "left behind" == collector.wait_for_messages(2)[1].username


@pytest.mark.slow
def test_a_quiet_collector_asks_nothing(db: Db, start: Start) -> None:
    """No polling: with nothing to do, no statement reaches PostgreSQL."""
    collector = start(BATCH_TIMEOUT=0).wait_until_listening()
    sign_up(db, "a")
    collector.wait_for_messages(1)
    query = (
        "SELECT state, query, query_start FROM pg_stat_activity"
        " WHERE application_name = 'mailroom collector' AND datname = current_database() ORDER BY pid"
    )
    settled = time.monotonic() + 0.5
    before = db.execute(query).fetchall()
    while time.monotonic() < settled:
        before = db.execute(query).fetchall()
    assert {"idle"} == {row[0] for row in before}
    quiet = time.monotonic() + 2
    while time.monotonic() < quiet:
        assert before == db.execute(query).fetchall()


def test_hostile_logins_forge_no_rows(db: Db, start: Start) -> None:
    logins = ["a,1,b@c,d", '"', '","', 'x","1', "2,evil@example.com,evil", "\\n", "'; DROP TABLE"]
    for login in logins:
        db.execute(
            "INSERT INTO accounts (email, login) VALUES (%s, %s)", [f"{len(login)}@{login[:1]}", login]
        )
    messages = start().wait_for_messages(len(logins))
    assert sorted(logins) == sorted(message.username for message in messages)


def test_what_no_line_can_hold_is_rejected_by_id_and_its_neighbours_go_out(db: Db, start: Start) -> None:
    db.execute("ALTER TABLE accounts DROP CONSTRAINT accounts_login_printable")
    db.execute("ALTER TABLE tokens DROP CONSTRAINT tokens_sound")
    sign_up_many(db, 3)
    db.execute("INSERT INTO accounts (email, login) VALUES ('evil@example.com', %s)", ["a\nb"])
    ((evil,),) = db.execute("SELECT max(id) FROM tokens").fetchall()
    sign_up_many(db, 3, "more")
    collector = start(BATCH_LIMIT=100)
    messages = collector.wait_for_messages(6)
    collector.wait_for_log(f"collector.rejected token={evil}")
    assert 0 == collector.stop()
    assert all("\n" not in message.username for message in messages)
    assert (0, 0) == backlog(db)
    assert "a\\nb" not in collector.log()


def test_an_action_that_is_added_meanwhile_is_written(db: Db, start: Start) -> None:
    collector = start().wait_until_listening()
    sign_up(db, "a")
    collector.wait_for_messages(1)
    db.execute("ALTER TYPE token_action ADD VALUE 'join'")
    db.execute("INSERT INTO mailroom.actions (action, number, prefix) VALUES ('join', 30, '/join')")
    db.execute("INSERT INTO tokens (action, account) SELECT 'join', id FROM accounts")
    _, message = collector.wait_for_messages(2)
    assert 0 == collector.stop()
    assert (OWN, "a@example.com", "a") == message[:3]
    assert [(verify(message.token, OWN, keys=KEY),)] == db.execute(
        "SELECT secret FROM tokens WHERE action = 'join'"
    ).fetchall()
    assert (0, 0) == backlog(db)


def test_an_action_that_cannot_be_used_affects_no_other(db: Db, start: Start) -> None:
    for name in ("../up", "odd"):
        db.execute(f"ALTER TYPE token_action ADD VALUE '{name}'".encode())
    db.execute(
        "INSERT INTO mailroom.actions (action, number, prefix, fields) VALUES ('../up', 30, '/up', '{}'),"
        " ('odd', 31, '/odd', '{login_html}')"
    )
    sign_up(db, "a")
    db.execute("INSERT INTO tokens (action, account) SELECT '../up', id FROM accounts")
    collector = start()
    collector.wait_for_messages(1)
    collector.wait_for_log("actions.unusable action=../up")
    collector.wait_for_log("actions.unusable action=odd")
    collector.wait_for_log("collector.unknown_action token=2 action=../up")
    sign_up(db, "b")
    collector.wait_for_messages(2)
    assert 0 == collector.stop()
    assert (0, 1) == backlog(db)


def test_what_five_fields_cannot_carry_stays_and_json_carries_it(db: Db, start: Start) -> None:
    sign_up(db, "a")
    db.execute("UPDATE tokens SET expires_at = expires_at + interval '1 hour'")
    db.execute("INSERT INTO accounts (email, login, locale) VALUES ('b@example.com', 'b', 'de')")
    collector = start()
    collector.wait_for_messages(1)
    collector.wait_for_log('collector.not_carried count=1 actions="activation 1"')
    collector.wait_for_log("MAILROOM_LINE_FORMAT=json")
    assert 0 == collector.stop()
    assert (0, 1) == backlog(db)
    with start(LINE_FORMAT="json") as carrying:
        (german,) = carrying.wait_for_messages(1)
        assert ("b@example.com", "de") == (german.email, german.locale)
        assert carrying.lines[0].startswith(b'{"mails": [{"action": 1, ')
        assert 0 == carrying.stop()
    assert (0, 0) == backlog(db)


def test_the_lines_are_all_that_is_on_standard_output(db: Db, start: Start) -> None:
    sign_up_many(db, 30)
    collector = start(level="debug")
    collector.wait_for_messages(30)
    assert 0 == collector.stop()
    assert (b"", 30) == (collector.torn, sum(len(decoded(line)) for line in collector.lines))


def test_no_secret_is_ever_logged(db: Db, start: Start, database: str) -> None:
    sign_up_many(db, 30)
    url, password = with_password(database)
    collector = start(url=url, level="debug")
    messages = collector.wait_for_messages(30)
    assert 0 == collector.stop()
    for secret in [KEY, password, *(part for message in messages for part in message[1:4])]:
        assert secret not in collector.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_nothing_left_leased(db: Db, start: Start, number: signal.Signals) -> None:
    collector = start().wait_until_listening()
    sign_up_many(db, 30)
    collector.wait_for_messages(30)
    collector.process.send_signal(number)
    assert 0 == collector.wait()
    assert (0, 0) == backlog(db)
    deadline = time.monotonic() + 10
    while sessions(db) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [] == sessions(db)


class Piped:
    """A collector whose standard output nobody reads until the test does."""

    def __init__(self, url: str, log: Path, **variables: str | int) -> None:
        self.reader, writer = os.pipe()
        self._log = log
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mailroom", "collector"],
                stdout=writer,
                stderr=stderr,
                stdin=subprocess.DEVNULL,
                env=environment(url, **variables),
            )
        os.close(writer)

    def log(self) -> str:
        return self._log.read_text()

    def wait_until_stuck(self, db: Db) -> None:
        """Wait until the pipe is full: leases are held, and nothing moves."""
        deadline = time.monotonic() + 30
        last: tuple[int, int] = (0, 0)
        while time.monotonic() < deadline:
            now = backlog(db)
            if now == last and now[1] > 0:
                return
            last = now
            time.sleep(0.3)
        raise AssertionError(f"the pipe never filled: {last}, {self.log()}")

    def read_rest(self) -> bytes:
        with os.fdopen(self.reader, "rb") as stream:
            return stream.read()


@pytest.fixture
def piped(database: str, tmp_path: Path) -> Iterator[Callable[..., Piped]]:
    with contextlib.ExitStack() as stack:

        def start_one(**variables: str | int) -> Piped:
            one = Piped(database, tmp_path / "piped", **variables)
            stack.callback(one.process.wait, 10)
            stack.callback(one.process.kill)
            return one

        yield start_one


@pytest.mark.slow
def test_a_slow_reader_blocks_it_without_a_transaction_and_keeps_its_leases(
    db: Db, piped: Callable[..., Piped]
) -> None:
    sign_up_many(db, 3000)
    collector = piped(BATCH_LIMIT=100)
    collector.wait_until_stuck(db)
    (first,) = db.execute("SELECT min(due_at) FROM mailroom.leases").fetchall()
    assert {"idle"} == {state for state, _ in sessions(db)}  # and not "idle in transaction"
    deadline = time.monotonic() + 30
    while db.execute("SELECT min(due_at) FROM mailroom.leases").fetchall() == [first]:
        assert time.monotonic() < deadline, "the leases were not renewed"
        time.sleep(0.05)
    seen: list[str] = []
    with os.fdopen(collector.reader, "rb") as stream:
        while len(seen) < 3000:
            seen += [message.email for message in decoded(stream.readline())]
        assert 3000 == len(set(seen))
        collector.process.terminate()
        assert 0 == collector.process.wait(30)
    assert (0, 0) == backlog(db)


@pytest.mark.parametrize("read_bytes", [0, 1, 40_000, 300_000])
def test_a_reader_that_dies_loses_nothing_but_what_it_had_read(
    db: Db, piped: Callable[..., Piped], read_bytes: int
) -> None:
    sign_up_many(db, 3000)
    collector = piped(BATCH_LIMIT=20)
    collector.wait_until_stuck(db)
    read = b""
    while len(read) < read_bytes:
        read += os.read(collector.reader, read_bytes - len(read))
    os.close(collector.reader)
    assert 69 == collector.process.wait(30)
    assert "Error: the reader of standard output is gone" in collector.log()
    assert "Try:" in collector.log()
    assert "Traceback" not in collector.log()
    # What is not settled is due at once, and is just what was not in a line read whole.
    ((due,),) = db.execute("SELECT count(*) FROM mailroom.leases WHERE due_at > clock_timestamp()").fetchall()
    assert 0 == due, collector.log()
    lines = read[: read.rfind(b"\n") + 1].splitlines(keepends=True)
    taken = [message.email for line in lines for message in decoded(line)]
    assert 3000 == len(taken) + sum(backlog(db))
    rest = {row[0] for row in db.execute("SELECT unnest(emails) FROM mailroom.claim('x', 3000, 3000, 60000)")}
    assert 3000 == len(rest | set(taken))


def test_a_reader_that_leaves_an_idle_collector_ends_it(
    db: Db, piped: Callable[..., Piped], database: str
) -> None:
    collector = piped()
    deadline = time.monotonic() + 30
    while "collector.started" not in collector.log() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.close(collector.reader)
    assert 69 == collector.process.wait(30)
    assert "the reader of standard output is gone" in collector.log()


def test_a_signal_while_the_pipe_is_full_gives_back_what_was_not_read(
    db: Db, piped: Callable[..., Piped]
) -> None:
    sign_up_many(db, 3000)
    collector = piped(BATCH_LIMIT=100)
    collector.wait_until_stuck(db)
    collector.process.terminate()
    deadline = time.monotonic() + 30
    while "collector.stopping" not in collector.log() and time.monotonic() < deadline:
        time.sleep(0.01)
    written = [message.email for line in collector.read_rest().splitlines(True) for message in decoded(line)]
    assert 0 == collector.process.wait(30)
    waiting, in_flight = backlog(db)
    assert 3000 == len(set(written)) + waiting + in_flight
    assert [(in_flight,)] == db.execute(
        "SELECT coalesce(sum(cardinality(tokens)), 0) FROM mailroom.leases WHERE due_at <= clock_timestamp()"
    ).fetchall()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "code", "told"),
    [(100, 0, "collector.unread"), (1000, 69, "did not take the line in hand within 10 s")],
)
def test_a_reader_that_never_reads_cannot_hold_up_the_end(
    db: Db, piped: Callable[..., Piped], limit: int, code: int, told: str
) -> None:
    sign_up_many(db, 3000)
    collector = piped(BATCH_LIMIT=limit)
    collector.wait_until_stuck(db)
    collector.process.terminate()
    assert code == collector.process.wait(30)
    assert told in collector.log()
    assert [(0,)] == db.execute(
        "SELECT count(*) FROM mailroom.leases WHERE due_at > clock_timestamp()"
    ).fetchall()
    assert 3000 == sum(backlog(db))  # the pipe ends with its reader: nothing in it counts as sent


def test_a_closed_standard_output_is_told(database: str) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -m mailroom collector >&-', sys.executable],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=environment(database),
        timeout=60,
        text=True,
        check=False,
    )
    assert (69, True) == (done.returncode, "Error: standard output is closed" in done.stderr)


def test_a_full_disk_ends_it_and_loses_nothing(db: Db, database: str) -> None:
    sign_up_many(db, 30)
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mailroom", "collector"],
            stdout=full,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            env=environment(database),
            timeout=60,
            text=True,
            check=False,
        )
    assert 69 == done.returncode
    assert "cannot write to standard output: No space left on device" in done.stderr
    assert 30 == sum(backlog(db))


def test_a_line_that_did_not_fit_into_a_file_is_taken_back(db: Db, database: str, tmp_path: Path) -> None:
    sign_up_many(db, 200)
    out = tmp_path / "lines"
    with out.open("wb") as file:
        done = subprocess.run(
            # A file-size limit of 16 KiB stands in for a full disk; the signal for it is ignored.
            [
                "/bin/sh",
                "-c",
                "trap '' XFSZ; ulimit -f 32; exec \"$0\" -m mailroom collector",
                sys.executable,
            ],
            stdout=file,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            env=environment(database, BATCH_LIMIT=30),
            timeout=60,
            text=True,
            check=False,
        )
    assert (69, True) == (done.returncode, "File too large" in done.stderr)
    written = [message for line in out.read_bytes().splitlines(True) for message in decoded(line)]
    assert 0 == len(written) % 30  # whole lines, and nothing of the one that did not fit
    assert 0 < len(written) < 200
    assert sum(backlog(db)) >= 200 - len(written)
