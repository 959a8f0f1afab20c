"""What stands before every page: which hosts are answered, who may change something, and the headers."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from mailroom.inbox.inbox import Inbox
from mailroom.inbox.server import InboxServer
from support.inbox import ask, mail
from support.senders import with_templates

PAGE = {"accept": "text/html"}


@pytest.fixture
def server(caplog: pytest.LogCaptureFixture) -> Iterator[InboxServer]:
    with InboxServer(inbox=with_templates(Inbox())) as server:
        yield server
    assert [] == [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR]


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:1", "[::1]:80", "app.localhost:8025", "LOCALHOST.", ""]
)
def test_on_loopback_names_of_loopback_are_answered(server: InboxServer, host: str) -> None:
    assert 200 == ask(server.url, "/", host=host, **PAGE).status


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8025", "127.0.0.1.evil.example", "10.0.0.1", "[", "\xff"]
)
def test_on_loopback_no_other_name_is_answered(server: InboxServer, host: str) -> None:
    for method, path in (("GET", "/"), ("GET", "/api/mails"), ("POST", "/")):
        answer = ask(server.url, path, method, host=host)
        assert (421, True) == (answer.status, b"localhost" in answer.body)


def test_elsewhere_any_name_is_answered() -> None:
    with InboxServer("0.0.0.0") as server:  # noqa: S104 - what the test is about
        for host in ("mail.example", "10.0.0.1:8025"):
            assert 200 == ask(server.url, "/", host=host).status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"sec_fetch_site": "same-origin", "origin": "null"}, 200),
        ({"sec_fetch_site": "none"}, 200),
        ({"sec_fetch_site": "same-site"}, 403),
        ({"sec_fetch_site": "cross-site", "origin": "http://127.0.0.1"}, 403),
        ({"origin": "{url}"}, 200),
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_another_sites_page_changes_nothing(
    server: InboxServer, headers: dict[str, str], status: int
) -> None:
    mail(server, "a@example.com")
    headers = {name: value.format(url=server.url) for name, value in headers.items()}
    form = {"content_type": "application/x-www-form-urlencoded"}
    requests = [
        ("PATCH", "/api/settings", b"{}", {}),
        ("POST", "/switches/pause", b"on=0", form),
        ("POST", "/", b"Action=GetSendQuota", form),
        ("DELETE", "/api/mails", None, {}),
    ]
    for method, path, body, more in requests:
        found = ask(server.url, path, method, body, **headers, **more).status
        assert (path, status) == (path, 200 if found == 303 else found)
    assert (0 if status == 200 else 1) == len(server.inbox.mails)


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_sites_page_times_nothing(server: InboxServer, site: str) -> None:
    (sent,) = mail(server, "a@example.com")
    wait = "/api/mails/wait?recipient=a@example.com&timeout=0"
    for path in (
        wait,
        "/api/counts",
        "/events",
        "/",
        "/list?q=a",
        f"/mails/{sent}/html",
        "/static/style.css",
    ):
        for dest in ("empty", "image", "script", "iframe", ""):
            assert 403 == ask(server.url, path, sec_fetch_site=site, sec_fetch_dest=dest).status
    for path in (wait, "/api/counts", "/events"):
        assert 403 == ask(server.url, path, sec_fetch_site=site, sec_fetch_dest="document").status
    for path in ("/", f"/mails/{sent}"):  # a link leads there
        assert 200 == ask(server.url, path, sec_fetch_site=site, sec_fetch_dest="document").status
    for headers in ({}, {"sec_fetch_site": "same-origin"}, {"sec_fetch_site": "none"}):
        assert 200 == ask(server.url, wait, sec_fetch_dest="empty", **headers).status


def test_every_answer_has_strict_headers(server: InboxServer) -> None:
    (sent,) = mail(server, "a@example.com")
    paths = [
        "/",
        f"/mails/{sent}",
        "/list",
        "/static/style.css",
        "/api/mails",
        "/nothing",
        f"/mails/{sent}/eml",
    ]
    for path in paths:
        headers = ask(server.url, path, **PAGE).headers
        assert ("nosniff", "no-referrer", "same-origin") == (
            headers["x-content-type-options"],
            headers["referrer-policy"],
            headers["cross-origin-resource-policy"],
        )
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy or path.endswith("/eml")
        assert ("same-origin" if "sandbox" not in policy else None) == headers.get(
            "cross-origin-opener-policy"
        )
    assert "no-store" == ask(server.url, "/").headers["cache-control"]


def test_a_mails_html_is_sandboxed_by_itself(server: InboxServer) -> None:
    (sent,) = mail(server, "a@example.com")
    answer = ask(server.url, f"/mails/{sent}/html")
    assert "text/html; charset=utf-8" == answer.headers["content-type"]
    assert (
        "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'"
        == answer.headers["content-security-policy"]
    )
    assert "cross-origin-opener-policy" not in answer.headers  # a browser shows no page with both


@pytest.mark.parametrize(
    ("html", "shown"),
    [
        ("<p>x", "{}<p>x"),
        ("<!DOCTYPE html>\n<p>x", "<!DOCTYPE html>{}\n<p>x"),
        (
            '<!DOCTYPE html><html><head lang="x"><title>x</title>',
            '<!DOCTYPE html><html><head lang="x">{}<title>x</title>',
        ),
        ("<header>target=_top</header>", "{}<header>target=_top</header>"),
        ("<a id=x TARGET='_self' href=y>", "{}<a id=x  href=y>"),
    ],
)
def test_links_lead_nowhere_in_the_frame(server: InboxServer, html: str, shown: str) -> None:
    server.inbox.account.put_template("links", ("x", "x", html), new=True)
    (sent,) = mail(server, "a@example.com", template="links")
    assert shown.format('<base target="_blank">') == ask(server.url, f"/mails/{sent}/html").text


def test_assets_are_cached_by_their_content(server: InboxServer) -> None:
    for name, kind in (
        ("style.css", "text/css"),
        ("inbox.js", "text/javascript"),
        ("icon.svg", "image/svg+xml"),
    ):
        answer = ask(server.url, f"/static/{name}")
        assert (200, kind) == (answer.status, answer.headers["content-type"].partition(";")[0])
        tag = answer.headers["etag"]
        assert tag.startswith('"')
        assert 304 == ask(server.url, f"/static/{name}", if_none_match=f'"x", {tag}').status
        assert 200 == ask(server.url, f"/static/{name}", if_none_match='"x"').status
    for path in ("nothing.css", "..%2fpages.py", "%2e%2e/guard.py", ".css"):
        assert 404 == ask(server.url, f"/static/{path}").status


def test_the_pages_need_nothing_from_elsewhere(server: InboxServer) -> None:
    for path in ("/", "/static/style.css", "/static/inbox.css", "/static/inbox.js"):
        text = ask(server.url, path, **PAGE).text.replace(server.url, "")
        assert "http://" not in text
        assert "https://" not in text
        assert "style=" not in text


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/mails/nothing", b"", 404),
        ("GET", "/mails/nothing/html", b"", 404),
        ("GET", "/mails/nothing/eml", b"", 404),
        ("GET", "/mails/nothing/request", b"", 404),
        ("GET", "/?before=nothing", b"", 404),
        ("GET", "/list?before=%ff%00", b"", 404),
        ("GET", "/?q=%ff%00%ed%a0%80", b"", 200),
        ("GET", "/switches?back=//evil.example/", b"", 200),
        ("POST", "/switches/nothing", b"on=1", 400),
        ("POST", "/switches/hang", b"on=2", 400),
        ("POST", "/switches/hang", b"\xff", 400),
        ("POST", "/switches/hang", b"&" * 10_001, 413),
        ("POST", "/faults/99999999999999999999/delete", b"", 303),
        ("POST", "/faults/x/delete", b"", 404),
        ("POST", "/mails/nothing/delete", b"", 303),
        ("PUT", "/mails/nothing", b"", 405),
    ],
)
def test_hostile_requests_get_answers(
    server: InboxServer, method: str, path: str, body: bytes, status: int
) -> None:
    answer = ask(server.url, path, method, body, **PAGE)
    assert status == answer.status
    assert "evil.example" not in answer.text


@pytest.mark.parametrize(
    "back", ["//evil.example", "https://evil.example", "/\\evil.example", "/%0d%0aa:b", "/x"]
)
def test_no_form_leads_elsewhere(server: InboxServer, back: str) -> None:
    answer = ask(server.url, "/mails/delete", "POST", f"back={back}".encode())
    assert (303, "/") == (answer.status, answer.headers["location"])
