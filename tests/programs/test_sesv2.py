"""Version 2 of SES's API under the whole programs: nothing is pushed, and no mail is lost or sent twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from mailroom.answers import Result, Scope
from mailroom.inbox.event_queue import NAME
from mailroom.inbox.faults import Fault
from mailroom.inbox.server import InboxServer
from mailroom.inbox.sesv2 import SEND
from mailroom.operations.action_files import write_built_in
from mailroom.settings.sender import SenderSettings
from mailroom.settings.variables import read_settings
from mailroom.tokens import verify
from mailroom.transports.sesv2 import SesV2Transport
from support.messages import message
from support.moto import moto_server
from support.processes import KEY
from support.queue_sql import Db, sign_up, sign_up_many
from support.runs import UNSETTLED, Start, ledger, wait_until
from support.senders import SenderProcess, aws, environment

SENT: Final = "SELECT count(*) FROM mailroom.deliveries WHERE outcome = 'sent'"


@pytest.fixture
def ses() -> Iterator[InboxServer]:
    """A local SES without a template."""
    with InboxServer() as server:
        yield server


def test_a_committed_account_is_mailed_from_the_folder(db: Db, ses: InboxServer, start: Start) -> None:
    worker = start(TRANSPORT="sesv2", REPLY_TO="Help <help@acme.example>").wait_for_log("run.started")
    token = sign_up(db, "zoe")
    wait_until(db, SENT, 1)
    wait_until(db, UNSETTLED, 0)
    (mail,) = ses.inbox.mails.find()
    assert [(token, 1, "sent", "sent", "sesv2", mail.id, "activation", "en")] == ledger(
        db, "token", "attempt", "outcome", "result", "provider", "message_id", "template", "language"
    )
    rendered = ses.inbox.render(mail)
    assert rendered
    assert rendered.text.startswith("Hello zoe,")
    assert verify(mail.data["secret"], "activation", keys=KEY)
    assert ses.inbox.brief(mail).action == "activation"
    assert mail.sending
    tags = dict(mail.sending.tags)
    assert ("activation", "1") == (tags["mailroom-action"], tags["mailroom-attempt"])
    assert tags["mailroom-token"].startswith(f"{token}-")
    assert b"Reply-To: Help <help@acme.example>\r\n" in mail.as_message(rendered)
    request = ses.inbox.requests.get(mail.call) or b""
    assert request.startswith(f"POST {SEND} ".encode())
    assert {} == ses.inbox.account.templates
    assert 0 == worker.stop()


def test_mails_of_one_call_have_their_own_outcomes(db: Db, ses: InboxServer, start: Start) -> None:
    faults = ses.inbox.faults
    faults.add(Fault("status", recipient="u2@example.com", status="MessageRejected"))
    faults.add(Fault("status", recipient="u3@example.com", status="TransientFailure", calls=2))
    faults.add(Fault("status", recipient="u4@example.com", status="Failed"))
    faults.add(Fault("status", recipient="u5@example.com", status="AccountThrottled", calls=1))
    sign_up_many(db, 6)
    start(TRANSPORT="sesv2", constants={"mailroom.runner.delivery.RETRY_LIMIT": 2})
    wait_until(db, "SELECT count(*) FROM mailroom.deliveries WHERE outcome IN ('sent', 'rejected')", 6)
    wait_until(db, UNSETTLED, 0)
    found = db.execute(
        "SELECT a.login, array_agg(d.outcome ORDER BY d.id)"
        " FROM mailroom.deliveries d JOIN tokens t ON t.id = d.token JOIN accounts a ON a.id = t.account"
        " GROUP BY a.login ORDER BY a.login"
    ).fetchall()
    assert [
        ("u1", ["sent"]),
        ("u2", ["rejected"]),
        ("u3", ["retried", "retried", "sent"]),
        ("u4", ["retried", "rejected"]),
        ("u5", ["retried", "sent"]),
        ("u6", ["sent"]),
    ] == found
    assert {1} == set(ses.inbox.counts.by_recipient.values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cut", "cut_body", "garbage", "http"])
def test_a_lost_answer_becomes_known_by_its_event_and_nobody_is_mailed_twice(
    db: Db, ses: InboxServer, start: Start, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", ses.url)
    ses.inbox.faults.add(Fault(kind, accept=True, calls=2))
    sign_up_many(db, 120)
    worker = start(TRANSPORT="sesv2", EVENTS=NAME)
    wait_until(db, "SELECT count(DISTINCT token) FROM mailroom.deliveries WHERE outcome = 'sent'", 120)
    wait_until(db, UNSETTLED, 0)
    assert 0 == worker.stop()
    assert 120 == len(ses.inbox.counts.by_recipient)
    assert {1} == set(ses.inbox.counts.by_recipient.values())
    lost = db.execute("SELECT count(*) FROM mailroom.deliveries WHERE outcome = 'unknown'").fetchone()
    assert lost
    assert 0 < lost[0] <= 100


def test_an_account_that_is_paused_is_waited_for(db: Db, ses: InboxServer, start: Start) -> None:
    ses.inbox.account.paused = True
    worker = start(TRANSPORT="sesv2").wait_for_log("run.started")
    sign_up(db, "zoe")
    worker.wait_for_log("SendingPausedException")
    ses.inbox.account.paused = False
    wait_until(db, SENT, 1)
    assert {"zoe@example.com": 1} == ses.inbox.counts.by_recipient
    assert 0 == worker.stop()


def test_an_edited_folder_is_used_without_a_push_or_a_restart(ses: InboxServer, tmp_path: Path) -> None:
    folder = tmp_path / "mails"
    write_built_in(folder)
    variables = environment(tmp_path / "output", TRANSPORT="sesv2", TEMPLATES=folder, SEND_RATE=1000)
    with SenderProcess(variables | aws(ses.url), tmp_path / "log") as sender:
        (folder / "activation.subject.txt").write_text("{{nobody}}")
        sender.send([message(1)])
        sender.wait_for_log("{{nobody}} is not a field of activation")
        assert 0 == ses.inbox.counts.calls
        (folder / "activation.subject.txt").write_text("{{#if login}}Dear {{login}}{{else}}Dear you{{/if}}")
        sender.send([message(2)])
        ses.wait_for(lambda inbox: inbox.counts.accepted == 2)
        assert 0 == sender.end()
    subjects = {mail.recipient: ses.inbox.brief(mail).subject for mail in ses.inbox.mails.find()}
    assert {
        "person1@example.com": "Dear person1",
        "person2@example.com": "Dear person2",
    } == subjects


def test_after_a_trouble_the_rest_of_a_call_is_not_tried(
    ses: InboxServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mails without a login need content of their own, and so a call of their own."""
    for name, value in aws(ses.url).items():
        monkeypatch.setenv(name, value)
    batch = [message(n)._replace(username="" if n % 3 else f"person{n}") for n in range(9)]
    transport = SesV2Transport(
        read_settings(SenderSettings, environment(tmp_path, TRANSPORT="sesv2", SEND_TIMEOUT=300))
    )
    cases = [
        (Fault("error", code="Throttling"), "throttled", "throttled"),
        (Fault("cut"), "unknown", "transient"),
        (Fault("hang"), "unknown", "transient"),
        (Fault("status", status="MessageRejected", recipient="person0@example.com"), "", "sent"),
    ]
    for fault, first, other in cases:
        ses.inbox.faults.clear()
        ses.inbox.faults.add(fault)
        calls = ses.inbox.counts.calls
        answers = [answer.result.value for answer in transport.send(batch)]
        expected = [other if n % 3 else first or "sent" for n in range(9)]
        if not first:
            expected[0] = "rejected"
        assert expected == answers
        assert (1 if first else 2) == ses.inbox.counts.calls - calls
    transport.close()


