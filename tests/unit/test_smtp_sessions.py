"""Servers that limit the mails of a session: a new session is opened at once, and nothing slows down."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from mailroom.answers import Result, Scope
from mailroom.sender.policy import Sender
from mailroom.transports.smtp import SmtpTransport
from mailroom.transports.transport import open_transport
from support.messages import message
from support.senders import send, settings
from support.smtp import DROP, HANG, MailServer, mail_server

LIMIT = 10
TWENTY_FIVE = [message(number) for number in range(25)]
STEPS = ("MAIL", "RCPT", "DATA")
REPLIES = (
    "452 4.5.3 Too many mails in this session",
    "421 4.7.0 Too many messages in this connection",
    "421 4.3.2 closing",
    DROP,
)


def limited(server: MailServer, output: Path, send_timeout_ms: int = 10_000) -> SmtpTransport:
    url = f"smtp://127.0.0.1:{server.port}"
    transport = open_transport(settings(output, TRANSPORT=url, SEND_TIMEOUT=send_timeout_ms))
    assert isinstance(transport, SmtpTransport)
    return transport


@pytest.mark.parametrize("size", [1, 25], ids=["one a call", "many a call"])
@pytest.mark.parametrize("reply", REPLIES)
@pytest.mark.parametrize("step", STEPS)
def test_a_session_at_its_limit_is_replaced_at_once(tmp_path: Path, step: str, reply: str, size: int) -> None:
    with mail_server() as server:
        server.limit_sessions(LIMIT, step, reply)
        transport = limited(server, tmp_path)
        answers = [
            answer
            for first in range(0, 25, size)
            for answer in transport.send(TWENTY_FIVE[first : first + size])
        ]
        transport.close()
    assert Counter({Result.SENT: 25}) == Counter(answer.result for answer in answers)
    assert [one.email for one in TWENTY_FIVE] == [mail.recipient for mail in server.mails]
    assert 3 == server.connections


def test_a_refusal_after_the_mail_is_tried_in_a_new_session(tmp_path: Path) -> None:
    with mail_server() as server:
        server.limit_sessions(LIMIT, "message", REPLIES[0])
        transport = limited(server, tmp_path)
        answers = transport.send(TWENTY_FIVE)
        transport.close()
    assert {Result.SENT} == {answer.result for answer in answers}
    assert {1} == set(Counter(mail.recipient for mail in server.mails).values())


def test_a_silent_close_after_the_mail_is_unknown_and_not_sent_again_at_once(tmp_path: Path) -> None:
    with mail_server() as server:
        server.limit_sessions(LIMIT, "message", DROP)
        transport = limited(server, tmp_path)
        answers = transport.send(TWENTY_FIVE[: LIMIT + 1])
        transport.close()
    assert (Result.UNKNOWN, LIMIT) == (answers[LIMIT].result, len(server.mails))


@pytest.mark.parametrize("reply", ["452 4.5.3 Too many mails", "421 4.3.2 closing", DROP])
@pytest.mark.parametrize("step", STEPS)
def test_a_fresh_session_that_refuses_is_believed(tmp_path: Path, step: str, reply: str) -> None:
    with mail_server() as server:
        transport = limited(server, tmp_path)
        transport.send(TWENTY_FIVE[:1])
        server.answer(step, reply)
        answers = transport.send(TWENTY_FIVE)
        transport.close()
    assert {Scope.ACCOUNT} == {answer.scope for answer in answers}
    assert not {Result.SENT, Result.REJECTED} & {answer.result for answer in answers}
    assert 2 == server.connections


@pytest.mark.parametrize(
    "reply",
    ["454 Throttling failure: Maximum sending rate exceeded.", "450 4.2.1 busy", "452 4.2.2 mailbox full"],
)
def test_what_no_session_would_change_opens_none(tmp_path: Path, reply: str) -> None:
    with mail_server() as server:
        server.limit_sessions(LIMIT, "RCPT", reply)
        transport = limited(server, tmp_path)
        answers = transport.send(TWENTY_FIVE)
        transport.close()
    assert Result.SENT is not answers[LIMIT].result
    assert 1 == server.connections


@pytest.mark.parametrize("step", ["RCPT", "DATA", "message"])
def test_a_session_that_refuses_in_a_recipients_words_is_replaced_at_the_second(
    tmp_path: Path, step: str
) -> None:
    with mail_server() as server:
        server.limit_sessions(LIMIT, step, "451 4.7.1 Please try again later")
        transport = limited(server, tmp_path)
        answers = transport.send(TWENTY_FIVE)
        transport.close()
    sent, later = [Result.SENT] * LIMIT, [Result.TRANSIENT] * 2
    assert [*sent, *later, *sent, *later, Result.SENT] == [answer.result for answer in answers]
    assert {Scope.RECIPIENT} == {answer.scope for answer in answers}
    assert 3 == server.connections


def test_a_server_that_says_nothing_more_is_not_asked_again(tmp_path: Path) -> None:
    with mail_server() as server:
        server.limit_sessions(LIMIT, "MAIL", HANG)
        transport = limited(server, tmp_path, 700)
        answers = transport.send(TWENTY_FIVE)
        transport.close()
    assert {Result.TRANSIENT} == {answer.result for answer in answers[LIMIT:]}
    assert 1 == server.connections


@pytest.mark.parametrize("reply", REPLIES)
@pytest.mark.slow
def test_two_hundred_mails_cost_no_retry_and_trip_no_breaker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reply: str
) -> None:
    results: Counter[Result] = Counter()
    abandon = Sender.abandon

    async def count(sender: Sender) -> None:
        results.update(sender.answers)
        await abandon(sender)

    monkeypatch.setattr(Sender, "abandon", count)
    with mail_server() as server:
        server.limit_sessions(LIMIT, "MAIL", reply)
        chosen = settings(tmp_path, TRANSPORT=f"smtp://127.0.0.1:{server.port}", SEND_RATE=1000)
        sent = send(chosen, [message(number) for number in range(200)])
    assert {"sent": 200} == sent.count()
    assert Counter({Result.SENT: 200}) == results
    assert {1} == set(Counter(mail.recipient for mail in server.mails).values())
    assert not [record for record in caplog.records if "paused" in record.getMessage()]
