"""``python -m bench.soak.provider FILE`` is the provider: the built-in inbox, which notes what it accepts.

A line of the file is one accepted mail, as ``Mail``. The faults come over the inbox's own API.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, TextIO

from mailroom.demo.postgres import ending_with_us
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.mails import KeptMail
from mailroom.inbox.server import InboxServer

KEEP: Final = 1000
# Far above the load, and low enough that a backlog is drained at the provider's pace.
RATE: Final = 2000
TIMEOUT_S: Final = 20.0
# The verdicts of calls whose mails were accepted and whose answers did not reach the client.
LOST: Final = ("cut", "cut_body", "garbage", "hang", "http")


class Mail(NamedTuple):
    """One accepted mail.

    Attributes:
        at: the time, in seconds since the epoch.
        sender: the name in the sender's address, which names the process that made the call.
        call: the number of the call, as the inbox counts them.
        token: the signed token.
    """

    at: float
    id: str
    recipient: str
    sender: str
    call: int
    token: str
    code: str


class Provider:
    """The provider in another process, seen through its API and its file.

    Attributes:
        url: SES's endpoint.
        mails: the accepted mails that were read from the file so far.
        lost_calls: the numbers of calls whose mails were accepted, and whose answers were lost by a fault.
    """

    def __init__(self, url: str, file: TextIO) -> None:
        self.url = url
        self.mails: list[Mail] = []
        self.lost_calls: dict[int, str] = {}
        self._file = file
        self._rest = ""
        self._last_call = 0

    @property
    def port(self) -> int:
        """The port of its URL."""
        return int(self.url.rpartition(":")[2])

    def read(self) -> list[Mail]:
        """Return the mails that were accepted since the last call."""
        lines = (self._rest + self._file.read()).split("\n")
        self._rest = lines.pop()
        new = [Mail(*json.loads(line)) for line in lines]
        self.mails += new
        return new

    def read_calls(self) -> None:
        """Find the calls whose answers were lost."""
        while calls := self.ask("GET", f"calls?limit=1000&after={self._last_call}")["calls"]:
            self._last_call = calls[-1]["number"]
            self.lost_calls |= {
                call["number"]: call["verdict"]
                for call in calls
                if call["accepted"] and call["verdict"] in LOST
            }

    def add_fault(self, **fault: str | float | bool) -> None:
        """Add one of the inbox's faults."""
        self.ask("POST", "faults", {**fault})

    def clear_faults(self) -> None:
        """Remove all faults, and the pause."""
        self.ask("DELETE", "faults")
        self.pause(False)

    def pause(self, paused: bool) -> None:
        """Pause the account, or end its pause."""
        self.ask("PATCH", "settings", {"paused": paused})

    def ask(self, method: str, path: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
        """Call the inbox's own API."""
        request = urllib.request.Request(  # noqa: S310 - our own server on loopback
            f"{self.url}/api/{path}",
            method=method,
            data=None if content is None else json.dumps(content).encode(),
            headers={"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310 - as above
            found: dict[str, Any] = json.load(answer)
        return found


@contextmanager
def provider(folder: Path) -> Iterator[Provider]:
    """Run the provider until the context is left."""
    file = folder / "mails"
    file.touch()
    with subprocess.Popen(
        ending_with_us([sys.executable, "-m", "bench.soak.provider", str(file)]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        try:
            found = re.search(r"http\S+", process.stdout.readline())
            assert found, "the provider did not start"
            with file.open() as mails:
                yield Provider(found[0], mails)
        finally:
            process.terminate()


def main() -> None:
    # Blocked before the server starts its threads, and taken below.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
    lock = threading.Lock()
    with Path(sys.argv[1]).open("a", buffering=1) as file:

        def write(mail: KeptMail) -> None:
            data = mail.data
            sender = mail.source.partition(" <")[0].strip('"')
            # The call is counted after its mails.
            fields = Mail(
                mail.time.timestamp(), mail.id, mail.recipient, sender, inbox.counts.calls + 1,
                str(data.get("secret", "")), str(data.get("code", "")),
            )  # fmt: skip
            with lock:
                file.write(json.dumps(fields) + "\n")

        inbox = Inbox(rate=RATE, keep=KEEP, on_mail=write)
        with InboxServer(inbox=inbox) as server:
            print(server.url, flush=True)
            signal.sigwait([signal.SIGTERM, signal.SIGINT])


if __name__ == "__main__":
    main()
