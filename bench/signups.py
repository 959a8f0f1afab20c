"""``python -m bench.signups URL COUNT RATE PREFIX`` signs people up at a rate, one commit each.

A rate of 0 means as fast as possible. It prints a line per commit: the address, the times when COMMIT was
sent and answered (monotonic clock), and the time when it was answered (wall clock).
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from typing import Final, NamedTuple

import psycopg

from bench.programs import environment
from mailroom.demo.postgres import ending_with_us

CLIENTS: Final = 8
QUIET_RATE: Final = 60.0  # up to this rate one client is enough, and it pauses at random


class Signup(NamedTuple):
    """One commit: the address, and the times in seconds."""

    email: str
    sent_s: float
    answered_s: float
    answered_at: float


def sign_up(url: str, count: int, rate: float, prefix: str) -> list[Signup]:
    """Sign up ``count`` people from another process, and return their commits."""
    command = [sys.executable, "-m", "bench.signups", url, str(count), str(rate), prefix]
    done = subprocess.run(
        ending_with_us(command), env=environment(url), stdout=subprocess.PIPE, check=True, text=True
    )
    rows = (line.split() for line in done.stdout.splitlines())
    return [Signup(email, float(sent), float(answered), float(at)) for email, sent, answered, at in rows]


def main() -> None:
    url, count, rate, prefix = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
    clients = CLIENTS if rate > QUIET_RATE else 1
    start = time.monotonic() + 0.5
    found: list[list[Signup]] = [[] for _ in range(clients)]
    threads = [
        threading.Thread(target=client, args=[url, range(n, count, clients), rate, prefix, start, found[n]])
        for n in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for signups in found:
        for one in signups:
            print(one.email, f"{one.sent_s:.6f}", f"{one.answered_s:.6f}", f"{one.answered_at:.6f}")


def client(
    url: str,
    numbers: range,
    rate: float,
    prefix: str,
    start: float,
    found: list[Signup],
) -> None:
    """Commit each of these numbers at its time."""
    with psycopg.connect(url, autocommit=True) as connection:
        for number in numbers:
            if rate:
                due = start + number / rate
                if rate <= QUIET_RATE:
                    due += random.uniform(0, 0.5) / rate  # noqa: S311 - avoids resonance, no secret
                time.sleep(max(0.0, due - time.monotonic()))
            login = f"{prefix}{number}"
            connection.execute("BEGIN")
            connection.execute(
                "INSERT INTO accounts (email, login) VALUES (%s, %s)", [f"{login}@example.com", login]
            )
            sent_s = time.monotonic()
            connection.execute("COMMIT")
            found.append(Signup(f"{login}@example.com", sent_s, time.monotonic(), time.time()))


if __name__ == "__main__":
    main()
