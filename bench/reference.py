"""Compares Mailroom's collector with any other command that follows the reference's contract.

The command gets the variables of the reference, beside the caller's environment: MAILROOM_DATABASE_URL,
MAILROOM_SECRET_KEY, MAILROOM_CHANNEL_NAME, MAILROOM_QUEUE_NAME, MAILROOM_HEALTHCHECK_INTERVAL,
MAILROOM_BATCH_TIMEOUT and MAILROOM_BATCH_LIMIT. It prints lines. Its database has the schema of the given
file, or Mailroom's, and is filled by inserts into accounts. The backlog is there before the command starts,
so the command must begin without a notification.
"""

from __future__ import annotations

import os
import shlex
import time
from typing import Any, Final

from bench import database
from bench.options import Options
from bench.peers.latency import QUIET_PER_S, late
from bench.programs import KEY, Reader, StoppedShort, drain, mailroom, percentiles, running
from bench.tell import tell
from mailroom.demo.postgres import PostgresServer

LIMITS: Final = (10, 50, 1000)
MAX_S: Final = 20.0
SILENCE_S: Final = 15.0
INSERT: Final = """
INSERT INTO accounts (email, login)
SELECT 'user' || g || '@example.com', 'login' || g FROM generate_series(%s::bigint, %s::bigint) g
"""


def measure(options: Options) -> dict[str, Any]:
    """A row for each batch limit, and the latency at limit 1."""
    if not options.reference:
        raise ValueError("--reference is missing")
    tokens, singles = options.sized((100_000, 300), (5_000, 60))
    commands = {"mailroom": mailroom("collector"), "reference": shlex.split(options.reference)}
    rows: list[dict[str, Any]] = []
    latency: list[dict[str, Any]] = []
    with database.durable() as server:
        for name in commands:
            make(server, f"{name}_filled", options if name == "reference" else Options(), tokens)
        for limit in LIMITS:
            rates = {
                name: drained(server, command, f"{name}_filled", limit, tokens)
                for name, command in commands.items()
            }
            rows.append(
                {"limit": limit}
                | {f"{name}_per_s": rate for name, rate in rates.items()}
                | {"ratio": round(rates["mailroom"] / rates["reference"], 2) if rates["reference"] else None}
            )
            tell(f"limit {limit}: {rates}")
        for name, command in commands.items():
            url = make(server, f"{name}_idle", options if name == "reference" else Options(), 0)
            with running(command, settings(url, 1)) as process:
                reader = Reader(process, times=True)
                time.sleep(1)
                latency.append({"name": name} | percentiles(late(url, reader, singles, QUIET_PER_S)))
            tell(f"{name}: {latency[-1]}")
    return {"command": options.reference, "tokens": tokens, "rows": rows, "latency": latency}


def make(server: PostgresServer, name: str, options: Options, tokens: int) -> str:
    """Make a database with a schema and ``tokens`` tokens from its own triggers; returns its address."""
    if options.reference_schema:
        server.run_tool("createdb", *connection_options(server), name)
        schema = options.reference_schema.read_bytes()
        server.run_tool(
            "psql", *connection_options(server), "--quiet", "--set=ON_ERROR_STOP=1", name, stdin=schema
        )
    else:
        database.make(server, name)
    with database.connected(server.url(name)) as connection:
        for first in range(1, tokens + 1, database.CHUNK):
            connection.execute(INSERT, [first, min(first + database.CHUNK - 1, tokens)])
        connection.execute("VACUUM ANALYZE")
    return server.url(name)


def connection_options(server: PostgresServer) -> list[str]:
    return ["--host=127.0.0.1", f"--port={server.port}", "--username=postgres"]


def settings(url: str, limit: int) -> dict[str, str]:
    contract = {
        "DATABASE_URL": url,
        "SECRET_KEY": KEY,
        "CHANNEL_NAME": "token_insert",
        "QUEUE_NAME": "mailroom",
        "HEALTHCHECK_INTERVAL": "270000",
        "BATCH_TIMEOUT": "1000" if limit > 1 else "0",
        "BATCH_LIMIT": str(limit),
    }
    return dict(os.environ) | {f"MAILROOM_{name}": value for name, value in contract.items()}


def drained(server: PostgresServer, command: list[str], template: str, limit: int, tokens: int) -> int:
    """Tokens per second, or 0 if the command stopped before the clock started."""
    url = database.clone(server, template, "drained")
    try:
        with running(command, settings(url, limit)) as process:
            return round(drain(process, tokens, max_s=MAX_S, silence_s=SILENCE_S).rate)
    except StoppedShort as error:
        tell(f"limit {limit}: {error}")
        return 0
    finally:
        database.drop(server, "drained")
