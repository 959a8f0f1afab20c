"""SMTP: what arrives, and what becomes of a mail whatever the server or the network does."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from mailroom.answers import Answer, Result, Scope
from mailroom.errors import TemplateError
from mailroom.operations.action_files import write_built_in
from mailroom.settings.sender import SenderSettings
from mailroom.settings.transports import SmtpServer
from mailroom.settings.variables import read_settings
from mailroom.templates import mails, sources
from mailroom.transports import smtp
from mailroom.transports.smtp import SmtpTransport
from mailroom.wire import Message
from support.messages import PASSWORD_RECOVERY, TEXT, message
from support.smtp import DROP, HANG, MailServer, mail_server

ENVIRONMENT = {
    "MAILROOM_APP_NAME": "Example & Sons",
    "MAILROOM_APP_URL": "https://app.example.com",
    "MAILROOM_SES_SOURCE": "Example <noreply@example.com>",
    "MAILROOM_SEND_TIMEOUT": "5000",
}
PASSWORD = "pass-word-1"
BATCH = [message(number) for number in range(3)]
SENT, REJECTED, TRANSIENT = Result.SENT, Result.REJECTED, Result.TRANSIENT
THROTTLED, UNKNOWN, PAUSED = Result.THROTTLED, Result.UNKNOWN, Result.PAUSED


def transport_to(
    port: int, *, tls: bool = False, require_tls: bool = False, user: str = "", **variables: str
) -> SmtpTransport:
    environment = ENVIRONMENT | {f"MAILROOM_{name}": value for name, value in variables.items()}
    server = SmtpServer("127.0.0.1", port, user, PASSWORD if user else "", tls, require_tls)
    return SmtpTransport(read_settings(SenderSettings, environment), server)


@pytest.fixture
def server() -> Iterator[MailServer]:
    with mail_server() as server:
        yield server


@pytest.fixture
def transport(server: MailServer) -> Iterator[SmtpTransport]:
    transport = transport_to(server.port)
    yield transport
    transport.close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes clients trust the authority, as an operator would."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))


def certificate(authority: trustme.CA, name: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def results(outcomes: list[Answer]) -> list[tuple[Result, Scope]]:
    return [(outcome.result, outcome.scope) for outcome in outcomes]


def alike(result: Result, scope: Scope = Scope.ACCOUNT) -> list[tuple[Result, Scope]]:
    return [(result, scope)] * len(BATCH)


def test_the_senders_name_may_have_an_ideographic_space(server: MailServer) -> None:
    name = "株式会社\u3000例"
    transport = transport_to(server.port, SES_SOURCE=f"{name} <noreply@example.com>")
    assert [SENT] == [outcome.result for outcome in transport.send(BATCH[:1])]
    transport.close()
    (sender,) = server.mails[0].message["From"].addresses
    assert (name, "noreply@example.com") == (sender.display_name, sender.addr_spec)


def test_a_mail_has_what_it_should(server: MailServer, transport: SmtpTransport) -> None:
    one = message(7, PASSWORD_RECOVERY)
    (outcome,) = transport.send([one])
    (mail,) = server.mails
    rendered = mails.render(
        sources.load(None, {"app_name": "Example & Sons", "app_url": "https://app.example.com"})[
            one.action.name
        ],
        one,
    )
    assert ("noreply@example.com", "person7@example.com") == (mail.sender, mail.recipient)
    assert [rendered.text, rendered.html] == mail.parts
    assert "multipart/alternative" == mail.message.get_content_type()
    assert ["text/plain", "text/html"] == [part.get_content_type() for part in mail.message.iter_parts()]
    expected = {
        "Subject": rendered.subject,
        "From": "Example <noreply@example.com>",
        "To": "person7@example.com",
        "Message-ID": f"<{outcome.message_id}>",
        "Auto-Submitted": "auto-generated",
        "MIME-Version": "1.0",
    }
    assert expected == {name: mail.message[name] for name in expected}
    assert mail.message["Date"].datetime.tzinfo is not None
    assert outcome.message_id.endswith("@example.com")
    assert one.token not in str(mail.message["Message-ID"])
    assert (SENT, Scope.RECIPIENT) == (outcome.result, outcome.scope)
    assert mail.content.isascii()
    assert max(map(len, mail.content.split(b"\r\n"))) <= 998


def test_mails_go_out_in_order_over_one_connection(server: MailServer, transport: SmtpTransport) -> None:
    outcomes = [*transport.send(BATCH), *transport.send(BATCH)]
    assert [SENT] * 6 == [outcome.result for outcome in outcomes]
    assert [one.email for one in BATCH] * 2 == [mail.recipient for mail in server.mails]
    assert 6 == len({outcome.message_id for outcome in outcomes})
    assert 1 == server.connections


HOSTILE = [
    "<b>&\"'`=",
    "Bcc: evil@example.com",
    "\u2028Bcc: evil@example.com",
    "=?utf-8?q?one=0D=0ABcc:_evil@example.com?=",
    "Grüße 🎉 日本語",
    "\u202e\u05d0\u05d1\u05d2",
    "x" * 254,
    "ü" * 254,
    ".",
    "{{secret}}",
]


@pytest.fixture(scope="module")
def greeting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Templates that show the login everywhere, and begin lines with it."""
    folder = tmp_path_factory.mktemp("templates")
    write_built_in(folder)
    (folder / "activation.subject.txt").write_text("{{login}} for {{login}}")
    (folder / "activation.txt").write_text("{{login}}\n{{secret}}\n.\n..\n{{login}}\n")
    return folder


