"""PgQueuer on asyncpg and uvloop, its fastest driver, with its own autovacuum settings and durable tables.

Tuning: ``batch``, the jobs per dequeue; ``managers``, the queue managers in the process (its own benchmark
has five). Each has its own connection, as its guide advises; the handlers fetch through a pool.
"""

from __future__ import annotations

import asyncio
import json
import signal
from typing import Any, Final

import asyncpg
import psycopg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver, SyncPsycopgDriver
from pgqueuer.queries import Queries, SyncQueries

from bench.peers.job import FETCH_ASYNCPG, TUNING, first_tokens, line, pack, unpack, url, write

CHUNK: Final = 1000
ENTRY: Final = "mail"


def prepare(database: str) -> None:
    async def install() -> None:
        connection = await asyncpg.connect(database)
        queries = Queries(AsyncpgDriver(connection))
        await queries.install()
        await connection.execute(queries.qbe.build_optimize_autovacuum_query())
        await connection.close()

    asyncio.run(install())


def enqueue(database: str, jobs: int, fields: bool) -> None:
    async def insert() -> None:
        connection = await asyncpg.connect(database)
        queries = Queries(AsyncpgDriver(connection))
        for first in range(0, len(rows), CHUNK):
            payloads = [json.dumps(pack(row, fields=fields)).encode() for row in rows[first : first + CHUNK]]
            await queries.enqueue([ENTRY] * len(payloads), payloads, [0] * len(payloads))
        await connection.execute("VACUUM ANALYZE pgqueuer")
        await connection.close()

    with psycopg.connect(database) as psycopg_connection:
        rows = first_tokens(psycopg_connection, jobs)
    asyncio.run(insert())


def enqueue_one(connection: psycopg.Connection, token: int) -> None:
    SyncQueries(SyncPsycopgDriver(connection)).enqueue(ENTRY, json.dumps({"token": token}).encode())


def main() -> None:
    uvloop.run(_work())


async def _work() -> None:
    managers = []
    pool = await asyncpg.create_pool(url(), min_size=2, max_size=10)

    async def mail(job: Any) -> None:
        given = json.loads(job.payload)
        found = unpack(given["row"]) if "row" in given else await pool.fetchrow(FETCH_ASYNCPG, given["token"])
        if found:
            write(line(found))

    for _ in range(TUNING.get("managers", 1)):
        manager = PgQueuer(AsyncpgDriver(await asyncpg.connect(url())))
        manager.entrypoint(ENTRY)(mail)
        managers.append(manager)

    def stop() -> None:
        for manager in managers:
            manager.shutdown.set()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    await asyncio.gather(*(manager.run(batch_size=TUNING.get("batch", 10)) for manager in managers))
    await pool.close()


if __name__ == "__main__":
    main()
