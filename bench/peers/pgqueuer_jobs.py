"""PgQueuer on asyncpg and uvloop, its fastest driver, with its own autovacuum settings and durable tables.

Tuning: ``batch``, the jobs per dequeue; ``managers``, the queue managers in the process (its own benchmark
has five). Each has its own connection, as its guide advises; the handlers fetch through a pool.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any, Final

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.queries import Queries

from bench.peers.job import FETCH, MAX_CONNECTIONS, SENDS, TUNING, line, send, unpack, url, write
from bench.peers.queues import Adapter

ENTRY: Final = "mail"
ARGUMENTS: Final = {
    "$1::int[]": "ARRAY[0]",
    "$2::text[]": f"ARRAY['{ENTRY}']",
    "$3::bytea[]": "ARRAY[convert_to(bench_enqueue.payload::text, 'UTF8')]",
    "$4::interval[]": "ARRAY[interval '0']",
    "$5::text[]": "ARRAY[NULL::text]",
    "$6::jsonb[]": "ARRAY[NULL::jsonb]",
}


def adapter() -> Adapter:
    command = [sys.executable, "-c", "from bench.peers.pgqueuer_jobs import main; main()"]
    return Adapter(install, enqueue(), "pgqueuer", command, f"PgQueuer {version('pgqueuer')}")


def enqueue() -> str:
    """PgQueuer's own statement, with arguments in place of its parameters."""
    statement = Queries(AsyncpgDriver(None)).qbq.build_enqueue_query()
    for parameter, argument in ARGUMENTS.items():
        assert parameter in statement
        statement = statement.replace(parameter, argument)
    return f"FOR made IN {statement} LOOP\nEND LOOP"


def install(database: str) -> None:
    async def connect() -> None:
        connection = await asyncpg.connect(database)
        queries = Queries(AsyncpgDriver(connection))
        await queries.install()
        await connection.execute(queries.qbe.build_optimize_autovacuum_query())
        await connection.close()

    asyncio.run(connect())


def main() -> None:
    uvloop.run(_work())


async def _work() -> None:
    managers = []
    pool = await asyncpg.create_pool(url(), min_size=2, max_size=10)
    threads = ThreadPoolExecutor(MAX_CONNECTIONS)

    async def mail(job: Any) -> None:
        given = json.loads(job.payload)
        found = unpack(given["row"]) if "row" in given else await pool.fetchrow(FETCH, [given["token"]])
        if found and SENDS:
            await asyncio.get_running_loop().run_in_executor(threads, send, found)
        elif found:
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
