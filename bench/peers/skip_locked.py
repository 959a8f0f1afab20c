"""The textbook queue: a table of jobs, and a loop of SELECT … FOR UPDATE SKIP LOCKED, write, DELETE, COMMIT.

Tuning: ``batch``, the jobs per transaction. It listens, so it does not poll.
"""

from __future__ import annotations

from typing import Final

import psycopg

from bench.peers.job import TUNING, line, url, write

CREATE: Final = """
CREATE TABLE bench_jobs (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, token bigint NOT NULL)
WITH (autovacuum_vacuum_scale_factor = 0.01)
"""
ENQUEUE: Final = "INSERT INTO bench_jobs (token) SELECT id FROM tokens ORDER BY id LIMIT %s"
ENQUEUE_ONE: Final = (
    "WITH made AS (INSERT INTO bench_jobs (token) VALUES (%s)) SELECT pg_notify('bench_jobs', '')"
)
TAKE: Final = """
SELECT j.id, t.action::text, a.email, a.login, t.secret, t.code
FROM bench_jobs j JOIN tokens t ON t.id = j.token JOIN accounts a ON a.id = t.account
ORDER BY j.id LIMIT %s FOR UPDATE OF j SKIP LOCKED
"""
DELETE: Final = "DELETE FROM bench_jobs WHERE id = ANY (%s)"


def prepare(database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute(CREATE)


def enqueue(database: str, jobs: int, fields: bool) -> None:
    if fields:
        raise ValueError("this loop fetches fields with a join; its jobs cannot carry them")
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(ENQUEUE, [jobs])
        connection.execute("VACUUM ANALYZE bench_jobs")


def enqueue_one(connection: psycopg.Connection, token: int) -> None:
    connection.execute(ENQUEUE_ONE, [token])


def main() -> None:
    batch = TUNING.get("batch", 1)
    with psycopg.connect(url(), autocommit=True) as connection:
        connection.execute("LISTEN bench_jobs")
        while True:
            with connection.transaction():
                rows = connection.execute(TAKE, [batch], binary=True).fetchall()
                if rows:
                    write(b"".join(map(line, rows)))
                    connection.execute(DELETE, [[row[0] for row in rows]])
            if not rows:
                for _ in connection.notifies(timeout=1, stop_after=1):
                    pass


if __name__ == "__main__":
    main()
