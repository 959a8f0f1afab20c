"""Measures the memory of the collector and of ``mailroom run``: idle, and with a small and a deep backlog."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from bench import database
from bench.options import Options
from bench.programs import Reader, environment, mailroom, peak_mb, rss_mb, running
from bench.tell import tell

REST_S: Final = 2.0
MAX_S: Final = 600.0


def measure(options: Options) -> dict[str, Any]:
    """A row for each command and backlog."""
    rows = []
    with database.durable() as server:
        for tokens in options.sized((0, 1000, 200_000), (0, 1000, 20_000)):
            database.filled(server, "filled", tokens)
            for command in ("collector", "run"):
                url = database.clone(server, "filled", "drained")
                with sinking(command, url) as process:
                    reader = Reader(process)
                    if not reader_done(command, reader, url, tokens):
                        raise TimeoutError(f"{command}: {tokens:,} tokens were not drained in {MAX_S:.0f} s")
                    time.sleep(REST_S)
                    rows.append(
                        {
                            "command": command,
                            "backlog": tokens,
                            "peak_mb": round(peak_mb(process), 1),
                            "after_mb": round(rss_mb(process), 1),
                        }
                    )
                    tell(f"{command}, {tokens:,} tokens: at most {rows[-1]['peak_mb']} MB")
                database.drop(server, "drained")
            database.drop(server, "filled")
    return {"rows": rows}


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
def sinking(command: str, url: str, **variables: str | int) -> Iterator[subprocess.Popen[bytes]]:
    """Run the collector, or ``mailroom run`` with the debug transport; both write to a pipe."""
    with TemporaryDirectory() as folder:
        settings = environment(url, DEBUG="true", SES_OUTPUT_PATH=str(Path(folder)), **variables)
        with running(mailroom(command), settings) as process:
            yield process
