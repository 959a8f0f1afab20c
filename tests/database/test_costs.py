"""What mailing costs, in counts: they are the same on every machine, so that CI can hold them.

A proxy between Mailroom and its server counts round trips and bytes, the server itself counts commits, rows
and write-ahead log. The bounds are what was measured and a fifth more. One that breaks has a reason: name it
in the commit that moves the bound, or fix it. Lower a bound that has become too wide.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import psycopg
import pytest
from psycopg import sql

from mailroom.demo.postgres import PostgresServer
from support.postgres import FAST, below, bindir, migrated
from support.processes import PATIENCE_S, environment

TOKENS = 5000
PER_TRANSACTION = 50
SINGLES = 100
PROTOCOL_3 = (3 << 16).to_bytes(4, "big")


@dataclass(frozen=True)
class Cost:
    """For 1,000 tokens: on the wire, and in the server.

    Attributes:
        round_trips: how often Mailroom waits for the server.
        sent_kb, received_kb: on the wire.
        commits: each is a flush of the disk.
        rows_read: by index or scan, catalogs included.
        rows_written: inserted, updated or deleted; what is updated or deleted leaves a dead row.
        wal_kb: write-ahead log.
    """

    round_trips: float
    sent_kb: float
    received_kb: float
    commits: float
    rows_read: float
    rows_written: float
    wal_kb: float


# With a deep backlog. A claim is a round trip and a commit, and writes the queue's row and the cursors of the
# lanes; claims grow from a batch to 1,000 tokens, so that their first few count here, as does the start.
# A settling is another, for 200 tokens or a batch; a lease of
# a thousand is written in pieces, for to compress it took longer. Each token
# is read with its account, once in the index and once in the table. `run` also asks for its rate, for several
# calls of 50 at once, and writes the ledger: a row, and five index entries, for each token. Two of them, the
# address and the provider's id of the mail, lie anywhere in their index. It sends a fingerprint of each (22
# bytes), the address, the template and the language.
BOUNDS = {
    #                         trips  sent  received  commits   read  written  log
    ("collector", 10): Cost(  16.6,  3.6,    215.0,    15.9,  7600,    27.8,  13),
    ("collector", 50): Cost(  15.4,  3.6,    215.0,    14.7,  7600,    22.6,  13),
    ("collector", 1000): Cost( 9.2,  3.0,    215.0,     8.5,  7600,    20.2,  12),
    ("run", 10): Cost(        60.0, 144.0,   275.0,    60.0,  9300,  1270.0, 875),
    ("run", 50): Cost(        60.0, 144.0,   275.0,    60.0,  9300,  1270.0, 875),
}  # fmt: skip
# For a token that comes alone: round trips (claim, settle, when is the next lease due, and now
# and then the bell's), bytes sent, bytes received.
ALONE = (4.2, 340, 930)


class Wiretap:
    """A proxy that counts the round trips and the bytes of PostgreSQL's protocol."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.round_trips = self.sent = self.received = 0
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        for end in self._ends:
            end.close()

    def counts(self) -> tuple[int, int, int]:
        """Round trips, bytes sent, bytes received."""
        return self.round_trips, self.sent, self.received

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target_port))
                self._ends += [client, server]
                for target, arguments in (
                    (self._requests, (client, server)),
                    (self._answers, (server, client)),
                ):
                    self._threads.append(threading.Thread(target=target, args=arguments, daemon=True))
                    self._threads[-1].start()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        unread, started = b"", False
        for data in _passed_on(client, server):
            self.sent += len(data)
            unread += data
            while len(unread) >= 8 or (started and len(unread) >= 5):
                # What comes before the start-up, and that too, has no type but a code.
                header = int(started)
                length = header + int.from_bytes(unread[header : header + 4], "big")
                if len(unread) < length:
                    break
                # The server answers when a Query or a Sync has ended what was asked.
                self.round_trips += not started or unread[:1] in (b"Q", b"S")
                started = started or unread[4:8] == PROTOCOL_3
                unread = unread[length:]

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        for data in _passed_on(server, client):
            self.received += len(data)


def _passed_on(source: socket.socket, target: socket.socket) -> Iterator[bytes]:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            yield data
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


class CountedServer:
    """A server that does nothing by itself, so that what it counts is Mailroom's."""

    def __init__(self, postgres: PostgresServer) -> None:
        self._postgres = postgres
        self.port = postgres.port

    def url(self, name: str, port: int | None = None) -> str:
        return self._postgres.url(name, port=port)

    def make(self, name: str, template: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name)))
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                    sql.Identifier(name), sql.Identifier(template)
                )
            )

    def counts(self, name: str) -> tuple[int, int, int, int]:
        """Commits, rows read, rows written, bytes of log; asked from outside of the database."""
        with psycopg.connect(self.url("postgres")) as connection:
            (row,) = connection.execute(
                "SELECT xact_commit, tup_fetched + tup_returned, tup_inserted + tup_updated + tup_deleted,"
                " (pg_current_wal_insert_lsn() - '0/0')::bigint FROM pg_stat_database WHERE datname = %s",
                [name],
            ).fetchall()
        return row[0], row[1], row[2], row[3]


