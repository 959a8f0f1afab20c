"""Starts the benchmarks' own durable server, and fills its databases.

Only the settings here differ from PostgreSQL's defaults. Databases are clones of a filled one, so every
measurement starts from the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg import sql

from mailroom.database import migrate, sync
from mailroom.demo.postgres import PostgresServer

SETTINGS: Final = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "max_connections": "200",
    "max_wal_size": "4GB",
}
COUNTING: Final = {"shared_preload_libraries": "pg_stat_statements"}
CHUNK: Final = 10_000

# The rows of a sign-up, written without the triggers, which would take most of the time.
FILL: Final = """
WITH signed_up AS (
    INSERT INTO accounts (email, login)
    SELECT 'user' || g || '@example.com', 'login' || g FROM generate_series(%s::bigint, %s::bigint) g
    RETURNING id, email, login)
INSERT INTO tokens (action, account, email, login, lane, expires_at)
SELECT 'activation', id, email, login, %s::mailroom.lane, statement_timestamp() + interval '1 day'
FROM signed_up ORDER BY id
"""
# No measurement takes a day.
LIFETIME: Final = "UPDATE mailroom.actions SET lifetime = '1 day' WHERE action = 'activation'"
# Moves the cursor past all tokens, as if they had been mailed.
BEHIND: Final = """
UPDATE mailroom.cursors
SET low = pg_current_snapshot(), high = pg_current_snapshot(), last_txid = '0', last_seq = 0
"""
STATEMENTS: Final = """
SELECT coalesce(sum(calls), 0)::bigint, coalesce(sum(total_exec_time), 0)::double precision,
       coalesce(sum(shared_blks_hit + shared_blks_read), 0)::bigint
FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid
WHERE s.query LIKE %s AND d.datname = current_database()
"""
OWN_TABLES: Final = """
SELECT c.oid::regclass::text, coalesce(pg_stat_get_live_tuples(c.oid), 0),
       coalesce(pg_stat_get_dead_tuples(c.oid), 0), pg_total_relation_size(c.oid)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND (n.nspname = 'mailroom' OR (n.nspname = 'public' AND c.relname = 'jobs'))
ORDER BY 1
"""


@contextmanager
def durable(*, counting: bool = False) -> Iterator[PostgresServer]:
    """A server; ``counting`` loads pg_stat_statements, which costs a little."""
    with PostgresServer(settings=SETTINGS | (COUNTING if counting else {})) as server:
        yield server


@contextmanager
def connected(url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def make(server: PostgresServer, name: str) -> str:
    """Make a migrated database, and return its address."""
    with connected(server.url()) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    with sync.connected(server.url(name)) as connection:
        migrate.up(connection, None, lambda _: None)
    return server.url(name)


def clone(server: PostgresServer, template: str, name: str) -> str:
    """Copy a database without open connections, and return the copy's address."""
    with connected(server.url()) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(
                sql.Identifier(name), sql.Identifier(template)
            )
        )
        connection.execute("CHECKPOINT")
    return server.url(name)


def drop(server: PostgresServer, name: str) -> None:
    with connected(server.url()) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def filled(server: PostgresServer, name: str, tokens: int, lane: str = "normal") -> str:
    """Make a migrated database with ``tokens`` waiting tokens, and return its address."""
    url = make(server, name)
    with connected(url) as connection:
        fill(connection, 1, tokens, lane)
        connection.execute("VACUUM (FREEZE, ANALYZE)")
    return url


def fill(connection: psycopg.Connection, first: int, last: int, lane: str = "normal") -> None:
    """Insert accounts with these numbers and a token for each, ``CHUNK`` per transaction."""
    connection.execute(LIFETIME)
    connection.execute("SET session_replication_role = replica")
    for number in range(first, last + 1, CHUNK):
        connection.execute(FILL, [number, min(number + CHUNK - 1, last), lane])
    connection.execute("RESET session_replication_role")


def count_statements(connection: psycopg.Connection) -> None:
    connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
    connection.execute("SELECT pg_stat_statements_reset()")


def statements(connection: psycopg.Connection, like: str) -> tuple[int, float, int]:
    """Calls, milliseconds in the server and pages read of the statements that contain a text."""
    (row,) = connection.execute(STATEMENTS, [f"%{like}%"]).fetchall()
    return row[0], row[1], row[2]


def attempts(connection: psycopg.Connection) -> int:
    """How many attempts the ledger holds, from its sequence, since counting rows would load the server."""
    ((last,),) = connection.execute(
        "SELECT coalesce(pg_sequence_last_value('mailroom.deliveries_id_seq'), 0)"
    ).fetchall()
    return int(last)


def own_tables(connection: psycopg.Connection) -> dict[str, dict[str, int]]:
    """For each of the queue's own tables: live rows, dead rows, bytes with indexes."""
    connection.execute("SELECT pg_stat_force_next_flush()")
    return {
        name: {"live": live, "dead": dead, "bytes": size}
        for name, live, dead, size in connection.execute(OWN_TABLES).fetchall()
    }


def facts(server: PostgresServer) -> dict[str, Any]:
    """The server's version and the settings that affect speed."""
    names = [
        "server_version",
        "fsync",
        "synchronous_commit",
        "full_page_writes",
        "shared_buffers",
        "wal_sync_method",
    ]
    with connected(server.url()) as connection:
        return {
            name: connection.execute("SELECT current_setting(%s)", [name]).fetchall()[0][0] for name in names
        }
