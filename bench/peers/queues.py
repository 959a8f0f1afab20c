"""The other queues: their adapters, their tunings, and how a database gets one of them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import sql

from bench import database, results
from bench.peers.job import ELIGIBLE, FETCH
from bench.programs import StoppedShort
from bench.results import Rows
from bench.tell import tell
from mailroom.actions import load_actions


class Missing(Exception):
    """A queue cannot be measured, since its runtime or its packages are missing."""


FAILURES: Final = (StoppedShort, TimeoutError, psycopg.Error, subprocess.SubprocessError)


@dataclass(frozen=True)
class Adapter:
    """One queue.

    Attributes:
        install: installs it into the database at this address.
        enqueue: the SQL that enqueues ``payload``, a jsonb object, in the caller's transaction.
        table: its table of jobs.
        command: the worker.
        version: its name and version.
        enqueue_many: the SQL that enqueues all ``payload`` of the table ``payloads``.
    """

    install: Callable[[str], None]
    enqueue: str
    table: str
    command: list[str]
    version: str
    enqueue_many: str = "SELECT count(bench_enqueue(payload)) FROM payloads"


class Peer(NamedTuple):
    """A queue to measure.

    Attributes:
        name: its name in the report.
        adapter: the function that returns its adapter, as ``module:function``.
        tunings: those of its documentation; the fastest counts.
        sending: the tuning for calls that take 30 ms; None to leave it out there.
        carries: whether jobs may carry all fields.
    """

    name: str
    adapter: str
    tunings: list[dict[str, int]]
    sending: dict[str, int] | None
    carries: bool = True


PEERS: Final = (
    Peer("SELECT … SKIP LOCKED, one by one", "skip_locked:adapter", [{"batch": 1}], None, carries=False),
    Peer(
        "SELECT … SKIP LOCKED, batches", "skip_locked:adapter",
        [{"batch": 10}, {"batch": 100}, {"batch": 200}, {"batch": 1000}], {"batch": 50}, carries=False,
    ),
    Peer(
        "Procrastinate", "procrastinate_jobs:adapter",
        [{"concurrency": 1}, {"concurrency": 10}, {"concurrency": 30}, {"concurrency": 100}],
        {"concurrency": 60},
    ),
    Peer(
        "PgQueuer", "pgqueuer_jobs:adapter",
        [
            {"managers": 1, "batch": 10}, {"managers": 1, "batch": 100}, {"managers": 1, "batch": 1000},
            {"managers": 5, "batch": 10}, {"managers": 5, "batch": 100},
        ],
        {"managers": 1, "batch": 100},
    ),
    Peer(
        "River", "river_jobs:adapter",
        [{"workers": 100, "cooldown": 2, "pool": 16}, {"workers": 1000, "cooldown": 2, "pool": 16}],
        {"workers": 100, "cooldown": 2, "pool": 16},
    ),
    Peer(
        "graphile-worker", "node_jobs:graphile",
        [
            {"concurrency": 24, "size": 500, "delay": 0}, {"concurrency": 24, "size": 500, "delay": 250},
        ],
        {"concurrency": 60, "size": 500, "delay": 250},
    ),
    Peer(
        "pg-boss 10", "node_jobs:pg_boss_10",
        [{"batch": 1000, "workers": 4}, {"batch": 5000, "workers": 4}], {"batch": 250, "workers": 4},
    ),
    Peer(
        "pg-boss 12", "node_jobs:pg_boss_12",
        [{"batch": 1000, "workers": 4}, {"batch": 5000, "workers": 4}], {"batch": 100, "workers": 4},
    ),
)  # fmt: skip

FUNCTION: Final = """
CREATE FUNCTION bench_enqueue(payload jsonb) RETURNS void LANGUAGE plpgsql SET search_path = public AS {}
"""
# In place of Mailroom's own trigger, which rings.
TRIGGER: Final = """
DROP TRIGGER tokens_ring ON tokens;
CREATE FUNCTION bench_enqueue_new() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM public.bench_enqueue(jsonb_build_object(''token'', NEW.id)); RETURN NULL; END';
CREATE TRIGGER bench_enqueue AFTER INSERT ON tokens FOR EACH ROW EXECUTE FUNCTION bench_enqueue_new();
"""
PAYLOADS: Final = f"""
WITH payloads AS MATERIALIZED (
    SELECT CASE WHEN %s THEN jsonb_build_object('token', e.id, 'row', jsonb_build_array(
               e.action, e.email, e.login, encode(e.secret, 'hex'), e.code))
           ELSE jsonb_build_object('token', e.id) END AS payload
    FROM ({ELIGIBLE} ORDER BY t.id LIMIT %s) e)
