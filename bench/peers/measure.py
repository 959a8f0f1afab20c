"""Compares Mailroom with its peers at the same job, with one worker process each, on the same durable server.

The job fetches a committed account's mail (address, login, secret, code), signs it with HMAC and writes it
to a pipe. First every tuning of a peer drains a small queue; the fastest then drains the large one. Latency
runs from the commit's answer to the line, with sign-ups that come one by one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from importlib import import_module
from importlib.util import find_spec
from operator import itemgetter
from typing import Any, Final, NamedTuple

from bench import database
from bench.options import Options
from bench.programs import Reader, drain, environment, mailroom, percentiles, running
from bench.signups import sign_up
from bench.tell import tell
from mailroom.demo.postgres import PostgresServer

MAX_S: Final = 15.0  # of draining
TRIAL_S: Final = 4.0
QUIET_PER_S: Final = 40
PATIENCE_S: Final = 30.0


class Peer(NamedTuple):
    """An adapter: its module, its package, the tunings to try, and whether jobs may carry all fields."""

    name: str
    module: str
    package: str
    tunings: list[dict[str, int]]
    carries: bool = True


PEERS: Final = (
    Peer(
        "SELECT … SKIP LOCKED, one by one", "skip_locked", "psycopg", [{"batch": 1}], carries=False
    ),
    Peer(
        "SELECT … SKIP LOCKED, batches", "skip_locked", "psycopg",
        [{"batch": 10}, {"batch": 100}, {"batch": 200}, {"batch": 1000}], carries=False,
    ),
    Peer(
        "Procrastinate", "procrastinate_jobs", "procrastinate",
        [{"concurrency": 1}, {"concurrency": 10}, {"concurrency": 30}, {"concurrency": 100}],
    ),
    Peer(
        "PgQueuer", "pgqueuer_jobs", "pgqueuer",
        [
            {"managers": 1, "batch": 10}, {"managers": 1, "batch": 100}, {"managers": 1, "batch": 1000},
            {"managers": 5, "batch": 10}, {"managers": 5, "batch": 100},
        ],
    ),
)  # fmt: skip
OURS: Final = (("Mailroom collector, limit 10", 10), ("Mailroom collector, limit 1000", 1000))


def measure(options: Options) -> dict[str, Any]:
    """A row for each worker."""
    jobs, trial, singles = options.sized((50_000, 10_000, 300), (10_000, 2_000, 60))
    rows: list[dict[str, Any]] = []
    with database.durable() as server:
        database.filled(server, "filled", jobs)
        for name, limit in OURS:
            command, variables = mailroom("collector"), {"MAILROOM_BATCH_LIMIT": str(limit)}
            rows.append({"name": name, "tuning": ""} | drained(server, command, variables, jobs))
            rows[-1] |= lateness(server, command, variables, singles)
        for peer in PEERS:
            if not find_spec(peer.package):
                tell(f"{peer.name}: not installed; `make bench` installs it")
                continue
            rows += measure_peer(server, peer, jobs, singles, trial)
    best = rows[0]["jobs_per_s"]
    for row in rows[len(OURS) :]:
        row["ours_over_it"] = round(best / max(row["jobs_per_s"], 1), 2)
        tell(f"{row['name']} {row['tuning']}: {row['jobs_per_s']:,} jobs/s, p50 {row.get('p50_ms')} ms")
    return {"jobs": jobs, "versions": versions(), "rows": rows}


def measure_peer(
    server: PostgresServer, peer: Peer, jobs: int, singles: int, trial: int
) -> list[dict[str, Any]]:
    """The row of the best tuning, and a second one with all fields in the job."""
    # Not with -m: Procrastinate warns when an app is made in the main module.
    command = [sys.executable, "-c", f"from bench.peers.{peer.module} import main; main()"]
    trials = []
    for tuning in peer.tunings if len(peer.tunings) > 1 else []:
        found = drained(server, command, tuned(tuning), trial, peer=peer, max_s=TRIAL_S)
        trials.append({"tuning": tuning, "jobs_per_s": found["jobs_per_s"]})
        tell(f"{peer.name} {tuning}: {found['jobs_per_s']:,} jobs/s in a trial")
    best = max(trials, key=itemgetter("jobs_per_s"))["tuning"] if trials else peer.tunings[0]
    if trials:  # only as many as it can drain in time
        expected = max(one["jobs_per_s"] for one in trials) * MAX_S
        jobs = min(jobs, max(trial, int(expected)))
    shown = ", ".join(f"{name} {value}" for name, value in best.items())
    rows = [{"name": peer.name, "tuning": shown} | drained(server, command, tuned(best), jobs, peer=peer)]
    rows[0] |= lateness(server, command, tuned(best), singles, peer=peer) | {"trials": trials}
    if peer.carries:
        found = drained(server, command, tuned(best), jobs, peer=peer, fields=True)
        rows.append({"name": f"{peer.name}, all fields in the job", "tuning": shown} | found)
    return rows


def tuned(tuning: Mapping[str, int]) -> dict[str, str]:
    return {"MAILROOM_BENCH_TUNING": json.dumps(tuning)}


def adapter(peer: Peer) -> Any:
    return import_module(f"bench.peers.{peer.module}")


def drained(
    server: PostgresServer,
    command: list[str],
    variables: Mapping[str, str],
    jobs: int,
    *,
    peer: Peer | None = None,
    fields: bool = False,
    max_s: float = MAX_S,
) -> dict[str, Any]:
    """Jobs per second from a queue that was filled before."""
    url = database.clone(server, "filled", "peer")
    with ExitStack() as undo:
        undo.callback(database.drop, server, "peer")
        if peer:
            adapter(peer).prepare(url)
            adapter(peer).enqueue(url, jobs, fields)
        with database.connected(url) as connection:
            connection.execute("CHECKPOINT")
        process = undo.enter_context(running(command, environment(url) | dict(variables)))
        found = drain(process, jobs, max_s=max_s)
    return {"jobs_per_s": round(found.rate), "drained": found.messages}


def lateness(
    server: PostgresServer,
    command: list[str],
    variables: Mapping[str, str],
    singles: int,
    *,
    peer: Peer | None = None,
) -> dict[str, Any]:
    """The percentiles from the commit to the line, under a light load."""
    url = database.make(server, "peer")
    with ExitStack() as undo:
        undo.callback(database.drop, server, "peer")
        if peer:
            with database.connected(url) as connection:
                connection.execute("ALTER TABLE tokens DISABLE TRIGGER USER")
                connection.execute("ALTER TABLE accounts DISABLE TRIGGER USER")
            adapter(peer).prepare(url)
        settings = environment(url, BATCH_TIMEOUT=0) | dict(variables)
        process = undo.enter_context(running(command, settings))
        reader = Reader(process, times=True)
        return percentiles(late(url, reader, singles, peer.module if peer else ""))


def late(url: str, reader: Reader, singles: int, module: str) -> list[float]:
    """The latency in seconds of each sign-up except the first."""
    sign_up(url, 1, 0, "first", module)
    reader.wait_for(1, PATIENCE_S)
    found = sign_up(url, singles, QUIET_PER_S, "quiet", module)
    if not reader.wait_for(singles + 1, PATIENCE_S):
        raise TimeoutError(f"{reader.count} of {singles + 1} lines came within {PATIENCE_S:.0f} s")
    return [max(0.0, reader.times[one.email] - one.answered_s) for one in found]


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("mailroom", "procrastinate", "pgqueuer", "asyncpg", "psycopg"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
