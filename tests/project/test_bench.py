"""The workers of the other queues do Mailroom's own job, and the benchmark runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bench.peers.builds import build
from bench.peers.job import KEYS, line
from bench.peers.node_jobs import node
from bench.peers.queues import Missing, job_environment
from bench.peers.river_jobs import adapter as river
from bench.ses import LocalSes

from mailroom.actions import load_actions


def river_line() -> list[str]:
    return [river().command[0], "line"]


def node_line() -> list[str]:
    program, built = node()
    return [program, str(built / "line.mjs")]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", [river_line, node_line])
def test_a_worker_in_another_language_writes_the_same_line(command: Callable[[], list[str]]) -> None:
    people = [("ann@example.com", "ann"), ('"a,b"@example.com', 'Ann "A", Müller'), ("ü@example.com", "雪")]
    rows = [
        (action, email, login, bytes(range(number, number + 32)), f"{number:05}")
        for number, action in enumerate(load_actions())
        for email, login in people
    ]
    texts = [json.dumps([*row[:3], row[3].hex(), row[4]]) for row in rows]
    try:
        words = command()
    except Missing as reason:
        pytest.skip(str(reason))
    variables = job_environment({}) | {"MAILROOM_SECRET_KEY": KEYS[0].hex(), "MAILROOM_BENCH_RATE": "1000"}
    done = subprocess.run(
        words, env=os.environ | variables, input="\n".join(texts).encode(), stdout=subprocess.PIPE, check=True
    )
    assert b"".join(line((None, *row)) for row in rows) == done.stdout


def test_a_queue_whose_runtime_is_missing_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(Missing, match="no-such-tool is not installed"):
        build("river", "no-such-tool", ["no-such-tool"])


def test_the_local_ses_counts_repeated_mails_and_throttles() -> None:
    ses = LocalSes()
    body = b"Action=SendBulkTemplatedEmail"
    body += b"".join(
        b"&Destinations.member.%d.Destination.ToAddresses.member.1=user%d%%40example.com" % (n, n % 400)
        for n in range(1, 601)
    )
    assert ses.answer(body)[0] == 200
    assert (ses.mails, len(ses.accepted), ses.duplicates) == (600, 400, 200)
    status, text = ses.answer(body)
    assert (status, ses.mails, ses.calls, ses.throttled) == (400, 600, 2, 1)
    assert "<Code>Throttling</Code>" in text


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_peers_are_measured_beside_a_reference() -> None:
    """The reference is Mailroom itself, which follows the same contract."""
    mailroom = Path(sys.executable).with_name("mailroom")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bench", "--quick", "--only", "peers", "--json"),
            *("--reference", f"{mailroom} collector", "--reference-sender", f"{mailroom} sender"),
        ],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        check=True,
    )
    found = {name: result["result"]["rows"] for name, result in json.loads(done.stdout).items()}
    assert list(found) == ["peers", "peers_latency", "peers_producers", "peers_sending"]
    sent = {row["name"]: row for row in found["peers_sending"]}
    assert "the reference, limit 10" in {row["name"] for row in found["peers"]} & set(sent)
    # A worker that was killed loses nothing, and sends at most what it had in hand again.
    assert sent["Mailroom run, limit 10"]["left"] == 0
    assert sent["SELECT … SKIP LOCKED, batches"]["left"] == 0
    assert sent["SELECT … SKIP LOCKED, batches"]["duplicates"] <= 50