@pytest.fixture(scope="module")
def server() -> Iterator[CountedServer]:
    """With two databases to clone: one is empty, in the other tokens wait."""
    with PostgresServer(bindir=bindir(), settings=FAST | {"autovacuum": "off"}, below=below()) as postgres:
        server = CountedServer(postgres)
        for name, tokens in (("empty", 0), ("filled", TOKENS)):
            server.make(name, "template1")
            migrated(server.url(name))
            with psycopg.connect(server.url(name), autocommit=True) as connection:
                for first in range(0, tokens, PER_TRANSACTION):
                    connection.execute(
                        "INSERT INTO accounts (email, login)"
                        " SELECT 'user' || g || '@example.com', 'login' || g FROM"
                        " generate_series(%s::int, %s::int) g",
                        [first, first + PER_TRANSACTION - 1],
                    )
                connection.execute("VACUUM (FREEZE, ANALYZE)")
        yield server


@contextlib.contextmanager
def mailroom(
    command: str, url: str, folder: Path, **variables: str | int
) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mailroom", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment(url, DEBUG="true", SES_OUTPUT_PATH=str(folder), **variables),
        )
    try:
        yield process
    finally:
        process.terminate()
        assert process.stdout
        process.stdout.read()
        assert 0 == process.wait(PATIENCE_S), (folder / "log").read_text()[-3000:]
        process.stdout.close()


def messages_of_collector(line: bytes) -> int:
    return (line.count(b",") + 1) // 5


def messages_of_run(line: bytes) -> int:
    return len(json.loads(line)["request"]["Destinations"])


COUNTERS: dict[str, Callable[[bytes], int]] = {"collector": messages_of_collector, "run": messages_of_run}


def measure(server: CountedServer, command: str, limit: int, folder: Path) -> Cost:
    """Drain the filled database."""
    name = f"{command}_{limit}"
    server.make(name, "filled")
    before = server.counts(name)
    with Wiretap(server.port) as wire:
        with mailroom(command, server.url(name, wire.port), folder, BATCH_LIMIT=limit) as process:
            assert process.stdout
            left = TOKENS
            while left:
                left -= COUNTERS[command](process.stdout.readline())
        round_trips, sent, received = wire.counts()
    commits, read, written, log = (
        after - one for after, one in zip(server.counts(name), before, strict=True)
    )
    found = (round_trips, sent / 1000, received / 1000, commits, read, written, log / 1000)
    return Cost(*(round(count * 1000 / TOKENS, 1) for count in found))


@pytest.mark.slow
@pytest.mark.parametrize(("command", "limit"), BOUNDS)
def test_a_backlog_costs_no_more_than_that(
    server: CountedServer, tmp_path: Path, command: str, limit: int
) -> None:
    bounds = asdict(BOUNDS[command, limit])
    # The collector claims what its reader takes in a tenth of a second: less at a time on a busy machine.
    for _ in range(3):
        found = asdict(measure(server, command, limit, tmp_path))
        print(f"{command} at {limit}, for 1,000 tokens: {found}")  # noqa: T201 - for who adjusts the bounds
        beyond = {name: (found[name], bound) for name, bound in bounds.items() if found[name] > bound}
        if not beyond:
            break
    assert {} == beyond


@pytest.mark.slow
def test_a_token_that_comes_alone_costs_no_more_than_that(server: CountedServer, tmp_path: Path) -> None:
    server.make("alone", "empty")
    with (
        Wiretap(server.port) as wire,
        mailroom("collector", server.url("alone", wire.port), tmp_path, BATCH_TIMEOUT=0) as process,
        psycopg.connect(server.url("alone"), autocommit=True) as connection,
    ):
        assert process.stdout
        counts = []
        for number in range(SINGLES + 1):
            connection.execute(
                "INSERT INTO accounts (email, login) VALUES (%s, %s)",
                [f"{number}@example.com", f"login{number}"],
            )
            assert f"{number}@example.com".encode() in process.stdout.readline()
            counts.append(wire.counts())
    found = [round((last - first) / SINGLES, 1) for first, last in zip(counts[0], counts[-1], strict=True)]
    print(f"alone, for each: {found}")  # noqa: T201
    assert [] == [(one, bound) for one, bound in zip(found, ALONE, strict=True) if one > bound]
