"""PostgreSQL with a standby: it crashes, restarts, and fails over.

Replication is synchronous while there is a standby, so no failover loses a commit that was answered. Use it
from the main thread: the servers end with the thread that started them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import Any, Final, Self

import psycopg

from bench import database
from bench.tell import tell
from mailroom.demo.postgres import PostgresError, PostgresServer

DATABASE: Final = "soak"
PATIENCE_S: Final = 60.0
SETTINGS: Final = database.SETTINGS | {
    "max_wal_size": "1GB",
    "wal_keep_size": "1GB",
    "wal_retrieve_retry_interval": "500ms",
    # A soak of minutes needs what a day has: autovacuum that comes often, and follows small tables.
    "autovacuum_naptime": "5s",
    "autovacuum_vacuum_scale_factor": "0.1",
}


class Cluster:
    """The primary and its standby, while the context is entered."""

    def __init__(self) -> None:
        self._primary = PostgresServer(settings=SETTINGS)
        self._standby: PostgresServer | None = None

    def __enter__(self) -> Self:
        self._primary.__enter__()
        try:
            database.make(self._primary, DATABASE)
            self.add_standby()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._standby:
            self._standby.remove()
        self._primary.remove()

    @property
    def port(self) -> int:
        """The port of the server that accepts writes."""
        return self._primary.port

    def url(self, *, port: int | None = None) -> str:
        """Return the database's address, or that of a proxy on another port."""
        return self._primary.url(DATABASE, port=port)

    def facts(self) -> dict[str, Any]:
        """The server's version and settings."""
        return database.facts(self._primary)

    def add_standby(self) -> None:
        """Copy the primary, and commit on both from then on."""
        primary = self._primary
        standby = PostgresServer(settings=SETTINGS, password=primary.password)
        try:
            standby.run_tool(
                "pg_basebackup", "-D", str(standby.data), "-R", "-c", "fast", "-d", primary.url()
            )
            standby.start()
        except BaseException:
            standby.remove()
            raise
        self._standby = standby
        _synchronous(primary, "*")
        wait_until(self.in_sync, "the standby is in sync")

    def in_sync(self) -> bool:
        """Whether each commit waits for the standby."""
        with contextlib.suppress(psycopg.OperationalError), database.connected(self.url()) as connection:
            found = connection.execute("SELECT sync_state FROM pg_stat_replication").fetchall()
            return found == [("sync",)]
        return False

    def answers(self) -> bool:
        """Whether the primary commits."""
        with contextlib.suppress(psycopg.Error), database.connected(self.url()) as connection:
            connection.execute("SET statement_timeout = '2s'")
            connection.execute("SELECT pg_current_xact_id()")
            return True
        return False

    def terminate_backends(self, share: float) -> int:
        """End this share of the workers' sessions, and return how many."""
        with database.connected(self.url()) as connection:
            return connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name LIKE 'mailroom%%' AND random() < %s",
                [share],
            ).rowcount

    def kill_backend(self) -> None:
        """Kill one session's process; the server ends all sessions and recovers."""
        with database.connected(self.url()) as connection:
            found = connection.execute(
                "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'mailroom%' ORDER BY random()"
            ).fetchone()
        if found:
            os.kill(found[0], signal.SIGKILL)

    def crash(self) -> None:
        """Stop the primary without a checkpoint."""
        self._primary.stop("immediate")

    def kill(self) -> None:
        """Kill the primary's first process; the others end when they notice."""
        os.kill(self._primary.pid(), signal.SIGKILL)
        self._primary.stop("immediate")

    def restart(self) -> None:
        """Start the primary after a crash, and wait until it commits."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                self._primary.start()
                break
            except PostgresError:  # processes of the killed server still hold its memory
                self._primary.stop("immediate")
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
        wait_until(self.answers, "the restarted server commits")

    def fail_over(self) -> None:
        """Lose the primary, and promote the standby. It has no standby then."""
        assert self._standby
        wait_until(self.in_sync, "the standby is in sync")
        lost, self._primary, self._standby = self._primary, self._standby, None
        lost.remove()
        _synchronous(self._primary, "")
        with database.connected(self._primary.url()) as connection:
            connection.execute("SELECT pg_promote()")
        wait_until(self.answers, "the promoted server commits")


def wait_until(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait until a condition holds.

    Raises:
        TimeoutError: it does not hold in time.
    """
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            tell(f"it does not hold that {what}")
            raise TimeoutError(f"it does not hold after {patience_s:.0f} s that {what}")
        time.sleep(0.1)


def _synchronous(server: PostgresServer, names: str) -> None:
    with database.connected(server.url()) as connection:
        connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
        connection.execute("SELECT pg_reload_conf()")
