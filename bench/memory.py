"""Measures what the collector and ``mailroom run`` need: idle, and with a small and a deep backlog.

That is memory, connections to PostgreSQL, and the CPU time of the start. ``mailroom run`` sends to the debug
transport, which loads no botocore, and to a local SES.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, Final

import psutil
import psycopg

from bench import database, sending
from bench.options import Options
from bench.programs import Reader, environment, mailroom, peak_mb, rss_mb, running
from bench.tell import tell

REST_S: Final = 2.0
MAX_S: Final = 600.0
# One claims, one settles, one listens: then the worker has started.
WORKERS_CONNECTIONS: Final = 3
CONNECTIONS: Final = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s"
)


def measure(options: Options) -> dict[str, Any]:
    """A row for each command and backlog."""
    rows = []
    with database.durable() as server, sending.inbox() as ses, TemporaryDirectory() as folder:
        over_ses = sending.ses_environment(ses, Path(folder))
        sending.push_templates(environment("") | over_ses)
        commands: tuple[tuple[str, str, Mapping[str, str]], ...] = (
            ("collector", "", {}),
            ("run", "debug", {}),
            ("run", "ses", over_ses),
        )
        for tokens in options.sized((0, 1000, 200_000), (0, 1000, 20_000)):
            database.filled(server, "filled", tokens)
            for command, transport, variables in commands:
                url = database.clone(server, "filled", "drained")
                with sinking(command, url, variables) as process, database.connected(url) as connection:
                    reader = Reader(process)
                    if not reader_done(command, reader, url, tokens):
                        raise TimeoutError(f"{command}: {tokens:,} tokens were not drained in {MAX_S:.0f} s")
                    while connections(connection, command) < WORKERS_CONNECTIONS:
                        time.sleep(0.05)
                    time.sleep(REST_S)
                    rows.append(
                        {
                            "command": command,
                            "transport": transport,
                            "backlog": tokens,
                            "peak_mb": round(peak_mb(process), 1),
                            "after_mb": round(rss_mb(process), 1),
                            "connections": connections(connection, command),
                            "start_cpu_s": None if tokens else round(cpu_s(process), 2),
                        }
                    )
                    tell(f"{command} {transport}, {tokens:,} tokens: at most {rows[-1]['peak_mb']} MB")
                database.drop(server, "drained")
            database.drop(server, "filled")
    return {"rows": rows}


def connections(connection: psycopg.Connection, command: str) -> int:
    """How many connections the command has to its database."""
    row = connection.execute(CONNECTIONS, [f"mailroom {command}"]).fetchone()
    assert row
    return int(row[0])


def cpu_s(process: subprocess.Popen[bytes]) -> float:
    times = psutil.Process(process.pid).cpu_times()
    return float(times.user + times.system)


def reader_done(command: str, reader: Reader, url: str, tokens: int) -> bool:
    if command == "collector":
        return reader.wait_for(tokens, MAX_S)
    return settled(url, tokens, MAX_S)


def settled(url: str, tokens: int, max_s: float) -> bool:
    """Whether ``mailroom run`` recorded this many attempts in time."""
    deadline = time.monotonic() + max_s
    with database.connected(url) as connection:
        while time.monotonic() < deadline:
            if database.attempts(connection) >= tokens:
                return True
            time.sleep(0.25)
    return False


@contextmanager
def sinking(
    command: str, url: str, over_ses: Mapping[str, str] = MappingProxyType({}), **variables: str | int
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the collector, or ``mailroom run`` with the debug transport unless ``over_ses`` names SES.

    The collector and the debug transport write to a pipe.
    """
    with TemporaryDirectory() as folder:
        settings = environment(url, DEBUG="true", SES_OUTPUT_PATH=str(Path(folder)), **variables)
        if over_ses:
            settings |= {"MAILROOM_DEBUG": "false", **over_ses}
        with running(mailroom(command), settings) as process:
            yield process
