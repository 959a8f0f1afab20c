"""Procrastinate: an async task on psycopg's pool, with concurrency; finished jobs are deleted.

Tuning: ``concurrency``, how many jobs one worker runs at a time. The task fetches through a separate pool,
without the round trip with which Procrastinate's pool tests each connection.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import psycopg
from procrastinate import App, PsycopgConnector, SyncPsycopgConnector
from psycopg_pool import AsyncConnectionPool

from bench.peers.job import FETCH, TUNING, first_tokens, line, pack, unpack, url, write

CHUNK: Final = 1000
TASK: Final = "mail"


def prepare(database: str) -> None:
    with App(connector=SyncPsycopgConnector(conninfo=database)).open() as app:
        app.schema_manager.apply_schema()


def enqueue(database: str, jobs: int, fields: bool) -> None:
    with psycopg.connect(database) as connection:
        rows = first_tokens(connection, jobs)
    with App(connector=SyncPsycopgConnector(conninfo=database)).open() as app:
        deferrer = app.configure_task(TASK)
        for first in range(0, len(rows), CHUNK):
            deferrer.batch_defer(*(pack(row, fields=fields) for row in rows[first : first + CHUNK]))
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE procrastinate_jobs")


def enqueue_one(connection: psycopg.Connection, token: int) -> None:
    _sync_app().configure_task(TASK, connection=connection).defer(token=token)


_apps: list[Any] = []


def _sync_app() -> Any:
    if not _apps:
        _apps.append(App(connector=SyncPsycopgConnector(conninfo=url())))
        _apps[0].open()
    return _apps[0]


def main() -> None:
    asyncio.run(_work())


async def _work() -> None:
    concurrency = TUNING.get("concurrency", 1)
    app = App(connector=PsycopgConnector(conninfo=url(), min_size=4, max_size=max(4, min(concurrency, 20))))
    async with AsyncConnectionPool(
        url(), min_size=2, max_size=max(2, min(concurrency, 20)), kwargs={"autocommit": True}
    ) as pool:

        async def mail(token: int, row: list[Any] | None = None) -> None:
            if row:
                write(line(unpack(row)))
                return
            async with pool.connection() as connection:
                cursor = await connection.execute(FETCH, [token])
                found = await cursor.fetchone()
            if found:
                write(line(found))

        app.task(name=TASK)(mail)
        async with app.open_async():
            await app.run_worker_async(concurrency=concurrency, delete_jobs="successful")


if __name__ == "__main__":
    main()
