"""A ``mailroom collector`` in a process of its own, read as a sender would read it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from mailroom.actions import Action, load_actions
from mailroom.wire import Message, decode

OWN = Action("join", 30, b"/join")
ACTIONS = load_actions() | {OWN.name: OWN}
KEY = "deadbeef" * 8
PATIENCE_S = 60.0


def environment(url: str, **variables: str | int) -> dict[str, str]:
    """A collector's environment: nothing of the caller's, these variables (without MAILROOM_)."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAILROOM_", "PG"))}
    settings = {"DATABASE_URL": url, "SECRET_KEY": KEY, "BATCH_TIMEOUT": 50} | variables
    return kept | {f"MAILROOM_{name}": str(value) for name, value in settings.items()}


def with_password(url: str) -> tuple[str, str]:
    """An address with a password in it, and the password: its own, or one that nobody asks for."""
    password = str(conninfo_to_dict(url).get("password") or "hunter2")
    return make_conninfo(url, password=password), password


def without(
    package: str, *arguments: str, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What ``mailroom`` does where a package is not installed, in a process of its own."""
    hidden = f"import sys; sys.modules[{package!r}] = None; from mailroom.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", hidden, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=variables,
    )


class CollectorProcess:
    """Starts at once; its lines, messages and log grow while it runs."""

    def __init__(self, url: str, *, log: Path, level: str = "info", **variables: str | int) -> None:
        self.lines: list[bytes] = []
        self.torn = b""
        self._messages: list[Message] = []
        self._decoded = 0
        self._log = log
        self._grown = threading.Condition()
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mailroom", "--log-level", level, "collector"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment(url, **variables),
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()

    @property
    def messages(self) -> list[Message]:
        lines = self.lines[self._decoded :]  # each is decoded once, however often a test looks
        self._messages += [message for line in lines for message in decode(line, ACTIONS)]
        self._decoded += len(lines)
        return list(self._messages)

    def emails(self) -> list[str]:
        return [message.email for message in self.messages]

    def log(self) -> str:
        return self._log.read_text()

    def wait_for_messages(self, count: int, patience_s: float = PATIENCE_S) -> list[Message]:
        """Wait until this many messages were printed; fails with the log otherwise."""
        with self._grown:
            self._grown.wait_for(
                lambda: len(self.messages) >= count or self.process.poll() is not None, patience_s
            )
        if len(self.messages) < count:
            raise AssertionError(f"{len(self.messages)} of {count} messages; log:\n{self.log()[-3000:]}")
        return self.messages

    def wait_for_log(self, text: str, count: int = 1, patience_s: float = PATIENCE_S) -> None:
        """Wait until the log holds a text this many times."""
        deadline = time.monotonic() + patience_s
        while self.log().count(text) < count:
            if time.monotonic() > deadline or (self.process.poll() is not None and text not in self.log()):
                raise AssertionError(f"no {text!r} in the log:\n{self.log()[-3000:]}")
            time.sleep(0.01)

    def wait_until_listening(self) -> Self:
        """Wait until it has started (and so catches up on its own)."""
        self.wait_for_log("collector.started")
        return self

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.terminate()
        return self.wait()

    def kill(self) -> None:
        """SIGKILL; what it had printed is read to the end."""
        self.process.kill()
        self.wait()

    def wait(self) -> int:
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return code

    def _read(self) -> None:
        stream = self.process.stdout
        if stream is None:
            raise AssertionError("the collector has no standard output")
        for line in stream:
            with self._grown:
                if line.endswith(b"\n"):
                    self.lines.append(line)
                else:
                    self.torn = line
                self._grown.notify_all()
        with self._grown:
            self._grown.notify_all()
