"""Two transports: the second sends while the first cannot send any mail, and not for other reasons."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from mailroom.answers import Answer, Result, Scope
from mailroom.sender import breaker, failover, policy
from mailroom.sender.attempt import Attempt
from mailroom.sender.calls import ACCOUNT
from mailroom.sender.failover import Failover, open_calls
from mailroom.sender.policy import Sender, Verdict
from mailroom.sender.rate import Bucket
from mailroom.wire import Message
from support.messages import PASSWORD_RECOVERY, message
from support.processes import PATIENCE_S
from support.senders import Sent, settings

PAUSED = Answer(Result.PAUSED, "sending is paused", scope=Scope.ACCOUNT)
AWAY = Answer(Result.TRANSIENT, "connection refused", scope=Scope.ACCOUNT)
THROTTLED = Answer(Result.THROTTLED, "daily message quota exceeded", scope=Scope.ACCOUNT)
LOST = Answer(Result.UNKNOWN, "no answer", scope=Scope.ACCOUNT)
NO_TEMPLATE = Answer(Result.PAUSED, "no template", scope=Scope.ACTION)
NO_SUCH_PERSON = Answer(Result.REJECTED, "550 5.1.1 no such user")
AFTER_S = 0.05
LOST_S = 0.2


class Scripted:
    """A transport that gives all mails its answer, and accepts them while it has none."""

    recipients_per_call = 50

    def __init__(self, name: str, answer: Answer | None = None) -> None:
        self.name = name
        self.answer = answer
        self.answers: dict[str, Answer] = {}  # of single people
        self.calls: list[list[str]] = []
        self.mailed: Counter[str] = Counter()
        self.may_answer = threading.Event()
        self.may_answer.set()

    def check(self) -> None:
        return None

    def quota(self) -> None:
        return None

    def close(self) -> None:
        return None

    def send(self, messages: Sequence[Message]) -> list[Answer]:
        self.calls.append([one.username for one in messages])
        self.may_answer.wait(PATIENCE_S)
        answers = [self.answer or self.answers.get(one.username) or Answer(Result.SENT) for one in messages]
        for one, answer in zip(messages, answers, strict=True):
            self.mailed[one.username] += answer.result is Result.SENT
        return answers

    @property
    def tried(self) -> set[str]:
        return {name for names in self.calls for name in names}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "BACK_OFF_S", (0.01, 0.05))
    monkeypatch.setattr(breaker, "BACK_OFF_S", dict.fromkeys(breaker.BACK_OFF_S, (0.01, 0.02)))
    monkeypatch.setattr(failover, "LOOK_S", 0.02)
    monkeypatch.setattr(Failover, "lost_wait_s", LOST_S)


@pytest.fixture
def first() -> Scripted:
    return Scripted("ses")


@pytest.fixture
def second() -> Scripted:
    return Scripted("smtp")


def two_calls(first: Scripted, second: Scripted, folder: Path, after_s: float = AFTER_S) -> Failover:
    chosen = settings(folder, SEND_RATE=10_000, FAILOVER_AFTER=round(1000 * after_s))
    calls = open_calls([first, second], chosen, asyncio.Event())
    assert isinstance(calls, Failover)
    return calls


async def attempted(
    calls: Failover, *messages: Message, is_retry: bool = False, max_wait_s: float = math.inf
) -> Attempt | None:
    give_up_at = time.monotonic() + PATIENCE_S
    return await calls.attempt(messages, give_up_at, lane="normal", is_retry=is_retry, max_wait_s=max_wait_s)


async def until(holds: Callable[[], object]) -> None:
    while not holds():  # noqa: ASYNC110 - threads change it
        await asyncio.sleep(0.001)


async def sent_by(calls: Failover, *messages: Message, is_retry: bool = False) -> str:
    """By which transport the messages are sent; retried, as their senders do."""
    while True:
        attempt = await attempted(calls, *messages, is_retry=is_retry)
        assert attempt, "no call could begin"
        (named,) = {answer.transport for answer in attempt.answers}
        if all(answer.result is Result.SENT for answer in attempt.answers):
            return named


async def sent_by_first(calls: Failover) -> None:
    """Send mails until the first has taken one."""
    while await sent_by(calls, message(1000)) != "ses":  # noqa: ASYNC110 - each is a try
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("trouble", [PAUSED, AWAY, THROTTLED])
def test_the_second_sends_once_the_first_could_not_for_a_time_and_the_first_when_it_can(
    first: Scripted, second: Scripted, tmp_path: Path, trouble: Answer
) -> None:
    async def scenario() -> None:
        calls = two_calls(first, second, tmp_path)
        assert "ses" == await sent_by(calls, message(1))
        first.answer = trouble
        began = time.monotonic()
        assert "smtp" == await sent_by(calls, message(2))
        assert AFTER_S <= time.monotonic() - began
        assert calls.can_send
        assert "smtp sends instead of ses since" in calls.detour
        assert trouble.detail in calls.detour
        assert {} == calls.troubles
        first.answer = None
        await sent_by_first(calls)
        assert "" == calls.detour

    asyncio.run(scenario())


def test_a_trouble_that_ends_in_time_moves_nothing(first: Scripted, second: Scripted, tmp_path: Path) -> None:
    async def scenario() -> None:
        calls = two_calls(first, second, tmp_path, after_s=PATIENCE_S)
        first.answer = AWAY
        assert await attempted(calls, message(1))
        assert 0 < calls.moves_in_s < PATIENCE_S
        assert not calls.can_send
        first.answer = None
        assert "ses" == await sent_by(calls, message(1))
        assert math.inf == calls.moves_in_s

    asyncio.run(scenario())
    assert [] == second.calls


def test_what_waits_for_the_first_moves_with_the_others(
    first: Scripted, second: Scripted, tmp_path: Path
) -> None:
    first.answer = PAUSED

    async def scenario() -> None:
        calls = two_calls(first, second, tmp_path)
        await attempted(calls, message(0))
        named = await asyncio.gather(*(sent_by(calls, message(number)) for number in range(100)))
        assert {"smtp"} == set(named)

    asyncio.run(scenario())
    assert 100 == second.mailed.total()


def test_one_mail_at_a_time_tries_the_first_and_goes_by_the_second_when_refused(
    first: Scripted, second: Scripted, tmp_path: Path
) -> None:
    first.answer = PAUSED

    async def scenario() -> None:
        calls = two_calls(first, second, tmp_path)
        assert "smtp" == await sent_by(calls, message(0))
        first.calls.clear()
        for number in range(1, 200):
            assert "smtp" == await sent_by(calls, message(number))
            await asyncio.sleep(0.001)
        assert first.calls
        assert all(len(names) == 1 for names in first.calls)
        assert len(first.calls) < 100

    asyncio.run(scenario())
    assert dict.fromkeys((message(number).username for number in range(200)), 1) == second.mailed


def test_a_first_that_fails_again_and_again_is_tried_less_often(
    first: Scripted, second: Scripted, tmp_path: Path
) -> None:
    """As one with a quota of the day, which takes a few mails now and then."""
    first.answer = PAUSED

    async def scenario() -> None:
        calls = two_calls(first, second, tmp_path)
        assert "smtp" == await sent_by(calls, message(0))
        away_s, began = [], time.monotonic()
        for _ in range(3):
            first.answer = None
            await sent_by_first(calls)
            away_s.append(time.monotonic() - began)
            first.answer, began = PAUSED, time.monotonic()
            assert "smtp" == await sent_by(calls, message(2))
            assert calls.detour
        assert AFTER_S <= away_s[1]
        assert 2 * AFTER_S <= away_s[2]
        first.answer = None
        await sent_by_first(calls)
        # Once it has worked for a while, it is waited for again.
        await asyncio.sleep(4 * AFTER_S + 0.01)
        first.answer = AWAY
        await attempted(calls, message(4))
        assert 0 < calls.moves_in_s <= AFTER_S
        assert "ses" in str(calls.troubles)

    asyncio.run(scenario())


def test_neither_a_retry_nor_several_mails_try_the_first(
    first: Scripted, second: Scripted, tmp_path: Path
) -> None:
    first.answer = PAUSED

    async def scenario() -> None:
        calls = two_calls(first, second, tmp_path)
        assert "smtp" == await sent_by(calls, message(0))
        first.answer = None
        first.calls.clear()
        await until(lambda: calls.wants_probe)
        assert "smtp" == await sent_by(calls, message(1), is_retry=True)
        assert "smtp" == await sent_by(calls, message(2), message(3))
        assert [] == first.calls
        assert "ses" == await sent_by(calls, message(4))

    asyncio.run(scenario())


def test_a_lost_answer_to_a_try_is_no_sign_that_the_first_works(
    first: Scripted, second: Scripted, tmp_path: Path
) -> None:
    first.answer = PAUSED

    async def scenario() -> None:
        calls = two_calls(first, second, tmp_path)
        assert "smtp" == await sent_by(calls, message(0))
        first.answer = Answer(Result.UNKNOWN, "the reply to the mail was lost")
        await until(lambda: calls.wants_probe)
        found = await attempted(calls, message(1))
        assert found
        assert Result.UNKNOWN is found.answers[0].result
        assert calls.detour

    asyncio.run(scenario())


def test_mails_go_on_while_one_waits_for_the_firsts_answer(
    first: Scripted, second: Scripted, tmp_path: Path
) -> None:
    first.answer = PAUSED

    async def scenario() -> None:
        calls = two_calls(first, second, tmp_path)
        assert "smtp" == await sent_by(calls, message(0))
        first.may_answer.clear()
        first.answer = LOST
        await until(lambda: calls.wants_probe)
        tries = asyncio.create_task(attempted(calls, message(1)))
        await asyncio.sleep(0)
        for number in range(2, 50):
            assert "smtp" == await sent_by(calls, message(number))
        first.may_answer.set()
        found = await tries
        # Its answer was lost, so the second does not get it now.
        assert found
        assert [(Result.UNKNOWN, "ses")] == [(one.result, one.transport) for one in found.answers]

    asyncio.run(scenario())
    assert message(1).username not in second.tried


def test_while_both_cannot_send_the_one_that_can_first_sends(
    first: Scripted, second: Scripted, tmp_path: Path
) -> None:
    async def scenario(better: Scripted) -> str:
        first.answer, second.answer = AWAY, PAUSED
        calls = two_calls(first, second, tmp_path)
        waiting = [asyncio.create_task(sent_by(calls, message(n), is_retry=True)) for n in range(20)]
        await until(lambda: calls.detour and ACCOUNT in calls.troubles)
        assert not calls.can_send
        assert calls.troubles[ACCOUNT][0].startswith("smtp: paused")
        better.answer = None
        (named,) = set(await asyncio.gather(*waiting))
        return named

    assert "ses" == asyncio.run(scenario(first))
    assert "smtp" == asyncio.run(scenario(second))


@pytest.mark.parametrize("answer", [NO_SUCH_PERSON, NO_TEMPLATE])
def test_neither_a_refused_person_nor_a_paused_action_moves_anything(
    first: Scripted, second: Scripted, tmp_path: Path, answer: Answer
) -> None:
    async def scenario() -> None:
        calls = two_calls(first, second, tmp_path, after_s=0.01)
        one = message(1)
        first.answers[one.username] = answer
        found = await attempted(calls, one)
        assert found
        assert [answer] == found.answers
        await asyncio.sleep(0.02)
        assert (await attempted(calls, one, max_wait_s=0.05) or found).answers == [answer]
        assert "ses" == await sent_by(calls, message(2, PASSWORD_RECOVERY))

    asyncio.run(scenario())
    assert [] == second.calls


def test_a_failover_and_the_way_back_are_logged_once(
    first: Scripted, second: Scripted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first.answer = AWAY

    async def scenario() -> None:
        calls = two_calls(first, second, tmp_path)
        await asyncio.gather(*(sent_by(calls, message(number)) for number in range(20)))
        first.answer = None
        await sent_by_first(calls)
        await sent_by(calls, message(31))

    with caplog.at_level(logging.INFO):
        asyncio.run(scenario())
    events = [(one.levelname, str(vars(one).get("event"))) for one in caplog.records]
    assert [("WARNING", "failover"), ("INFO", "back")] == [
        (level, event.rpartition(".")[2])
        for level, event in events
        if event.rpartition(".")[2] in {"failover", "back"}
    ]


def test_each_transport_has_its_own_rate(first: Scripted, second: Scripted, tmp_path: Path) -> None:
    first.answer = PAUSED

    async def scenario() -> None:
        chosen = settings(tmp_path, SEND_RATE="100,20", FAILOVER_AFTER=1)
        calls = open_calls([first, second], chosen, asyncio.Event())
        assert isinstance(calls, Failover)
        assert (100, 50) == (calls.rate, calls.largest)
        assert "smtp" == await sent_by(calls, message(0))
        assert (20, 10) == (calls.rate, calls.largest)

    asyncio.run(scenario())


def test_a_mail_that_is_cut_off_names_its_transport(
    first: Scripted, second: Scripted, tmp_path: Path
) -> None:
    async def scenario() -> None:
        calls = two_calls(first, second, tmp_path)
        first.may_answer.clear()
        one = message(1)
        attempt = asyncio.create_task(attempted(calls, one))
        await until(lambda: calls.is_under_way(one))
        found = calls.cut_off(one)
        assert found
        assert (Result.UNKNOWN, "ses") == (found.result, found.transport)
        assert calls.cut_off(message(2)) is None
        first.may_answer.set()
        assert await attempt

    asyncio.run(scenario())


def send(
    first: Scripted,
    second: Scripted,
    folder: Path,
    scenario: Callable[[Sender], Awaitable[None]],
    **variables: float,
) -> Sent:
    """Run a scenario with the pipe's sender, and wait until nothing is in hand."""
    sent = Sent()
    chosen = settings(folder, SEND_RATE=10_000, FAILOVER_AFTER=round(1000 * AFTER_S), **variables)

    async def run() -> None:
        sender = Sender([first, second], chosen, sent.report)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await sender.start()
                await scenario(sender)
                await sender.drain()
        finally:
            await sender.abandon()

    asyncio.run(run())
    return sent


