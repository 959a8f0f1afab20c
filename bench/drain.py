"""Measures how fast the collector drains a backlog, compared with COPY of the same join, and its memory."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import psycopg

from bench import database
from bench.options import Options
from bench.programs import drain, environment, mailroom, peak_mb, running
from bench.tell import tell

LIMITS: Final = (10, 50, 1000)
COPIES: Final = 3
STARTS: Final = 5

JOIN: Final = """
COPY (SELECT t.id, t.action, a.email, a.login, t.secret, t.code
      FROM tokens t JOIN accounts a ON a.id = t.account
      WHERE t.consumed_at IS NULL AND t.expires_at > now()
      ORDER BY t.txid, t.id) TO STDOUT
"""


def measure(options: Options) -> dict[str, Any]:
    """A row for each batch limit: the median of several runs."""
    tokens = options.sized(200_000, 50_000)
    rows = []
    with database.durable() as server:
        tell(f"{tokens:,} tokens waiting")
        database.filled(server, "filled", tokens)
        for limit in LIMITS:
            runs = []
            for _ in range(options.sized(3, 1)):
                url = database.clone(server, "filled", "drained")
                with database.connected(url) as connection:
                    copy_rate = tokens / min(copy_seconds(connection) for _ in range(COPIES))
                with running(mailroom("collector"), environment(url, BATCH_LIMIT=limit)) as process:
                    rate = drain(process, tokens).rate
                    runs.append((rate / copy_rate, rate, copy_rate, peak_mb(process)))
                database.drop(server, "drained")
            ratio, rate, copy_rate, peak = sorted(runs)[len(runs) // 2]
            rows.append(
                {
                    "limit": limit,
                    "tokens_per_s": round(rate),
                    "copy_rows_per_s": round(copy_rate),
                    "ratio": round(ratio, 3),
                    "peak_mb": round(peak, 1),
                }
            )
            tell(f"limit {limit}: {rate:,.0f} tokens/s, {ratio:.2f} of COPY")
    return {"tokens": tokens, "rows": rows, "help_s": round(min(help_seconds() for _ in range(STARTS)), 3)}


def copy_seconds(connection: psycopg.Connection) -> float:
    """The seconds that COPY takes for the same join."""
    started = time.perf_counter()
    with connection.cursor().copy(JOIN) as copy:
        while copy.read():
            pass
    return time.perf_counter() - started


def help_seconds() -> float:
    """The seconds that ``mailroom --help`` takes."""
    started = time.perf_counter()
    subprocess.run(
        [str(Path(sys.executable).with_name("mailroom")), "--help"], stdout=subprocess.DEVNULL, check=True
    )
    return time.perf_counter() - started
