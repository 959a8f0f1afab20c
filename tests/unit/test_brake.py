"""Refusals in words that nobody knows: they pause all mail, and no recipient is rejected for them."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from mailroom.answers import Answer, Result, Scope
from mailroom.inbox.faults import Fault
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.server import InboxServer
from mailroom.sender import brake, breaker, policy
from mailroom.sender.brake import RECIPIENTS, REFUSALS, Brake
from mailroom.sender.policy import Sender
from mailroom.settings.sender import SenderSettings
from mailroom.transports.transport import open_transport
from support.messages import message
from support.processes import PATIENCE_S
from support.senders import Sent, aws, send, settings, with_templates
from support.smtp import mail_server

TWENTY = [message(number) for number in range(20)]
NO = Answer(Result.REJECTED, "550 5.7.1 No, thank you")
SENT = Answer(Result.SENT)


class BrakeClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def judged(one: Brake, clock: BrakeClock, number: int, answer: Answer = NO) -> Answer:
    """The brake's answer to a call with one mail."""
    (found,) = one.judge([message(number)], [answer], clock())
    return found


@pytest.fixture
def clock() -> BrakeClock:
    return BrakeClock()


@pytest.fixture
def one(clock: BrakeClock) -> Brake:
    return Brake(clock=clock)


def test_the_tenth_refusal_in_a_row_pauses_all_mail(one: Brake, clock: BrakeClock) -> None:
    found = [judged(one, clock, number) for number in range(REFUSALS)]
    assert [Result.FAILED, *[Result.TRANSIENT] * (REFUSALS - 2), Result.PAUSED] == [o.result for o in found]
    assert {Scope.RECIPIENT} == {answer.scope for answer in found[:-1]}
    assert (Scope.ACCOUNT, True) == (found[-1].scope, one.is_on)
    assert NO.detail in found[-1].detail


def test_one_accepted_mail_begins_anew(one: Brake, clock: BrakeClock) -> None:
    for number in range(REFUSALS - 1):
        judged(one, clock, number)
    judged(one, clock, 99, SENT)
    assert Result.FAILED is judged(one, clock, 98).result
    for number in range(100, 120):
        judged(one, clock, number)
    assert one.is_on
    judged(one, clock, 99, SENT)
    assert not one.is_on


def test_a_refusal_is_final_once_another_mail_was_accepted_after_it(one: Brake, clock: BrakeClock) -> None:
    assert Result.REJECTED is not judged(one, clock, 1).result
    judged(one, clock, 2, SENT)
    assert NO == judged(one, clock, 1)
    assert Result.FAILED is judged(one, clock, 1).result  # a new mail to the same address


def test_a_mail_whose_call_began_before_the_refusal_proves_nothing(one: Brake, clock: BrakeClock) -> None:
    began = clock()
    judged(one, clock, 1)
    one.judge([message(2)], [SENT], began)
    assert Result.REJECTED is not judged(one, clock, 1).result


def test_only_what_comes_before_an_accepted_mail_of_its_call_is_final(one: Brake, clock: BrakeClock) -> None:
    found = one.judge(TWENTY[:4], [NO, SENT, NO, NO], clock())
    assert [NO, SENT] == found[:2]
    assert [Result.FAILED, Result.TRANSIENT] == [answer.result for answer in found[2:]]


def test_what_was_refused_while_others_were_doubted_is_tried_once_more(one: Brake, clock: BrakeClock) -> None:
    judged(one, clock, 9)
    began = clock()
    judged(one, clock, 8, SENT)  # somebody has removed the cause
    found = one.judge(TWENTY[:2], [NO, SENT], began)
    assert Result.REJECTED is not found[0].result
    assert NO == judged(one, clock, 0)


def test_a_refusal_in_a_call_that_began_before_the_other_was_accepted_proves_nothing(
    one: Brake, clock: BrakeClock
) -> None:
    judged(one, clock, 1)
    began = clock()  # the cause is there
    judged(one, clock, 2, SENT)  # somebody has removed it
    (found,) = one.judge([message(1)], [NO], began)
    assert Result.REJECTED is not found.result
    assert SENT == judged(one, clock, 1, SENT)


