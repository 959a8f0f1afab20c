"""Pauses and resumes the queue."""

from __future__ import annotations

from typing import Final

import psycopg

from mailroom.database.sync import one
from mailroom.operations.reports import paused

PAUSE: Final = "SELECT mailroom.pause(%s)"
RESUME: Final = "SELECT mailroom.resume(%s)"


def pause(connection: psycopg.Connection, reason: str) -> None:
    """Pause the queue for all workers, which still send what they have claimed.

    Raises:
        DatabaseError: the schema or a privilege is missing.
        DatabaseUnavailable: the connection was lost.
    """
    one(connection, PAUSE, [reason])
    paused(connection)  # fails without the queue's row


def resume(connection: psycopg.Connection, channel: str) -> bool:
    """Resume the queue and notify the workers; returns whether it was paused.

    Raises:
        DatabaseError, DatabaseUnavailable: as ``pause`` does.
    """
    paused(connection)  # fails without the queue's row
    was_paused: bool = one(connection, RESUME, [channel])[0]
    return was_paused
