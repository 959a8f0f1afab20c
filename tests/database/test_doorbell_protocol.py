"""No wake-up is lost: a search of every interleaving, and the protocol on a real server."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from mailroom.database.connection import Database
from mailroom.demo.postgres import PostgresServer
from mailroom.queue.listener import Listener
from support.doorbell import holder, wait_for_holder
from support.messages import decoded
from support.processes import PATIENCE_S, CollectorProcess, environment
from support.proxy import Proxy
from support.queue_sql import Db, sign_up, sign_up_many

# --- The protocol as a machine whose every state is visited.
#
# A token is None before its insertion; then "silent" or "rung", as its producer found SLEEP; then
# "committed"; then "claimed". A worker answers the bell ("awake", "requested", "last drain", "asleep")
# or stands in line; `hint` is what it heard and did not claim after yet.


@dataclass(frozen=True)
class ProtocolState:
    tokens: tuple[str | None, ...]
    worker: str = "awake"
    drained: bool = False  # whether its last claim came back short
    hint: bool = False
    deaths: int = 0
    rung: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Protocol:
    last_drain: bool = True
    looks: bool = True

    def steps(self, state: ProtocolState) -> Iterator[tuple[str, ProtocolState]]:
        for index, token in enumerate(state.tokens):
            if token is None:
                refused = state.worker in {"requested", "last drain", "asleep"}
                yield f"insert {index}", self._with(state, index, "rung" if refused else "silent")
            elif token in {"silent", "rung"}:
                committed = self._with(state, index, "committed")
                yield f"commit {index}", replace(committed, hint=state.hint or token == "rung")
        yield from self._worker(state)

    def _worker(self, state: ProtocolState) -> Iterator[tuple[str, ProtocolState]]:
        claimed = tuple("claimed" if token == "committed" else token for token in state.tokens)
        drained = replace(state, tokens=claimed, hint=False, drained=True)
        silent = "silent" in state.tokens
        match state.worker:
            case "awake":
                yield "claim", drained
                if state.drained:
                    yield "request", replace(state, worker="requested")
            case "requested":
                if state.hint or self.looks:
                    yield "claim", drained
                if not silent:
                    granted = "last drain" if self.last_drain else "asleep"
                    yield "granted", replace(state, worker=granted)
                yield "withdraw", replace(state, worker="awake", drained=False)
            case "last drain":
                yield "claim", replace(drained, worker="asleep")
            case "asleep":
                if state.hint:
                    yield "claim", drained
                    yield "wake", replace(drained, worker="awake", drained=False)
        if state.deaths < 2:  # its session's locks are gone, and the next in line begins with a claim
            yield "die", replace(state, worker="awake", drained=False, hint=False, deaths=state.deaths + 1)

    @staticmethod
    def _with(state: ProtocolState, index: int, token: str) -> ProtocolState:
        return replace(state, tokens=(*state.tokens[:index], token, *state.tokens[index + 1 :]))


PRODUCERS_STEPS = ("insert", "commit")


def stuck(protocol: Protocol, state: ProtocolState) -> bool:
    """Whether a committed token is not claimed, whatever the worker does, unless producers or luck help."""
    seen, waiting = {state}, deque([state])
    while waiting:
        current = waiting.popleft()
        if "committed" not in current.tokens:
            return False
        for name, following in protocol.steps(current):
            if name.split()[0] not in (*PRODUCERS_STEPS, "die", "withdraw", "wake") and following not in seen:
                seen.add(following)
                waiting.append(following)
    return True


def search(protocol: Protocol, producers: int) -> tuple[int, list[str] | None]:
    """Visit every reachable state; returns their number, and the shortest way to a lost token."""
    start = ProtocolState((None,) * producers)
    ways: dict[ProtocolState, list[str]] = {start: []}
    waiting = deque([start])
    while waiting:
        state = waiting.popleft()
        if "committed" in state.tokens and stuck(protocol, state):
            return len(ways), ways[state]
        for name, following in protocol.steps(state):
            if following not in ways:
                ways[following] = [*ways[state], name]
                waiting.append(following)
    return len(ways), None


def test_no_interleaving_loses_a_wake_up() -> None:
    states, lost = search(Protocol(), producers=4)
    assert lost is None
    assert states > 1000


def test_without_the_last_drain_one_is_lost_at_once() -> None:
    _, lost = search(Protocol(last_drain=False), producers=2)
    assert ["insert 0", "claim", "commit 0", "request", "granted"] == lost


def test_without_looking_a_long_transaction_holds_up_the_others() -> None:
    _, lost = search(Protocol(looks=False), producers=2)
    assert lost
    assert "granted" not in lost


# --- The same on a real server, with real processes.


@pytest.fixture
def start_collector(database: str, tmp_path: Path) -> Iterator[Callable[..., CollectorProcess]]:
    with contextlib.ExitStack() as stack:

        def start_one(**variables: Any) -> CollectorProcess:
            log = tmp_path / f"log{time.monotonic_ns()}"
            return stack.enter_context(CollectorProcess(database, log=log, **variables))

        yield start_one


Starts = Callable[..., CollectorProcess]


def notifications(listening: Db, seconds: float) -> list[str]:
    return [one.payload for one in listening.notifies(timeout=seconds)]


def test_producers_ring_only_a_sleeper(database: str, db: Db, start_collector: Starts) -> None:
    with psycopg.connect(database, autocommit=True) as listening:
        listening.execute("LISTEN token_insert")
        sign_up(db, "nobody-there")
        assert [] == notifications(listening, 0.2)
        collector = start_collector(BATCH_TIMEOUT=0)
        wait_for_holder(db, "sleep_lock")
        sign_up(db, "asleep")
        assert ["1"] == notifications(listening, 0.5)
        assert 2 == len(collector.wait_for_messages(2))


@pytest.mark.slow
def test_it_is_awake_under_load_and_nobody_rings(database: str, db: Db, start_collector: Starts) -> None:
    collector = start_collector(BATCH_TIMEOUT=20, BATCH_LIMIT=50)
    wait_for_holder(db, "sleep_lock")
    with psycopg.connect(database, autocommit=True) as listening:
        listening.execute("LISTEN token_insert")
        for number in range(200):
            sign_up_many(db, 20, f"n{number}-")
        heard = [text for text in notifications(listening, 0.5) if text != "wake"]
    collector.wait_for_messages(4000)
    assert len(heard) < 150
    assert len(set(collector.emails())) == 4000
    wait_for_holder(db, "sleep_lock")  # and sleeps again


def test_a_silent_token_does_not_wait_for_a_long_transaction(
    database: str, db: Db, start_collector: Starts
) -> None:
    """One that got SLEEP and stays open holds up its own mail and nobody else's."""
    collector = start_collector(BATCH_TIMEOUT=0)
    wait_for_holder(db, "bell_lock")
    with psycopg.connect(database) as long:
        deadline = time.monotonic() + PATIENCE_S
        while True:  # until it is a silent one
            sign_up_many(db, 300, f"load{time.monotonic_ns()}-")
            sign_up(long, f"long{time.monotonic_ns()}")
            if long.execute(
                "SELECT FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'"
            ).fetchall():
                break
            long.rollback()
            assert time.monotonic() < deadline
        for number in range(20):
            before = time.monotonic()
            sign_up(db, f"short{number}")
            while f"short{number}@example.com" not in collector.emails():
                assert time.monotonic() < before + 5, "a silent token waited for another's transaction"
                time.sleep(0.005)
        assert holder(db, "sleep_lock") is None


