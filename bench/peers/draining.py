"""Compares how fast Mailroom and its peers drain a backlog, with one worker process each.

The job fetches a committed account's mail (address, login, secret, code), signs it with HMAC and writes it
to a pipe. First every tuning of a peer drains a small queue; the fastest then drains the large one.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import ExitStack
from operator import itemgetter
from typing import Any, Final

from bench import database, reference
from bench.options import Options
from bench.peers.queues import Adapter, Peer, Queues, enqueue, install, job_environment, text_of
from bench.programs import StoppedShort, drain, environment, mailroom, running
from bench.results import Rows
from bench.tell import tell
from mailroom.demo.postgres import PostgresServer

MAX_S: Final = 15.0  # of draining
TRIAL_S: Final = 4.0
OURS: Final = (("Mailroom collector, limit 10", 10), ("Mailroom collector, limit 1000", 1000))


def measure(options: Options) -> dict[str, Any]:
    """A row for each worker."""
    jobs, trial = options.sized((50_000, 10_000), (1_000, 500))
    rows: list[dict[str, Any]] = []
    queues = Queues()
    with database.durable() as server:
        database.filled(server, "filled", jobs)
        for name, limit in OURS:
            variables = {"MAILROOM_BATCH_LIMIT": str(limit)}
            rows.append({"name": name} | drained(server, mailroom("collector"), variables, jobs))
        if options.reference:
            rows.append(drained_by_reference(server, options, jobs))

        def measure_one(peer: Peer, adapter: Adapter) -> Rows:
            tunings = options.sized(peer.tunings, peer.tunings[-1:])
            return measure_peer(server, peer._replace(tunings=tunings), adapter, jobs, trial)

        for found in queues.measured(measure_one):
            rows += found
    best = rows[0]["jobs_per_s"]
    for row in rows[len(OURS) :]:
        row["ours_over_it"] = round(best / max(row["jobs_per_s"], 1), 2)
        tell(f"{row['name']} {row.get('tuning', '')}: {row['jobs_per_s']:,} jobs/s")
    versions = sorted({adapter.version for _, adapter in queues.present}, key=str.casefold)
    return {"jobs": jobs, "versions": versions, "missing": queues.missing, "rows": rows}


def measure_peer(server: PostgresServer, peer: Peer, adapter: Adapter, jobs: int, trial: int) -> Rows:
    """The row of the best tuning, and a second one with all fields in the job."""
    trials = []
    for tuning in peer.tunings if len(peer.tunings) > 1 else []:
        found = drained_by(server, adapter, tuning, trial, max_s=TRIAL_S)
        trials.append({"tuning": tuning, "jobs_per_s": found["jobs_per_s"]})
        tell(f"{peer.name} {tuning}: {found['jobs_per_s']:,} jobs/s in a trial")
    best = max(trials, key=itemgetter("jobs_per_s"))["tuning"] if trials else peer.tunings[0]
    if trials:  # only as many as it can drain in time
        expected = max(one["jobs_per_s"] for one in trials) * MAX_S
        jobs = min(jobs, max(trial, int(expected)))
    shown = {"tuning": text_of(best), "given": best}
    found = drained_by(server, adapter, best, jobs)
    rows = [{"name": peer.name, "trials": trials} | shown | found]
    if peer.carries:
        found = drained_by(server, adapter, best, jobs, fields=True)
        rows.append({"name": f"{peer.name}, all fields in the job"} | shown | found)
    return rows


def drained_by(
    server: PostgresServer,
    adapter: Adapter,
    tuning: Mapping[str, int],
    jobs: int,
    *,
    fields: bool = False,
    max_s: float = MAX_S,
) -> dict[str, Any]:
    """Jobs per second of a peer."""
    url = database.clone(server, "filled", "peer")
    with ExitStack() as undo:
        undo.callback(database.drop, server, "peer")
        install(url, adapter)
        enqueue(url, adapter, jobs, fields=fields)
        return drained_from(url, adapter.command, job_environment(tuning), jobs, max_s)


def drained(
    server: PostgresServer, command: list[str], variables: Mapping[str, str], jobs: int
) -> dict[str, Any]:
    """Jobs per second of Mailroom."""
    url = database.clone(server, "filled", "ours")
    with ExitStack() as undo:
        undo.callback(database.drop, server, "ours")
        return drained_from(url, command, variables, jobs, MAX_S)


def drained_from(
    url: str, command: list[str], variables: Mapping[str, str], jobs: int, max_s: float
) -> dict[str, Any]:
    with database.connected(url) as connection:
        connection.execute("CHECKPOINT")
    with running(command, environment(url) | dict(variables)) as process:
        found = drain(process, jobs, max_s=max_s)
    return {"jobs_per_s": round(found.rate), "drained": found.messages}


def drained_by_reference(server: PostgresServer, options: Options, jobs: int) -> dict[str, Any]:
    """Jobs per second of the reference at limit 10; 0 if it stopped."""
    url = reference.make(server, "reference", options, jobs)
    try:
        with running(shlex.split(options.reference), reference.settings(url, 10)) as process:
            rate = drain(process, jobs, max_s=MAX_S, silence_s=reference.SILENCE_S).rate
    except StoppedShort as error:
        tell(f"the reference: {error}")
        rate = 0
    return {"name": "the reference, limit 10", "jobs_per_s": round(rate)}
