"""Calls wait in one line: by lane, then in the order of their coming; and only the first holds a thread."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from mailroom.answers import Answer, Result
from mailroom.sender.calls import Calls
from mailroom.wire import Message
from support.messages import message
from support.senders import settings

SENT = Answer(Result.SENT)


class Recording:
    """A transport that answers once it may, and remembers who was mailed in which order."""

    name = "recording"
    recipients_per_call = 50

    def __init__(self) -> None:
        self.mailed: list[str] = []
        self.may_answer = threading.Event()

    def check(self) -> None:
        return None

    def quota(self) -> None:
        return None

    def close(self) -> None:
        return None

    def send(self, messages: Sequence[Message]) -> list[Answer]:
        self.mailed += [one.username for one in messages]
        self.may_answer.wait(30)
        return [SENT] * len(messages)


@pytest.fixture
def transport() -> Recording:
    return Recording()


def named(name: str) -> Message:
    return message()._replace(username=name)


async def begun(*tasks: asyncio.Task[object]) -> None:
    """Let tasks run until each waits for something."""
    for _ in range(10):
        await asyncio.sleep(0)
    assert tasks


def test_a_more_urgent_call_goes_before_those_that_wait(transport: Recording, tmp_path: Path) -> None:
    async def scenario() -> None:
        calls = Calls(transport, settings(tmp_path, SEND_CONCURRENCY=1), asyncio.Event())
        names = ["first bulk", "bulk 1", "bulk 2", "normal 1", "urgent 1", "normal 2", "urgent 2", "bulk 3"]
        tasks = []
        for name in names:
            lane = name.split()[0].replace("first", "bulk")
            attempt = calls.attempt([named(name)], math.inf, lane=lane)
            tasks.append(asyncio.create_task(attempt))
            await begun(*tasks)
        transport.may_answer.set()
        assert all(await asyncio.gather(*tasks))

    asyncio.run(scenario())
    ordered = ["urgent 1", "urgent 2", "normal 1", "normal 2", "bulk 2", "bulk 3"]
    assert ["first bulk", "bulk 1", *ordered] == transport.mailed


def test_an_urgent_call_waits_for_the_rate_of_one_call_alone(transport: Recording, tmp_path: Path) -> None:
    """Twenty bulk calls wait, each for half a second of the rate."""
    transport.may_answer.set()

    async def scenario() -> float:
        calls = Calls(transport, settings(tmp_path, SEND_RATE=20), asyncio.Event())
        bulk = [
            asyncio.create_task(calls.attempt([named("bulk")] * 10, math.inf, lane="bulk")) for _ in range(20)
        ]
        await begun(*bulk)
        began = time.monotonic()
        assert await calls.attempt([named("urgent")], math.inf, lane="urgent")
        took_s = time.monotonic() - began
        for task in bulk:
            task.cancel()
        await asyncio.gather(*bulk, return_exceptions=True)
        return took_s

    assert asyncio.run(scenario()) < 2
    assert transport.mailed.index("urgent") <= 30


def test_a_call_that_gives_up_in_the_line_lets_the_others_go_on(transport: Recording, tmp_path: Path) -> None:
    async def scenario() -> None:
        calls = Calls(transport, settings(tmp_path, SEND_CONCURRENCY=1), asyncio.Event())
        first = asyncio.create_task(calls.attempt([named("first")], math.inf, lane="normal"))
        await begun(first)
        gives_up = calls.attempt([named("gives up")], time.monotonic() + 0.1, lane="normal")
        head = asyncio.create_task(gives_up)
        await begun(head)
        last = asyncio.create_task(calls.attempt([named("last")], math.inf, lane="bulk"))
        assert await head is None
        transport.may_answer.set()
        assert await first
        assert await last

    asyncio.run(scenario())
    assert ["first", "last"] == transport.mailed
