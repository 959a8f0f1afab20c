"""What every transport promises the sender, over HTTP, over SMTP and into standard output alike."""

from __future__ import annotations

import email
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from email.header import decode_header, make_header
from email.utils import parseaddr
from pathlib import Path
from typing import Any

import pytest

from mailroom.actions import Action
from mailroom.answers import Answer, Result, Scope
from mailroom.errors import TemplateError
from mailroom.inbox.faults import Fault
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.server import InboxServer
from mailroom.operations.action_files import write_built_in
from mailroom.templates.sources import Template, load
from mailroom.transports.ses_templates import LOOK_AGAIN_S
from mailroom.transports.transport import DEFAULT_RATE, Transport, open_transport
from mailroom.wire import Message, Reference
from support.messages import CATALOGUE, PASSWORD_RECOVERY, message
from support.senders import AWS_KEY_ID, AWS_SECRET, aws, environment, settings, with_templates
from support.smtp import DROP, HANG, mail_server

TEN = [message(number) for number in range(10)]
PASSWORD = "pass-word-2"
SECRETS = (AWS_KEY_ID, AWS_SECRET, PASSWORD, *(one.token for one in TEN))


@dataclass(frozen=True)
class Rig:
    """A transport, and what stands at its far end.

    Attributes:
        arrived: the recipients whose mails were accepted, as often as they were.
        rendered: the text and the HTML of the only mail that arrived.
        reject: makes the far end refuse a recipient for good.
        delay: makes it refuse a recipient for now.
        throttle: makes it refuse everybody for being too fast.
        lose_answer: makes it accept a mail and never say so.
        leave: ends the far end.
    """

    transport: Transport
    arrived: Callable[[], list[str]]
    rendered: Callable[[], tuple[str, str]]
    reject: Callable[[Message], object] | None = None
    delay: Callable[[Message], object] | None = None
    throttle: Callable[[], object] | None = None
    lose_answer: Callable[[], object] | None = None
    leave: Callable[[], object] | None = None


@contextmanager
def over_ses(output: Path, patch: pytest.MonkeyPatch, _: pytest.CaptureFixture[str]) -> Iterator[Rig]:
    with at_ses("ses", with_templates(Inbox()), output, patch) as rig:
        yield rig


@contextmanager
def over_sesv2(output: Path, patch: pytest.MonkeyPatch, _: pytest.CaptureFixture[str]) -> Iterator[Rig]:
    with at_ses("sesv2", Inbox(), output, patch) as rig:  # which has no templates
        yield rig


@contextmanager
def at_ses(transport: str, inbox: Inbox, output: Path, patch: pytest.MonkeyPatch) -> Iterator[Rig]:
    server = InboxServer(inbox=inbox)
    with server:
        for name, value in aws(server.url).items():
            patch.setenv(name, value)
        faults, counts = server.inbox.faults, server.inbox.counts

        def rendered() -> tuple[str, str]:
            (mail,) = server.inbox.mails.find()
            found = server.inbox.render(mail)
            assert found
            return found.text, found.html

        yield Rig(
            open_transport(settings(output, TRANSPORT=transport, SEND_TIMEOUT=2000)),
            lambda: list(Counter(counts.by_recipient).elements()),
            rendered,
            lambda one: faults.add(Fault("status", recipient=one.email, status="MessageRejected")),
            lambda one: faults.add(Fault("status", recipient=one.email, status="TransientFailure")),
            lambda: faults.add(Fault("error", code="Throttling")),
            lambda: faults.add(Fault("hang", accept=True)),
            lambda: server.__exit__(None, None, None),
        )


@contextmanager
def over_smtp(output: Path, _: pytest.MonkeyPatch, __: pytest.CaptureFixture[str]) -> Iterator[Rig]:
    with mail_server(password=PASSWORD) as server:
        url = f"smtp://mailroom:{PASSWORD}@127.0.0.1:{server.port}"

        def rendered() -> tuple[str, str]:
            (mail,) = server.mails
            text, html = mail.parts
            return text, html

        yield Rig(
            open_transport(settings(output, TRANSPORT=url, SEND_TIMEOUT=2000)),
            lambda: [mail.recipient for mail in server.mails],
            rendered,
            lambda one: server.answer("RCPT", "550 5.1.1 no such user", one.email),
            lambda one: server.answer("RCPT", "450 4.2.1 busy", one.email),
            lambda: server.answer("RCPT", "454 Throttling failure: Maximum sending rate exceeded"),
            lambda: server.answer("message", HANG),
            lambda: server.answer("banner", DROP),
        )


