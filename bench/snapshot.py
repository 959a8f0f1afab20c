"""Measures throughput while another transaction holds a snapshot, at REPEATABLE READ.

PostgreSQL can then remove no dead row from any table, and a queue whose rows die with every job slows down.
pgbench's clients insert tokens, ten per transaction, as fast as they can. ``mailroom run`` (with the debug
transport) or the collector takes them. The rate covers the time from the clients' start to the last token.
Then the queue's own tables are examined.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from operator import itemgetter
from statistics import median
from typing import Any, Final

import psycopg

from bench import database
from bench.memory import sinking
from bench.options import Options
from bench.programs import Reader
from bench.tell import tell
from mailroom.demo.postgres import PostgresServer, ending_with_us

CLIENTS: Final = 4
PER_TRANSACTION: Final = 10
MAX_S: Final = 600.0
STATISTICS_S: Final = 2.0  # until the other sessions have reported their counts

SIGN_UPS: Final = """
\\set n random(1, 9223372036854775000)
INSERT INTO accounts (email, login)
SELECT 'user' || :n || '.' || g || '@example.com', 'login' || :n || '.' || g FROM generate_series(1, 10) g
"""


def measure(options: Options) -> dict[str, Any]:
    """For each command, a row without and a row with a held snapshot."""
    tokens, rounds = options.sized((200_000, 3), (10_000, 1))
    rows: list[dict[str, Any]] = []
    with database.durable(counting=True) as server:
        script = server.folder / "sign_ups.sql"
        script.write_text(SIGN_UPS)
        script.chmod(0o644)
        for command in ("collector", "run"):
            found: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
            for _ in range(rounds):
                for held, flows in found.items():
                    flows.append(flow(server, command, held, tokens, str(script)))
                    tell(
                        f"{command}, snapshot {'held' if held else 'not held'}:"
                        f" {flows[-1]['tokens_per_s']:,} tokens/s, {flows[-1]['dead']:,} dead rows"
                    )
            rows += [{"command": command, "held": held} | middle(flows) for held, flows in found.items()]
            # A ratio compares rates of one round, since a slow phase of the machine affects both.
            rows[-1]["ratio"] = round(
                median(
                    held["tokens_per_s"] / free["tokens_per_s"]
                    for free, held in zip(found[False], found[True], strict=True)
                ),
                3,
            )
    return {"tokens": tokens, "rounds": rounds, "rows": rows}


def middle(flows: list[dict[str, Any]]) -> dict[str, Any]:
    """The round with the median rate."""
    return sorted(flows, key=itemgetter("tokens_per_s"))[len(flows) // 2]


def flow(server: PostgresServer, command: str, held: bool, tokens: int, script: str) -> dict[str, Any]:
    """Run all tokens through, and examine the tables that remain."""
    url = database.make(server, "flowing")
    with (
        database.connected(url) as connection,
        holding(url) if held else nullcontext(),
        sinking(command, url, BATCH_TIMEOUT=0) as process,
    ):
        database.count_statements(connection)
        reader = Reader(process)
        started = time.monotonic()
        clients = subprocess.Popen(
            pgbench(server, tokens // PER_TRANSACTION // CLIENTS, script),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        try:
            thirds = [claims_in(connection)]
            gone = 0
            while gone < tokens:
                time.sleep(0.1)
                gone = reader.count if command == "collector" else database.attempts(connection)
                if gone * 3 >= tokens * len(thirds):
                    thirds.append(claims_in(connection))
                if time.monotonic() - started > MAX_S or process.poll() is not None:
                    raise TimeoutError(f"{command}: {gone:,} of {tokens:,} tokens in {MAX_S:.0f} s")
            seconds = time.monotonic() - started
        finally:
            clients.terminate()
            clients.wait()
        time.sleep(STATISTICS_S)
        tables = database.own_tables(connection)
    database.drop(server, "flowing")
    first, last = (one - before for before, one in (thirds[:2], thirds[-2:]))
    return {
        "tokens_per_s": round(tokens / seconds),
        "claim_ms_first": round(first / tokens * 3000, 2),
        "claim_ms_last": round(last / tokens * 3000, 2),
        "dead": sum(table["dead"] for table in tables.values()),
        "dead_per_1000": round(sum(table["dead"] for table in tables.values()) / tokens * 1000, 1),
        "queue_kb": round(sum(tables[name]["bytes"] for name in tables if "deliveries" not in name) / 1024),
        "tables": tables,
    }


def pgbench(server: PostgresServer, transactions: int, script: str) -> list[str]:
    return ending_with_us(
        [
            str(server.bindir / "pgbench"), "--no-vacuum", "--protocol=prepared", f"--client={CLIENTS}",
            "--jobs=2", f"--transactions={transactions}", f"--file={script}", f"--port={server.port}",
            f"--host={server.folder}", "--username=postgres", "flowing",
        ]
    )  # fmt: skip


def claims_in(connection: psycopg.Connection) -> float:
    """The milliseconds that claims have taken so far."""
    return database.statements(connection, "mailroom.claim(")[1]


@contextmanager
def holding(url: str) -> Iterator[None]:
    """Hold a transaction open with its snapshot."""
    with psycopg.connect(url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SELECT count(*) FROM accounts")
        yield
