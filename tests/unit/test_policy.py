"""The sending policy, over HTTP against the local SES: every class of answer, counted at the server."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mailroom.answers import Result, Scope
from mailroom.inbox.faults import Fault
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.server import InboxServer
from mailroom.sender import breaker, calls, policy
from mailroom.sender.policy import Verdict
from mailroom.sender.rate import Bucket
from mailroom.transports.transport import open_transport
from support.messages import ACTIVATION, PASSWORD_RECOVERY, message, mixed
from support.processes import PATIENCE_S
from support.senders import aws, send, settings, with_templates

BAD = "person7@example.com"
TEN = [message(number) for number in range(10)]
REJECTED = ("MessageRejected", "InvalidParameterValue")
RETRIED = ("TransientFailure", "AccountThrottled", "Failed")
PAUSED = (
    "AccountDailyQuotaExceeded",
    "AccountSendingPaused",
    "ConfigurationSetSendingPaused",
    "AccountSuspended",
    "MailFromDomainNotVerified",
    "TemplateDoesNotExist",
    "ConfigurationSetDoesNotExist",
    "InvalidSendingPoolName",
)
PAUSED_CALLS = (
    "AccountSendingPausedException",
    "ConfigurationSetSendingPausedException",
    "MailFromDomainNotVerifiedException",
    "TemplateDoesNotExist",
    "ConfigurationSetDoesNotExist",
    "InvalidClientTokenId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "AccessDenied",
)
THROTTLED_CALLS = ("Throttling", "ThrottlingException", "TooManyRequestsException")
LOSSES = ("http", "garbage", "cut", "cut_body", "hang")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back off for moments, so that many cases take few seconds."""
    monkeypatch.setattr(policy, "BACK_OFF_S", (0.01, 0.1))
    monkeypatch.setattr(breaker, "BACK_OFF_S", dict.fromkeys(breaker.BACK_OFF_S, (0.02, 0.1)))


@pytest.fixture
def ses(monkeypatch: pytest.MonkeyPatch) -> Iterator[InboxServer]:
    """A local SES with the built-in templates, to which botocore in this process speaks."""
    with InboxServer(inbox=with_templates(Inbox())) as server:
        for name, value in aws(server.url).items():
            monkeypatch.setenv(name, value)
        yield server


def once_each(server: InboxServer, numbers: range | list[int]) -> bool:
    return {f"person{n}@example.com": 1 for n in numbers} == server.inbox.counts.by_recipient


def repaired_after_some_calls(server: InboxServer, calls: int) -> threading.Thread:
    """Takes the faults away once the server has seen this many calls."""

    def repair() -> None:
        server.wait_for(lambda inbox: inbox.counts.calls >= calls)
        server.inbox.faults.clear()

    thread = threading.Thread(target=repair)
    thread.start()
    return thread


def test_fifty_a_call_grouped_by_action(ses: InboxServer, tmp_path: Path) -> None:
    sent = send(settings(tmp_path, SEND_RATE=10_000), mixed(300))
    assert {"sent": 300} == sent.count()
    assert once_each(ses, range(300))
    assert [50] * 6 == [call.recipients for call in ses.inbox.calls]
    for mail in ses.inbox.mails.find(limit=1000):
        number = int(mail.recipient.removeprefix("person").partition("@")[0])
        assert ("passwordrecoveryv1" if number % 3 == 0 else "activationv1") == mail.template.name


@pytest.mark.parametrize("status", REJECTED)
def test_a_recipient_that_is_rejected_ends_alone(ses: InboxServer, tmp_path: Path, status: str) -> None:
    ses.inbox.faults.add(Fault("status", recipient=BAD, status=status, message="no such person"))
    sent = send(settings(tmp_path, SEND_RATE=1000), TEN)
    assert {"sent": 9, "rejected": 1} == sent.count()
    assert f"{status}: no such person" == sent.reasons[TEN[7]]
    assert once_each(ses, [0, 1, 2, 3, 4, 5, 6, 8, 9])


