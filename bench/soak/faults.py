"""The faults, and the order in which a seed lets them happen.

The faults are dealt as from a deck of cards: each happens once before any happens again, so each third of a
long soak has met all of them. Some come in twos.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import psycopg

from bench import database
from bench.soak.cluster import Cluster
from bench.soak.provider import Provider
from bench.soak.windows import Window
from bench.soak.workers import Worker
from bench.tell import tell

QUIET_S: Final = (4.0, 10.0)
PAIRED: Final = 0.35
# What needs the database begins before what takes it away.
BEGINNINGS: Final = ("", "worker", "provider", "answers", "database")


class Stage(NamedTuple):
    """What faults happen to."""

    cluster: Cluster
    provider: Provider
    workers: tuple[Worker, ...]


Begin = Callable[[Stage, random.Random], tuple[Callable[[], object], tuple[str, ...]]]
"""Starts a fault. Returns what ends it, and the workers that it reaches (none means all)."""


class Kind(NamedTuple):
    """One kind of fault.

    Attributes:
        name: for the report.
        reach: see ``Window``.
        seconds: how long it takes, at least and at most.
        begin: see ``Begin``.
    """

    name: str
    reach: str
    seconds: tuple[float, float]
    begin: Begin


def nothing() -> None:
    """End a fault that ends by itself."""


def database_fault(what: Callable[[Cluster, random.Random], Callable[[], object]]) -> Begin:
    return lambda stage, chance: (what(stage.cluster, chance), ())


def terminate(cluster: Cluster, chance: random.Random) -> Callable[[], object]:
    cluster.terminate_backends(chance.choice([0.3, 1.0]))
    return lambda: cluster.terminate_backends(1.0)


def kill_backend(cluster: Cluster, _chance: random.Random) -> Callable[[], object]:
    cluster.kill_backend()
    return nothing


def crash(cluster: Cluster, _chance: random.Random) -> Callable[[], object]:
    cluster.crash()
    return cluster.restart


def kill(cluster: Cluster, _chance: random.Random) -> Callable[[], object]:
    cluster.kill()
    return cluster.restart


def fail_over(cluster: Cluster, _chance: random.Random) -> Callable[[], object]:
    cluster.fail_over()
    return cluster.add_standby


def vacuum(cluster: Cluster, _chance: random.Random) -> Callable[[], object]:
    with database.connected(cluster.url()) as connection:
        connection.execute("VACUUM (ANALYZE)")
    return nothing


def hold_snapshot(cluster: Cluster, _chance: random.Random) -> Callable[[], object]:
    connection = psycopg.connect(cluster.url())
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.execute("SELECT count(*) FROM accounts")
    return connection.close


def some(stage: Stage, chance: random.Random) -> list[Worker]:
    """One worker, or all."""
    return chance.choice([*([worker] for worker in stage.workers), list(stage.workers)])


def each(workers: list[Worker], what: Callable[[Worker], None]) -> None:
    for worker in workers:
        what(worker)


def names(workers: list[Worker]) -> tuple[str, ...]:
    return tuple(worker.name for worker in workers)


def deaf_to_database(stage: Stage, chance: random.Random) -> tuple[Callable[[], object], tuple[str, ...]]:
    workers = some(stage, chance)
    for worker in workers:
        worker.database.go_deaf()
    return lambda: each(workers, lambda worker: worker.database.hear()), names(workers)


def deaf_to_provider(stage: Stage, chance: random.Random) -> tuple[Callable[[], object], tuple[str, ...]]:
    workers = some(stage, chance)
    for worker in workers:
        worker.provider.go_deaf()
    return lambda: each(workers, lambda worker: worker.provider.hear()), names(workers)


def stand_still(stage: Stage, chance: random.Random) -> tuple[Callable[[], object], tuple[str, ...]]:
    worker = chance.choice(stage.workers)
    worker.send(signal.SIGSTOP)
    return lambda: worker.send(signal.SIGCONT), (worker.name,)


def signalled(number: signal.Signals) -> Begin:
    """Only the last worker: the first one lives as long as the soak, and shows whether its memory grows."""

    def begin(stage: Stage, _chance: random.Random) -> tuple[Callable[[], object], tuple[str, ...]]:
        worker = stage.workers[-1]
        worker.send(number)
        return lambda: worker.send(number), (worker.name,)

    return begin


def provider_fault(**fault: Any) -> Begin:
    def begin(stage: Stage, _chance: random.Random) -> tuple[Callable[[], object], tuple[str, ...]]:
        stage.provider.add_fault(**fault)
        return stage.provider.clear_faults, ()

    return begin


def pause(stage: Stage, _chance: random.Random) -> tuple[Callable[[], object], tuple[str, ...]]:
    stage.provider.pause(True)
    return stage.provider.clear_faults, ()


SHORT: Final = (1.0, 4.0)
SOME: Final = (5.0, 12.0)
LONG: Final = (12.0, 20.0)

KINDS: Final = (
    Kind("sessions terminated", "database", SHORT, database_fault(terminate)),
    Kind("a backend killed with -9", "database", SHORT, database_fault(kill_backend)),
    Kind("PostgreSQL stopped at once", "database", SOME, database_fault(crash)),
    Kind("PostgreSQL killed with -9", "database", SOME, database_fault(kill)),
    Kind("failover to the standby", "database", SHORT, database_fault(fail_over)),
    Kind("network to PostgreSQL deaf", "database", LONG, deaf_to_database),
    Kind("network to SES deaf", "answers", LONG, deaf_to_provider),
    Kind("SES throttles", "provider", SOME, provider_fault(kind="error", code="Throttling", share=0.5)),
    Kind("SES answers 500", "provider", SOME, provider_fault(kind="http", http_status=500, share=0.5)),
    Kind("SES's answers cut", "provider", SOME, provider_fault(kind="cut", accept=True, share=0.3)),
    Kind("SES's answers torn", "provider", SOME, provider_fault(kind="cut_body", accept=True, share=0.3)),
    Kind("SES hangs", "provider", SOME, provider_fault(kind="hang", accept=True, share=0.1)),
    Kind("SES paused", "provider", SOME, pause),
    Kind(
        "recipients fail for now",
        "provider",
        SOME,
        provider_fault(kind="status", status="TransientFailure", share=0.3),
    ),
    Kind("a worker killed with -9", "", SHORT, signalled(signal.SIGKILL)),
    Kind("a worker terminated", "", SHORT, signalled(signal.SIGTERM)),
    Kind("a worker stopped", "worker", (5.0, 25.0), stand_still),
    Kind("snapshot held", "", (40.0, 60.0), database_fault(hold_snapshot)),
    Kind("VACUUM", "", SHORT, database_fault(vacuum)),
)


def order(kind: Kind) -> int:
    return BEGINNINGS.index(kind.reach)


class Faults:
    """Lets faults happen, in the calling thread.

    Attributes:
        windows: those that are over.
    """

    def __init__(self, stage: Stage, seed: int, kinds: tuple[Kind, ...] = KINDS) -> None:
        self.windows: list[Window] = []
        self._stage = stage
        self._chance = random.Random(seed)  # noqa: S311 - no secret
        self._kinds = kinds

    def run(self, until_s: float) -> None:
        """Let faults happen until a time on the monotonic clock; the last ones end a little later."""
        deck: list[Kind] = []
        while (quiet_s := self._chance.uniform(*QUIET_S)) < until_s - time.monotonic():
            time.sleep(quiet_s)
            deck = deck or self._chance.sample(self._kinds, len(self._kinds))
            together = [deck.pop()]
            # Two faults of one part would undo each other.
            others = [kind for kind in deck if kind.reach != together[0].reach]
            if others and self._chance.random() < PAIRED:
                deck.remove(others[-1])
                together.append(others[-1])
            self._happen(sorted(together, key=order), until_s)

    def _happen(self, kinds: list[Kind], until_s: float) -> None:
        begun = []
        for kind in kinds:
            seconds = min(self._chance.uniform(*kind.seconds), max(1.0, until_s - time.monotonic()))
            start = time.time()
            end, workers = kind.begin(self._stage, self._chance)
            tell(f"{kind.name}{' ' + '+'.join(workers) if workers else ''}: {seconds:.0f} s")
            begun.append((time.monotonic() + seconds, kind, workers, start, end))
        for due_s, kind, workers, start, end in sorted(begun, key=lambda one: one[0]):
            time.sleep(max(0.0, due_s - time.monotonic()))
            end()
            self.windows.append(Window(kind.name, kind.reach, workers, start, time.time()))
