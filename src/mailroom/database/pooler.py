"""Whether a session is one server process for as long as it lasts, which a pooler may not keep.

LISTEN and advisory locks are a session's. Behind PgBouncer in transaction mode a connection has another
server process for each transaction: both seem to work, and no mail is heard of.

Promises: nobody is refused who is not pooled, since a server tells its process's id when a session
begins, and a statement that tells the same one has met nobody in between. Else a notification has to
arrive, which it does in session mode, and cannot in another: what a pooler hears for a connection that
waits between transactions, it drops, however many or few server processes it has.
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
    """Whether what is notified over ``ringer`` arrives where ``listener`` listens.

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
    except (psycopg.ProgrammingError, psycopg.NotSupportedError):  # a pooler that does not know LISTEN
        return False
    return bool(arrived)
