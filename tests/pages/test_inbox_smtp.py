"""The inbox over SMTP: Mailroom's own transport, other clients, limits, faults, and hostile ones."""

from __future__ import annotations

import logging
import smtplib
import socket
import subprocess
import sys
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from mailroom.inbox.faults import Fault
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.server import InboxError, InboxServer
from support.inbox import ask, mail
from support.messages import message
from support.senders import send, settings, with_templates


@pytest.fixture
def server(caplog: pytest.LogCaptureFixture) -> Iterator[InboxServer]:
    with InboxServer(inbox=with_templates(Inbox()), smtp_port=0) as server:
        yield server
    assert [] == [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR]


@pytest.fixture
def client(server: InboxServer) -> Iterator[smtplib.SMTP]:
    place = urlsplit(server.smtp_url)
    with smtplib.SMTP(place.hostname or "", place.port or 0, "test", timeout=30) as client:
        yield client


def mails(server: InboxServer) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ask(server.url, "/api/mails/wait?timeout=1").json["mails"]
    return found


def letter(subject: str = "Hello", text: str = "https://a.example/activate?token=T") -> EmailMessage:
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = "App <app@example.com>", "zoe@example.com", subject
    made.set_content(text)
    return made


@pytest.mark.parametrize("user", ["", "anybody:any@"])
def test_mailrooms_own_transport_shows_as_over_the_api(
    server: InboxServer, tmp_path: Path, user: str
) -> None:
    mine = message(1)
    mail(server, mine.email, login=mine.username, login_html=mine.username, secret=mine.token)
    address = server.smtp_url.replace("smtp://", f"smtp://{user}")
    chosen = settings(tmp_path, TRANSPORT=address, SES_SOURCE="Acme <noreply@acme.example>", SEND_RATE=100)
    assert {"sent": 1} == send(chosen, [mine]).count()
    api, smtp = mails(server)
    same = ("source", "recipient", "subject", "html", "links", "action", "dropped", "failure")
    assert {name: api[name] for name in same} == {name: smtp[name] for name in same}
    assert api["text"].rstrip() == smtp["text"].rstrip()
    assert set(api) == set(smtp)
    assert ("", {}) == (smtp["template"], smtp["data"])
    assert "Auto-Submitted" in dict(smtp["headers"])
    raw = ask(server.url, f"/mails/{smtp['id']}/request").text
    assert raw.startswith(f"MAIL FROM:<noreply@acme.example>\r\nRCPT TO:<{mine.email}>\r\nDATA\r\n")
    assert f"Hello {mine.username}" in ask(server.url, f"/mails/{smtp['id']}?view=text").text


def test_each_recipient_gets_a_mail(server: InboxServer, client: smtplib.SMTP) -> None:
    recipients = ["zoe@example.com", "zoë@example.com", "b@example.com"]
    client.send_message(letter("Grüße 💌"), "bounce@example.com", recipients, mail_options=["SMTPUTF8"])
    assert recipients == [found["recipient"] for found in mails(server)]
    assert {"Grüße 💌"} == {found["subject"] for found in mails(server)}
    assert {"App <app@example.com>"} == {found["source"] for found in mails(server)}
    assert (3, 3) == (server.inbox.counts.accepted, server.inbox.counts.recipients)
    assert [("activation", "T")] * 3 == [
        (each["action"], each["links"][0]["token"]) for each in mails(server)
    ]


def test_a_mail_is_downloaded_as_it_came(server: InboxServer, client: smtplib.SMTP) -> None:
    content = b"Subject: x\r\nX-Odd: \xff\r\n\r\n.dot\r\n"
    client.sendmail("a@example.com", ["b@example.com"], content)
    (found,) = mails(server)
    assert content == ask(server.url, f"/mails/{found['id']}/eml").body
    assert ("x", ".dot\n", "") == (found["subject"], found["text"], found["html"])
    assert ("a@example.com", None) == (found["source"], found["action"])
    assert ["X-Odd", "\ufffd"] in found["headers"]


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (Fault("error", code="Throttling"), 454, b"Throttling failure: Maximum sending rate exceeded."),
        (Fault("error", code="InternalFailure"), 451, b"InternalFailure: asked for by a fault"),
        (Fault("error", code="MessageRejected", message="no\r\n250 OK"), 554, b"MessageRejected: no 250 OK"),
        (Fault("status", status="MessageRejected"), 554, b"MessageRejected: asked for by a fault"),
        (Fault("status", status="TransientFailure"), 451, b"TransientFailure: asked for by a fault"),
        (Fault("http", http_status=503, body="\nxx"), 451, b" xx"),
    ],
    ids=str,
)
def test_faults_hold_over_smtp(
    server: InboxServer, client: smtplib.SMTP, fault: Fault, code: int, words: bytes
) -> None:
    rule = server.inbox.faults.add(fault)
    with pytest.raises(smtplib.SMTPDataError) as error:
        client.send_message(letter())
    assert (code, words.strip()) == (error.value.smtp_code, error.value.smtp_error.strip())
    server.inbox.faults.remove(rule)
    client.send_message(letter())
    assert 1 == len(mails(server))