def test_another_takes_the_bell_when_its_holder_dies(db: Db, start_collector: Starts) -> None:
    first = start_collector(BATCH_TIMEOUT=0)
    held_by = wait_for_holder(db, "bell_lock")
    second = start_collector(BATCH_TIMEOUT=0).wait_until_listening()
    wait_for_holder(db, "sleep_lock")
    first.kill()
    died_at = time.monotonic()
    wait_for_holder(db, "bell_lock", other_than=held_by)
    assert time.monotonic() < died_at + 2
    sign_up(db, "zoe")
    second.wait_for_messages(1, patience_s=5)


@pytest.mark.slow
@pytest.mark.parametrize("load", [False, True])
def test_a_frozen_holder_holds_up_nobody(db: Db, start_collector: Starts, load: bool) -> None:
    frozen = start_collector(BATCH_TIMEOUT=0, BATCH_LIMIT=10)
    wait_for_holder(db, "sleep_lock")
    other = start_collector(BATCH_TIMEOUT=0, BATCH_LIMIT=10).wait_until_listening()
    if load:
        sign_up_many(db, 20_000)
        frozen.wait_for_messages(200)
    frozen.process.send_signal(signal.SIGSTOP)
    for number in range(5):
        sign_up(db, f"later{number}")
    deadline = time.monotonic() + 20
    while not {f"later{number}@example.com" for number in range(5)} <= set(other.emails()):
        assert time.monotonic() < deadline, "nobody took over"
        time.sleep(0.05)
    frozen.process.send_signal(signal.SIGCONT)


