"""Senders for tests: the policy in this process, or ``mailroom sender`` in one of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import pytest

from mailroom.answers import RETRY_LIMIT, Result
from mailroom.inbox.inbox import Inbox
from mailroom.sender import policy
from mailroom.sender.policy import Sender, Verdict
from mailroom.settings.sender import SenderSettings
from mailroom.settings.variables import read_settings
from mailroom.templates import sources
from mailroom.transports.transport import Transport, open_transports
from mailroom.wire import Message, encode
from support.processes import PATIENCE_S

CONSTANTS = {"MAILROOM_APP_NAME": "Acme", "MAILROOM_APP_URL": "https://acme.example"}
AWS_KEY_ID, AWS_SECRET = "AKIATESTTESTTESTTEST", "secret/of/the/tests/secret/of/the/tests1"
AWS_TOKEN = "session-token-of-the-tests"


def aws(url: str) -> dict[str, str]:
    """The environment in which botocore speaks to this endpoint and knows nothing of the machine."""
    return {
        "AWS_ENDPOINT_URL_SES": url,
        "AWS_ENDPOINT_URL_SESV2": url,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": AWS_KEY_ID,
        "AWS_SECRET_ACCESS_KEY": AWS_SECRET,
        "AWS_SESSION_TOKEN": AWS_TOKEN,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        "NO_PROXY": "127.0.0.1",
    }


def environment(output: Path, **variables: str | float | Path) -> dict[str, str]:
    """A sender's environment: nothing of the caller's, these variables (without MAILROOM_)."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAILROOM_", "PG", "AWS_"))
    }
    given = {"SES_SOURCE": "noreply@acme.example", "SES_OUTPUT_PATH": output} | variables
    return kept | CONSTANTS | {f"MAILROOM_{name}": str(value) for name, value in given.items()}


def settings(output: Path, **variables: str | float | Path) -> SenderSettings:
    return read_settings(SenderSettings, environment(output, **variables))


def with_templates(inbox: Inbox) -> Inbox:
    """Put the built-in templates into a local SES."""
    inbox.publish(sources.load(None, {"app_name": "Acme", "app_url": "https://acme.example"}).values())
    return inbox


class Sent:
    """What became of messages that were sent in this process."""

    def __init__(self) -> None:
        self.verdicts: dict[Message, Verdict] = {}
        self.reasons: dict[Message, str] = {}
        self.unknown_answers = 0

    def report(self, verdicts: list[tuple[Message, Verdict, str]]) -> None:
        for message, verdict, reason in verdicts:
            assert message not in self.verdicts, "a message was reported twice"
            self.verdicts[message] = verdict
            self.reasons[message] = reason

    def count(self) -> dict[str, int]:
        return dict(Counter(verdict.value for verdict in self.verdicts.values()))


def send(
    chosen: SenderSettings,
    batch: Sequence[Message],
    transport: Transport | None = None,
    *,
    timeout_s: float = PATIENCE_S,
    retry_limit: int = RETRY_LIMIT,
    useful_s: float | None = None,
) -> Sent:
    """Submit a batch, wait until nothing is in hand or the time is over, and stop.

    ``useful_s`` replaces the lifetime of the messages' actions.
    """
    sent = Sent()

    async def run() -> None:
        sender = Sender(
            [transport] if transport else open_transports(chosen),
            chosen,
            sent.report,
            retry_limit=retry_limit,
        )
        try:
            async with asyncio.timeout(timeout_s):
                await sender.start()
                await sender.submit(batch)
                await sender.drain()
        except TimeoutError:
            pass  # what the test is about
        finally:
            await sender.abandon()
        sent.unknown_answers = sender.answers[Result.UNKNOWN]

    with pytest.MonkeyPatch.context() as monkeypatch:
        if useful_s is not None:
            monkeypatch.setattr(policy, "useful_s", lambda _: useful_s)
        asyncio.run(run())
    assert set(batch) == set(sent.verdicts), "a message was not reported"
    return sent


class SenderProcess:
    """``mailroom sender``, fed by ``write`` or from another process's pipe; its log grows while it runs."""

    def __init__(
        self, variables: dict[str, str], log: Path, *, stdin: int = subprocess.PIPE, level: str = "info"
    ) -> None:
        self.log_path = log
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mailroom", "--log-level", level, "sender"],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=variables,
            )
        self.output = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        if self.process.stdin and not self.process.stdin.closed:
            self.process.stdin.close()

    def write(self, content: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(content)
        self.process.stdin.flush()

    def send(self, *batches: Sequence[Message]) -> None:
        self.write(b"".join(encode(batch) for batch in batches))

    def end(self) -> int:
        """End of input, and the exit code."""
        assert self.process.stdin
        self.process.stdin.close()
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return code

    def log(self) -> str:
        return self.log_path.read_text()

    def wait_for_log(self, text: str, patience_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + patience_s
        while text not in self.log():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise AssertionError(f"no {text!r} in the log:\n{self.log()[-3000:]}")
            time.sleep(0.01)

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as stream:
            for chunk in stream:
                self.output += chunk