@pytest.mark.parametrize("code", REJECTED)
def test_one_bad_address_among_fifty_costs_no_other_its_mail(
    ses: InboxServer, tmp_path: Path, code: str
) -> None:
    fifty = [message(number) for number in range(50)]
    ses.inbox.faults.add(Fault("error", recipient=BAD, code=code, message="Address is malformed"))
    sent = send(settings(tmp_path, SEND_RATE=10_000), fifty)
    assert {"sent": 49, "rejected": 1} == sent.count()
    assert Verdict.REJECTED is sent.verdicts[fifty[7]]
    assert once_each(ses, [number for number in range(50) if number != 7])
    assert 13 >= ses.inbox.counts.calls  # halved, and not asked one by one


def test_a_providers_words_are_told_without_the_token_and_the_code(ses: InboxServer, tmp_path: Path) -> None:
    one = message(7)
    words = f"a blocked URL: https://x.example/?token={one.token} near text {one.code} for 1{one.code}"
    ses.inbox.faults.add(Fault("status", recipient=BAD, status="MessageRejected", message=words))
    told = send(settings(tmp_path), [one]).reasons[one]
    assert f"token=[redacted] near text [redacted] for 1{one.code}" in told


@pytest.mark.parametrize("status", RETRIED)
def test_a_recipient_that_fails_for_now_is_sent_later(ses: InboxServer, tmp_path: Path, status: str) -> None:
    ses.inbox.faults.add(Fault("status", calls=3, recipient=BAD, status=status))
    sent = send(settings(tmp_path, SEND_RATE=1000), TEN)
    assert {"sent": 10} == sent.count()
    assert once_each(ses, range(10))
    assert [10, 1, 1, 1] == [call.recipients for call in ses.inbox.calls]


def test_a_recipient_that_fails_again_and_again_is_rejected(ses: InboxServer, tmp_path: Path) -> None:
    ses.inbox.faults.add(Fault("status", recipient=BAD, status="Failed", message="for no stated reason"))
    sent = send(settings(tmp_path, SEND_RATE=1000), TEN, retry_limit=4)
    assert {"sent": 9, "rejected": 1} == sent.count()
    assert "given up at try 4; the last answer: Failed: for no stated reason" == sent.reasons[TEN[7]]
    assert [10, 1, 1, 1] == [call.recipients for call in ses.inbox.calls]


def test_a_status_of_the_future_fails_and_does_not_crash(
    ses: InboxServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mailroom.transports.ses_answers.STATUSES", {"Success": (Result.SENT, Scope.RECIPIENT)}
    )
    ses.inbox.faults.add(Fault("status", recipient=BAD, status="InvalidSendingPoolName"))
    sent = send(settings(tmp_path, SEND_RATE=1000), TEN, retry_limit=2)
    assert {"sent": 9, "rejected": 1} == sent.count()


@pytest.mark.parametrize("status", PAUSED)
def test_what_a_person_must_mend_pauses_and_costs_no_attempt(
    ses: InboxServer, tmp_path: Path, status: str, caplog: pytest.LogCaptureFixture
) -> None:
    ses.inbox.faults.add(Fault("status", status=status))
    mending = repaired_after_some_calls(ses, 6)
    sent = send(settings(tmp_path, SEND_RATE=1000), TEN, retry_limit=1)
    mending.join()
    assert {"sent": 10} == sent.count()
    assert once_each(ses, range(10))
    paused = [record for record in caplog.records if "sender.paused" == str(vars(record).get("event"))]
    assert [logging.ERROR] == [record.levelno for record in paused]  # logged once, and not once a try
    assert status in str(getattr(paused[0], "fields", {})["reason"])


@pytest.mark.parametrize("code", PAUSED_CALLS)
def test_what_a_person_must_mend_pauses_when_a_call_says_so(
    ses: InboxServer, tmp_path: Path, code: str
) -> None:
    ses.inbox.faults.add(Fault("error", code=code))
    mending = repaired_after_some_calls(ses, 4)
    sent = send(settings(tmp_path, SEND_RATE=1000), TEN, retry_limit=1)
    mending.join()
    assert {"sent": 10} == sent.count()
    assert once_each(ses, range(10))


def test_the_accounts_own_switch_pauses(ses: InboxServer, tmp_path: Path) -> None:
    ses.inbox.account.paused = True
    sent = send(settings(tmp_path, SEND_RATE=1000), TEN, useful_s=0.3)
    assert {"expired": 10} == sent.count()
    assert "AccountSendingPausedException" in sent.reasons[TEN[0]]
    assert {} == ses.inbox.counts.by_recipient