@pytest.mark.parametrize("refused_before", [0, 1, 9, 10])
def test_a_cause_that_is_removed_during_a_call_rejects_nobody(
    one: Brake, clock: BrakeClock, refused_before: int
) -> None:
    for number in range(refused_before):
        judged(one, clock, number)
    found = one.judge(TWENTY[:10], [NO] * 7 + [SENT] * 3, clock())
    assert Result.REJECTED not in {answer.result for answer in found}
    assert [SENT] * 7 == [judged(one, clock, number, SENT) for number in range(7)]


@pytest.mark.parametrize(
    "words",
    [
        "550 5.1.1 user unknown",
        "550 no such mailbox here",
        "MessageRejected: Address a@b.example is blacklisted",
        "InvalidParameterValue: Missing final '@domain'",
    ],
)
def test_words_that_are_known_to_be_about_the_recipient_do_not_count(
    one: Brake, clock: BrakeClock, words: str
) -> None:
    refused = Answer(Result.REJECTED, words)
    assert [refused] * 30 == [judged(one, clock, number, refused) for number in range(30)]
    assert not one.is_on


def test_ids_numbers_addresses_and_names_do_not_make_other_words(one: Brake, clock: BrakeClock) -> None:
    for number in range(REFUSALS):
        words = (
            f"550 5.7.1 <recipient> (person{number} x{number}@h{number}.example) refused"
            f" at mx{number}.example see https://help.example/{number}, id=1vK{number:04}-0003xY-AB {number}"
        )
        judged(one, clock, number, Answer(Result.REJECTED, words))
    assert one.is_on


def test_different_words_are_counted_apart(one: Brake, clock: BrakeClock) -> None:
    for number in range(30):
        word = "".join(chr(ord("a") + int(digit)) for digit in str(number))
        assert (
            Result.REJECTED is not judged(one, clock, number, Answer(Result.REJECTED, f"550 {word}")).result
        )
    assert not one.is_on


def test_one_recipient_alone_never_pauses(one: Brake, clock: BrakeClock) -> None:
    assert {Result.FAILED} == {judged(one, clock, 1).result for _ in range(5 * REFUSALS)}
    assert {Result.TRANSIENT} == {judged(one, clock, 2).result for _ in range(5 * REFUSALS)}
    assert Result.PAUSED is judged(one, clock, RECIPIENTS).result


def test_what_mailroom_itself_refuses_and_what_is_halved_is_left_alone(one: Brake, clock: BrakeClock) -> None:
    ours = Answer(Result.REJECTED, "the address's local part is not a plain name", is_ours=True)
    assert [ours] * 20 == one.judge(TWENTY, [ours] * 20, clock())
    blamed = Answer(Result.REJECTED, "MessageRejected: no", scope=Scope.CALL)
    assert [blamed] * 20 == one.judge(TWENTY, [blamed] * 20, clock())
    assert Result.FAILED is judged(one, clock, 1, blamed).result


def test_what_it_remembers_is_bounded(one: Brake, clock: BrakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brake, "MAX_REMEMBERED", 5)
    for number in range(20):
        judged(one, clock, number)
    assert [False] * 15 + [True] * 5 == [one.holds(message(number)) for number in range(20)]


# With a transport


@dataclass
class FarEnd:
    """A server that can be made to refuse, all or one address, and what it accepted."""

    settings: SenderSettings
    refuse: Callable[..., object]
    accept: Callable[[], object]
    arrived: Callable[[], list[str]]


@contextmanager
def ses(output: Path, patch: pytest.MonkeyPatch) -> Iterator[FarEnd]:
    with InboxServer(inbox=with_templates(Inbox())) as server:
        for name, value in aws(server.url).items():
            patch.setenv(name, value)
        counts, faults = server.inbox.counts, server.inbox.faults
        yield FarEnd(
            settings(output, SEND_RATE=1000),
            lambda words, whose="": faults.add(
                Fault("status", status="MessageRejected", message=words, recipient=whose)
            ),
            faults.clear,
            lambda: [name for name, count in counts.by_recipient.items() for _ in range(count)],
        )


@contextmanager
def ses_calls(output: Path, patch: pytest.MonkeyPatch) -> Iterator[FarEnd]:
    """SES, which refuses whole calls, with an error that nobody knows."""
    with ses(output, patch) as far, InboxServer(inbox=with_templates(Inbox())) as server:
        patch.setenv("AWS_ENDPOINT_URL_SES", server.url)
        counts, faults = server.inbox.counts, server.inbox.faults
        far.refuse = lambda words, whose="": faults.add(
            Fault("error", code="SomethingNew", message=words, recipient=whose)
        )
        far.accept = faults.clear
        far.arrived = lambda: [name for name, count in counts.by_recipient.items() for _ in range(count)]
        yield far