@contextmanager
def into_debug(output: Path, _: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Rig]:
    printed: list[str] = []

    def requests() -> list[dict[str, Any]]:
        printed.extend(capsys.readouterr().out.splitlines())
        return [to for line in printed for to in json.loads(line)["request"]["Destinations"]]

    def rendered() -> tuple[str, str]:
        (to,) = requests()
        data = json.loads(to["ReplacementTemplateData"])
        return "\n".join(data.values()), "\n".join(data[name] for name in data if name.endswith("_html"))

    yield Rig(
        open_transport(settings(output, DEBUG="true")),
        lambda: [to["Destination"]["ToAddresses"][0] for to in requests()],
        rendered,
    )


Far = Callable[[Path, pytest.MonkeyPatch, pytest.CaptureFixture[str]], AbstractContextManager[Rig]]


@pytest.fixture(params=[over_ses, over_sesv2, over_smtp, into_debug], ids=["ses", "sesv2", "smtp", "debug"])
def rig(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Rig]:
    far: Far = request.param
    with far(tmp_path / "output", monkeypatch, capsys) as rig:
        yield rig
        rig.transport.close()


def able(what: Callable[..., object] | None) -> Callable[..., object]:
    if what is None:
        pytest.skip("debug prints and asks nobody, so nothing of this kind can happen to it")
    return what


def no_secret_in(outcomes: list[Answer]) -> bool:
    return not any(secret in outcome.detail for outcome in outcomes for secret in SECRETS)


def test_each_recipient_is_sent_to_once_and_named_by_the_provider(rig: Rig) -> None:
    rig.transport.check()
    outcomes = rig.transport.send(TEN)
    assert [Result.SENT] * 10 == [outcome.result for outcome in outcomes]
    assert 10 == len({outcome.message_id for outcome in outcomes})
    assert all(outcome.message_id and not outcome.detail for outcome in outcomes)
    assert sorted(one.email for one in TEN) == sorted(rig.arrived())


def test_it_takes_as_many_as_it_says(rig: Rig) -> None:
    batch = [message(number) for number in range(rig.transport.recipients_per_call)]
    assert {Result.SENT} == {outcome.result for outcome in rig.transport.send(batch)}
    assert len(batch) == len(rig.arrived())


