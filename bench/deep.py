"""Measures claim time and memory while a deep queue drains, as a curve.

While 1,000,000 tokens drain, it samples four times a second how many are gone, how long claims and settlings
took in the server (pg_stat_statements), and the resident memory. ``mailroom run`` drains into the debug
transport, which renders each call, prints it and accepts it, so that no provider is the bottleneck.
"""

from __future__ import annotations

import subprocess
import time
from statistics import median
from typing import Any, Final

import psycopg

from bench import database
from bench.memory import sinking
from bench.options import Options
from bench.programs import Reader, rss_mb
from bench.tell import tell

EVERY_S: Final = 0.25
MAX_S: Final = 900.0
STEPS: Final = 40  # points of the curve


def measure(options: Options) -> dict[str, Any]:
    """The curve of each command, and a row that compares its first and last quarter."""
    tokens = options.sized(1_000_000, 50_000)
    found: dict[str, Any] = {"tokens": tokens, "rows": [], "curves": {}}
    with database.durable(counting=True) as server:
        tell(f"{tokens:,} tokens: inserting")
        database.filled(server, "filled", tokens)
        for command in ("collector", "run"):
            url = database.clone(server, "filled", "drained")
            with database.connected(url) as connection, sinking(command, url) as process:
                database.count_statements(connection)
                samples = watch(command, connection, process, tokens)
            database.drop(server, "drained")
            points = curve(samples, tokens)
            found["curves"][command] = points
            found["rows"].append(summary(command, samples, points))
            tell(f"{command}: {found['rows'][-1]}")
    return found


def watch(
    command: str, connection: psycopg.Connection, process: subprocess.Popen[bytes], tokens: int
) -> list[dict[str, float]]:
    """Samples until all tokens are gone."""
    reader = Reader(process)
    samples: list[dict[str, float]] = []
    started = time.monotonic()
    while True:
        gone = reader.count if command == "collector" else database.attempts(connection)
        _, claim_ms, pages = database.statements(connection, "mailroom.claim(")
        settle = "mailroom.settle(" if command == "collector" else "mailroom.record("
        _, settle_ms, _ = database.statements(connection, settle)
        now_s = time.monotonic() - started
        samples.append(
            {
                "gone": gone, "s": now_s, "claim_ms": claim_ms, "pages": pages, "settle_ms": settle_ms,
                "rss_mb": rss_mb(process),
            }
        )  # fmt: skip
        if gone >= tokens:
            return samples
        if now_s > MAX_S or process.poll() is not None:
            raise TimeoutError(f"{command}: {gone:,} of {tokens:,} tokens after {now_s:.0f} s")
        time.sleep(EVERY_S)


def curve(samples: list[dict[str, float]], tokens: int) -> list[dict[str, float]]:
    """Rates between samples that are at least a step apart."""
    points = []
    last = next((one for one in samples if one["gone"]), samples[0])
    for sample in samples:
        passed = sample["gone"] - last["gone"]
        if passed < tokens / STEPS:
            continue
        points.append(
            {
                "gone": sample["gone"],
                "claim_ms_per_1000": round((sample["claim_ms"] - last["claim_ms"]) / passed * 1000, 3),
                "settle_ms_per_1000": round((sample["settle_ms"] - last["settle_ms"]) / passed * 1000, 3),
                "pages_per_1000": round((sample["pages"] - last["pages"]) / passed * 1000),
                "tokens_per_s": round(passed / (sample["s"] - last["s"])),
                "rss_mb": round(sample["rss_mb"], 1),
            }
        )
        last = sample
    return points


def summary(command: str, samples: list[dict[str, float]], points: list[dict[str, float]]) -> dict[str, Any]:
    """A row with the first and the last quarter of the curve."""
    quarter = max(len(points) // 4, 1)
    first, last = points[:quarter], points[-quarter:]
    begun = next(one for one in samples if one["gone"])
    done = samples[-1]["gone"] - begun["gone"]
    return {
        "command": command,
        "tokens_per_s": round(done / (samples[-1]["s"] - begun["s"])),
        "claim_ms_first": median(one["claim_ms_per_1000"] for one in first),
        "claim_ms_last": median(one["claim_ms_per_1000"] for one in last),
        "rss_mb_first": median(one["rss_mb"] for one in first),
        "rss_mb_last": median(one["rss_mb"] for one in last),
    }
