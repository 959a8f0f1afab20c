"""Finds out whether a connection keeps its session, which a pooler may not do.

LISTEN and advisory locks belong to a session. Behind PgBouncer in transaction mode each transaction of a
connection may run in another session: both statements succeed, and no notification ever arrives.

Promises: a direct connection is never refused. The server reports its process id when a session begins; if a
statement later reports the same id, there is no such pooler in between. Otherwise a notification must arrive.
It does in session mode. In other modes it cannot, however many server processes the pooler has: it drops
notifications for a connection that is not in a transaction.
"""

from __future__ import annotations

import secrets
from typing import Final

import psycopg
from psycopg import sql

from mailroom.database.connection import Connection

ARRIVES_WITHIN_S: Final = 5.0
PROCESS: Final = "SELECT pg_backend_pid()"
NOTIFY: Final = "SELECT pg_notify(%s, '')"


async def keeps_sessions(listener: Connection, ringer: Connection) -> bool:
    """Whether a notification sent over ``ringer`` arrives at ``listener``.

    Raises:
        psycopg.OperationalError: a connection broke.
    """
    found = await (await listener.execute(PROCESS)).fetchone()
    if found == (listener.info.backend_pid,):
        return True
    name = f"mailroom_session_{secrets.token_hex(8)}"
    channel = sql.Identifier(name)
    try:
        await listener.execute(sql.SQL("LISTEN {}").format(channel))
        await ringer.execute(NOTIFY, [name])
        arrived = [note async for note in listener.notifies(timeout=ARRIVES_WITHIN_S, stop_after=1)]
        await listener.execute(sql.SQL("UNLISTEN {}").format(channel))
    except (psycopg.ProgrammingError, psycopg.NotSupportedError):  # a pooler that does not support LISTEN
        return False
    return bool(arrived)
