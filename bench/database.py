"""The server of the benchmarks: durable, of its own, and how its databases are filled.

Only what is said here differs from PostgreSQL's defaults. Databases are clones of a filled one, so that
every measurement starts from the same rows.
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

# As a sign-up writes them, but for the triggers, which would take most of the time.
FILL: Final = """
WITH signed_up AS (
    INSERT INTO accounts (email, login)
    SELECT 'user' || g || '@example.com', 'login' || g FROM generate_series(%s::bigint, %s::bigint) g
    RETURNING id)
INSERT INTO tokens (action, account, expires_at)
SELECT 'activation', id, now() + interval '1 day' FROM signed_up ORDER BY id
"""
# What was mailed before: the cursor has passed it.
BEHIND: Final = """
UPDATE jobs SET low = pg_current_snapshot(), high = pg_current_snapshot(), last_txid = '0', last_seq = 0
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
    """A server; ``counting`` also counts statements, at a small price."""
    with PostgresServer(settings=SETTINGS | (COUNTING if counting else {})) as server:
        yield server


@contextmanager
def connected(url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def make(server: PostgresServer, name: str) -> str:
    """A migrated database; gives its address."""
    with connected(server.url()) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    with sync.connected(server.url(name)) as connection:
        migrate.up(connection, None, lambda _: None)
    return server.url(name)


def clone(server: PostgresServer, template: str, name: str) -> str:
    """A copy of a database, to which nobody may be connected; gives its address."""
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


def filled(server: PostgresServer, name: str, tokens: int) -> str:
    """A migrated database with so many tokens waiting; gives its address."""
    url = make(server, name)
    with connected(url) as connection:
        fill(connection, 1, tokens)
        connection.execute("VACUUM (FREEZE, ANALYZE)")
    return url


def fill(connection: psycopg.Connection, first: int, last: int) -> None:
    """Accounts of these numbers and a token for each, in transactions of ``CHUNK``."""
    connection.execute("SET session_replication_role = replica")
    for number in range(first, last + 1, CHUNK):
        connection.execute(FILL, [number, min(number + CHUNK - 1, last)])
    connection.execute("RESET session_replication_role")


def count_statements(connection: psycopg.Connection) -> None:
    connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
    connection.execute("SELECT pg_stat_statements_reset()")


def statements(connection: psycopg.Connection, like: str) -> tuple[int, float, int]:
    """Of the statements with such a text: calls, milliseconds in the server, pages looked at."""
    (row,) = connection.execute(STATEMENTS, [f"%{like}%"]).fetchall()
    return row[0], row[1], row[2]


def attempts(connection: psycopg.Connection) -> int:
    """How many attempts the ledger has had, without counting its rows: that would be work for the server."""
    ((last,),) = connection.execute(
        "SELECT coalesce(pg_sequence_last_value('mailroom.deliveries_id_seq'), 0)"
    ).fetchall()
    return int(last)


def own_tables(connection: psycopg.Connection) -> dict[str, dict[str, int]]:
    """The queue's own tables: rows that live, rows that are dead, bytes with indexes."""
    connection.execute("SELECT pg_stat_force_next_flush()")
    return {
        name: {"live": live, "dead": dead, "bytes": size}
        for name, live, dead, size in connection.execute(OWN_TABLES).fetchall()
    }


def facts(server: PostgresServer) -> dict[str, Any]:
    """The server's version, and the settings that matter for speed."""
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
