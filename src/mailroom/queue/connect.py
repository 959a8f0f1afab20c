"""Builds the parts that the collector and ``mailroom run`` have in common: database, queue, listener."""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from mailroom.database.connection import Database
from mailroom.queue.client import Queue
from mailroom.queue.lease import LEASE_MS
from mailroom.queue.listener import Listener
from mailroom.settings.collector import CollectorSettings

MAX_ANSWER_S: Final = 30.0
RENEW_INTERVAL_S: Final = LEASE_MS / 1000 / 3


class WorkerParts(NamedTuple):
    """The parts of one worker."""

    database: Database
    queue: Queue
    listener: Listener


def open_worker(
    settings: CollectorSettings, program: str, longest_check_s: float = float("inf")
) -> WorkerParts:
    """The parts of a worker; they connect when they are first used.

    Args:
        settings: where the queue is, and how to work on it.
        program: the name of its connections.
        longest_check_s: the listener notices a dead connection within this time, even if the settings
            allow longer.
    """
    interval_s = settings.healthcheck_interval_ms / 1000
    database = Database(
        settings.database_url, program=program, answer_limit_s=min(interval_s / 3, MAX_ANSWER_S)
    )
    return WorkerParts(
        database,
        Queue(database, channel=settings.channel_name),
        Listener(
            database,
            channel=settings.channel_name,
            batch_limit=settings.batch_limit,
            batch_timeout_s=settings.batch_timeout_ms / 1000,
            check_interval_s=min(interval_s, longest_check_s),
        ),
    )


async def keep_renewing(queue: Queue) -> None:
    """Renew the held leases at intervals until cancelled."""
    while True:
        await asyncio.sleep(RENEW_INTERVAL_S)
        await queue.renew()
