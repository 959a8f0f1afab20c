"""The workers: `mailroom run`, restarted as systemd would, each with its own network.

Each process has a name of its own, such as one-3, in the sender's address, so that each mail tells which
process sent it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from bench.programs import mailroom
from bench.soak.network import Proxy
from mailroom.demo.postgres import ending_with_us

# Shorter than the unit's 5 s, so that the other worker seldom has to carry the load alone.
RESTART_S: Final = 1.0
CHECK_S: Final = 0.1
STOP_S: Final = 40.0


class End(NamedTuple):
    """A process ended: its name, when (seconds since the epoch), its code, and whether the soak ended it."""

    process: str
    at: float
    code: int
    asked_for: bool


class Worker:
    """One supervised worker.

    Args:
        name: its name.
        variables: its environment.
        log: the file for its log.
        database: its way to PostgreSQL.
        provider: its way to the provider.
        url: returns the database's address over a port.
    """

    def __init__(
        self,
        name: str,
        variables: Mapping[str, str],
        log: Path,
        database: Proxy,
        provider: Proxy,
        url: Callable[[int], str],
    ) -> None:
        self.name = name
        self.database = database
        self.provider = provider
        self.ends: list[End] = []
        self._variables = variables
        self._log = log
        self._url = url
        self._starts = 0
        self._asked_for = False
        self._over = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._supervise, name=f"worker {name}", daemon=True)
        self._thread.start()

    @property
    def process(self) -> str:
        """The name of the current process."""
        return f"{self.name}-{self._starts}"

    @property
    def pid(self) -> int | None:
        """The id of the current process, or None if it ended."""
        process = self._process
        return process.pid if process and process.poll() is None else None

    def send(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        if pid := self.pid:
            self._asked_for |= number in (signal.SIGKILL, signal.SIGTERM)
            os.kill(pid, number)

    def stop(self) -> None:
        """End it for good, as an operator would."""
        self._over.set()
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        self._thread.join(STOP_S)
        if pid := self.pid:
            os.kill(pid, signal.SIGKILL)
            self._thread.join(STOP_S)

    def _supervise(self) -> None:
        while not self._over.is_set():
            process = self._start()
            while process.poll() is None:
                time.sleep(CHECK_S)
            self.ends.append(End(self.process, time.time(), process.returncode, self._asked_for))
            self._over.wait(RESTART_S)

    def _start(self) -> subprocess.Popen[bytes]:
        self._starts += 1
        self._asked_for = False
        variables = {
            **self._variables,
            "MAILROOM_DATABASE_URL": self._url(self.database.port),
            "MAILROOM_SES_SOURCE": f"{self.process} <noreply@soak.example>",
            "AWS_ENDPOINT_URL_SES": f"http://127.0.0.1:{self.provider.port}",
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ending_with_us(mailroom("run")),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=variables,
            )
        return self._process
