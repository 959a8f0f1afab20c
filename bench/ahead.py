"""Says which other queues are ahead of Mailroom in which measurement, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from bench.results import rows

# A difference below this share is noise.
NOISE: Final = 0.05
FIELDS: Final = ", all fields in the job"
COSTS: Final = {
    "SELECT … SKIP LOCKED, one by one": "A transaction stays open during the job.",
    "SELECT … SKIP LOCKED, batches": "A transaction stays open during the batch; a kill repeats all of it.",
    "SELECT … SKIP LOCKED": "Every commit notifies, so commits wait for each other.",
    "Procrastinate": "The jobs of a killed worker wait for a periodic task that its user writes.",
    "PgQueuer": "The jobs of a killed worker wait for 30 s.",
    "River": "The jobs of a killed worker wait for an hour, unless RescueStuckJobsAfter is lower.",
    "graphile-worker": "The jobs of a killed worker stay locked for four hours.",
    "pg-boss 10": "It polls, so a job waits for up to half a second, and a batch fails as a whole.",
    "pg-boss 12": "The jobs of a killed worker wait for 15 minutes, unless expireInSeconds is lower.",
}


def ahead() -> str:
    """A list with what each queue is ahead in, and what it costs."""
    found: dict[str, list[str]] = {}
    for name, what in findings():
        found.setdefault(name, []).append(what)
    lines = [f"- {name} {'; it '.join(what)}. {COSTS.get(name, '')}".rstrip() for name, what in found.items()]
    return "\n".join(lines) or "- No other queue is ahead in these measurements."


def findings() -> Iterator[tuple[str, str]]:
    """The name of each queue that is ahead, and in what."""
    for row in rows("peers"):
        if 0 < row.get("ours_over_it", 1) < 1 - NOISE:
            what = " with all fields in the job" * row["name"].endswith(FIELDS)
            rate = f"{1 / row['ours_over_it']:.2f} × as fast as Mailroom at limit 10"
            yield row["name"].removesuffix(FIELDS), f"drains{what} {rate}"
    yield from better(
        "peers_latency", "quiet_p50_ms", "starts a job alone after {} ms at p50, Mailroom after {}"
    )
    yield from better(
        "peers_latency", "quiet_p99_ms", "starts a job alone after {} ms at p99, Mailroom after {}"
    )
    yield from better(
        "peers_latency", "busy_p50_ms", "starts a job at 100/s after {} ms at p50, Mailroom after {}"
    )
    yield from better(
        "peers_producers", "ratio_8", "leaves 8 clients {} of their commits, Mailroom {}", ours=1, more=True
    )
    yield from better(
        "peers_producers", "ratio_64", "leaves 64 clients {} of their commits, Mailroom {}", ours=1, more=True
    )
    yield from better(
        "peers_sending", "recipients_per_s", "sends to {} recipients/s, `mailroom run` to {}", more=True
    )
    yield from better(
        "peers_sending", "cpu_s_per_1000", "sends 1,000 mails with {} s of CPU, `mailroom run` with {}"
    )
    yield from better("peers_sending", "duplicates", "sends {} mails twice after a kill, `mailroom run` {}")


def better(
    bench: str, key: str, text: str, *, ours: int = 0, more: bool = False
) -> Iterator[tuple[str, str]]:
    """The queues whose value is better than that of Mailroom's row."""
    found: list[dict[str, Any]] = [row for row in rows(bench) if row.get(key) is not None]
    if len(found) <= ours:
        return
    base = found[ours][key]
    for row in found[ours + 1 :]:
        sign = -1 if more else 1
        if not row["name"].startswith("Mailroom") and sign * (row[key] - base) < -NOISE * base:
            yield row["name"], text.format(row[key], base)