@pytest.mark.slow
def test_a_missing_template_stops_its_own_action_only(ses: InboxServer, tmp_path: Path) -> None:
    del ses.inbox.account.templates["passwordrecoveryv1"]
    batch = mixed(90)
    sent = send(settings(tmp_path, SEND_RATE=1000), batch, useful_s=3)
    assert {"sent": 60, "expired": 30} == sent.count()
    assert all(
        verdict is Verdict.EXPIRED
        for one, verdict in sent.verdicts.items()
        if one.action == PASSWORD_RECOVERY
    )


@pytest.mark.slow
def test_more_mails_of_a_paused_action_than_may_wait_are_set_aside(
    ses: InboxServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "MAX_PAUSED", 10)
    del ses.inbox.account.templates["passwordrecoveryv1"]
    recoveries = [message(number, PASSWORD_RECOVERY) for number in range(40)]
    others = [message(number) for number in range(40, 50)]
    sent = send(settings(tmp_path, SEND_RATE=10), [*recoveries, *others], useful_s=5)
    counts = sent.count()
    assert (10, 50) == (counts.pop("sent"), sum(counts.values()) + 10)
    assert counts["unsent"] >= 20
    assert counts["expired"] >= 10
    (why,) = {sent.reasons[one] for one, verdict in sent.verdicts.items() if verdict is Verdict.UNSENT}
    assert why.startswith(
        "no mail of the action password_recovery can be sent, and 10 or more wait: paused: "
    )


def test_a_mail_is_given_up_after_its_actions_lifetime_or_its_own(ses: InboxServer, tmp_path: Path) -> None:
    ses.inbox.account.paused = True
    short = replace(ACTIVATION, name="short", lifetime_s=1)
    batch = [message(1, short), message(2, replace(short, lifetime_s=900))._replace(expires_in_s=1)]
    sent = send(settings(tmp_path, SEND_RATE=1000), batch)
    assert {"expired": 2} == sent.count()
    assert all(why.startswith("not sent within 1 s; the last answer: ") for why in sent.reasons.values())


def test_an_unverified_sender_is_no_recipients_fault(ses: InboxServer, tmp_path: Path) -> None:
    """SES calls it MessageRejected, as it does a bad recipient."""
    ses.inbox.account.identities = set()
    source = "Acme <noreply@acme.example>"
    sent = send(settings(tmp_path, SEND_RATE=1000, SES_SOURCE=source), TEN, useful_s=0.3)
    assert {"expired": 10} == sent.count()


def test_a_recipient_that_the_sandbox_refuses_is_rejected(ses: InboxServer, tmp_path: Path) -> None:
    words = f"Email address is not verified. The following identities failed the check: {BAD}"
    ses.inbox.faults.add(Fault("error", recipient=BAD, code="MessageRejected", message=words))
    sent = send(settings(tmp_path, SEND_RATE=1000), TEN)
    assert {"sent": 9, "rejected": 1} == sent.count()


@pytest.mark.parametrize("code", THROTTLED_CALLS)
def test_a_throttled_call_is_made_again_and_nobody_is_mailed_twice(
    ses: InboxServer, tmp_path: Path, code: str
) -> None:
    ses.inbox.faults.add(Fault("error", calls=3, code=code))
    sent = send(settings(tmp_path, SEND_RATE=1000), TEN)
    assert {"sent": 10} == sent.count()
    assert once_each(ses, range(10))
    assert 4 == ses.inbox.counts.calls


@pytest.mark.parametrize("accept", [True, False], ids=["accepted", "not accepted"])
@pytest.mark.parametrize("kind", LOSSES)
def test_a_lost_answer_is_unknown_and_sent_again(
    ses: InboxServer, tmp_path: Path, kind: str, accept: bool
) -> None:
    ses.inbox.faults.add(Fault(kind, calls=2, accept=accept, http_status=503 if kind == "http" else 0))
    sent = send(settings(tmp_path, SEND_RATE=1000, SEND_TIMEOUT=700), TEN)
    assert {"sent": 10} == sent.count()
    assert (20, 20) == (sent.unknown_answers, ses.inbox.counts.unanswered)
    assert {3 if accept else 1} == set(ses.inbox.counts.by_recipient.values())


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_fault_of_the_server_is_unknown(ses: InboxServer, tmp_path: Path, status: int) -> None:
    ses.inbox.faults.add(Fault("error", calls=1, code="InternalFailure", http_status=status))
    sent = send(settings(tmp_path, SEND_RATE=1000), TEN)
    assert ({"sent": 10}, 10) == (sent.count(), sent.unknown_answers)


