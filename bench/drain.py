"""The collector: how fast it drains a backlog, beside COPY of the same join, and in how much memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg

from bench.tell import tell
from mailroom import migrate
from mailroom.demo.postgres import PostgresServer

LIMITS = (10, 50, 1000)
COPIES = 3

JOIN = """
COPY (SELECT t.id, t.action, a.email, a.login, t.secret, t.code
      FROM tokens t JOIN accounts a ON a.id = t.account
      WHERE t.consumed_at IS NULL AND t.expires_at > now()
      ORDER BY t.txid, t.id) TO STDOUT
"""


def measure(tokens: int) -> list[dict[str, Any]]:
    """A row for each batch limit."""
    tell(f"PostgreSQL with fsync and synchronous_commit on, {tokens:,} tokens waiting …")
    with PostgresServer() as server, migrate.connected(server.url()) as connection:
        migrate.up(connection, None, lambda _: None)
        connection.execute(
            "INSERT INTO accounts (email, login) SELECT 'user' || g || '@example.com', 'login' || g"
            " FROM generate_series(1, %s) g",
            [tokens],
        )
        connection.execute("VACUUM ANALYZE")
        rows = []
        for limit in LIMITS:
            tell(f"  limit {limit}")
            copy_rate = tokens / min(copy_seconds(connection) for _ in range(COPIES))
            fill_again(connection)
            rate, peak_mb = drain(server.url(), limit, tokens)
            rows.append(
                {
                    "limit": limit,
                    "tokens_per_s": round(rate),
                    "copy_tokens_per_s": round(copy_rate),
                    "ratio": round(rate / copy_rate, 3),
                    "peak_mb": round(peak_mb, 1),
                }
            )
        return rows


def copy_seconds(connection: psycopg.Connection) -> float:
    """How long COPY takes to hand out the same join."""
    started = time.perf_counter()
    with connection.cursor().copy(JOIN) as copy:
        while copy.read():
            pass
    return time.perf_counter() - started


def fill_again(connection: psycopg.Connection) -> None:
    """Make every token wait again."""
    connection.execute("TRUNCATE mailroom.leases")
    connection.execute(
        "UPDATE jobs SET low = '1:1:', high = pg_current_snapshot(), last_txid = '0', last_seq = 0"
    )
    connection.execute("UPDATE tokens SET expires_at = now() + interval '1 hour'")
    connection.execute("VACUUM ANALYZE")
    connection.execute("CHECKPOINT")


def drain(url: str, limit: int, tokens: int) -> tuple[float, float]:
    """A collector's tokens per second, from its first line to its last, and its peak memory in MB."""
    environment = os.environ | {
        "MAILROOM_DATABASE_URL": url,
        "MAILROOM_SECRET_KEY": "ab" * 32,
        "MAILROOM_BATCH_LIMIT": str(limit),
    }
    with subprocess.Popen(
        [sys.executable, "-m", "mailroom", "collector"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        env=environment,
    ) as process:
        assert process.stdout is not None
        seen = first = (process.stdout.readline().count(b",") + 1) // 5
        started = time.perf_counter()
        while seen < tokens:
            seen += (process.stdout.readline().count(b",") + 1) // 5
        seconds = time.perf_counter() - started
        status = Path(f"/proc/{process.pid}/status").read_text()
        process.terminate()
    (peak_kb,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return (seen - first) / seconds, int(peak_kb) / 1024