@pytest.fixture(scope="module")
def greeter(greeting: Path) -> Iterator[tuple[MailServer, SmtpTransport]]:
    with mail_server() as server:
        transport = transport_to(server.port, TEMPLATES=str(greeting))
        yield server, transport
        transport.close()


@settings(deadline=None, max_examples=60)
@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=254))
def test_any_login_is_itself_wherever_it_is_shown(
    greeter: tuple[MailServer, SmtpTransport], login: str
) -> None:
    arrives_as_itself(greeter, login)


@pytest.mark.parametrize("login", HOSTILE)
def test_a_hostile_login_is_itself_wherever_it_is_shown(
    greeter: tuple[MailServer, SmtpTransport], login: str
) -> None:
    arrives_as_itself(greeter, login)


def arrives_as_itself(greeter: tuple[MailServer, SmtpTransport], login: str) -> None:
    server, transport = greeter
    server.mails.clear()
    (outcome,) = transport.send([message()._replace(username=login)])
    assert SENT is outcome.result
    (mail,) = server.mails
    headers = {
        "Subject",
        "From",
        "To",
        "Date",
        "Message-ID",
        "Auto-Submitted",
        "MIME-Version",
        "Content-Type",
        "Content-Language",
    }
    assert headers == set(mail.message.keys())
    assert 9 == len(mail.message.keys())
    login = mails.closed(login)
    assert f"{login}\n{message().token}\n.\n..\n{login}\n" == mail.parts[0]
    subject = " ".join(f"{login} for {login}".splitlines())
    read = make_header(decode_header(message_from_bytes(mail.content, policy=policy.compat32)["Subject"]))
    assert subject.strip(" ") == str(read).strip(" ")
    assert subject.strip(" ") == mail.message["Subject"].strip(" ")
    assert mail.content.isascii()


