"""The doorbell's advisory locks, as PostgreSQL shows them."""

from __future__ import annotations

import time

from support.processes import PATIENCE_S
from support.queue_sql import Db


def lock_of(db: Db, name: str) -> int:
    """An advisory lock's number as pg_locks shows it, without a sign."""
    row = db.execute(f"SELECT mailroom.{name}('token_insert')".encode()).fetchone()
    assert row
    return int(row[0]) % 2**64


def holder(db: Db, name: str) -> int | None:
    """The process that holds SLEEP or BELL."""
    for pid, high, low in db.execute(
        "SELECT pid, classid::bigint, objid::bigint FROM pg_locks l JOIN pg_database d ON d.oid = l.database"
        " WHERE locktype = 'advisory' AND granted AND mode = 'ExclusiveLock' AND datname = current_database()"
    ).fetchall():
        if (high << 32) + low == lock_of(db, name):
            return int(pid)
    return None


def wait_for_holder(db: Db, name: str, other_than: int | None = None) -> int:
    """Wait until a process, or another one than before, holds SLEEP or BELL; returns it."""
    deadline = time.monotonic() + PATIENCE_S
    while (pid := holder(db, name)) in {None, other_than}:
        assert time.monotonic() < deadline, f"nobody took {name}"
        time.sleep(0.01)
    assert pid is not None
    return pid
