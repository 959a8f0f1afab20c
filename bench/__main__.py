"""``python -m bench [--tokens N] [--json]``: drain a backlog, start the command line, print a table."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psycopg

from mailroom import migrate
from mailroom.demo.postgres import PostgresServer

LIMITS = (10, 50, 1000)
COPIES = 3
STARTS = 10

JOIN = """
COPY (SELECT t.id, t.action, a.email, a.login, t.secret, t.code
      FROM tokens t JOIN accounts a ON a.id = t.account
      WHERE t.consumed_at IS NULL AND t.expires_at > now()
      ORDER BY t.txid, t.id) TO STDOUT
"""


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    options.add_argument("--tokens", type=int, default=100_000, help="how many wait (default 100000)")
    options.add_argument("--json", action="store_true", help="print JSON")
    arguments = options.parse_args()

    tell(f"PostgreSQL with fsync and synchronous_commit on, {arguments.tokens:,} tokens waiting …")
    with PostgresServer() as server, migrate.connected(server.url()) as connection:
        migrate.up(connection, None, lambda _: None)
        connection.execute(
            "INSERT INTO accounts (email, login) SELECT 'user' || g || '@example.com', 'login' || g"
            " FROM generate_series(1, %s) g",
            [arguments.tokens],
        )
        connection.execute("VACUUM ANALYZE")
        rows = []
        for limit in LIMITS:
            tell(f"  limit {limit}")
            copy_rate = arguments.tokens / min(copy_seconds(connection) for _ in range(COPIES))
            fill_again(connection)
            rate, peak_mb = drain(server.url(), limit, arguments.tokens)
            rows.append(
                {
                    "limit": limit,
                    "tokens_per_s": round(rate),
                    "copy_tokens_per_s": round(copy_rate),
                    "ratio": round(rate / copy_rate, 3),
                    "peak_mb": round(peak_mb, 1),
                }
            )
    help_s = min(help_seconds() for _ in range(STARTS))
    if arguments.json:
        print(json.dumps({"drain": rows, "help_s": round(help_s, 3)}))
        return
    print(f"{'limit':>6} {'tokens/s':>10} {'COPY/s':>10} {'ratio':>6} {'peak MB':>8}")
    for row in rows:
        print(
            "{limit:>6} {tokens_per_s:>10,} {copy_tokens_per_s:>10,} {ratio:>6.2f} {peak_mb:>8}".format(**row)
        )
    print(f"mailroom --help: {help_s * 1000:.0f} ms (the best of {STARTS})")


def tell(text: str) -> None:
    print(text, file=sys.stderr)


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


def help_seconds() -> float:
    """How long ``mailroom --help`` takes."""
    started = time.perf_counter()
    subprocess.run(
        [str(Path(sys.executable).with_name("mailroom")), "--help"], stdout=subprocess.DEVNULL, check=True
    )
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