@pytest.mark.parametrize(
    "email",
    ["a@b\r\nRCPT TO:<c@d>", "a\nBcc: c@d@e", "a@b>", "<a@b", "a b@c", "a", "@b", "a@", "a@b,c@d", '"a"@b',
     "a@b c", "a@b..c", "a@.b", "a@-é-.de", "a@" + "é" * 64 + ".de", "a" * 65 + "@b", "a@[127.0.0.1]",
     "a@b;c"],
)  # fmt: skip
def test_an_address_that_is_none_is_rejected_and_no_other(
    server: MailServer, transport: SmtpTransport, email: str
) -> None:
    outcomes = transport.send([BATCH[0], message()._replace(email=email), BATCH[2]])
    assert [SENT, REJECTED, SENT] == [outcome.result for outcome in outcomes]
    assert outcomes[1].detail.startswith("the address's ")
    assert [BATCH[0].email, BATCH[2].email] == [mail.recipient for mail in server.mails]


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(st.builds("{}@{}".format, TEXT, TEXT | st.just("example.com")) | TEXT)
def test_any_address_that_the_line_can_hold_has_an_outcome(
    greeter: tuple[MailServer, SmtpTransport], email: str
) -> None:
    server, transport = greeter
    server.mails.clear()
    outcomes = transport.send([message()._replace(email=email), BATCH[1]])
    assert SENT is outcomes[1].result
    assert (outcomes[0].result is SENT) == (len(server.mails) == 2)
    assert outcomes[0].result in (SENT, REJECTED)


@pytest.mark.parametrize(
    ("email", "sent_to"),
    [
        ("a@faß.de", "a@xn--fa-hia.de"),
        ("a@BÜCHER.example", "a@xn--bcher-kva.example"),
        ("a.b+c'd@sub.example.com", "a.b+c'd@sub.example.com"),
        ("a" * 64 + "@" + ".".join(["b" * 60] * 4), "a" * 64 + "@" + ".".join(["b" * 60] * 4)),
        ("grüße@example.com", "grüße@example.com"),
    ],
)
def test_domains_are_mailed_by_their_ascii_names(
    server: MailServer, transport: SmtpTransport, email: str, sent_to: str
) -> None:
    (outcome,) = transport.send([message()._replace(email=email)])
    assert (SENT, "") == (outcome.result, outcome.detail)
    (mail,) = server.mails
    assert (sent_to, sent_to) == (mail.recipient, mail.message["To"])


def test_a_name_beyond_ascii_needs_a_server_that_takes_it() -> None:
    with mail_server(smtputf8=False) as server:
        transport = transport_to(server.port)
        outcomes = transport.send([message()._replace(email="grüße@example.com"), BATCH[1]])
        transport.close()
    assert [REJECTED, SENT] == [outcome.result for outcome in outcomes]
    assert "SMTPUTF8" in outcomes[0].detail


def test_an_extension_that_only_one_address_needs_is_no_others_trouble(
    server: MailServer, transport: SmtpTransport
) -> None:
    server.answer("MAIL", "555 parameters not recognized")
    (outcome,) = transport.send([message()._replace(email="grüße@example.com")])
    assert (REJECTED, Scope.RECIPIENT) == (outcome.result, outcome.scope)