@contextmanager
def smtp(output: Path, _: pytest.MonkeyPatch) -> Iterator[FarEnd]:
    with mail_server() as server:
        yield FarEnd(
            settings(output, TRANSPORT=f"smtp://127.0.0.1:{server.port}", SEND_RATE=1000),
            lambda words, whose="": server.answer("RCPT", f"550 5.7.1 {words}", whose),
            server.forget_answers,
            lambda: [mail.recipient for mail in server.mails],
        )


@pytest.fixture(params=[ses, ses_calls, smtp], ids=lambda param: param.__name__)
def far(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FarEnd]:
    monkeypatch.setattr(policy, "BACK_OFF_S", (0.01, 0.1))
    monkeypatch.setattr(policy, "MAX_HELD_AT_BREAKER_S", 0.1)
    monkeypatch.setattr(breaker, "BACK_OFF_S", dict.fromkeys(breaker.BACK_OFF_S, (0.02, 0.1)))
    with request.param(tmp_path, monkeypatch) as far:
        yield far


def wait_for_pause(caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := [one for one in caplog.records if vars(one).get("event") == "sender.paused"]):
        assert time.monotonic() < deadline, caplog.text
        time.sleep(0.01)
    return found[0]


@pytest.mark.parametrize("size", [1, 20], ids=["one a call", "many a call"])
def test_unknown_words_for_all_pause_and_everybody_is_mailed_once_a_person_acted(
    far: FarEnd, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(type(open_transport(far.settings)), "recipients_per_call", size)
    far.refuse("Computer says no")
    paused: list[logging.LogRecord] = []

    def act() -> None:
        paused.append(wait_for_pause(caplog))
        far.accept()

    person = threading.Thread(target=act)
    person.start()
    sent = send(far.settings, TWENTY)
    person.join()
    assert {"sent": 20} == sent.count()
    assert sorted(one.email for one in TWENTY) == sorted(far.arrived())
    assert logging.ERROR == paused[0].levelno
    assert "Computer says no" in vars(paused[0])["fields"]["reason"]


def test_addresses_that_do_not_exist_are_rejected_and_pause_nothing(
    far: FarEnd, caplog: pytest.LogCaptureFixture
) -> None:
    far.refuse("No such user here")
    assert {"rejected": 20} == send(far.settings, TWENTY, retry_limit=2).count()
    assert "paused" not in caplog.text


def test_a_list_of_refused_recipients_does_not_stop_the_others(
    far: FarEnd, caplog: pytest.LogCaptureFixture
) -> None:
    """They are refused in words that nobody knows, and mail to others comes when all of them are in hand."""
    for one in TWENTY:
        far.refuse("Computer says no", one.email)
    others = [message(number) for number in range(100, 103)]
    sent = Sent()

    async def run() -> None:
        sender = Sender([open_transport(far.settings)], far.settings, sent.report, retry_limit=3)
        async with asyncio.timeout(PATIENCE_S):
            await sender.start()
            await sender.submit(TWENTY)
            await asyncio.to_thread(wait_for_pause, caplog)
            await sender.submit(others)
            await sender.drain()
        await sender.abandon()

    asyncio.run(run())
    assert {"sent": 3, "rejected": 20} == sent.count()
    assert sorted(one.email for one in others) == sorted(far.arrived())


def test_a_recipient_that_is_refused_alone_is_given_up_after_a_few_tries(
    far: FarEnd, caplog: pytest.LogCaptureFixture
) -> None:
    far.refuse("Computer says no")
    sent = send(far.settings, TWENTY[:1], retry_limit=4)
    assert {"rejected": 1} == sent.count()
    assert "Computer says no" in sent.reasons[TWENTY[0]]
    assert "paused" not in caplog.text


@pytest.mark.slow
def test_one_that_ends_every_call_does_not_keep_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "BACK_OFF_S", dict.fromkeys(breaker.BACK_OFF_S, (0.02, 0.1)))
    with mail_server() as server:
        server.answer("RCPT", "550 5.4.5 Daily user sending limit exceeded", message(0).email)
        chosen = settings(tmp_path, TRANSPORT=f"smtp://127.0.0.1:{server.port}", SEND_RATE=1000)
        sent = send(chosen, [message(number) for number in range(4)], useful_s=4)
    assert {"sent": 3, "expired": 1} == sent.count()