@pytest.mark.parametrize("accept", [False, True])
@pytest.mark.parametrize("kind", ["cut", "hang", "garbage"])
def test_a_lost_answer_is_lost(server: InboxServer, client: smtplib.SMTP, kind: str, accept: bool) -> None:
    server.inbox.faults.add(Fault(kind, accept=accept, seconds=0.01, body="\x00?"))
    with pytest.raises((smtplib.SMTPServerDisconnected, smtplib.SMTPResponseException)):
        client.send_message(letter())
    client.close()
    assert (1 if accept else 0) == len(mails(server))


def test_limits_hold_over_smtp(server: InboxServer, client: smtplib.SMTP) -> None:
    server.inbox.account.paused = True
    with pytest.raises(smtplib.SMTPDataError) as error:
        client.send_message(letter())
    assert 451 == error.value.smtp_code
    server.inbox.account.paused = False
    server.inbox.limits.quota_24h = 1
    client.send_message(letter())
    with pytest.raises(smtplib.SMTPDataError, match="Daily message quota exceeded"):
        client.send_message(letter())
    server.inbox.limits.rate = 0.001
    with pytest.raises(smtplib.SMTPDataError, match="Daily message quota exceeded"):
        client.send_message(letter())
    with pytest.raises(smtplib.SMTPDataError, match="Maximum sending rate exceeded"):
        client.send_message(letter())
    assert 1 == server.inbox.counts.accepted


def test_too_many_recipients_are_refused(server: InboxServer, client: smtplib.SMTP) -> None:
    refused = client.sendmail("a@example.com", [f"p{number}@example.com" for number in range(52)], b"x")
    assert {452} == {code for code, _ in refused.values()}
    assert (2, 50) == (len(refused), len(mails(server)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        b"\x00\xff" * 1000,
        b"MAIL FROM:<\xff@x>",
        b"MAIL FROM:<a@b.example> SMTPUTF8\r\nRCPT TO:<\xc3\xa4\x01@b.example>\r\nDATA\r\n\xff\x00\r\n.",
        b"MAIL FROM:<>\r\nRCPT TO:<a@b.example>\r\nDATA\r\n.\r\n",
        b"MAIL FROM:<a@b.example>\r\nRCPT TO:<a@b.example>\r\nDATA\r\n" + b"x" * 5000 + b"\r\n.\r\n",
        b"AUTH PLAIN \xff\r\nAUTH LOGIN =\r\nAUTH PLAIN AGEAYg==",
        b"MAIL FROM:<a@b.example> SIZE=99999999999\r\n",
        b"MAIL FROM:<a@b.example>\r\nRCPT TO:<a@b.example>\r\nDATA\r\nhalf",
        b"A" * 10_000 + b"\r\n",
    ],
    ids=range(9),
)
def test_hostile_smtp_never_makes_a_traceback(server: InboxServer, text: bytes) -> None:
    place = urlsplit(server.smtp_url)
    with socket.create_connection((place.hostname or "", place.port or 0), timeout=30) as connection:
        connection.sendall(b"EHLO x\r\n" + text + b"\r\nQUIT\r\n")
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while piece := connection.recv(65536):
                answer += piece
        except ConnectionError:
            pass
    assert answer.startswith(b"220 inbox.mailroom Mailroom's inbox\r\n")
    assert b"\r\n500 Error: (" not in answer  # aiosmtpd's words for a traceback
    for found in mails(server):
        assert 200 == ask(server.url, f"/mails/{found['id']}?view=request").status


def test_the_command_says_where_smtp_is() -> None:
    arguments = [sys.executable, "-m", "mailroom", "inbox", "--port", "0", "--smtp-port", "0", "--no-print"]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as process:
        assert process.stderr
        address = next(line for line in process.stderr if "MAILROOM_TRANSPORT=" in line).partition("=")[2]
        place = urlsplit(address.strip())
        with smtplib.SMTP(place.hostname or "", place.port or 0, "test", timeout=30) as client:
            client.send_message(letter())
        process.terminate()
        assert 0 == process.wait(30)
        assert "Traceback" not in process.stderr.read()


def test_a_port_in_use_is_reported_with_its_option(server: InboxServer) -> None:
    port = urlsplit(server.smtp_url).port
    with pytest.raises(InboxError) as error, InboxServer(smtp_port=port):
        pass
    assert "--smtp-port" in error.value.hint