@pytest.mark.parametrize(
    ("step", "reply", "expected"),
    [
        ("banner", "421 4.3.2 too busy", alike(TRANSIENT)),
        ("banner", "554 no service", alike(TRANSIENT)),
        ("banner", "gibberish", alike(TRANSIENT)),
        ("banner", DROP, alike(TRANSIENT)),
        ("EHLO", DROP, alike(TRANSIENT)),
        ("MAIL", "421 4.3.2 closing", alike(TRANSIENT)),
        ("MAIL", "451 4.3.0 later", alike(TRANSIENT)),
        ("MAIL", "454 Throttling failure: Maximum sending rate exceeded.", alike(THROTTLED)),
        ("MAIL", "421 4.7.28 Our system has detected an unusual rate", alike(THROTTLED)),
        ("MAIL", "550 5.7.1 not allowed to send as this", alike(PAUSED)),
        ("MAIL", DROP, alike(TRANSIENT)),
        ("RCPT", "450 4.2.0 greylisted, separate try", alike(TRANSIENT, Scope.RECIPIENT)),
        ("RCPT", "550 5.1.1 no such user", alike(REJECTED, Scope.RECIPIENT)),
        ("RCPT", "452 4.7.0 too many messages", alike(THROTTLED)),
        ("RCPT", "421 4.3.2 closing", alike(TRANSIENT)),
        ("RCPT", DROP, alike(TRANSIENT)),
        ("DATA", "451 4.3.0 later", alike(TRANSIENT, Scope.RECIPIENT)),
        ("DATA", "554 5.6.0 no", alike(REJECTED, Scope.RECIPIENT)),
        ("DATA", DROP, alike(TRANSIENT)),
        ("message", "452 4.3.1 disk full", alike(TRANSIENT, Scope.RECIPIENT)),
        ("message", "554 5.7.1 spam", alike(REJECTED, Scope.RECIPIENT)),
        ("message", "454 Throttling failure: Daily message quota exceeded.", alike(PAUSED)),
        ("message", "421 closing", alike(TRANSIENT)),
        ("message", "gibberish", [(UNKNOWN, Scope.RECIPIENT), *alike(TRANSIENT)[1:]]),
        ("message", DROP, [(UNKNOWN, Scope.RECIPIENT), *alike(TRANSIENT)[1:]]),
    ],
)
def test_each_trouble_has_its_class(
    server: MailServer, transport: SmtpTransport, step: str, reply: str, expected: list[tuple[Result, Scope]]
) -> None:
    server.answer(step, reply)
    outcomes = transport.send(BATCH)
    assert expected == results(outcomes)
    if reply[:3].isdigit():
        assert {" ".join(reply.split())} == {outcome.detail for outcome in outcomes}
    if Scope.ACCOUNT in [scope for _, scope in expected]:
        assert len([command for command in server.commands if command.startswith("MAIL")]) <= 1
    server.forget_answers()
    assert [SENT] * 3 == [outcome.result for outcome in transport.send(BATCH)]


