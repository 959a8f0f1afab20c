"""What a lease is settled with, when a call that was refused for one of its recipients is halved."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast
from uuid import UUID

import pytest

from mailroom.actions import Action
from mailroom.answers import Answer, Result, Scope
from mailroom.queue.lease import Claimed, Lease
from mailroom.sender.calls import Attempt
from mailroom.wire import Message
from mailroom.worker.delivery import LeaseDelivery
from mailroom.worker.metrics import Metrics
from support.messages import CATALOGUE

BLAMED = Answer(Result.REJECTED, "for one of them", scope=Scope.CALL)
LEASE = Lease(
    1,
    UUID(int=0),
    1,
    [Claimed(n, "activation", f"p{n}@b.example", f"p{n}", bytes(32), "12345") for n in range(4)],
    0.0,
)

Settled = Callable[[dict[str, list[Answer]]], dict[int, Answer | None]]


class ScriptedCalls:
    """Answers each attempt by its messages' logins; an attempt without an answer got no turn."""

    largest = 50

    def __init__(self, answers: dict[str, list[Answer]]) -> None:
        self._answers = answers

    async def attempt(self, messages: Sequence[Message], *_: object, **__: object) -> Attempt | None:
        answers = self._answers.get(" ".join(one.username for one in messages))
        return None if answers is None else Attempt(answers, tripped=False)


class Catalogue:
    """Knows the catalogue's actions."""

    async def covering(self, _: object) -> Mapping[str, Action]:
        return CATALOGUE


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> Settled:
    """Delivers the lease, and returns the answers that were to be recorded."""
    recorded: dict[int, Answer | None] = {}

    async def record(
        _: object, __: Lease, answers: dict[int, Answer | None], **___: object
    ) -> dict[int, Any]:
        recorded.update(answers)
        return {}

    monkeypatch.setattr("mailroom.worker.delivery.record", record)

    def deliver(answers: dict[str, list[Answer]]) -> dict[int, Answer | None]:
        calls = cast("Any", ScriptedCalls(answers))
        delivery = LeaseDelivery(
            cast("Any", None),
            calls,
            Metrics(),
            provider="test",
            keys=(b"k" * 32,),
            known=cast("Any", Catalogue()),
        )
        asyncio.run(delivery.deliver(LEASE, 0.0))
        return recorded

    return deliver


def test_a_refused_call_is_halved_until_the_recipient_is_known(settled: Settled) -> None:
    sent = Answer(Result.SENT)
    answers = {
        "p0 p1 p2 p3": [BLAMED] * 4,
        "p0 p1": [sent] * 2,
        "p2 p3": [BLAMED] * 2,
        "p2": [BLAMED],
        "p3": [sent],
    }
    assert {0: sent, 1: sent, 2: BLAMED, 3: sent} == settled(answers)


def test_a_half_that_got_no_turn_is_not_settled_with_the_answer_of_the_whole(settled: Settled) -> None:
    sent = Answer(Result.SENT)
    assert {0: sent, 1: sent, 2: None, 3: None} == settled({"p0 p1 p2 p3": [BLAMED] * 4, "p0 p1": [sent] * 2})