"""  # noqa: S608


def adapter_of(peer: Peer) -> Adapter:
    """Make the adapter, and build its worker.

    Raises:
        Missing: this machine lacks what it needs.
    """
    module, _, function = peer.adapter.partition(":")
    try:
        adapter: Adapter = getattr(import_module(f"bench.peers.{module}"), function)()
    except ImportError as error:
        raise Missing(f"{error.name} is not installed") from error
    return adapter


class Queues:
    """Those that this machine can run, and why the others are not measured."""

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}
        self.present: list[tuple[Peer, Adapter]] = []
        for peer in PEERS:
            try:
                self.present.append((peer, adapter_of(peer)))
            except Missing as reason:
                self._leave_out(peer, str(reason))

    def measured(self, measure: Callable[[Peer, Adapter], Rows]) -> Iterator[Rows]:
        """What ``measure`` returns for each queue; those that fail are left out."""
        for peer, adapter in self.present:
            try:
                yield measure(peer, adapter)
            except FAILURES as error:
                self._leave_out(peer, f"failed: {str(error).splitlines()[0]}")

    def _leave_out(self, peer: Peer, reason: str) -> None:
        tell(f"{peer.name} is left out: {reason}")
        self.missing[peer.name] = reason


def install(url: str, adapter: Adapter) -> None:
    """Install a queue, and let each new token enqueue its job in its own transaction."""
    adapter.install(url)
    with psycopg.connect(url) as connection:
        connection.execute(
            sql.SQL(FUNCTION).format(
                sql.Literal(
                    f"#variable_conflict use_column\nDECLARE made record;\nBEGIN\n{adapter.enqueue};\nEND"
                )
            )
        )
        connection.execute(TRIGGER)


def enqueue(url: str, adapter: Adapter, jobs: int, *, fields: bool) -> None:
    """Enqueue the job of the first tokens, with their ids or with all their fields."""
    with database.connected(url) as connection:
        connection.execute((PAYLOADS + adapter.enqueue_many).encode(), [fields, jobs])
        connection.execute(sql.SQL("VACUUM ANALYZE {}").format(sql.Identifier(*adapter.table.split("."))))


def job_environment(tuning: Mapping[str, Any], job: str = "write") -> dict[str, str]:
    """The variables of a worker beside Mailroom's own."""
    actions = {
        one.name: {
            "number": one.number,
            "prefix": one.prefix.decode(),
            "needs_code": one.needs_code,
            "template": one.template,
        }
        for one in load_actions().values()
    }
    return {
        "MAILROOM_BENCH_TUNING": json.dumps(tuning),
        "MAILROOM_BENCH_ACTIONS": json.dumps(actions),
        "MAILROOM_BENCH_FETCH": FETCH,
        "MAILROOM_BENCH_JOB": job,
        "NODE_ENV": "production",
    }


def best_tuning(peer: Peer) -> dict[str, int]:
    """The tuning that drained fastest, or the last one if draining was not measured."""
    for row in results.rows("peers"):
        if row["name"] == peer.name and "given" in row:
            given: dict[str, int] = row["given"]
            return given
    return peer.tunings[-1]


def text_of(tuning: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in tuning.items())
