"""Measures the sender: recipients per second and CPU per recipient, through botocore into a local SES.

``mailroom sender`` reads a file of lines and calls ``mailroom inbox`` in another process. The rate runs from
the first call to the last, by the inbox's record. The CPU time is the sender's from start to end, minus that
of a sender with one recipient.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.options import Options
from bench.programs import KEY, environment, mailroom
from bench.tell import tell
from mailroom.actions import load_actions
from mailroom.tokens import sign
from mailroom.wire import Message, encode

PER_LINE = (10, 50)
IN_FLIGHT = (1, 8)


def measure(options: Options) -> dict[str, Any]:
    """A row for each number of recipients per line and of calls in flight."""
    recipients = options.sized(20_000, 2_000)
    rows = []
    with tempfile.TemporaryDirectory() as folder, inbox() as url:
        variables = environment("") | ses_environment(url, Path(folder))
        push_templates(variables)
        lines = Path(folder) / "lines"
        for per_line in PER_LINE:
            for in_flight in IN_FLIGHT:
                variables["MAILROOM_SEND_CONCURRENCY"] = str(in_flight)
                write_lines(lines, 1, 1)
                _, start_cpu_s, _ = run(url, variables, lines, 1)
                write_lines(lines, recipients, per_line)
                seconds, cpu_s, peak_mb = run(url, variables, lines, recipients)
                rows.append(
                    {
                        "per_line": per_line,
                        "in_flight": in_flight,
                        "recipients_per_s": round(recipients / seconds),
                        "cpu_us_per_recipient": round((cpu_s - start_cpu_s) / recipients * 1e6),
                        "recipients_per_cpu_s": round(recipients / (cpu_s - start_cpu_s)),
                        "peak_mb": round(peak_mb, 1),
                    }
                )
                tell(f"{per_line} per line, {in_flight} in flight: {recipients / seconds:,.0f} recipients/s")
    return {"recipients": recipients, "rows": rows}


@contextmanager
def inbox() -> Iterator[str]:
    """Run a local SES in another process; yields its address."""
    with subprocess.Popen(
        [sys.executable, "-m", "mailroom", "inbox", "--port", "0", "--no-print"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        try:
            found = re.search(r" is at (http\S+)\. ", process.stderr.readline())
            assert found
            yield found[1]
        finally:
            process.terminate()


def ses_environment(url: str, folder: Path) -> dict[str, str]:
    """The settings of a sender for a local SES."""
    return {
        "MAILROOM_APP_NAME": "Bench",
        "MAILROOM_APP_URL": "https://bench.example",
        "MAILROOM_SES_SOURCE": "noreply@bench.example",
        "MAILROOM_SES_OUTPUT_PATH": str(folder),
        "MAILROOM_SEND_RATE": "1000000",
        "AWS_ENDPOINT_URL_SES": url,
        "AWS_REGION": "us-east-1",  # JavaScript reads this one
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "NO_PROXY": "127.0.0.1",
    }


def push_templates(variables: Mapping[str, str]) -> None:
    subprocess.run(mailroom("templates", "push"), env=variables, check=True, stdout=subprocess.DEVNULL)


def write_lines(path: Path, recipients: int, per_line: int) -> None:
    with path.open("wb") as file:
        for first in range(0, recipients, per_line):
            file.write(encode([message(number) for number in range(first, first + per_line)]))


def message(number: int) -> Message:
    action = load_actions()["activation"]
    token = sign(number.to_bytes(32, "big"), action, keys=KEY)
    return Message(action, f"user{number}@example.com", f"login{number}", token, f"{number % 100_000:05}")


def run(url: str, variables: Mapping[str, str], lines: Path, recipients: int) -> tuple[float, float, float]:
    """Seconds from the first call to the last, the sender's CPU seconds, and its peak memory in MB."""
    before = get(url, "counts")
    with lines.open("rb") as stdin:
        process = subprocess.Popen(
            mailroom("sender"), stdin=stdin, stdout=subprocess.DEVNULL, env=dict(variables)
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    after = get(url, "counts")
    assert after["accepted"] - before["accepted"] == recipients
    times = []
    last = before["calls"]
    while calls := get(url, f"calls?limit=1000&after={last}")["calls"]:
        times += [call["at_s"] for call in calls]
        last = calls[-1]["number"]
    return times[-1] - times[0], usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def get(url: str, path: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/api/{path}") as answer:  # noqa: S310 - our own server on loopback
        found: dict[str, Any] = json.load(answer)
    return found
