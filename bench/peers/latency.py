"""Compares the time from a commit to the line, when nobody else signs up and at 100 sign-ups a second.

Each worker has the tuning that drained fastest. The trigger on tokens enqueues the job in the transaction of
the sign-up.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Final

from bench import database
from bench.options import Options
from bench.peers.queues import Adapter, Peer, Queues, best_tuning, install, job_environment, text_of
from bench.programs import Reader, environment, mailroom, percentiles, running
from bench.results import Rows
from bench.signups import sign_up
from bench.tell import tell
from mailroom.demo.postgres import PostgresServer

QUIET_PER_S: Final = 40
BUSY_PER_S: Final = 100
PATIENCE_S: Final = 30.0


def measure(options: Options) -> dict[str, Any]:
    """A row for each worker."""
    singles = options.sized(400, 30)
    queues = Queues()
    with database.durable() as server:
        command, variables = mailroom("collector"), {"MAILROOM_BATCH_TIMEOUT": "0"}
        rows = [{"name": "Mailroom collector"} | lateness(server, command, variables, singles)]

        def measure_one(peer: Peer, adapter: Adapter) -> Rows:
            tuning = best_tuning(peer)
            found = lateness(server, adapter.command, job_environment(tuning), singles, adapter)
            tell(f"{peer.name}: {found}")
            return [{"name": peer.name, "tuning": text_of(tuning)} | found]

        for found in queues.measured(measure_one):
            rows += found
    for row in rows[1:]:
        row["quiet_ratio"] = round(row["quiet_p50_ms"] / rows[0]["quiet_p50_ms"], 2)
        row["busy_ratio"] = round(row["busy_p50_ms"] / rows[0]["busy_p50_ms"], 2)
    return {"singles": singles, "missing": queues.missing, "rows": rows}


def lateness(
    server: PostgresServer,
    command: list[str],
    variables: Mapping[str, str],
    singles: int,
    adapter: Adapter | None = None,
) -> dict[str, Any]:
    """The percentiles at both rates."""
    url = database.make(server, "late")
    with ExitStack() as undo:
        undo.callback(database.drop, server, "late")
        if adapter:
            install(url, adapter)
        process = undo.enter_context(running(command, environment(url) | dict(variables)))
        reader = Reader(process, times=True)
        quiet = percentiles(late(url, reader, singles, QUIET_PER_S))
        busy = percentiles(late(url, reader, singles, BUSY_PER_S))
    return {
        f"{name}_{key}": found[key]
        for name, found in (("quiet", quiet), ("busy", busy))
        for key in ("p50_ms", "p99_ms")
    }


def late(url: str, reader: Reader, singles: int, per_s: int) -> list[float]:
    """The latency in seconds of each sign-up except the first."""
    before = reader.count
    sign_up(url, 1, 0, f"first{per_s}n")
    reader.wait_for(before + 1, PATIENCE_S)
    found = sign_up(url, singles, per_s, f"at{per_s}n")
    if not reader.wait_for(before + singles + 1, PATIENCE_S):
        raise TimeoutError(f"{reader.count - before} of {singles + 1} lines came within {PATIENCE_S:.0f} s")
    return [max(0.0, reader.times[one.email] - one.answered_s) for one in found]
