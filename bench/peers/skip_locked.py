"""The textbook queue: a table of jobs, and a loop of SELECT … FOR UPDATE SKIP LOCKED, write, DELETE, COMMIT.

Tuning: ``batch``, the jobs per transaction. It listens, so it does not poll. A batch is sent by as many
threads as it has jobs, which is all that its loop allows.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import psycopg

from bench.peers.job import SENDS, TUNING, line, send, url, write
from bench.peers.queues import Adapter

CREATE: Final = """
CREATE TABLE bench_jobs (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, token bigint NOT NULL)
WITH (autovacuum_vacuum_scale_factor = 0.01)
"""
ENQUEUE: Final = """
INSERT INTO bench_jobs (token) VALUES ((payload ->> 'token')::bigint);
PERFORM pg_notify('bench_jobs', '')
"""
TAKE: Final = """
SELECT j.id, t.action::text, a.email, a.login, t.secret, t.code
FROM bench_jobs j JOIN tokens t ON t.id = j.token JOIN accounts a ON a.id = t.account
ORDER BY j.id LIMIT %s FOR UPDATE OF j SKIP LOCKED
"""
DELETE: Final = "DELETE FROM bench_jobs WHERE id = ANY (%s)"


def adapter() -> Adapter:
    command = [sys.executable, "-c", "from bench.peers.skip_locked import main; main()"]
    return Adapter(install, ENQUEUE, "bench_jobs", command, f"psycopg {psycopg.__version__}")


def install(database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute(CREATE)


def main() -> None:
    batch = TUNING.get("batch", 1)
    with psycopg.connect(url(), autocommit=True) as connection, ThreadPoolExecutor(batch) as threads:
        connection.execute("LISTEN bench_jobs")
        while True:
            with connection.transaction():
                rows = connection.execute(TAKE, [batch], binary=True).fetchall()
                if rows:
                    if SENDS:
                        list(threads.map(send, rows))
                    else:
                        write(b"".join(map(line, rows)))
                    connection.execute(DELETE, [[row[0] for row in rows]])
            if not rows:
                for _ in connection.notifies(timeout=1, stop_after=1):
                    pass