@pytest.mark.slow
def test_a_deep_backlog_wakes_the_others(db: Db, start_collector: Starts) -> None:
    collectors = [start_collector(BATCH_TIMEOUT=0, BATCH_LIMIT=10).wait_until_listening() for _ in range(3)]
    wait_for_holder(db, "sleep_lock")
    sign_up_many(db, 30_000)
    deadline = time.monotonic() + PATIENCE_S
    while sum(len(collector.messages) for collector in collectors) < 30_000:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert all(collector.messages for collector in collectors)
    emails = [email for collector in collectors for email in collector.emails()]
    assert 30_000 == len(emails) == len(set(emails))


def wait_for_email(collector: CollectorProcess, login: str, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while f"{login}@example.com" not in collector.emails():
        assert time.monotonic() < deadline, f"{login} was not printed:\n{collector.log()[-2000:]}"
        time.sleep(0.01)


def test_the_bell_is_passed_on_by_one_whose_reader_is_stuck(
    database: str, db: Db, start_collector: Starts
) -> None:
    command = [sys.executable, "-m", "mailroom", "collector"]
    stuck_one = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(database, BATCH_TIMEOUT=0))
    try:
        wait_for_holder(db, "sleep_lock")
        sign_up(db, "first")  # its reader reads nothing
        deadline = time.monotonic() + PATIENCE_S
        while db.execute("SELECT FROM mailroom.leases").fetchone() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        other = start_collector(BATCH_TIMEOUT=0, level="debug")
        other.wait_for_log("listener.listening")
        for number in range(3):
            sign_up(db, f"later{number}")
            wait_for_email(other, f"later{number}", 10)
    finally:
        stuck_one.kill()
        stuck_one.communicate()


@pytest.mark.slow
def test_a_lone_worker_that_is_stuck_does_not_run_hot(own_server: PostgresServer, tmp_path: Path) -> None:
    """Its reader reads nothing, and nobody else could take the bell."""
    with Proxy(own_server.port) as proxy:
        url = make_conninfo(own_server.url(), port=proxy.port)
        stuck_one = subprocess.Popen(
            [sys.executable, "-m", "mailroom", "collector"],
            stdout=subprocess.PIPE,
            env=environment(url, BATCH_TIMEOUT=0),
        )
        try:
            with psycopg.connect(own_server.url(), autocommit=True) as db:
                wait_for_holder(db, "sleep_lock")
                sign_up(db, "first")
                time.sleep(2)
                before = proxy.passed_on
                time.sleep(4)
                assert proxy.passed_on - before < 100
        finally:
            stuck_one.kill()
            stuck_one.communicate()