@pytest.mark.parametrize("step", ["banner", "EHLO", "MAIL", "RCPT", "DATA", "message"])
def test_silence_ends(server: MailServer, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailroom.transports.smtp.CONNECT_TIMEOUT_S", 0.2)
    transport = transport_to(server.port, SEND_TIMEOUT="200")
    server.answer(step, HANG)
    first = (UNKNOWN if step == "message" else TRANSIENT, Scope.ACCOUNT)
    assert [first, *alike(TRANSIENT)[1:]] == results(transport.send(BATCH))
    assert server.hanging.is_set()
    transport.close()


@pytest.mark.parametrize(
    ("step", "reply", "result"),
    [
        ("RCPT", "550 5.1.1 no such user", REJECTED),
        ("RCPT", "450 4.2.2 over quota", TRANSIENT),
        ("DATA", "554 5.6.0 no", REJECTED),
        ("message", "554 5.7.1 no", REJECTED),
        ("message", "450 4.7.1 greylisted", TRANSIENT),
    ],
)
def test_one_recipients_trouble_is_no_others(
    server: MailServer, transport: SmtpTransport, step: str, reply: str, result: Result
) -> None:
    server.answer(step, reply, recipient="person1@")
    assert [SENT, result, SENT] == [outcome.result for outcome in transport.send(BATCH)]
    assert [BATCH[0].email, BATCH[2].email] == [mail.recipient for mail in server.mails]
    assert 1 == server.connections


@pytest.mark.parametrize(
    ("step", "reply", "result"),
    [("RCPT", "421 bye", TRANSIENT), ("message", DROP, UNKNOWN), ("RCPT", DROP, TRANSIENT)],
)
def test_what_was_sent_stays_sent(
    server: MailServer, transport: SmtpTransport, step: str, reply: str, result: Result
) -> None:
    server.answer(step, reply, recipient="person1@")
    assert [SENT, result, TRANSIENT] == [outcome.result for outcome in transport.send(BATCH)]
    assert [BATCH[0].email] == [mail.recipient for mail in server.mails]


@pytest.mark.parametrize("reply", [DROP, "421 4.3.2 closing"])
def test_a_connection_lost_after_a_refusal_is_replaced(
    server: MailServer, transport: SmtpTransport, reply: str
) -> None:
    server.answer("RCPT", "550 no such user", recipient="person0@")
    server.answer("RSET", reply)
    assert [REJECTED, SENT, SENT] == [outcome.result for outcome in transport.send(BATCH)]
    assert 2 == server.connections
    assert [REJECTED] == [outcome.result for outcome in transport.send(BATCH[:1])]


def test_a_kept_connection_that_was_lost_is_replaced(server: MailServer, transport: SmtpTransport) -> None:
    transport.send(BATCH)
    server.answer("RSET", DROP)
    assert [SENT] * 3 == [outcome.result for outcome in transport.send(BATCH)]
    assert 2 == server.connections


@pytest.mark.parametrize("limit", ["MAX_IDLE_S", "MAILS_PER_CONNECTION"])
def test_a_connection_is_not_kept_for_ever(
    server: MailServer, transport: SmtpTransport, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(smtp, limit, 0)
    for _ in range(2):
        assert [SENT] * 3 == [outcome.result for outcome in transport.send(BATCH)]
    assert 2 == server.connections
    assert 1 == server.commands.count("QUIT")


def test_no_more_connections_than_allowed(server: MailServer) -> None:
    transport = transport_to(server.port, SEND_CONCURRENCY="2")
    outcomes: list[Answer] = []
    threads = [threading.Thread(target=lambda: outcomes.extend(transport.send(BATCH))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    transport.close()
    assert [SENT] * 24 == [outcome.result for outcome in outcomes]
    assert 24 == len(server.mails)
    assert server.connections <= 2
    assert server.connections == server.commands.count("QUIT")


def test_nobody_listening_is_transient() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    outcomes = transport_to(port).send(BATCH)
    assert alike(TRANSIENT) == results(outcomes)
    assert "refused" in outcomes[0].detail


@pytest.mark.parametrize("implicit", [True, False], ids=["implicit", "starttls"])
@pytest.mark.usefixtures("trusted")
def test_mail_goes_over_tls_with_a_password(authority: trustme.CA, implicit: bool) -> None:
    context = certificate(authority)
    ways: dict[str, Any] = {"tls": context} if implicit else {"starttls": context}
    with mail_server(password=PASSWORD, **ways) as server:
        transport = transport_to(server.port, tls=implicit, require_tls=True, user="user")
        assert alike(SENT, Scope.RECIPIENT) == results(transport.send(BATCH))
        transport.close()
    assert implicit == ("STARTTLS" not in server.commands)
    assert ["AUTH"] == [command.split()[0] for command in server.commands if "AUTH" in command]


@pytest.mark.parametrize(("scheme", "way"), [("smtps", "tls"), ("smtp", "starttls")])
@pytest.mark.usefixtures("trusted")
def test_a_host_with_a_final_dot_has_the_certificate_of_its_name(
    authority: trustme.CA, scheme: str, way: str
) -> None:
    context: dict[str, Any] = {way: certificate(authority, "localhost")}
    with mail_server(password=PASSWORD, **context) as server:
        address = f"{scheme}://user:{PASSWORD}@localhost.:{server.port}?tls=required"
        chosen = read_settings(SenderSettings, ENVIRONMENT | {"MAILROOM_TRANSPORT": address})
        assert isinstance(chosen.transport, SmtpServer)
        transport = SmtpTransport(chosen, chosen.transport)
        assert alike(SENT, Scope.RECIPIENT) == results(transport.send(BATCH))
        transport.close()


@pytest.mark.parametrize("implicit", [True, False], ids=["implicit", "starttls"])
@pytest.mark.parametrize("wrong", ["authority", "name"])
def test_a_wrong_certificate_pauses(
    request: pytest.FixtureRequest, authority: trustme.CA, implicit: bool, wrong: str
) -> None:
    if wrong == "name":
        request.getfixturevalue("trusted")
    context = certificate(authority, "127.0.0.1" if wrong == "authority" else "other.example.com")
    ways: dict[str, Any] = {"tls": context} if implicit else {"starttls": context}
    with mail_server(**ways) as server:
        outcomes = transport_to(server.port, tls=implicit).send(BATCH)
    assert alike(PAUSED) == results(outcomes)
    assert "certificate verify failed" in outcomes[0].detail
    assert [] == server.mails


def test_tls_that_is_required_and_not_offered_pauses(server: MailServer) -> None:
    outcomes = transport_to(server.port, require_tls=True, user="user").send(BATCH)
    assert alike(PAUSED) == results(outcomes)
    assert not [command for command in server.commands if command.startswith(("AUTH", "MAIL"))]


def test_tls_where_none_is_spoken_pauses(server: MailServer) -> None:
    assert alike(PAUSED) == results(transport_to(server.port, tls=True).send(BATCH))


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("", PAUSED),
        ("535 5.7.8 wrong: " + PASSWORD, PAUSED),
        ("454 4.7.0 Temporary authentication failure", TRANSIENT),
        ("454 Throttling failure: too many logins", THROTTLED),
        ("421 4.3.2 closing", TRANSIENT),
        (DROP, TRANSIENT),
    ],
)
def test_each_trouble_with_a_password_has_its_class(reply: str, expected: Result) -> None:
    with mail_server(password="another") as server:
        if reply:
            server.answer("AUTH", reply)
        outcomes = transport_to(server.port, user="user").send(BATCH)
    assert alike(expected) == results(outcomes)
    assert PASSWORD not in outcomes[0].detail


def test_a_server_that_takes_no_password_pauses(server: MailServer) -> None:
    server.answer("AUTH", "502 not implemented")
    assert alike(PAUSED) == results(transport_to(server.port, user="user").send(BATCH))


def test_a_detail_keeps_the_recipient_and_the_token_to_itself(
    server: MailServer, transport: SmtpTransport
) -> None:
    one = message(1)._replace(email="Person1@BÜCHER.example")
    words = f"550 <person1@xn--bcher-kva.example> {one.token} {one.email} near {one.code}: {'long ' * 100}"
    server.answer("message", words)
    (outcome,) = transport.send([one])
    assert outcome.detail.startswith("550 <recipient> <token> <recipient> near [redacted]: long long")
    assert 300 == len(outcome.detail)


def test_check_refuses_templates_that_do_not_fit(server: MailServer, transport: SmtpTransport) -> None:
    transport.check()
    with pytest.raises(TemplateError, match=r"MAILROOM_APP_URL, which is not set"):
        transport_to(server.port, APP_URL="").check()
    outcomes = transport_to(server.port, APP_URL="").send(BATCH)
    assert alike(PAUSED, Scope.ACTION) == results(outcomes)


def test_the_senders_domain_is_mailed_by_its_ascii_name(server: MailServer) -> None:
    transport = transport_to(server.port, SES_SOURCE="Bücher <noreply@bücher.example>")
    (outcome,) = transport.send([message()])
    transport.close()
    (mail,) = server.mails
    assert "noreply@xn--bcher-kva.example" == mail.sender
    assert "Bücher <noreply@xn--bcher-kva.example>" == mail.message["From"]
    assert outcome.message_id.endswith("@xn--bcher-kva.example")
    assert "EHLO xn--bcher-kva.example" in server.commands


def typed_as_a_transport(transport: SmtpTransport, messages: list[Message]) -> object:
    """For mypy: it is what the protocol asks for."""
    from mailroom.transports.transport import Transport

    one: Transport = transport
    return one.send(messages)


def test_a_slow_server_gets_no_mail_twice(server: MailServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits no longer must not find the mail gone out all the same."""
    monkeypatch.setattr(smtp, "MAX_WAITS", 0)
    transport = transport_to(server.port)
    outcomes = transport.send(BATCH)
    transport.close()
    assert {(TRANSIENT, Scope.RECIPIENT)} == {(outcome.result, outcome.scope) for outcome in outcomes}
    assert [] == server.mails
