"""Pause the queue and resume it."""

from __future__ import annotations

from typing import Final

import psycopg

from mailroom.database.sync import one

PAUSE: Final = "SELECT mailroom.pause(%s)"
RESUME: Final = "SELECT mailroom.resume(%s)"


def pause(connection: psycopg.Connection, reason: str) -> None:
    """Stop handing out mail, to all workers; they still send what they hold.

    Raises:
        DatabaseError: the schema is not this one, or the user may not pause the queue.
        DatabaseUnavailable: the connection was lost.
    """
    one(connection, PAUSE, [reason])


def resume(connection: psycopg.Connection, channel: str) -> bool:
    """Hand out mail again, and notify the channel; returns whether the queue was paused.

    Raises:
        DatabaseError, DatabaseUnavailable: as ``pause`` does.
    """
    was_paused: bool = one(connection, RESUME, [channel])[0]
    return was_paused
