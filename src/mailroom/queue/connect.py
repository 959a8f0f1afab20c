"""What a worker of a queue is made of, whether it prints its leases or sends them.

``open_worker`` wires the database, the queue and the doorbell by the settings.
"""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from mailroom.database.connection import Database
from mailroom.queue.client import Queue
from mailroom.queue.lease import LEASE_MS
from mailroom.queue.listener import Doorbell
from mailroom.settings.collector import CollectorSettings

MAX_ANSWER_S: Final = 30.0
RENEW_INTERVAL_S: Final = LEASE_MS / 1000 / 3


class Worker(NamedTuple):
    """One worker's parts."""

    database: Database
    queue: Queue
    doorbell: Doorbell


def open_worker(settings: CollectorSettings, program: str, longest_check_s: float = float("inf")) -> Worker:
    """A worker's parts; they connect when they are used.

    Args:
        settings: where the queue is, and how it is worked on.
        program: what its connections are called.
        longest_check_s: a dead connection of the doorbell's is noticed within so many seconds, even if
            the settings leave it longer.
    """
    interval_s = settings.healthcheck_interval_ms / 1000
    database = Database(
        settings.database_url, program=program, answer_limit_s=min(interval_s / 3, MAX_ANSWER_S)
    )
    return Worker(
        database,
        Queue(database, channel=settings.channel_name),
        Doorbell(
            database,
            channel=settings.channel_name,
            batch_limit=settings.batch_limit,
            batch_timeout_s=settings.batch_timeout_ms / 1000,
            check_interval_s=min(interval_s, longest_check_s),
        ),
    )


async def keep_renewing(queue: Queue) -> None:
    """Move the time of the leases that are held, for ever."""
    while True:
        await asyncio.sleep(RENEW_INTERVAL_S)
        await queue.renew()