def test_the_pipes_sender_mails_everybody_once_through_a_failover_and_back(
    first: Scripted, second: Scripted, tmp_path: Path
) -> None:
    async def scenario(sender: Sender) -> None:
        for number in range(300):
            first.answer = AWAY if 50 <= number < 200 else None
            await sender.submit([message(number)])
            await asyncio.sleep(0.001)

    sent = send(first, second, tmp_path, scenario)
    assert {"sent": 300} == sent.count()
    assert dict.fromkeys((message(number).username for number in range(300)), 1) == (
        first.mailed + second.mailed
    )
    assert second.mailed.total() > 20
    assert first.mailed[message(299).username] == 1


def test_the_pipes_sender_reads_on_while_its_only_call_waits_for_the_firsts_answer(
    first: Scripted, second: Scripted, tmp_path: Path
) -> None:
    first.answer = PAUSED

    async def scenario(sender: Sender) -> None:
        await sender.submit([message(0)])
        await until(lambda: second.mailed)
        first.calls.clear()
        first.may_answer.clear()
        number = 0
        while not first.calls:
            number += 1
            await sender.submit([message(number)])
        mailed = second.mailed.total()
        for later in range(1000, 1100):
            await sender.submit([message(later)])
        await until(lambda: second.mailed.total() >= mailed + 100)
        first.may_answer.set()

    sent = send(first, second, tmp_path, scenario, SEND_CONCURRENCY=1)
    assert {"sent"} == set(sent.count())