@pytest.mark.slow
def test_the_bells_session_lives_under_load(database: str, db: Db, start_collector: Starts) -> None:
    """For longer than a frozen one is left, at a rate at which nobody sleeps."""
    collector = start_collector(BATCH_TIMEOUT=10, BATCH_LIMIT=10)
    wait_for_holder(db, "sleep_lock")
    holders, until, number = set(), time.monotonic() + 8, 0
    while time.monotonic() < until:
        number += 1
        sign_up_many(db, 10, f"n{number}-")
        holders.add(holder(db, "bell_lock"))
        time.sleep(0.01)
    collector.wait_for_messages(10 * number)
    assert 1 == len(holders)
    wait_for_holder(db, "sleep_lock")  # and it sleeps again


def test_sleep_is_let_go_when_the_cancellation_comes_after_the_grant(database: str, db: Db) -> None:
    """A lock that a cancelled statement had taken stays taken: awake, nobody holds SLEEP."""

    async def scenario() -> None:
        listener = Listener(
            Database(database, program="mailroom test", answer_limit_s=30),
            channel="token_insert",
            batch_limit=10,
            batch_timeout_s=0,
            check_interval_s=30,
        )
        running = asyncio.create_task(listener.run())
        try:
            for _ in range(300):
                waiting = asyncio.create_task(listener.due(None))
                await asyncio.sleep(0.001)
                waiting.cancel()
                listener.clear()
                listener.claimed(10, more=True)
                listener.claimed(10, more=True)  # a backlog: awake
                await asyncio.sleep(0.001)
            deadline = time.monotonic() + PATIENCE_S
            while holder(db, "sleep_lock"):
                assert time.monotonic() < deadline, "it is awake and holds SLEEP"
                listener.clear()
                await asyncio.sleep(0.05)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(scenario())


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["statement_timeout", "lock_timeout", "idle_session_timeout"])
def test_limits_of_the_database_do_not_end_the_bells_session(
    database: str, db: Db, start_collector: Starts, setting: str
) -> None:
    name = conninfo_to_dict(database)["dbname"]
    db.execute(f"ALTER DATABASE \"{name}\" SET {setting} = '700ms'".encode())
    first, second = (start_collector(BATCH_TIMEOUT=0, level="debug") for _ in range(2))
    wait_for_holder(db, "sleep_lock")
    time.sleep(3)
    sign_up(db, "zoe")
    deadline = time.monotonic() + 5
    while "zoe@example.com" not in [*first.emails(), *second.emails()]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert "bell_lost" not in first.log() + second.log()


@pytest.mark.slow
def test_a_limit_of_transactions_does_not_either(database: str, db: Db, start_collector: Starts) -> None:
    if db.info.server_version < 170000:
        pytest.skip("PostgreSQL has transaction_timeout from 17 on")
    name = conninfo_to_dict(database)["dbname"]
    db.execute(f"ALTER DATABASE \"{name}\" SET transaction_timeout = '700ms'".encode())
    first, second = (start_collector(BATCH_TIMEOUT=0, level="debug") for _ in range(2))
    wait_for_holder(db, "sleep_lock")
    time.sleep(2)
    assert first.process.poll() is second.process.poll() is None
    assert "bell_lost" not in first.log() + second.log()


def test_a_nonsense_notification_is_no_end(db: Db, start_collector: Starts) -> None:
    collector = start_collector(BATCH_TIMEOUT=0)
    wait_for_holder(db, "sleep_lock")
    for payload in ("9" * 5000, "-1", "١", "", "wake", "\u2028"):
        db.execute("SELECT pg_notify('token_insert', %s)", [payload])
    sign_up(db, "zoe")
    wait_for_email(collector, "zoe", 10)


def test_a_missing_privilege_is_told(database: str, db: Db, tmp_path: Path) -> None:
    db.execute("DROP ROLE IF EXISTS mailroom_half")
    db.execute("CREATE ROLE mailroom_half LOGIN PASSWORD 'half'")
    try:
        db.execute("GRANT USAGE ON SCHEMA mailroom TO mailroom_half")
        db.execute("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA mailroom TO mailroom_half")
        db.execute("REVOKE EXECUTE ON FUNCTION mailroom.bell_lock(text) FROM mailroom_half")
        url = make_conninfo(database, user="mailroom_half", password="half")
        with CollectorProcess(url, log=tmp_path / "log") as collector:
            assert 78 == collector.wait()
            assert "GRANT mailroom_worker" in collector.log()
    finally:
        db.execute("DROP OWNED BY mailroom_half")
        db.execute("DROP ROLE mailroom_half")


