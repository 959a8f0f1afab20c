"""Hears of bounces: a task listens to Mailroom's channel, and wakes the pages that wait for news."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

import psycopg

CHANNEL: Final = "mailroom_events"
LISTEN: Final = f"LISTEN {CHANNEL}"
AGAIN_S: Final = 1.0


class News:
    """Wakes all that wait when any mail bounced or led to a complaint. Each looks whether it was its own.

    Args:
        url: the database, as Mailroom's.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self.next = asyncio.Event()

    async def listen(self) -> None:
        """Listen until it is cancelled, over a lost connection too."""
        while True:
            with suppress(psycopg.OperationalError):
                async with await psycopg.AsyncConnection.connect(self._url, autocommit=True) as connection:
                    await connection.execute(LISTEN)
                    self._wake()  # there may have been news before
                    async for _ in connection.notifies():
                        self._wake()
            await asyncio.sleep(AGAIN_S)

    def _wake(self) -> None:
        self.next.set()
        self.next = asyncio.Event()