def test_an_error_of_the_future_is_tried_and_then_set_aside_for_whom_it_holds(
    ses: InboxServer, tmp_path: Path
) -> None:
    ses.inbox.faults.add(Fault("error", recipient=BAD, code="SomethingNew", message="who knows"))
    sent = send(settings(tmp_path, SEND_RATE=1000), TEN, retry_limit=2)
    assert {"sent": 9, "rejected": 1} == sent.count()
    assert sent.reasons[TEN[7]].endswith("the last answer: SomethingNew: who knows (HTTP status 400)")


def wait_for_log(caplog: pytest.LogCaptureFixture, text: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while text not in caplog.text:
        assert time.monotonic() < deadline, caplog.text
        time.sleep(0.01)


def test_a_server_that_is_away_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for name, value in aws(f"http://127.0.0.1:{port}").items():
        monkeypatch.setenv(name, value)
    server = InboxServer(port=port, inbox=with_templates(Inbox()))
    opened = threading.Event()

    def open_later() -> None:
        wait_for_log(caplog, "paused")
        server.__enter__()
        opened.set()

    thread = threading.Thread(target=open_later)
    thread.start()
    sent = send(settings(tmp_path, SEND_RATE=1000), TEN, retry_limit=1)
    assert opened.is_set()
    server.__exit__(None, None, None)
    thread.join()
    assert ({"sent": 10}, 0) == (sent.count(), sent.unknown_answers)
    assert once_each(server, range(10))


def test_missing_credentials_pause(ses: InboxServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    sent = send(settings(tmp_path, SEND_RATE=1000), TEN, useful_s=1)
    assert {"expired": 10} == sent.count()
    assert "NoCredentialsError" in sent.reasons[TEN[0]]


@pytest.mark.slow
def test_a_few_recipients_that_retry_for_long_hold_up_nobody(ses: InboxServer, tmp_path: Path) -> None:
    for number in range(5):
        ses.inbox.faults.add(
            Fault("status", recipient=f"person{number}@example.com", status="TransientFailure")
        )
    batch = [message(number) for number in range(500)]
    sent = send(settings(tmp_path, SEND_RATE=10_000, SEND_CONCURRENCY=1), batch, useful_s=4)
    assert {"sent": 495, "expired": 5} == sent.count()


def test_the_rate_comes_from_the_quota(ses: InboxServer, tmp_path: Path) -> None:
    ses.inbox.limits.rate = 40.0
    sent = send(settings(tmp_path), [message(number) for number in range(100)])
    assert {"sent": 100} == sent.count()
    assert 0 == ses.inbox.counts.throttled
    assert {20} == {call.recipients for call in ses.inbox.calls}  # half a second's worth a call
    first, last = ses.inbox.calls[0], ses.inbox.calls[-1]
    assert 1.9 < last.at_s - first.at_s < 4


def test_a_quota_that_was_not_known_at_the_start_is_asked_for_again_soon(
    ses: InboxServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a worker that starts while SES does not answer holds all workers back for minutes."""
    monkeypatch.setattr(calls, "CHECK_INTERVAL_S", 0.05)
    answers: list[float | None] = [None, None, 500.0]

    async def scenario() -> None:
        transport, bucket, limited = open_transport(settings(tmp_path)), Bucket(14), asyncio.Event()
        monkeypatch.setattr(transport, "quota", lambda: answers.pop(0))
        monkeypatch.setattr(bucket, "limit", lambda _: limited.set())
        made = calls.Calls(transport, settings(tmp_path), asyncio.Event(), bucket)
        await made.start()
        asking = asyncio.create_task(made.keep_asking())
        async with asyncio.timeout(PATIENCE_S):
            await limited.wait()
        asking.cancel()

    asyncio.run(scenario())
    assert [] == answers


@pytest.mark.slow
def test_two_thousand_arrive_while_the_server_throttles_fails_and_hangs(
    ses: InboxServer, tmp_path: Path
) -> None:
    faults = ses.inbox.faults
    faults.add(Fault("error", share=1 / 3, code="Throttling", message="Maximum sending rate exceeded."))
    faults.add(Fault("status", share=0.05, status="TransientFailure"))
    faults.add(Fault("status", share=0.03, status="Failed"))
    faults.add(Fault("hang", calls=3, share=0.1, accept=True))
    faults.add(Fault("cut", calls=3, share=0.1, accept=True))
    faults.add(Fault("hang", calls=2, share=0.1, accept=False))
    batch = mixed(2000)
    random.Random(1).shuffle(batch)
    sent = send(
        settings(tmp_path, SEND_RATE=2000, SEND_CONCURRENCY=8, SEND_TIMEOUT=5000),
        batch,
        timeout_s=150,
        retry_limit=50,
    )
    assert {"sent": 2000} == sent.count()
    counts = ses.inbox.counts
    assert 2000 == len(counts.by_recipient)
    assert sent.unknown_answers == counts.unanswered > 0
    lost = sum(call.accepted for call in ses.inbox.calls if call.verdict in {"hang", "cut"})
    assert lost == counts.duplicates > 0  # whose answer was lost, and nobody else


def test_what_expired_at_a_tripped_breaker_is_not_sent_when_it_is_reset(
    ses: InboxServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "BACK_OFF_S", dict.fromkeys(breaker.BACK_OFF_S, (2.0, 2.0)))
    ses.inbox.faults.add(Fault("error", calls=4, code="AccountSendingPausedException"))
    sent = send(settings(tmp_path, SEND_RATE=10_000), [message(n) for n in range(200)], useful_s=0.5)
    assert {"expired": 200} == sent.count()
    assert 0 == ses.inbox.counts.accepted


def test_expiry_does_not_wait_for_a_turn_at_the_breaker(
    ses: InboxServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "BACK_OFF_S", dict.fromkeys(breaker.BACK_OFF_S, (60.0, 60.0)))
    ses.inbox.faults.add(Fault("error", code="AccountSendingPausedException"))
    started = time.monotonic()
    sent = send(settings(tmp_path, SEND_RATE=10_000), [message(n) for n in range(200)], useful_s=0.5)
    assert {"expired": 200} == sent.count()
    assert 20 > time.monotonic() - started


@pytest.mark.slow
def test_a_chunk_that_is_too_large_for_the_server_becomes_smaller(ses: InboxServer, tmp_path: Path) -> None:
    ses.inbox.limits.rate = 14.0
    sent = send(settings(tmp_path, SEND_RATE=100), [message(number) for number in range(50)])
    assert {"sent": 50} == sent.count()
    assert once_each(ses, range(50))


def test_a_recipient_that_makes_the_server_fail_costs_the_others_nothing(
    ses: InboxServer, tmp_path: Path
) -> None:
    ses.inbox.faults.add(Fault("http", recipient=BAD, http_status=500, body="oops"))
    fifty = [message(number) for number in range(50)]
    sent = send(settings(tmp_path, SEND_RATE=10_000), fifty)
    assert {"sent": 49, "unknown": 1} == sent.count()
    assert Verdict.UNKNOWN is sent.verdicts[fifty[7]]
    assert once_each(ses, [number for number in range(50) if number != 7])


def test_answers_that_are_lost_again_and_again_do_not_flood_anybody(ses: InboxServer, tmp_path: Path) -> None:
    ses.inbox.faults.add(Fault("cut", accept=True))
    sent = send(settings(tmp_path, SEND_RATE=1000), [message(1)], retry_limit=4)
    assert {"unknown": 1} == sent.count()
    assert "it may have been accepted" in sent.reasons[message(1)]
    assert {"person1@example.com": 4} == ses.inbox.counts.by_recipient


def test_what_may_have_been_accepted_is_never_called_unsent_or_expired(
    ses: InboxServer, tmp_path: Path
) -> None:
    ses.inbox.faults.add(Fault("cut", calls=1, accept=True))
    ses.inbox.faults.add(Fault("error", code="AccountSendingPausedException"))
    expired = send(settings(tmp_path, SEND_RATE=1000), [message(1)], useful_s=0.4)
    assert {"unknown": 1} == expired.count()
    ses.inbox.faults.clear()
    ses.inbox.faults.add(Fault("cut", calls=1, accept=True))
    ses.inbox.faults.add(Fault("error", code="AccountSendingPausedException"))
    stopped = send(settings(tmp_path, SEND_RATE=1000), [message(2)], timeout_s=1)
    assert {"unknown": 1} == stopped.count()


class Drip(socketserver.BaseRequestHandler):
    """Each read gets a byte in time, and the whole never comes."""

    ended = threading.Event()

    def handle(self) -> None:
        self.request.recv(65536)
        with suppress(OSError):
            self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n<")
            while not self.ended.wait(0.05):
                self.request.sendall(b" ")


def test_an_answer_that_drips_is_lost_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Drip) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        for name, value in aws(f"http://127.0.0.1:{server.server_address[1]}").items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("mailroom.transports.ses_templates.SesTemplates._check", lambda *_: None)
        monkeypatch.setattr("mailroom.sender.provider.CONNECT_TIMEOUT_S", 0.2)
        chosen = settings(tmp_path, SEND_RATE=1000, SEND_TIMEOUT=200)
        sent = send(chosen, [message(1)], timeout_s=30, retry_limit=1)
        Drip.ended.set()
        server.shutdown()
    assert {"unknown": 1} == sent.count()
    assert "no complete answer within 1 s" in sent.reasons[message(1)]


@pytest.mark.parametrize(
    "status", [pytest.param(401, marks=pytest.mark.slow), pytest.param(403, marks=pytest.mark.slow), 404, 407]
)
def test_a_proxy_that_lets_nobody_through_is_no_recipients_fault(
    ses: InboxServer, tmp_path: Path, status: int
) -> None:
    body = "<html><body>Blocked by policy</body></html>"
    ses.inbox.faults.add(Fault("http", calls=12, http_status=status, body=body))
    sent = send(settings(tmp_path, SEND_RATE=1000), TEN, retry_limit=1)
    assert {"sent": 10} == sent.count()
    assert once_each(ses, range(10))


def test_the_daily_quota_is_a_pause_and_no_throttle(
    ses: InboxServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ses.inbox.faults.add(Fault("error", calls=3, code="Throttling", message="Daily message quota exceeded."))
    sent = send(settings(tmp_path, SEND_RATE=1000), TEN)
    assert {"sent": 10} == sent.count()
    assert [logging.ERROR] == [
        record.levelno for record in caplog.records if "paused" in str(vars(record).get("event"))
    ]


def test_a_template_that_comes_later_is_checked_too(
    ses: InboxServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    del ses.inbox.account.templates["activationv1"]

    def make_it_wrong_and_then_right() -> None:
        ses.wait_for(lambda inbox: inbox.counts.calls >= 2)
        ses.inbox.account.put_template(
            "activationv1", ("{{name}}", "{{secret}}", "{{secret}} {{login}}"), new=True
        )
        wait_for_log(caplog, "template_warning")  # it was looked at, and nothing may be dropped
        ses.inbox.account.put_template("activationv1", ("Hello", "{{secret}}", "{{secret}}"), new=False)

    thread = threading.Thread(target=make_it_wrong_and_then_right)
    thread.start()
    sent = send(settings(tmp_path, SEND_RATE=1000), TEN)
    thread.join()
    assert ({"sent": 10}, 0) == (sent.count(), ses.inbox.counts.dropped)


@pytest.mark.parametrize("rate", ["abc", "inf", "nan", "1e-9", "-1", "0"])
def test_a_quota_that_is_none_is_not_believed(
    ses: InboxServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: str
) -> None:
    transport = open_transport(settings(tmp_path))
    answer = {"MaxSendRate": rate}
    monkeypatch.setattr("mailroom.transports.ses_calls.SesCalls._ask_quota", lambda _: answer)
    assert transport.quota() is None


def test_credentials_that_cannot_be_had_any_more_pause(
    ses: InboxServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that gives credentials once, for a short time, and then fails."""
    script = tmp_path / "credentials"
    expires = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    given = {"Version": 1, "AccessKeyId": "AKIA1", "SecretAccessKey": "s", "Expiration": expires}
    script.write_text(
        f"#!/bin/sh\nmkdir {tmp_path}/given 2>/dev/null || exit 1\necho '{json.dumps(given)}'\n"
    )
    script.chmod(0o755)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {script}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    sent = send(settings(tmp_path, SEND_RATE=1000), TEN, useful_s=1.5)
    assert (tmp_path / "given").exists()
    assert {"expired": 10} == sent.count()
    assert "CredentialRetrievalError" in sent.reasons[TEN[0]]
    assert 0 == ses.inbox.counts.calls


def test_a_bad_address_in_first_place_blames_no_other(ses: InboxServer, tmp_path: Path) -> None:
    ses.inbox.faults.add(Fault("error", recipient=BAD, code="InvalidParameterValue", message="no"))
    batch = [message(99)._replace(email="a b@example.com"), *TEN]
    sent = send(settings(tmp_path, SEND_RATE=1000), batch)
    assert {"sent": 9, "rejected": 2} == sent.count()
    assert once_each(ses, [0, 1, 2, 3, 4, 5, 6, 8, 9])


def test_a_half_that_was_sent_stays_sent_while_the_other_hangs(ses: InboxServer, tmp_path: Path) -> None:
    ses.inbox.faults.add(Fault("error", calls=1, recipient=BAD, code="MessageRejected", message="no"))
    ses.inbox.faults.add(Fault("hang", recipient=BAD))
    sent = send(settings(tmp_path, SEND_RATE=1000, SEND_TIMEOUT=60_000), TEN, timeout_s=2)
    assert {"sent": 5, "unknown": 5} == sent.count()
    assert 5 == ses.inbox.counts.accepted


def test_nobodys_address_can_pause_the_account(ses: InboxServer, tmp_path: Path) -> None:
    words = (
        "Email address is not verified. The following identities failed the check: paused@suspended.example"
    )
    ses.inbox.faults.add(
        Fault("error", recipient="paused@suspended.example", code="MessageRejected", message=words)
    )
    batch = [message(1)._replace(email="paused@suspended.example"), message(2)]
    assert {"sent": 1, "rejected": 1} == send(settings(tmp_path, SEND_RATE=1000), batch).count()


@pytest.mark.slow
def test_a_template_that_iam_does_not_allow_stops_its_own_action_alone(
    ses: InboxServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = (
        "User `arn:aws:sts::123456789012:assumed-role/mailroom/i-1' is not authorized to perform"
        " `ses:SendBulkTemplatedEmail' on resource"
        " `arn:aws:ses:us-east-1:123456789012:template/passwordrecoveryv1'"
    )
    recovery = message(1)._replace(action=PASSWORD_RECOVERY)
    ses.inbox.faults.add(Fault("error", recipient=recovery.email, code="AccessDenied", message=words))
    sent = send(settings(tmp_path, SEND_RATE=1000), [recovery, message(2), message(3)], useful_s=3)
    assert {"sent": 2, "expired": 1} == sent.count()
    assert once_each(ses, [2, 3])
    told = [record for record in caplog.records if "sender.paused" == str(vars(record).get("event"))]
    assert {"password_recovery"} == {getattr(record, "fields", {})["breaker"] for record in told}


def test_addresses_that_are_refused_here_say_nothing_of_the_account(
    ses: InboxServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ses.inbox.account.paused = True
    batch = [*TEN, *(message(n)._replace(email="a b@x.example") for n in range(20, 24))]
    sent = send(settings(tmp_path, SEND_RATE=10), batch, useful_s=2.5)
    assert {"expired": 10, "rejected": 4} == sent.count()
    assert "sender.resumed" not in [str(vars(record).get("event")) for record in caplog.records]


def test_a_fault_of_ours_ends_it_and_gives_everything_back(
    ses: InboxServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("mailroom.sender.provider.Provider._answers", broken)
    reported: list[object] = []

    def keep(verdicts: list[object]) -> None:
        reported.extend(verdicts)

    monkeypatch.setattr("support.senders.Sent.report", lambda _, verdicts: keep(verdicts))
    with pytest.raises(KeyError, match="a bug"):
        send(settings(tmp_path, SEND_RATE=1000), TEN)
    assert 10 == len(reported)