def test_several_threads_may_send(rig: Rig) -> None:
    results: list[Result] = []

    def send(first: int) -> None:
        batch = [message(number) for number in range(first, first + 10)]
        results.extend(outcome.result for outcome in rig.transport.send(batch))

    threads = [threading.Thread(target=send, args=[first]) for first in range(0, 80, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [Result.SENT] * 80 == results
    assert {f"person{number}@example.com": 1 for number in range(80)} == Counter(rig.arrived())


def test_a_login_is_escaped_in_html_and_itself_in_the_text(rig: Rig) -> None:
    (outcome,) = rig.transport.send([TEN[0]._replace(username='<b>&"')])
    assert Result.SENT is outcome.result
    text, html = rig.rendered()
    assert '<b>&"' in text
    assert "&lt;b&gt;&amp;&quot;" in html
    assert "<b>&" not in html


def test_a_domain_is_written_as_dns_knows_it(rig: Rig) -> None:
    (outcome,) = rig.transport.send([TEN[0]._replace(email="zoe@faß.example")])
    assert Result.SENT is outcome.result
    assert ["zoe@xn--fa-hia.example"] == rig.arrived()  # IDNA 2003 would make it fass.example


@pytest.mark.parametrize(
    "email",
    ["a@x.example, b@y.example", "Zoe <me@evil.example>", "zoe@x.example>", "zoe@x example", "a b@x.example"],
)
def test_an_address_that_could_be_anothers_is_rejected_and_its_neighbours_are_not(
    rig: Rig, email: str
) -> None:
    batch = [TEN[0], TEN[1]._replace(email=email), TEN[2]]
    outcomes = rig.transport.send(batch)
    assert [Result.SENT, Result.REJECTED, Result.SENT] == [outcome.result for outcome in outcomes]
    assert sorted([TEN[0].email, TEN[2].email]) == sorted(rig.arrived())


def test_outcomes_stand_in_the_order_of_their_messages(rig: Rig) -> None:
    able(rig.reject)(TEN[3])
    able(rig.delay)(TEN[6])
    outcomes = rig.transport.send(TEN)
    expected = [Result.SENT] * 10
    expected[3], expected[6] = Result.REJECTED, Result.TRANSIENT
    assert expected == [outcome.result for outcome in outcomes]
    assert {Scope.RECIPIENT} == {outcome.scope for outcome in outcomes}
    assert outcomes[3].detail
    assert no_secret_in(outcomes)
    assert sorted(one.email for one in TEN if one not in (TEN[3], TEN[6])) == sorted(rig.arrived())


def test_a_throttle_is_everybodys(rig: Rig) -> None:
    able(rig.throttle)()
    outcomes = rig.transport.send(TEN)
    assert {(Result.THROTTLED, Scope.ACCOUNT)} == {(one.result, one.scope) for one in outcomes}
    assert 10 == len(outcomes)
    assert no_secret_in(outcomes)
    assert [] == rig.arrived()


def test_a_lost_answer_is_unknown_and_never_sent_or_rejected(rig: Rig) -> None:
    able(rig.lose_answer)()
    outcomes = rig.transport.send(TEN)
    assert 10 == len(outcomes)
    assert Result.UNKNOWN is outcomes[0].result
    assert {Result.UNKNOWN, Result.TRANSIENT} >= {outcome.result for outcome in outcomes}
    assert no_secret_in(outcomes)


def test_a_provider_that_is_away_is_transient_and_no_exception(rig: Rig) -> None:
    able(rig.leave)()
    outcomes = rig.transport.send(TEN)
    assert {(Result.TRANSIENT, Scope.ACCOUNT)} == {(one.result, one.scope) for one in outcomes}
    assert 10 == len(outcomes)
    assert no_secret_in(outcomes)
    assert rig.transport.quota() == (DEFAULT_RATE if rig.transport.name == "smtp" else None)
    rig.transport.check()  # a server that does not answer now may answer later


def test_a_mail_is_in_its_recipients_language(rig: Rig) -> None:
    outcomes = rig.transport.send([TEN[0]._replace(locale="de_at", expires_in_s=7200)])
    assert [Result.SENT] == [outcome.result for outcome in outcomes]
    text, html = rig.rendered()
    assert "2 Stunden" in text
    assert "2 Stunden" in html


def test_the_own_fields_of_an_action_are_shown_and_may_be_missing(rig: Rig) -> None:
    invitation = message(1, CATALOGUE["invitation"])._replace(username="", data={"inviter": '<b>&"'})
    outcomes = rig.transport.send([invitation])
    assert [Result.SENT] == [outcome.result for outcome in outcomes]
    text, html = rig.rendered()
    assert '<b>&"' in text
    assert "&lt;b&gt;&amp;&quot;" in html
    outcomes = rig.transport.send([invitation._replace(email="other@example.com", data={})])
    assert [Result.SENT] == [outcome.result for outcome in outcomes]


REPLY_TO = [
    ("", ""),
    ("help@acme.example", "help@acme.example"),
    ('"Help, Acme" <help@bücher.example>', '"Help, Acme" <help@xn--bcher-kva.example>'),
]


@pytest.mark.parametrize("transport", ["ses", "sesv2", "smtp", "debug"])
def test_answers_go_to_the_address_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], transport: str
) -> None:
    with mail_server() as mails, InboxServer(inbox=with_templates(Inbox())) as ses:
        for name, value in aws(ses.url).items():
            monkeypatch.setenv(name, value)
        address = f"smtp://127.0.0.1:{mails.port}" if transport == "smtp" else transport
        for given, header in REPLY_TO:
            opened = open_transport(settings(tmp_path, TRANSPORT=address, REPLY_TO=given))
            assert [Result.SENT] == [outcome.result for outcome in opened.send(TEN[:1])]
            opened.close()
            if transport == "debug":
                request = json.loads(capsys.readouterr().out)["request"]
                assert [header] * bool(header) == request.get("ReplyToAddresses", [])
                continue
            if transport == "smtp":
                content = mails.mails[-1].content
            else:
                mail = ses.inbox.mails.find()[-1]
                content = mail.as_message(ses.inbox.render(mail))
            found = email.message_from_bytes(content)["Reply-To"]
            assert parseaddr(header) == parseaddr(str(make_header(decode_header(found or ""))))


