"""Waiting for mail over the API, what its JSON says of links and actions, and downloads."""

from __future__ import annotations

import email
import http.client
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email import policy
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailroom.inbox.calls import BulkCall, Destination
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.links import Link, find_links
from mailroom.inbox.mails import KeptMail, Mailbox
from mailroom.inbox.messages import read_headers, read_message, write_message
from mailroom.inbox.records import RawRequests
from mailroom.inbox.server import InboxServer
from mailroom.templates.mails import RenderedMail
from support.inbox import DATA, ask, mail
from support.senders import with_templates

DOCUMENT = (Path(__file__).parents[2] / "docs" / "inbox.md").read_text()
NOW = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)


@pytest.fixture
def server(caplog: pytest.LogCaptureFixture) -> Iterator[InboxServer]:
    with InboxServer(inbox=with_templates(Inbox())) as server:
        yield server
    assert [] == [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR]


def wait(server: InboxServer, **wanted: object) -> list[str]:
    """Whom the mails are to that were waited for."""
    answer = ask(server.url, f"/api/mails/wait?{urlencode(wanted)}")
    assert 200 == answer.status, answer.text
    return [mail["recipient"] for mail in answer.json["mails"]]


# Waiting


def test_a_mail_that_is_there_is_answered_at_once(server: InboxServer) -> None:
    mail(server, "a@example.com", "b@example.com")
    mail(server, "c@example.com", template="passwordrecoveryv1")
    assert ["a@example.com", "b@example.com", "c@example.com"] == wait(server)
    assert ["b@example.com"] == wait(server, recipient="b@example.com")
    assert ["c@example.com"] == wait(server, action="password_recovery")
    assert ["a@example.com", "b@example.com"] == wait(server, template="activationv1")


def test_a_mail_that_comes_later_is_answered_as_it_comes(server: InboxServer) -> None:
    mail(server, "a@example.com")
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(wait, server, recipient="b@example.com", action="activation", timeout=60)
        for _ in range(3):
            mail(server, "a@example.com")
            mail(server, "b@example.com", template="passwordrecoveryv1")
        assert not waiting.done()
        mail(server, "b@example.com")
        assert ["b@example.com"] == waiting.result(30)


def test_since_leaves_out_what_came_before(server: InboxServer) -> None:
    first, second = mail(server, "a@example.com", "b@example.com")
    assert ["b@example.com"] == wait(server, since=first)
    before = datetime.now(UTC)
    mail(server, "c@example.com")
    assert ["c@example.com"] == wait(server, since=before.isoformat())
    assert ["c@example.com"] == wait(server, since=before.replace(tzinfo=None).isoformat())
    assert ["c@example.com"] == wait(server, since=before.isoformat().replace("+00:00", "Z"))
    later = (before + timedelta(hours=1)).isoformat()
    assert [] == wait(server, since=later, timeout=1)
    ask(server.url, "/api/mails", "DELETE")
    mail(server, "d@example.com")
    assert ["d@example.com"] == wait(server, since=second)


def test_at_the_end_of_its_time_a_wait_is_answered_with_nothing(server: InboxServer) -> None:
    assert [] == wait(server, recipient="nobody@example.com", timeout=0)
    start = time.monotonic()
    assert [] == wait(server, recipient="nobody@example.com", timeout=1)
    assert 0.9 < time.monotonic() - start


@pytest.mark.parametrize(
    "query", ["timeout=-1", "timeout=301", "timeout=x", "action=nothing", "since=nothing", "since=1"]
)
def test_a_wait_that_makes_no_sense_is_refused(server: InboxServer, query: str) -> None:
    answer = ask(server.url, f"/api/mails/wait?{query}")
    assert (400, query.partition("=")[0]) == (answer.status, answer.json["error"].partition(":")[0])


def test_the_end_of_the_server_ends_waits_and_streams_at_once() -> None:
    with InboxServer() as server:
        place = urlsplit(server.url).netloc
        waiting, streaming = (http.client.HTTPConnection(place, timeout=30) for _ in range(2))
        waiting.request("GET", "/api/mails/wait?timeout=300")
        streaming.request("GET", "/events")
        stream = streaming.getresponse()
        assert b"retry: 1000\n" == stream.readline()
        start = time.monotonic()
    assert 3 > time.monotonic() - start
    with pytest.raises(ConnectionError):
        waiting.getresponse()
    waiting.close()
    stream.close()
    streaming.close()


def test_one_mail_is_deleted(server: InboxServer) -> None:
    first, _ = mail(server, "a@example.com", "b@example.com")
    assert 200 == ask(server.url, f"/api/mails/{first}", "DELETE").status
    assert 404 == ask(server.url, f"/api/mails/{first}", "DELETE").status
    assert ["b@example.com"] == wait(server)


