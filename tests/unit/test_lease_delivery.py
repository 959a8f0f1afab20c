"""What a lease is settled with: when a call is halved, and when the mails of an action cannot be sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any, cast
from uuid import UUID

import pytest

from mailroom.actions import Action
from mailroom.answers import Answer, Result, Scope
from mailroom.queue.lease import Claimed, Lease, columns_of
from mailroom.runner.delivery import PUT_OFF_S, SOON_S, LeaseDelivery
from mailroom.runner.metrics import Metrics
from mailroom.sender.attempt import Attempt
from mailroom.sender.calls import Calls
from mailroom.sender.failover import EVENT_S
from mailroom.wire import Message, Reference
from support.messages import CATALOGUE

BLAMED = Answer(Result.REJECTED, "for one of them", scope=Scope.CALL)
LEASE = Lease(
    1,
    UUID(int=0),
    1,
    columns_of(Claimed(n, "activation", f"p{n}@b.example", f"p{n}", bytes(32), "12345") for n in range(4)),
    0.0,
)

Settled = Callable[[dict[str, list[Answer]]], dict[int, Answer | None]]


class ScriptedCalls:
    """Answers each attempt by its messages' logins; an attempt without an answer got no turn."""

    largest = 50
    can_send = True
    wants_probe, moves_in_s, lost_wait_s = Calls.wants_probe, Calls.moves_in_s, Calls.lost_wait_s

    def __init__(self, answers: dict[str, list[Answer]]) -> None:
        self._answers = answers
        self.paused: dict[str, float] = {}
        self.pauses = 0.0  # seconds to the next try of an action, which each attempt pauses

    def try_in_s(self, action: str) -> float | None:
        return self.paused.get(action)

    async def attempt(self, messages: Sequence[Message], *_: object, **__: object) -> Attempt | None:
        if self.pauses:
            self.paused[messages[0].action.name] = self.pauses
        answers = self._answers.get(" ".join(one.username for one in messages))
        return None if answers is None else Attempt(answers, tripped=False)


class Catalogue:
    """Knows the catalogue's actions."""

    async def covering(self, _: object) -> Mapping[str, Action]:
        return CATALOGUE


def delivered_over(calls: ScriptedCalls, *, waits_for_events: bool = False) -> LeaseDelivery:
    return LeaseDelivery(
        cast("Any", None),
        cast("Any", calls),
        Metrics(),
        provider="test",
        keys=(b"k" * 32,),
        known=cast("Any", Catalogue()),
        waits_for_events=waits_for_events,
    )


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> Settled:
    """Delivers the lease, and returns the answers that were to be recorded."""
    recorded: dict[int, Answer | None] = {}

    async def record(
        _: object, __: Lease, answers: dict[int, Answer | None], **___: object
    ) -> dict[int, Any]:
        recorded.update(answers)
        return {}

    monkeypatch.setattr("mailroom.runner.delivery.record", record)

    def deliver(answers: dict[str, list[Answer]]) -> dict[int, Answer | None]:
        delivery = delivered_over(ScriptedCalls(answers))
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


@pytest.fixture
def retry_s(monkeypatch: pytest.MonkeyPatch) -> Callable[..., float]:
    """Delivers a lease, and returns in how many seconds its tokens were to be due again."""
    found: list[int] = []

    async def record(*_: object, retry_ms: int, **__: object) -> dict[int, Any]:
        found.append(retry_ms)
        return {}

    monkeypatch.setattr("mailroom.runner.delivery.record", record)

    def deliver(delivery: LeaseDelivery, lease: Lease) -> float:
        asyncio.run(delivery.deliver(lease, 0.0))
        return found[-1] / 1000

    return deliver


def test_of_a_paused_action_one_lease_comes_back_for_the_next_try(retry_s: Callable[..., float]) -> None:
    calls = ScriptedCalls({})
    delivery = delivered_over(calls)
    calls.paused["activation"] = 7.0
    assert 7.0 == retry_s(delivery, LEASE)
    for number in (2, 3):
        assert PUT_OFF_S / 2 <= retry_s(delivery, replace(LEASE, id=number)) <= PUT_OFF_S
    calls.paused["activation"] = 0.0  # the lease is a moment too early
    assert SOON_S == retry_s(delivery, LEASE)
    del calls.paused["activation"]
    assert retry_s(delivery, LEASE) <= 0.5


def test_a_mail_that_got_no_turn_is_not_put_off_with_those_of_a_paused_action(
    retry_s: Callable[..., float],
) -> None:
    calls = ScriptedCalls({})
    delivery = delivered_over(calls)
    calls.paused["activation"] = 20.0
    recovery = LEASE.claimed[0]._replace(token=9, action="password_recovery")
    assert retry_s(delivery, replace(LEASE, columns=columns_of([*LEASE.claimed, recovery]))) <= 0.5


def test_those_that_were_refused_because_the_action_is_paused_are_put_off_too(
    retry_s: Callable[..., float],
) -> None:
    paused = Answer(Result.PAUSED, "no template", scope=Scope.ACTION)
    calls = ScriptedCalls({"p0 p1 p2 p3": [paused] * 4})
    delivery = delivered_over(calls)
    calls.pauses = 20.0
    assert 20.0 == retry_s(delivery, LEASE)


@pytest.mark.parametrize(("waits", "least_s", "most_s"), [(True, EVENT_S, EVENT_S), (False, 0, 0.5)])
def test_a_mail_whose_answer_was_lost_waits_for_its_event_where_events_are_read(
    retry_s: Callable[..., float], waits: bool, least_s: float, most_s: float
) -> None:
    unknown = Answer(Result.UNKNOWN, "no answer", scope=Scope.ACCOUNT)
    answers = {"p0 p1 p2 p3": [Answer(Result.SENT)] * 3 + [unknown]}
    delivery = delivered_over(ScriptedCalls(answers), waits_for_events=waits)
    assert least_s <= retry_s(delivery, LEASE) <= most_s
    transient = delivered_over(
        ScriptedCalls({"p0 p1 p2 p3": [Answer(Result.TRANSIENT)] * 4}), waits_for_events=waits
    )
    assert retry_s(transient, LEASE) <= 0.5


def test_each_message_names_its_attempt(settled: Settled, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Message] = []

    async def attempt(_: object, messages: Sequence[Message], *__: object, **___: object) -> None:
        called.extend(messages)
        calls.paused["activation"] = 1.0

    calls = ScriptedCalls({})
    monkeypatch.setattr(ScriptedCalls, "attempt", attempt)
    asyncio.run(delivered_over(calls).deliver(replace(LEASE, generation=4), 0.0))
    fingerprint = sha256(bytes(32)).digest()[:8]
    assert {Reference(n, fingerprint, 4) for n in range(4)} == {one.reference for one in called}