UNKNOWN = "{{nobody}} is not a field of activation"


@pytest.mark.parametrize("transport", ["ses", "sesv2", "smtp", "debug"])
def test_a_template_that_would_lose_mail_pauses_its_action_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], transport: str
) -> None:
    write_built_in(tmp_path / "templates")
    (tmp_path / "templates" / "activation.subject.txt").write_text("{{nobody}}")
    inbox = with_templates(Inbox())
    inbox.account.put_template("activationv1", ("{{nobody}}", "{{secret}}", "{{secret}}"), new=False)
    with mail_server() as mails, InboxServer(inbox=inbox) as ses:
        for name, value in aws(ses.url).items():
            monkeypatch.setenv(name, value)
        address = f"smtp://127.0.0.1:{mails.port}" if transport == "smtp" else transport
        opened = open_transport(settings(tmp_path, TRANSPORT=address, TEMPLATES=tmp_path / "templates"))
        assert opened.check() is None
        outcomes = opened.send(TEN)
        assert {(Result.PAUSED, Scope.ACTION)} == {(one.result, one.scope) for one in outcomes}
        assert 10 == len(outcomes)
        assert UNKNOWN in outcomes[0].detail
        assert ("activationv1" if transport == "ses" else "activation.subject.txt") in outcomes[0].detail
        assert "`mailroom templates" in outcomes[0].detail
        (other,) = opened.send([message(1, PASSWORD_RECOVERY)])
        assert Result.SENT is other.result

        (tmp_path / "templates" / "activation.subject.txt").write_text("Hello {{login}}")
        inbox.account.put_template("activationv1", ("Hello", "{{secret}}", "{{secret}}"), new=False)
        assert {Result.SENT} == {outcome.result for outcome in opened.send(TEN)}
        opened.close()


@pytest.mark.parametrize("transport", ["sesv2", "smtp", "debug"])
def test_an_action_without_a_template_waits_for_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], transport: str
) -> None:
    folder = tmp_path / "templates"
    write_built_in(folder)
    own = Action("join", 30, b"/join", fields=("inviter",))
    with mail_server() as mails, InboxServer() as ses:
        for name, value in aws(ses.url).items():
            monkeypatch.setenv(name, value)
        address = f"smtp://127.0.0.1:{mails.port}" if transport == "smtp" else transport
        opened = open_transport(settings(tmp_path, TRANSPORT=address, TEMPLATES=folder))
        assert opened.check() is None
        (outcome,) = opened.send([message(1, own)])
        assert (Result.PAUSED, Scope.ACTION) == (outcome.result, outcome.scope)
        assert f"{folder}/join.subject.txt: No such file" in outcome.detail
        for part, source in (
            (".subject.txt", "Join"),
            (".txt", "{{secret}}"),
            (".html", "<p>{{secret}}</p>"),
        ):
            (folder / f"join{part}").write_text(source)
        (outcome,) = opened.send([message(1, own)])
        assert Result.SENT is outcome.result
        opened.close()


def test_where_nothing_can_be_sent_it_is_reported_at_the_start(tmp_path: Path) -> None:
    chosen = settings(tmp_path, TRANSPORT="smtp://127.0.0.1:1", APP_URL="")
    with pytest.raises(TemplateError, match="MAILROOM_APP_URL, which is not set"):
        open_transport(chosen).check()