@pytest.mark.slow
def test_the_example_in_the_documentation_is_a_test_that_passes(server: InboxServer, tmp_path: Path) -> None:
    start = DOCUMENT.index("```python\n") + len("```python\n")
    (tmp_path / "test_signing_up.py").write_text(DOCUMENT[start : DOCUMENT.index("```", start)])
    (tmp_path / "conftest.py").write_text(APPLICATION)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"INBOX": server.url, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (0, True) == (result.returncode, "1 passed" in result.stdout), result.stdout


# The application that the example tests: a thread mails each person that signs up, some time later.
APPLICATION = """
import os, threading
import pytest
from mailroom.inbox.server import InboxServer
from support.inbox import mail

class App:
    def __init__(self, server):
        self.server = server
    def sign_up(self, email):
        threading.Timer(0.2, mail, [self.server, email]).start()
    def get(self, url):
        return url

@pytest.fixture
def app():
    server = InboxServer()
    server.url = os.environ["INBOX"]
    return App(server)
"""


# Links and actions


def test_a_mails_json_has_its_action_and_links(server: InboxServer) -> None:
    (sent,) = mail(server, "a@example.com", template="passwordrecoveryv1")
    found = ask(server.url, f"/api/mails/{sent}").json
    url = f"https://acme.example/recover?token={DATA['secret']}"
    assert "password_recovery" == found["action"]
    assert [{"text": "Set a new password", "url": url, "token": DATA["secret"]}] == found["links"]
    assert ["To", "a@example.com"] in found["headers"]


def test_links_come_from_both_parts_each_once() -> None:
    html = """
    <a class="x" href="https://a.example/?token=T&amp;x=1">Go <b>there</b></a> <A HREF='https://a.example/?token=T&x=1'>again</A>
    <a href=/relative>r</a> <a href="javascript:alert(1)">j</a> <a href="#top">no</a> <a name="no">no</a>
    <a href="https://b.example">https://b.example</a>"""
    text = "See https://b.example, (https://c.example/x?y=z) or ftp://d.example"
    assert [
        Link("Go there", "https://a.example/?token=T&x=1", "T"),
        Link("r", "/relative", ""),
        Link("j", "javascript:alert(1)", ""),
        Link("", "https://b.example", ""),
        Link("", "https://c.example/x?y=z", ""),
    ] == find_links(RenderedMail("", text, html))


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "JaVaScRiPt:x",
        "data:text/html,x",
        "//a",
        " https:",
        "https:///x",
        "http:a",
        "/a",
        "",
    ],
)
def test_only_web_addresses_are_clickable(url: str) -> None:
    assert not Link("", url, "").is_web
    assert Link("", "HTTPS://a.example", "").is_web


@pytest.mark.parametrize(
    "piece", ["<", "<a ", "<a href=x>", '<a href="', "<a x='", "<!--", "</a", "https://", "<a href = ", "&#"]
)
def test_links_of_a_large_hostile_mail_are_found_in_time(piece: str) -> None:
    start = time.process_time()
    find_links(RenderedMail("", piece * 100_000, piece * 100_000))
    assert 5 > time.process_time() - start


@settings(deadline=None)
@given(st.text(), st.text())
def test_any_mail_has_some_links_or_none(text: str, html: str) -> None:
    for link in find_links(RenderedMail("", text, f"<a href={html}>{text}</a>")):
        assert link.url


# Messages


def test_a_download_is_the_mail(server: InboxServer) -> None:
    (sent,) = mail(server, "a@example.com", login="Zoë")
    answer = ask(server.url, f"/mails/{sent}/eml")
    assert ("message/rfc822", f'attachment; filename="{sent}.eml"') == (
        answer.headers["content-type"],
        answer.headers["content-disposition"],
    )
    message = email.message_from_bytes(answer.body, policy=policy.default)
    assert ("Acme <noreply@acme.example>", "a@example.com") == (message["From"], message["To"])
    (found,) = server.inbox.mails.find()
    assert found.render() == read_message(answer.body)


def test_a_mail_that_was_dropped_has_no_message(server: InboxServer) -> None:
    server.inbox.account.put_template("lacks", ("{{nothing}}", "", ""), new=True)
    (sent,) = mail(server, "a@example.com", template="lacks")
    assert (404, 404) == tuple(ask(server.url, f"/mails/{sent}/{part}").status for part in ("eml", "html"))
    page = ask(server.url, f"/mails/{sent}?view=headers").text
    assert "rendering failure: the data has no &#39;nothing&#39;" in page


@settings(deadline=None)
@given(st.text(), st.text(), st.text(), st.text(), st.text())
def test_no_mail_writes_headers_of_its_own(source: str, to: str, subject: str, text: str, html: str) -> None:
    content = write_message(
        RenderedMail(f"{subject}\r\nBcc: x\n\nX: y", text, html), "i", NOW, source, f"{to}\nCc: z"
    )
    names = [name for name, _ in read_headers(content)]
    assert ["From", "To", "Subject", "Date", "Message-ID"] == names[:5]
    assert {"Content-Type", "Content-Transfer-Encoding", "MIME-Version"} >= set(names[5:])
    head = content.partition(b"\r\n\r\n")[0]
    assert head.isascii()
    assert max(map(len, head.split(b"\r\n"))) < 998


