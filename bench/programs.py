"""Starts, reads, measures and ends the programs under test, however the benchmark ends."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from mailroom.demo.postgres import ending_with_us

KEY: Final = "ab" * 32
READ_BYTES: Final = 1 << 16
END_S: Final = 15.0


class StoppedShort(Exception):
    """A program ended, or printed nothing for too long, before its work was done."""


class Drained(NamedTuple):
    """Messages read from a pipe, and the seconds that it took."""

    messages: int
    seconds: float

    @property
    def rate(self) -> float:
        """Messages per second."""
        return self.messages / self.seconds if self.seconds else 0.0


def environment(url: str, **variables: str | int) -> dict[str, str]:
    """The environment with these settings (named without MAILROOM_) and none of the caller's."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAILROOM_", "PG", "AWS_"))
    }
    settings = {"DATABASE_URL": url, "SECRET_KEY": KEY} | variables
    return kept | {f"MAILROOM_{name}": str(value) for name, value in settings.items()}


def mailroom(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mailroom", "--log-level", "warning", *arguments]


@contextmanager
def running(
    command: Sequence[str], variables: Mapping[str, str], *, stdout: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the context is left; then ask it to end, and kill it if it does not."""
    process = subprocess.Popen(
        ending_with_us(list(command)), stdin=subprocess.DEVNULL, stdout=stdout, env=dict(variables)
    )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process, and discard what it still writes."""
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        process.terminate()
    deadline = time.monotonic() + END_S
    while process.poll() is None and time.monotonic() < deadline:
        if process.stdout and select.select([process.stdout], [], [], 0.02)[0]:
            os.read(process.stdout.fileno(), READ_BYTES)
        else:
            time.sleep(0.002)
    if process.poll() is None:
        process.kill()
        process.wait()
    if process.stdout:
        process.stdout.close()


def drain(
    process: subprocess.Popen[bytes], wanted: int, *, max_s: float = 600.0, silence_s: float = 60.0
) -> Drained:
    """Read a program's lines until ``wanted`` messages came, or ``max_s`` have passed.

    The clock starts after a fiftieth of the messages, so that a program's start does not count.

    Raises:
        StoppedShort: the program ended, or printed nothing for too long.
    """
    assert process.stdout
    messages = _Messages(process, process.stdout.fileno())
    while messages.count <= wanted // 50:
        messages.more(silence_s)
    first = messages.count
    started = last = time.monotonic()
    while messages.count < wanted and last - started < max_s:
        messages.more(silence_s)
        last = time.monotonic()
    return Drained(messages.count - first, last - started)


class _Messages:
    """Counts messages in chunks: each has five fields, so five commas or line ends. No field holds one."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self._process = process
        self._descriptor = descriptor
        self._separators = 0

    @property
    def count(self) -> int:
        return self._separators // 5

    def more(self, silence_s: float) -> int:
        ready, _, _ = select.select([self._descriptor], [], [], silence_s)
        chunk = os.read(self._descriptor, READ_BYTES) if ready else b""
        if not chunk:
            raise StoppedShort(
                f"{' '.join(map(str, self._process.args if isinstance(self._process.args, list) else []))}"
                f" {'ended' if ready else 'printed nothing more'} after {self.count:,} messages"
            )
        self._separators += chunk.count(b",") + chunk.count(b"\n")
        return self.count


class Reader:
    """Reads a program's lines in a thread, counts messages, and records when each address came.

    Args:
        process: the program.
        times: whether to record the time of each address, on the monotonic clock.
    """

    def __init__(self, process: subprocess.Popen[bytes], *, times: bool = False) -> None:
        self.count = 0
        self.times: dict[str, float] = {}
        assert process.stdout
        # A duplicate that only this class closes: a descriptor that others close may be reused.
        self._descriptor = os.dup(process.stdout.fileno())
        self._messages = _Messages(process, self._descriptor)
        self._thread = threading.Thread(target=self._read_lines if times else self._read_all, daemon=True)
        self._thread.start()

    def wait_for(self, messages: int, max_s: float) -> bool:
        """Whether this many messages came in time."""
        deadline = time.monotonic() + max_s
        while self.count < messages and time.monotonic() < deadline and self._thread.is_alive():
            time.sleep(0.002)
        return self.count >= messages

    def _read_all(self) -> None:
        with suppress(StoppedShort, OSError), open(self._descriptor, "rb"):
            while True:
                self.count = self._messages.more(3600)

    def _read_lines(self) -> None:
        with suppress(OSError), open(self._descriptor, "rb") as stream:
            for line in stream:
                now = time.monotonic()
                fields = line.split(b",")
                for email in fields[1::5]:
                    self.times[email.decode()] = now
                self.count += len(fields) // 5


def rss_mb(process: subprocess.Popen[bytes]) -> float:
    """Resident memory now."""
    return float(psutil.Process(process.pid).memory_info().rss) / 2**20


def peak_mb(process: subprocess.Popen[bytes]) -> float:
    """The peak of resident memory, by the kernel's record."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (peak_kb,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(peak_kb) / 1024


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """The median, the 95th and 99th percentile and the worst, in milliseconds."""
    ordered = sorted(seconds)

    def at(share: float) -> float:
        return round(ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1000, 2)

    return {"p50_ms": at(0.5), "p95_ms": at(0.95), "p99_ms": at(0.99), "max_ms": at(1)}
