"""``mailroom run`` in a process of its own, as a container would start it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from support.processes import PATIENCE_S
from support.queue_sql import Db


class RunProcess:
    """``mailroom run``, or another command, whose log grows while it runs."""

    def __init__(
        self,
        variables: dict[str, str],
        log: Path,
        constants: Mapping[str, float | str] | None = None,
        command: str = "run",
    ) -> None:
        self._log = log
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, *_program(constants or {}), command],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                env=variables,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(PATIENCE_S)

    def log(self) -> str:
        return self._log.read_text()

    def wait_for_log(self, text: str) -> Self:
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.log():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise AssertionError(f"no {text!r} in the log:\n{self.log()[-3000:]}")
            time.sleep(0.01)
        return self

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(PATIENCE_S)


Start = Callable[..., RunProcess]


def _program(constants: Mapping[str, float | str]) -> list[str]:
    """Python's arguments for ``mailroom``, with other values for these constants of its modules."""
    if not constants:
        return ["-m", "mailroom"]
    changes = [f"import {name.rpartition('.')[0]}; {name} = {value}" for name, value in constants.items()]
    return ["-c", "\n".join([*changes, "from mailroom.cli.main import main", "main()"])]


UNSETTLED = "SELECT waiting + in_flight FROM mailroom.backlog()"


def ledger(db: Db, *columns: str) -> list[tuple[object, ...]]:
    wanted = ", ".join(columns or ("token", "attempt", "outcome"))
    return db.execute(f"SELECT {wanted} FROM mailroom.deliveries ORDER BY id".encode()).fetchall()


def wait_until(db: Db, query: str, expected: object, patience_s: float = PATIENCE_S) -> None:
    """Wait until a query's one value is as expected."""
    deadline = time.monotonic() + patience_s
    while (found := db.execute(query.encode()).fetchone()) != (expected,):
        if time.monotonic() > deadline:
            raise AssertionError(f"{query}: {found}, and not {expected}; {ledger(db)[-20:]}")
        time.sleep(0.02)


def fetch(port: int, path: str) -> tuple[int, str]:
    """The status and the text of an answer; 0 when nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


def readiness(port: int) -> dict[str, str] | None:
    """What ``/readyz`` finds at fault, nothing when it is green; None when nobody answers."""
    status, text = fetch(port, "/readyz")
    if not status:
        return None
    found: dict[str, Any] = json.loads(text)
    assert (status == 200) is found["ready"] is (not found["faults"])
    faults: dict[str, str] = found["faults"]
    return faults


def wait_for_readiness(port: int, fault: str | None, patience_s: float = PATIENCE_S) -> float:
    """Wait until ``/readyz`` names this part, or (None) is green; returns how long that took, in seconds."""
    began = time.monotonic()
    while True:
        found = readiness(port)
        if found is not None and (fault in found if fault else not found):
            return time.monotonic() - began
        if time.monotonic() - began > patience_s:
            raise AssertionError(f"/readyz says {found}, and not {fault or 'ready'}")
        time.sleep(0.05)