@settings(deadline=None)
@given(
    st.binary()
    | st.text().map(
        lambda text: f"Content-Type: {text}\r\nSubject: {text}\r\n\r\n{text}".encode("utf-8", "replace")
    )
)
def test_any_bytes_are_read_as_a_message(content: bytes) -> None:
    read_message(content)
    read_headers(content)


def test_a_message_of_many_lines_is_read_as_mime() -> None:
    text = "x\n\n--x\n\n" * 400
    content = email.message.EmailMessage()
    content.set_content(text)
    content.add_alternative(f"<pre>{text}</pre>", subtype="html")
    rendered = read_message(content.as_bytes())
    assert (text, f"<pre>{text}</pre>\n") == rendered[1:]


def test_a_mail_that_is_open_is_rendered_once(server: InboxServer, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[str] = []
    real = KeptMail.render

    def render(mail: KeptMail) -> RenderedMail | None:
        rendered.append(mail.recipient)
        return real(mail)

    monkeypatch.setattr(KeptMail, "render", render)
    first, second = mail(server, "a@example.com", "b@example.com")
    ask(server.url, "/", accept="text/html")  # which renders each for the list
    rendered.clear()
    for path in (second, f"{second}/html", f"{second}?view=text", first):
        ask(server.url, f"/mails/{path}", accept="text/html")
    assert ["b@example.com", "a@example.com"] == rendered


# What is kept


def test_mails_are_kept_up_to_so_many_bytes() -> None:
    mails = Mailbox(keep=10, max_bytes=1_000_000)
    inbox = with_templates(Inbox())
    template = inbox.account.template("activationv1")

    def add(*sizes: int) -> KeptMail:
        source, recipient, default, own, message = ("x" * size for size in sizes)
        texts = (default, own)
        return mails.add(NOW, source, recipient, template, DATA, texts=texts, message=message.encode())

    added = [add(*(80_000,) * 5) for _ in range(4)]
    assert [mail.id for mail in added[2:]] == [mail.id for mail in mails.find()]
    mails.remove(added[2].id)
    add(0, 0, 0, 0, 590_000)
    assert 2 == len(mails)
    add(0, 0, 1_250_000, 0, 0)
    assert 1 == len(mails)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("calls", "default", "own"),
    [
        (4, json.dumps({f"k{number}": 0 for number in range(15_000)}), "{}"),
        (1, "{}", '{"a": [' + ",".join(["{}"] * 80_000) + "]}"),
    ],
    ids=["default", "own"],
)
def test_mails_take_no_more_memory_than_their_text(calls: int, default: str, own: str) -> None:
    inbox = with_templates(Inbox())
    process = psutil.Process()
    before = process.memory_info().rss
    for _ in range(calls):
        destinations = [Destination((f"person{number}@example.com",), own) for number in range(50)]
        inbox.send_bulk(BulkCall("noreply@acme.example", "activationv1", "", default, destinations))
    grown = process.memory_info().rss - before
    assert 50 * calls == len(inbox.mails)
    assert "k1" in default or {"a"} == inbox.mails.find()[-1].data.keys()
    assert grown < 80_000_000, f"{grown:,} bytes"


def test_the_addresses_that_came_first_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailroom.inbox.records.MAX_ADDRESSES", 3000)
    inbox = with_templates(Inbox())
    for start in [*range(0, 3500, 50), 3400]:
        addresses = (f"person{number}@example.com" for number in range(start, start + 50))
        destinations = [Destination((address,), "{}") for address in addresses]
        inbox.send_bulk(BulkCall("noreply@acme.example", "activationv1", "", json.dumps(DATA), destinations))
    counts = inbox.counts
    assert (2500, 50) == (len(counts.by_recipient), counts.duplicates)
    assert ("person0@example.com" in counts.by_recipient, 2) == (
        False,
        counts.by_recipient["person3400@example.com"],
    )
    assert "person" not in repr(counts)


def test_requests_are_kept_up_to_so_many_bytes_and_their_mails_longer(server: InboxServer) -> None:
    requests = RawRequests(max_bytes=1000)
    numbers = [requests.add(b"x" * size) for size in (400, 400, 400, 0)]
    assert [None, 400, 400, None] == [found and len(found) for found in map(requests.get, numbers)]
    (sent,) = mail(server, "a@example.com")
    assert "Action=SendBulk" in ask(server.url, f"/mails/{sent}/request").text
    server.inbox.requests.clear()
    assert 404 == ask(server.url, f"/mails/{sent}/request").status
    assert "no longer kept" in ask(server.url, f"/mails/{sent}?view=request").text


def test_a_request_is_kept_without_what_it_was_signed_with(server: InboxServer) -> None:
    (sent,) = mail(server, "a@example.com")
    head = ask(server.url, f"/mails/{sent}/request").text.partition("\r\n\r\n")[0]
    assert head.startswith("POST / HTTP/1.1\r\nHost: 127.0.0.1")
    assert "uthorization" not in head
