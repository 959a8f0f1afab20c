"""Procrastinate: an async task on psycopg's pool, with concurrency; finished jobs are deleted.

Tuning: ``concurrency``, how many jobs one worker runs at a time. The task fetches through a separate pool,
without the round trip with which Procrastinate's pool tests each connection. The periodic task that retries
the jobs of killed workers is that of https://procrastinate.readthedocs.io/en/stable/howto/production/retry_stalled_jobs.html
"""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any, Final

from procrastinate import App, PsycopgConnector, SyncPsycopgConnector
from psycopg_pool import AsyncConnectionPool

from bench.peers.job import FETCH_PSYCOPG, SENDS, TUNING, line, send, unpack, url, write
from bench.peers.queues import Adapter

TASK: Final = "mail"
# https://procrastinate.readthedocs.io/en/stable/howto/advanced/sql.html
ENQUEUE: Final = f"""
PERFORM procrastinate_defer_jobs_v1(ARRAY[
    ROW('default', '{TASK}', 0, NULL, NULL, payload, NULL)::procrastinate_job_to_defer_v1])
"""


def adapter() -> Adapter:
    # Not with -m: Procrastinate warns when an app is made in the main module.
    command = [sys.executable, "-c", "from bench.peers.procrastinate_jobs import main; main()"]
    return Adapter(
        install, ENQUEUE, "procrastinate_jobs", command, f"Procrastinate {version('procrastinate')}"
    )


def install(database: str) -> None:
    with App(connector=SyncPsycopgConnector(conninfo=database)).open() as app:
        app.schema_manager.apply_schema()


def main() -> None:
    asyncio.run(_work())


async def _work() -> None:
    concurrency = TUNING.get("concurrency", 1)
    app = App(connector=PsycopgConnector(conninfo=url(), min_size=4, max_size=max(4, min(concurrency, 20))))
    threads = ThreadPoolExecutor(concurrency)
    async with AsyncConnectionPool(
        url(), min_size=2, max_size=max(2, min(concurrency, 20)), kwargs={"autocommit": True}
    ) as pool:

        async def mail(token: int, row: list[Any] | None = None) -> None:
            found: Any = unpack(row) if row else None
            if not row:
                async with pool.connection() as connection:
                    cursor = await connection.execute(FETCH_PSYCOPG, [token])
                    found = await cursor.fetchone()
            if found and SENDS:
                await asyncio.get_running_loop().run_in_executor(threads, send, found)
            elif found:
                write(line(found))

        app.task(name=TASK)(mail)

        async def retry_stalled_jobs(timestamp: int) -> None:  # noqa: ARG001
            for job in await app.job_manager.get_stalled_jobs():
                await app.job_manager.retry_job(job)

        periodic = app.task(name="retry_stalled_jobs", queueing_lock="retry_stalled_jobs")(retry_stalled_jobs)
        app.periodic(cron="* * * * * */10")(periodic)

        async with app.open_async():
            await app.run_worker_async(concurrency=concurrency, delete_jobs="successful")
