"""Runs the demonstration's programs: each is a process with its own log.

The programs end with this process, even if it is killed. A program that ends earlier is an error, which
shows the last lines of its log.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from mailroom.demo.postgres import ending_with_us, free_port
from mailroom.errors import MailroomError

START_S: Final = 60.0
STOP_S: Final = 15.0
LAST_LINES: Final = 12
APP: Final = "example application"
RUN: Final = "mailroom run"
QUEUE: Final = "mailroom console"


class DemoError(MailroomError):
    """The demonstration failed; the message holds the last lines of a log."""

    exit_code = 1


def port_or_free(preferred: int) -> int:
    """Return the port, or a free one if it is in use."""
    try:
        socket.create_server(("127.0.0.1", preferred)).close()
    except OSError:
        return free_port()
    return preferred


class Program:
    """A process that starts at once, and ends with the context.

    Args:
        name: for messages.
        command: the command.
        environment: all its variables.
        log: the file for its output.
        ready: the text that it prints when it is ready.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], *, log: Path, ready: str
    ) -> None:
        self.name = name
        self._log = log
        self._ready = ready
        with log.open("wb") as output:
            # A new session, so that Ctrl-C reaches this process only, which then ends the programs in order.
            self._process = subprocess.Popen(
                ending_with_us(list(command), by="KILL"),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(environment),
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind in (None, KeyboardInterrupt) and self._process.poll() is None:
            self.stop()
        else:  # the error matters, not how the program ends
            self._process.kill()
            self._process.wait()

    def check(self) -> None:
        """Check that it is running.

        Raises:
            DemoError: it is not.
        """
        if self._process.poll() is not None:
            raise self._failure(f"ended unexpectedly, with code {self._process.returncode}")

    def wait_until_ready(self) -> None:
        """Wait until it reports that it is ready.

        Raises:
            DemoError: it ended, or took too long.
        """
        until_s = time.monotonic() + START_S
        while self._ready not in self._log.read_text(errors="replace"):
            self.check()
            if time.monotonic() > until_s:
                raise self._failure(f"was not ready within {START_S:.0f} s")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop it in order.

        Raises:
            DemoError: it had to be killed, or it failed.
        """
        self._process.terminate()
        try:
            code = self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise self._failure(f"did not end within {STOP_S:.0f} s") from None
        if code not in (0, -signal.SIGTERM):
            raise self._failure(f"ended with code {code}")

    def last_lines(self) -> str:
        """Return the last lines of its log."""
        lines = self._log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return "\n".join(f"  {line}" for line in lines) or "  (nothing)"

    def _failure(self, what: str) -> DemoError:
        return DemoError(f"{self.name} {what}; the end of its log:\n{self.last_lines()}")


class Programs:
    """Programs with common variables and a folder for their logs.

    Args:
        stack: ends the programs.
        folder: the folder for the logs.
        environment: the common variables.
    """

    def __init__(self, stack: ExitStack, folder: Path, environment: Mapping[str, str]) -> None:
        self._stack = stack
        self._folder = folder
        self._environment = environment
        self._programs: dict[str, Program] = {}

    def serve(
        self, name: str, command: Sequence[str], variables: Mapping[str, str], *, port: int, ready: str
    ) -> str:
        """Start a program that serves HTTP, and return its address.

        Args:
            name: for messages.
            command: a module and its arguments.
            variables: its own variables; ``{port}`` stands for the port, in the command too.
            port: the preferred port.
            ready: see ``Program``.

        Raises:
            DemoError: it does not start.
        """
        for chosen in (port_or_free(port), free_port()):
            words, values = (
                [text.replace("{port}", str(chosen)) for text in texts]
                for texts in (command, variables.values())
            )
            program = self._stack.enter_context(
                Program(
                    name,
                    [sys.executable, "-m", *words],
                    {**self._environment, **dict(zip(variables, values, strict=True))},
                    log=self._folder / f"{name}.log",
                    ready=ready,
                )
            )
            try:
                program.wait_until_ready()
            except DemoError:
                if port_or_free(chosen) == chosen:  # otherwise another program took the port meanwhile
                    raise
            else:
                self._programs[name] = program
                return f"http://127.0.0.1:{chosen}"
        raise DemoError(f"{name}: two ports were taken before it could use them")

    def check(self) -> None:
        """Check that every program is running.

        Raises:
            DemoError: one is not.
        """
        for program in self._programs.values():
            program.check()

    def failure(self, what: str, name: str) -> DemoError:
        """Return an error with the end of the log of the program that may have caused it."""
        return DemoError(f"{what}; the end of {name}'s log:\n{self._programs[name].last_lines()}")