def test_the_second_gets_a_mail_whose_answer_was_lost_when_an_event_had_its_time(
    first: Scripted, second: Scripted, tmp_path: Path
) -> None:
    """And nobody else waits for that."""
    first.answer = LOST
    lost_at: list[float] = []

    async def scenario(sender: Sender) -> None:
        await sender.submit([message(number) for number in range(10)])
        await until(lambda: sender.answers[Result.UNKNOWN])
        lost_at.append(time.monotonic())
        first.answer = PAUSED
        await sender.submit([message(number) for number in range(10, 20)])
        await until(lambda: second.mailed.total() >= 10)
        assert {message(number).username for number in range(10, 20)} == set(second.mailed)
        await until(lambda: second.mailed.total() > 10)
        lost_at.append(time.monotonic())

    sent = send(first, second, tmp_path, scenario)
    assert {"sent": 20} == sent.count()
    assert LOST_S <= lost_at[1] - lost_at[0]
    assert all(verdict is Verdict.SENT for verdict in sent.verdicts.values())


@pytest.mark.parametrize(
    ("variables", "ceilings"), [({"SEND_RATE": "auto,20"}, [None, 20]), ({"SEND_RATE": 30}, [30, 30])]
)
def test_a_rate_that_the_provider_tells_is_not_assumed(
    first: Scripted,
    second: Scripted,
    tmp_path: Path,
    variables: dict[str, str | int],
    ceilings: list[float | None],
) -> None:
    asked: list[tuple[str, float | None]] = []

    def rate_of(name: str, ceiling: float | None) -> Bucket:
        asked.append((name, ceiling))
        return Bucket(1.0)

    open_calls([first, second], settings(tmp_path, **variables), asyncio.Event(), rate_of)
    assert asked == list(zip(["ses", "smtp"], ceilings, strict=True))


def test_with_one_transport_nothing_is_named(first: Scripted, tmp_path: Path) -> None:
    async def scenario() -> None:
        calls = open_calls([first], settings(tmp_path), asyncio.Event())
        found = await calls.attempt([message(1)], math.inf, lane="normal")
        assert found
        assert "" == found.answers[0].transport
        assert (False, "", math.inf, 0.0) == (
            calls.wants_probe,
            calls.detour,
            calls.moves_in_s,
            calls.lost_wait_s,
        )

    asyncio.run(scenario())
