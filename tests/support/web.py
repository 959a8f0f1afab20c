"""Waiting for a web server that a test started."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

from support.processes import PATIENCE_S


def wait_until_served(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until something listens there; fails with the server's log when it ends or takes too long."""
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError(f"nothing listens at {port}:\n{log.read_text()[-3000:]}")
