"""Samples what must stay flat: the workers' memory and descriptors, connections, dead rows, table sizes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import psutil
import psycopg

from bench.soak.load import Load, connect
from bench.soak.provider import Provider
from bench.soak.workers import Worker

SAMPLE_S: Final = 2.0
TABLES: Final = """
SELECT coalesce(sum(pg_stat_get_dead_tuples(c.oid)), 0)::bigint, sum(pg_total_relation_size(c.oid))::bigint
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r'
  AND (n.nspname = 'mailroom' OR n.nspname = 'public' AND c.relname IN ('tokens', 'accounts', 'jobs'))
"""
CONNECTIONS: Final = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mailroom run'"
BACKLOG: Final = "SELECT waiting + in_flight FROM mailroom.backlog()"

Sample = dict[str, Any]


class Samples:
    """Samples of the workers and of the database.

    Attributes:
        taken: each sample, by names; ``at_s`` counts from the start. What could not be read is left out.
    """

    def __init__(
        self, workers: Sequence[Worker], url: Callable[[], str], load: Load, provider: Provider
    ) -> None:
        self.taken: list[Sample] = []
        self._workers = workers
        self._url = url
        self._load = load
        self._provider = provider
        self._start = time.monotonic()

    def take(self) -> None:
        """Take a sample."""
        sample: Sample = {
            "at_s": round(time.monotonic() - self._start, 1),
            "committed": len(self._load.signed_up) + len(self._load.recovered),
            "mails": len(self._provider.mails),
        }
        for worker in self._workers:
            sample |= {f"{name}_{worker.name}": value for name, value in of_process(worker.pid).items()}
        try:
            with connect(self._url()) as connection:
                sample |= of_database(connection)
        except psycopg.Error:
            pass  # the database is away
        self.taken.append(sample)


def of_process(pid: int | None) -> Sample:
    """The memory in MB and the descriptors of a process; empty if it ended."""
    if pid is None:
        return {}
    try:
        process = psutil.Process(pid)
        if time.time() - process.create_time() < 2 * SAMPLE_S:
            return {}  # it is starting
        return {"rss_mb": round(process.memory_info().rss / 2**20, 1), "descriptors": process.num_fds()}
    except psutil.Error:
        return {}


def of_database(connection: psycopg.Connection) -> Sample:
    """What the database says of itself."""
    ((dead, size),) = connection.execute(TABLES).fetchall()
    ((connections,),) = connection.execute(CONNECTIONS).fetchall()
    ((backlog,),) = connection.execute(BACKLOG).fetchall()
    return {
        "dead": dead,
        "tables_mb": round(float(size) / 2**20, 1),
        "connections": connections,
        "backlog": backlog,
    }
