"""Measures the cost of a claim against the number of old tokens in the table.

One database grows. At each size a collector hands out backlogs at the default limit of 10, then tokens that
come one by one. pg_stat_statements gives the time of the claims and the pages that they read. The old tokens
are consumed or expired, each has its own account, and all lie before the cursor.
"""

from __future__ import annotations

from statistics import median
from typing import Any, Final

import psycopg

from bench import database
from bench.options import Options
from bench.programs import Reader, environment, mailroom, running
from bench.signups import sign_up
from bench.tell import tell

SIZES: Final = (50_000, 500_000, 5_000_000)
CHUNK: Final = 250_000
PATIENCE_S: Final = 120.0
BACKLOGS: Final = 3
SINGLES_PER_S: Final = 50
WARM_UP: Final = 20

HISTORY: Final = """
WITH signed_up AS (
    INSERT INTO accounts (email, login, status, created_at, activated_at)
    SELECT 'old' || g || '@example.com', 'old' || g, 'active',
           now() - interval '30 days', now() - interval '30 days'
    FROM generate_series(%s::bigint, %s::bigint) g RETURNING id)
INSERT INTO tokens (action, account, created_at, expires_at, consumed_at)
SELECT 'activation', id, now() - interval '30 days', now() - interval '29 days',
       CASE WHEN id %% 3 > 0 THEN now() - interval '30 days' END
FROM signed_up ORDER BY id
"""
# Dropping indexes and creating them after the rows is much faster, and makes them as compact as REINDEX does.
INDEXES: Final = """
SELECT format('DROP INDEX %s', i.indexrelid::regclass), pg_get_indexdef(i.indexrelid)
FROM pg_index i WHERE i.indrelid IN ('public.tokens'::regclass, 'public.accounts'::regclass)
AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.indexrelid)
"""


def measure(options: Options) -> dict[str, Any]:
    """A row for each size."""
    sizes = [size for size in options.sized(SIZES, (50_000, 200_000)) if size <= options.largest]
    if options.largest not in sizes and not options.quick:
        sizes.append(options.largest)
    backlog, singles = options.sized((10_000, 300), (5_000, 60))
    rows: list[dict[str, Any]] = []
    with database.durable(counting=True) as server:
        url = database.make(server, "growing")
        with database.connected(url) as connection:
            database.count_statements(connection)
            size = 0
            for wanted in sizes:
                tell(f"{wanted:,} tokens: inserting")
                grow(connection, size, wanted)
                size = wanted
                found: dict[str, Any] = {"tokens": wanted}
                found |= backlogs(connection, url, wanted, backlog)
                found |= one_by_one(connection, url, wanted, singles)
                first = rows[0] if rows else found
                found |= {
                    f"{kind}_ratio": round(found[f"{kind}_ms"] / first[f"{kind}_ms"], 2)
                    for kind in ("backlog", "single")
                }
                rows.append(found)
                tell(
                    f"{wanted:,} tokens: {found['backlog_ms']} ms for 1,000 from a backlog,"
                    f" {found['single_ms']} ms for a single token"
                )
    return {"backlog": backlog, "singles": singles, "rows": rows}


def backlogs(connection: psycopg.Connection, url: str, size: int, tokens: int) -> dict[str, float]:
    """The cost of claims for 1,000 tokens: the median of several backlogs."""
    found = []
    for number in range(BACKLOGS):
        start = 10 * size + number * tokens
        database.fill(connection, start + 1, start + tokens)
        connection.execute("VACUUM ANALYZE tokens, accounts")
        connection.execute("CHECKPOINT")
        connection.execute("SELECT pg_stat_statements_reset()")
        with running(mailroom("collector"), environment(url, BATCH_TIMEOUT=0)) as process:
            found.append(cost(connection, Reader(process), tokens, tokens / 1000))
    return {
        "backlog_ms": round(median(milliseconds for milliseconds, _ in found), 3),
        "backlog_pages": round(median(pages for _, pages in found)),
    }


def one_by_one(connection: psycopg.Connection, url: str, size: int, tokens: int) -> dict[str, float]:
    """The cost of the claim for a token that comes alone."""
    with running(mailroom("collector"), environment(url, BATCH_TIMEOUT=0)) as process:
        reader = Reader(process)
        sign_up(url, WARM_UP, SINGLES_PER_S, f"warm{size}x")
        reader.wait_for(WARM_UP, PATIENCE_S)
        connection.execute("SELECT pg_stat_statements_reset()")
        sign_up(url, tokens, SINGLES_PER_S, f"single{size}x")
        milliseconds, pages = cost(connection, reader, WARM_UP + tokens, tokens)
    return {"single_ms": round(milliseconds, 3), "single_pages": round(pages)}


def grow(connection: psycopg.Connection, size: int, wanted: int) -> None:
    """Add old tokens up to ``wanted``, and move the cursor past them."""
    indexes = connection.execute(INDEXES).fetchall()
    for dropping, _ in indexes:
        connection.execute(dropping.encode())
    connection.execute("SET session_replication_role = replica")
    for number in range(size + 1, wanted + 1, CHUNK):
        connection.execute(HISTORY, [number, min(number + CHUNK - 1, wanted)])
    connection.execute("RESET session_replication_role")
    connection.execute("SET maintenance_work_mem = '512MB'")
    for _, making in indexes:
        connection.execute(making.encode())
    connection.execute(database.BEHIND)
    connection.execute("VACUUM (FREEZE, ANALYZE)")
    connection.execute("SELECT pg_stat_statements_reset()")


def cost(connection: psycopg.Connection, reader: Reader, wanted: int, units: float) -> tuple[float, float]:
    """Milliseconds and pages of the claims since the last reset, per unit."""
    if not reader.wait_for(wanted, PATIENCE_S):
        raise TimeoutError(f"{reader.count:,} of {wanted:,} tokens came within {PATIENCE_S:.0f} s")
    _, milliseconds, pages = database.statements(connection, "mailroom.claim(")
    return milliseconds / units, pages / units