@pytest.mark.slow
def test_a_killed_session_of_the_bell_comes_back(db: Db, start_collector: Starts) -> None:
    collector = start_collector(BATCH_TIMEOUT=0)
    for number in range(3):
        pid = wait_for_holder(db, "sleep_lock")
        db.execute("SELECT pg_terminate_backend(%s)", [pid])
        sign_up(db, f"u{number}")
        collector.wait_for_messages(number + 1, patience_s=10)


class Producer(threading.Thread):
    """Signs up with pauses between insert and commit; remembers when each commit was over."""

    def __init__(self, url: str, name: str, until: float) -> None:
        super().__init__(daemon=True)
        self._url, self._name, self._until = url, name, until
        self.committed: dict[str, float] = {}
        self.start()

    def run(self) -> None:
        chance = random.Random(self._name)
        with psycopg.connect(self._url) as connection:
            number = 0
            while time.monotonic() < self._until:
                number += 1
                login = f"{self._name}-{number}"
                sign_up(connection, login)
                time.sleep(chance.choice([0, 0, 0.001, 0.01, chance.uniform(0, 0.4)]))
                connection.commit()
                self.committed[f"{login}@example.com"] = time.monotonic()
                time.sleep(chance.choice([0, 0.001, 0.01, chance.uniform(0, 0.2)]))


class Clocked(CollectorProcess):
    """Remembers when each line arrived."""

    arrived: dict[str, float]

    def _read(self) -> None:
        self.arrived = {}
        assert self.process.stdout
        for line in self.process.stdout:
            now = time.monotonic()
            for message in decoded(line):
                self.arrived.setdefault(message.email, now)


@pytest.mark.slow
def test_no_token_waits_for_a_second_under_torture(
    database: str, tmp_path: Path, figures: Callable[[str], None]
) -> None:
    """Eight producers that dawdle between insert and commit, for a minute."""
    with Clocked(database, log=tmp_path / "log", BATCH_TIMEOUT=0) as collector:
        collector.wait_until_listening()
        until = time.monotonic() + 60
        producers = [Producer(database, f"p{number}", until) for number in range(8)]
        for producer in producers:
            producer.join(90)
        committed = {email: at for producer in producers for email, at in producer.committed.items()}
        deadline = time.monotonic() + PATIENCE_S
        while len(collector.arrived) < len(committed) and time.monotonic() < deadline:
            time.sleep(0.05)
    waits = sorted(collector.arrived.get(email, math.inf) - at for email, at in committed.items())
    assert len(waits) > 1000
    figures(
        f"{len(waits)} tokens: p50 {waits[len(waits) // 2] * 1000:.1f} ms,"
        f" p99 {waits[len(waits) * 99 // 100] * 1000:.1f} ms, longest {waits[-1] * 1000:.0f} ms"
    )
    assert waits[-1] < 1


@pytest.mark.slow
def test_a_request_that_ends_as_it_is_granted_says_what_it_holds(database: str, db: Db) -> None:
    held = "SELECT count(*) FROM pg_locks WHERE pid = %s AND locktype = 'advisory' AND granted"
    chance = random.Random(3)
    with psycopg.connect(database, autocommit=True) as asking:
        for _ in range(150):
            db.execute("SELECT pg_advisory_lock_shared(mailroom.sleep_lock('c'))")
            letting_go = threading.Timer(
                0.02 + chance.uniform(-0.001, 0.001),
                lambda: db.execute("SELECT pg_advisory_unlock_all()"),
            )
            letting_go.start()
            (granted,) = asking.execute("SELECT mailroom.request_sleep('c', 20)").fetchone() or (None,)
            letting_go.join()
            assert [(int(granted),)] == db.execute(held, [asking.info.backend_pid]).fetchall()
            asking.execute("SELECT pg_advisory_unlock_all()")
