"""The demonstration's programs: each a process with a log of its own, which ends with us, even killed.

A program that ends by itself is an error, which shows the last lines of its log.
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
    """The demonstration did not go as it should; the message holds the log's last lines."""

    exit_code = 1


def port_or_free(preferred: int) -> int:
    """That port, or one that is free where it is in use."""
    try:
        socket.create_server(("127.0.0.1", preferred)).close()
    except OSError:
        return free_port()
    return preferred


class Program:
    """Starts at once; the end of the context ends it.

    Args:
        name: what it is called.
        command: what it is.
        environment: all of its variables.
        log: the file for what it prints.
        ready: what it prints there when it is ready.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], *, log: Path, ready: str
    ) -> None:
        self.name = name
        self._log = log
        self._ready = ready
        with log.open("wb") as output:
            # In a session of its own: an interrupt from the terminal is for us alone, who end all in order.
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
        else:  # what shall be told is the error, and not how this ends
            self._process.kill()
            self._process.wait()

    def check(self) -> None:
        """See that it is running.

        Raises:
            DemoError: it is not.
        """
        if self._process.poll() is not None:
            raise self._failure(f"ended by itself, with code {self._process.returncode}")

    def wait_until_ready(self) -> None:
        """Wait until it says that it is ready.

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
        """End it in order.

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
        """The end of its log."""
        lines = self._log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return "\n".join(f"  {line}" for line in lines) or "  (nothing)"

    def _failure(self, what: str) -> DemoError:
        return DemoError(f"{self.name} {what}; the end of its log:\n{self.last_lines()}")


class Programs:
    """Programs that share their variables, and a folder for their logs.

    Args:
        stack: ends them.
        folder: for the logs.
        environment: the variables.
    """

    def __init__(self, stack: ExitStack, folder: Path, environment: Mapping[str, str]) -> None:
        self._stack = stack
        self._folder = folder
        self._environment = environment
        self._programs: dict[str, Program] = {}

    def serve(
        self, name: str, command: Sequence[str], variables: Mapping[str, str], *, port: int, ready: str
    ) -> str:
        """Start a program that serves HTTP, and give back its address.

        Args:
            name: what it is called.
            command: a module and its arguments.
            variables: its own; ``{port}`` stands for the port, as it does in the command.
            port: the one to have, unless it is in use.
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
                if port_or_free(chosen) == chosen:  # else somebody took it meanwhile
                    raise
            else:
                self._programs[name] = program
                return f"http://127.0.0.1:{chosen}"
        raise DemoError(f"{name} finds no port that stays free")

    def check(self) -> None:
        """See that every program is running.

        Raises:
            DemoError: one is not.
        """
        for program in self._programs.values():
            program.check()

    def failure(self, what: str, name: str) -> DemoError:
        """The error that something went wrong, with the end of the log of the program that can tell."""
        return DemoError(f"{what}; the end of {name}'s log:\n{self._programs[name].last_lines()}")