def test_content_that_ses_would_read_otherwise_pauses_its_action(
    ses: InboxServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in aws(ses.url).items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "mails"
    write_built_in(folder)
    (folder / "activation.txt").write_text("{ {{~#if login}}{{login}}{{/if}} {{secret}}")
    chosen = environment(tmp_path, TRANSPORT="sesv2", TEMPLATES=folder)
    transport = SesV2Transport(read_settings(SenderSettings, chosen))
    with_login, without = transport.send([message(1), message(2)._replace(username="")])
    assert (Result.PAUSED, Scope.ACTION, Result.SENT) == (with_login.result, with_login.scope, without.result)
    assert "activation.txt: {{{login}} stands beside a brace" in with_login.detail
    assert {"person2@example.com": 1} == ses.inbox.counts.by_recipient
    transport.close()


def moto_knows_bulk_calls() -> bool:
    from moto.sesv2 import urls

    return any("outbound-bulk-emails" in path for path in urls.url_paths)


@pytest.mark.skipif(not moto_knows_bulk_calls(), reason="moto's version 2 of SES has no SendBulkEmail")
def test_moto_takes_the_call(tmp_path: Path) -> None:
    with moto_server() as url:
        variables = environment(tmp_path / "output", TRANSPORT="sesv2", SES_CONFIG_SET="none")
        with SenderProcess(variables | aws(url), tmp_path / "log") as sender:
            sender.send([message(1)])
            assert 0 == sender.end()
        assert "sender.sent" in sender.log()
