"""One soak, from its servers to its result."""

from __future__ import annotations

import contextlib
import math
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg

from bench.programs import KEY, environment
from bench.sending import push_templates, ses_environment
from bench.soak.account import Evidence, account
from bench.soak.book import PRUNE_EVERY_S, Book, Caretaker
from bench.soak.cluster import Cluster
from bench.soak.faults import KINDS, Faults, Kind, Stage
from bench.soak.flat import thirds
from bench.soak.load import CLICK_S, Load, Visitors, connect
from bench.soak.network import Network
from bench.soak.provider import provider
from bench.soak.repeated import repeated
from bench.soak.samples import BACKLOG, SAMPLE_S, Sample, Samples
from bench.soak.workers import End, Worker
from bench.tell import tell

WORKERS: Final = ("one", "two")
ANSWER_S: Final = 0.03
CALLS_S: Final = 5.0
# Longer than a lease, a call's time limits and the back-offs after the last fault together.
SHRINKS_S: Final = 120.0
# SIGTERM may come before a starting process is ready for it.
ENDS: Final = (0, -signal.SIGKILL, -signal.SIGTERM)
STEP_S: Final = 10.0  # between the points of the plot
SETTINGS: Final = {
    # A deaf network is noticed within 15 s instead of the default 270 s.
    "HEALTHCHECK_INTERVAL": "15000",
    "SES_CONFIG_SET": "none",
}


@dataclass(frozen=True)
class Plan:
    """What a soak does.

    Attributes:
        rate: mails a second.
        kinds: the faults.
    """

    seconds: float = 1200
    seed: int = 1
    rate: float = 200
    kinds: tuple[Kind, ...] = KINDS


def soak(plan: Plan, folder: Path | None = None) -> dict[str, Any]:
    """Run one soak and return its result; ``faults_found`` holds what does not hold."""
    with contextlib.ExitStack() as stack:
        folder = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mailroom-soak-")))
        folder.mkdir(exist_ok=True, parents=True)
        tell(f"soak: {plan.seconds:.0f} s, seed {plan.seed}, logs in {folder}")
        cluster = stack.enter_context(Cluster())
        ses = stack.enter_context(provider(folder))
        network = stack.enter_context(Network())
        variables = environment("") | ses_environment(ses.url, folder)
        variables |= {f"MAILROOM_{name}": value for name, value in SETTINGS.items()}
        del variables["MAILROOM_SEND_RATE"]
        push_templates(variables)
        workers = []
        for name in WORKERS:
            worker = Worker(
                name,
                variables,
                folder / f"log-{name}",
                network.proxy(lambda: cluster.port),
                network.proxy(lambda: ses.port, answer_after_s=ANSWER_S),
                lambda port: cluster.url(port=port),
            )
            workers.append(worker)
            stack.callback(worker.stop)
        book = Book()
        load = Load(cluster.url, plan.rate)
        visitors = Visitors(ses, cluster.url, KEY)
        caretaker = Caretaker(book, cluster.url, variables, folder / "log-prune")
        samples = Samples(workers, cluster.url, load, ses)
        faults = Faults(Stage(cluster, ses, tuple(workers)), plan.seed, plan.kinds)
        started = time.time()
        with (
            repeated(visitors.click, CLICK_S),
            repeated(caretaker.tend, PRUNE_EVERY_S),
            repeated(samples.take, SAMPLE_S),
            repeated(ses.read_calls, CALLS_S),
        ):
            with load:
                until_s = time.monotonic() + plan.seconds
                faults.run(until_s)
                time.sleep(max(0.0, until_s - time.monotonic()))
            tell("the load ends; waiting until the queue is empty")
            problems = emptied(cluster)
        book.copy(cluster.url())
        ses.read_calls()
        for worker in workers:
            worker.stop()
        book.copy(cluster.url())
        ses.read()
    ends = [end for worker in workers for end in worker.ends]
    found = account(
        book, ses.mails, load.signed_up, load.recovered, Evidence(faults.windows, ends, ses.lost_calls), KEY
    )
    flat = thirds(samples.taken)
    return {
        "seed": plan.seed,
        "minutes": round(plan.seconds / 60, 2),
        "rate": plan.rate,
        "started": round(started),
        "committed": len(load.signed_up) + len(load.recovered),
        "failed": load.failed,
        "skipped": load.skipped,
        "clicked": visitors.clicked,
        "pruned": caretaker.pruned,
        "account": found.as_json(),
        "faults": dict(Counter(window.kind for window in faults.windows).most_common()),
        "windows": [
            [window.kind, round(window.start - started, 1), round(window.end - started, 1)]
            for window in faults.windows
        ],
        "restarts": {worker.name: len(worker.ends) - 1 for worker in workers},
        "flat": flat,
        "series": thinned(samples.taken),
        "faults_found": [*problems, *found.faults(), *grown(flat), *strange(ends)],
    }


def grown(flat: list[dict[str, Any]]) -> list[str]:
    return [
        f"{row['what']}: {row['last']} in the last third, {row['first']} in the first"
        for row in flat
        if not row["holds"]
    ]


def strange(ends: list[End]) -> list[str]:
    """The processes that ended without being asked to, or otherwise than asked."""
    return [
        f"process {end.process} ended with {end.code}{'' if end.asked_for else ', and was not asked to'}"
        for end in ends
        if end.code not in ENDS or not end.asked_for
    ]


def emptied(cluster: Cluster) -> list[str]:
    """Wait until the queue is empty; returns what is wrong if it no longer shrinks."""
    least, shrunk_at_s = math.inf, time.monotonic()
    while least and time.monotonic() < shrunk_at_s + SHRINKS_S:
        time.sleep(1)
        with contextlib.suppress(psycopg.Error), connect(cluster.url()) as connection:
            ((backlog,),) = connection.execute(BACKLOG).fetchall()
            if backlog < least:
                least, shrunk_at_s = backlog, time.monotonic()
    return [f"the queue has {least} tokens, and no fewer for {SHRINKS_S:.0f} s"] if least else []


def thinned(samples: list[Sample]) -> list[Sample]:
    """A sample every ten seconds."""
    kept: list[Sample] = []
    for sample in samples:
        if not kept or sample["at_s"] >= kept[-1]["at_s"] + STEP_S:
            kept.append(sample)
    return kept