@pytest.mark.parametrize("config_set", ["letters", "none"])
def test_each_recipients_tags_name_the_attempt_where_ses_publishes_events(
    config_set: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transport = open_transport(settings(tmp_path, DEBUG="true", SES_CONFIG_SET=config_set))
    transport.send([TEN[0]._replace(reference=Reference(7, b"\0\1\2\3\4\5\6\7", 2)), TEN[1]])
    request = json.loads(capsys.readouterr().out)["request"]
    found = [to.get("ReplacementTags") for to in request["Destinations"]]
    if config_set == "none":
        assert ([None, None], None) == (found, request.get("DefaultTags"))
        return
    named = [
        {"Name": "mailroom-token", "Value": "7-0001020304050607"},
        {"Name": "mailroom-attempt", "Value": "2"},
    ]
    assert [named, None] == found
    assert [{"Name": "mailroom-action", "Value": "activation"}] == request["DefaultTags"]


@pytest.fixture
def ses(monkeypatch: pytest.MonkeyPatch) -> Iterator[InboxServer]:
    """A local SES with the plain templates alone."""
    inbox = Inbox()
    inbox.publish(one for one in with_constants().values() if not one.tag)
    with InboxServer(inbox=inbox) as server:
        for name, value in aws(server.url).items():
            monkeypatch.setenv(name, value)
        yield server


def with_constants() -> dict[str, Template]:
    return load(None, {"app_name": "Acme", "app_url": "https://acme.example"})


def test_where_ses_lacks_a_translation_the_plain_template_is_used(
    ses: InboxServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened = open_transport(settings(tmp_path))
    german = [one._replace(locale="de") for one in TEN]
    for _ in range(2):
        assert {Result.SENT} == {outcome.result for outcome in opened.send(german)}
    for mail in ses.inbox.mails.find():
        rendered = ses.inbox.render(mail)
        assert rendered
        assert ("activationv1", True) == (mail.template.name, "for 15 minutes" in rendered.text)
    assert ["ses.translation_missing"] == [vars(record).get("event") for record in caplog.records]

    ses.inbox.publish([with_constants()["activation.de"]])
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + LOOK_AGAIN_S)
    assert {Result.SENT} == {outcome.result for outcome in opened.send(german)}
    names = Counter(mail.template.name for mail in ses.inbox.mails.find())
    assert {"activationv1": 20, "activationv1-de": 10} == names
    opened.close()


def test_a_translation_that_ses_deleted_is_replaced_by_the_plain_template(
    ses: InboxServer, tmp_path: Path
) -> None:
    """As where the role may not read templates: only the call says that it is missing."""
    ses.inbox.publish([with_constants()["activation.de"]])
    opened = open_transport(settings(tmp_path))
    german = [one._replace(locale="de") for one in TEN]
    assert {Result.SENT} == {outcome.result for outcome in opened.send(german)}
    del ses.inbox.account.templates["activationv1-de"]
    assert {Result.SENT} == {outcome.result for outcome in opened.send(german)}
    names = Counter(mail.template.name for mail in ses.inbox.mails.find())
    assert {"activationv1-de": 10, "activationv1": 10} == names
    opened.close()


# The reader is another process, so that the pipe is full now and then.
PRINTING = """
import os, threading
from mailroom.settings.variables import read_settings
from mailroom.settings.sender import SenderSettings
from mailroom.transports.debug import DebugTransport

transport = DebugTransport(read_settings(SenderSettings, os.environ))
call = {"Destinations": [{"number": str(number)} for number in range(900)]}

def print_many():
    for _ in range(250):
        transport._print(call, {})

threads = [threading.Thread(target=print_many) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_long_lines_of_several_calls_do_not_mix(tmp_path: Path) -> None:
    printed = subprocess.run(
        [sys.executable, "-c", PRINTING],
        env=environment(tmp_path, DEBUG="true"),
        stdout=subprocess.PIPE,
        check=True,
    )
    assert [1000] == list(Counter(printed.stdout.splitlines()).values())
