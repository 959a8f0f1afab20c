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
