"""The inbox's page in a real browser: it grows live, keeps hostile mail in its frame, and fits everywhere."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha512
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import pytest
from botocore.exceptions import ClientError
from playwright.sync_api import Page, Route, expect

from mailroom.inbox.calls import BulkCall, Destination
from mailroom.inbox.faults import Fault
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.server import InboxServer
from support.browser import (
    DESK,
    PHONE,
    BrowserPages,
    accessibility_faults,
    browser_fixture,  # noqa: F401
    overflow,
    pages_fixture,  # noqa: F401
    screenshots,
)
from support.inbox import DATA, mail
from support.senders import with_templates

pytestmark = pytest.mark.slow

HOSTILE: Final = "<script>alert(1)</script>"
# Sent as it is: an application's own template may forget to escape.
ESCAPES: Final = """\
<meta http-equiv="refresh" content="0;url=/escaped-by-refresh"><base target="_top">
<link rel="stylesheet" href="https://evil.example/style.css">
<style>@import "https://evil.example/import.css";
body { background: url(https://evil.example/back.png) }</style>
{{login}}<script>parent.document.title = "escaped"; top.location = "/escaped-by-script"</script>
<img src="https://evil.example/pixel.png" onerror="alert(2)"><svg onload="alert(3)"></svg>
<iframe src="https://evil.example/frame"></iframe><object data="https://evil.example/object"></object>
<form action="/mails/delete" method="post"><button id="form">Win</button></form>
<a id="top" target="_top" href="https://evil.example/top">top</a>
<a id="own" target="_self" href="https://evil.example/own">own</a>
<a id="plain" href="https://evil.example/own#plain">plain</a>
<a href="javascript:alert(4)">script</a><a href="data:text/html,<script>alert(5)</script>">data</a>
"""


@pytest.fixture
def server() -> Iterator[InboxServer]:
    with InboxServer(inbox=with_templates(Inbox())) as server:
        yield server


def rows(page: Page) -> list[str]:
    return page.locator(".row .to").all_inner_texts()


def live(page: Page) -> Page:
    expect(page.locator("#live")).to_have_text("Live")
    return page


def test_the_list_grows_without_a_reload_the_newest_first(server: InboxServer, pages: BrowserPages) -> None:
    mail(server, "first@example.com")
    page = live(pages.open(server.url))
    page.evaluate("window.never = 'reloaded'")
    mail(server, "second@example.com")
    mail(server, "third@example.com", template="passwordrecoveryv1")
    expect(page.locator(".row .to")).to_have_text(
        ["third@example.com", "second@example.com", "first@example.com"]
    )
    expect(page.locator(".row .badge")).to_have_text(["password recovery", "activation", "activation"])
    expect(page.locator("#announcement")).to_have_text("3 mails")
    assert "reloaded" == page.evaluate("window.never")
    # A press that begins before a mail comes ends as a click after.
    row = page.locator(".row", has_text="first@example.com")
    row.scroll_into_view_if_needed()
    row.evaluate("row => { row.pressed = true }")
    mail(server, "fourth@example.com")
    expect(page.locator(".row")).to_have_count(4)
    assert row.evaluate("row => row.pressed")
    assert all(url.startswith(server.url) for url in pages.requests)


def test_one_finds_a_mail_and_reads_it(server: InboxServer, pages: BrowserPages) -> None:
    mail(server, *(f"person{number}@example.com" for number in range(20)))
    page = live(pages.open(server.url))
    page.keyboard.press("/")
    page.keyboard.type("SON17")
    expect(page.locator(".row .to")).to_have_text(["person17@example.com"])
    page.locator(".brand").focus()
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("Activate your Acme account")
    expect(page.locator(".facts")).to_contain_text("Acme <noreply@acme.example>")
    expect(page.frame_locator("iframe").locator("h1")).to_have_text("Activate your account")
    link = page.locator(".links a")
    assert f"https://acme.example/activate?token={DATA['secret']}" == link.get_attribute("href")
    assert ("_blank", "noreferrer noopener") == (link.get_attribute("target"), link.get_attribute("rel"))
    page.get_by_role("link", name="Narrow").click()
    page.get_by_role("link", name="Dark").click()
    assert 360 == page.locator("iframe").evaluate("frame => frame.clientWidth")
    heading = page.frame_locator("iframe").locator("h1")
    assert "rgb(243, 244, 246)" == heading.evaluate("heading => getComputedStyle(heading).color")
    page.get_by_role("link", name="Text", exact=True).click()
    expect(page.locator("pre.body")).to_contain_text("Hello ada,")
    page.get_by_role("link", name="Headers").click()
    expect(page.get_by_role("row", name="To person17@example.com")).to_be_visible()
    page.get_by_role("link", name="Raw request").click()
    expect(page.locator("pre.body")).to_contain_text("Action=SendBulkTemplatedEmail")
    expect(page.get_by_role("row", name="DefaultTemplateData")).to_contain_text(DATA["secret"])
    assert "Signature" not in page.content()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download as .eml").click()
    assert b"To: person17@example.com\r\n" in Path(download.value.path()).read_bytes()
    page.get_by_role("button", name="Delete this mail").click()
    expect(page.locator(".none")).to_have_text("No mail to this recipient.")
    page.get_by_role("link", name="Show all").click()
    expect(page.locator(".row")).to_have_count(19)
    page.get_by_text("Delete all mails").first.click()
    page.get_by_role("button", name="Delete all mails").click()
    expect(page.locator(".none")).to_have_text("No mail yet. New mails appear here.")
    assert 0 == len(server.inbox.mails)


def test_a_click_in_a_mail_leaves_it_as_it_is(server: InboxServer, pages: BrowserPages) -> None:
    (sent,) = mail(server, "a@example.com")
    page = pages.open(f"{server.url}/mails/{sent}")
    frame = page.frame_locator("iframe")
    expect(page.locator(".frame-note")).to_have_text("To follow a link, use the list above.")
    with page.expect_event("console", lambda told: "popup" in told.text):
        frame.get_by_role("link").first.click(no_wait_after=True)
    expect(frame.locator("h1")).to_have_text("Activate your account")
    assert [] == [each.url for each in page.frames if not each.url.startswith(server.url)]
    pages.errors.clear()  # the browser's own: it opened no window


def test_by_keyboard_the_mail_is_one_step_away(server: InboxServer, pages: BrowserPages) -> None:
    mail(server, *(f"person{number}@example.com" for number in range(30)))
    (sent,) = mail(server, "zoe@example.com", template="passwordrecoveryv1", code="36829")
    page = live(pages.open(f"{server.url}/mails/{sent}"))
    page.keyboard.press("Tab")
    assert "Skip to the content" == page.evaluate("document.activeElement.textContent")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("!!document.activeElement.closest('article')")
    expect(page.locator(".code")).to_have_text("Code 36829")


def test_a_hostile_mail_does_nothing(server: InboxServer, pages: BrowserPages) -> None:
    server.inbox.account.put_template("hostile", ("{{login}}", "{{login}}", ESCAPES), new=True)
    (sent,) = mail(server, f'"{HOSTILE}"@example.com', template="hostile", login=HOSTILE)
    page = live(pages.open(server.url))
    reached: list[str] = []

    def reach(route: Route) -> None:
        reached.append(route.request.url)
        route.abort()

    page.context.route(re.compile("evil[.]example|escaped"), reach)
    page.on("dialog", lambda dialog: pages.errors.append(f"dialog: {dialog.message}"))
    page.locator(".row").click()
    expect(page.locator("h1")).to_have_text(HOSTILE)
    expect(page.locator(".facts")).to_contain_text(HOSTILE)
    assert HOSTILE in page.title()
    frame = page.frame_locator("iframe")
    here = page.url
    for link in ("#form", "#top", "#own", "#plain"):
        frame.locator(link).click(no_wait_after=True)
        assert here == page.url
    expect(frame.locator("#plain")).to_be_visible()
    expect(page.locator(".links .badge")).to_have_count(2)
    assert [f"https://evil.example/{path}" for path in ("top", "own", "own#plain")] == page.locator(
        ".links a"
    ).all_inner_texts()
    for view in ("text", "headers", "request"):
        page.goto(f"{server.url}/mails/{sent}?view={view}")
    page.goto(f"{server.url}/mails/{sent}/html")
    assert "" == page.title()
    assert page.url.endswith("/html")
    page.locator("#form").click(no_wait_after=True)
    mail(server, "after@example.com")
    page.goto(server.url)
    expect(page.locator(".row .to")).to_have_text(["after@example.com", f'"{HOSTILE}"@example.com'])
    assert [] == reached
    # What the browser says is that it blocked them, each by its name.
    blocked = [error for error in pages.errors if re.search("[Bb]lock|violates|sandboxed|Refused", error)]
    assert blocked == pages.errors
    assert blocked
    pages.errors.clear()


def fill(inbox: Inbox, count: int) -> None:
    """Mail many, as a call does, without the way there."""
    for start in range(0, count, 50):
        destinations = [
            Destination((f"person{number}@example.com",), "{}") for number in range(start, start + 50)
        ]
        inbox.send_bulk(
            BulkCall(
                "noreply@acme.example", "activationv1", "", json.dumps(DATA), destinations, b"x" * 10_000
            )
        )


def test_with_5000_mails_the_page_stays_small_and_the_oldest_go(pages: BrowserPages) -> None:
    with InboxServer(inbox=with_templates(Inbox(keep=5000))) as server:
        fill(server.inbox, 5000)
        page = live(pages.open(server.url))
        expect(page.locator(".list-head")).to_have_text("5000 mails")
        expect(page.locator(".row")).to_have_count(100)
        elements = page.evaluate("document.querySelectorAll('*').length")
        for number in range(20):
            mail(server, *(f"late{number}x{each}@example.com" for each in range(50)))
        expect(page.locator(".row .to").first).to_have_text("late19x49@example.com")
        assert (100, elements) == (
            page.locator(".row").count(),
            page.evaluate("document.querySelectorAll('*').length"),
        )
        # From a key to what it finds in 5,000: a blink, on a machine with other work.
        page.locator("#q").fill("person4999@")
        expect(page.locator(".row .to")).to_have_text(["person4999@example.com"], timeout=2000)
        page.goto(f"{server.url}/?q=person")
        page.get_by_role("link", name="Older").click()
        expect(page.locator(".row .to").first).to_have_text("person4899@example.com")
        page.goto(f"{server.url}/?q=person999@")
        expect(page.locator(".none")).to_have_text("No mail to this recipient.")
        assert 5000 == len(server.inbox.mails)
        page.close()


def test_faults_are_switches_on_the_page(server: InboxServer, pages: BrowserPages) -> None:
    page = live(pages.open(server.url))
    page.get_by_text("Faults").click()
    throttle = page.get_by_role("switch", name="Throttle")
    throttle.click()
    expect(throttle).to_be_checked()
    expect(page.locator("#switches summary")).to_contain_text("Throttle")
    with pytest.raises(ClientError, match="Throttling"):
        mail(server, "a@example.com")
    throttle.press("Space")
    expect(throttle).not_to_be_checked()
    mail(server, "a@example.com")
    page.get_by_role("switch", name="Pause the account").click()
    expect(page.locator("#switches summary")).to_contain_text("Pause the account")
    assert server.inbox.account.paused
    page.get_by_role("switch", name="Pause the account").click()
    expect(page.locator("#switches summary")).to_have_text("Faults")
    rule = Fault("status", status="Failed", recipient="b@example.com", calls=2)
    page.request.post(
        f"{server.url}/api/faults",
        data={"kind": "status", "status": "Failed", "recipient": rule.recipient, "calls": 2},
    )
    expect(page.locator(".rule")).to_contain_text("status Failed, b@example.com, 2 more calls")
    page.get_by_role("button", name="Remove rule 2").click()
    expect(page.locator(".rule")).to_have_count(0)
    assert [] == server.inbox.faults.listing()


def test_a_mail_bounces_from_its_page(server: InboxServer, pages: BrowserPages) -> None:
    (first,) = mail(server, "a@example.com")
    page = live(pages.open(f"{server.url}/mails/{first}"))
    expect(page.locator(".events .badge")).to_have_text(["Send", "Delivery"])
    page.get_by_label("What SES reports next").select_option("Complain")
    page.get_by_role("button", name="Publish").click()
    expect(page.locator(".events .badge")).to_have_text(["Send", "Delivery", "Complaint"])
    page.get_by_text("Faults").click()
    bounce = page.get_by_role("switch", name="Bounce")
    bounce.click()
    expect(bounce).to_be_checked()
    (second,) = mail(server, "b@example.com")
    page.goto(f"{server.url}/mails/{second}")
    expect(page.locator(".events .badge")).to_have_text(["Send", "Bounce"])
    assert ["send", "delivery", "complaint", "send", "bounce"] == [
        message.content.kind
        for message in server.inbox.queue.receive(10, 30)
        if not isinstance(message.content, str)
    ]


def test_everything_is_read_and_done_without_javascript(server: InboxServer, pages: BrowserPages) -> None:
    for start in range(0, 120, 40):
        mail(server, *(f"person{number}@example.com" for number in range(start, start + 40)))
    page = pages.open(server.url, java_script_enabled=False)
    expect(page.locator("#live")).to_be_hidden()
    page.get_by_role("link", name="Older").click()
    assert 20 == len(rows(page))
    page.get_by_role("link", name="Newest").first.click()
    page.get_by_label("Search by recipient").fill("person7@")
    page.get_by_label("Search by recipient").press("Enter")
    page.locator(".row").click()
    page.get_by_role("link", name="Text", exact=True).click()
    expect(page.locator("pre.body")).to_contain_text("Hello ada,")
    here = page.url
    page.get_by_text("Faults").click()
    page.get_by_role("switch", name="Hang").click()
    assert here == page.url
    expect(page.locator("#switches summary")).to_contain_text("Hang")
    assert ["hang"] == [rule["kind"] for rule in server.inbox.faults.listing()]
    page.get_by_role("button", name="Delete this mail").click()
    assert [] == rows(page)
    assert 119 == len(server.inbox.mails)


def test_the_page_says_when_the_inbox_is_gone(pages: BrowserPages) -> None:
    with InboxServer() as server:
        page = live(pages.open(server.url))
    expect(page.locator("#live")).to_have_text("Not connected")
    pages.errors.clear()  # the browser's own, of a connection that was lost


PEOPLE: Final = ("ada", "grace", "linus", "margaret", "barbara", "edsger", "katherine", "alan", "hedy", "tim")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["360", "1440"])
def test_pages_fit_and_are_accessible(
    server: InboxServer, pages: BrowserPages, tmp_path: Path, size: Any, scheme: Any
) -> None:
    server.inbox.account.put_template("plain", ("x" * 300, "https://a.example/" + "y" * 300, ""), new=True)
    mail(server, "w" * 60 + "@example.com", template="plain")
    mail(server, "someone.with.a.long.name@department.example.com", template="plain")
    for name in PEOPLE:
        mail(server, f"{name}@example.com", login=name, login_html=name)
    secret = b64encode(sha512(b"of no use").digest(), b"-_").decode().rstrip("=")
    (last,) = mail(
        server, "zoe@example.com", template="passwordrecoveryv1", login_html="Zoe", login="Zoe", secret=secret
    )
    server.inbox.faults.add(Fault("cut", recipient="nobody@example.com"))
    page = pages.open("about:blank", viewport=size, color_scheme=scheme, bypass_csp=True)
    for path in ["/?q=nobody", *(f"/mails/{last}?view={view}" for view in ("text", "headers", "request"))]:
        page.goto(server.url + path)
        assert (path, 0, []) == (path, overflow(page), overlaps(page))
    for path in ["/mails/nothing", "/", f"/mails/{last}?scheme={scheme}"]:
        page.goto(server.url + path)
        assert (path, 0, [], []) == (path, overflow(page), overlaps(page), accessibility_faults(page))
    page.frame_locator("iframe").locator("h1").wait_for()
    server.inbox.faults.clear()
    live(page).reload()
    page.frame_locator("iframe").locator("h1").wait_for()
    page.screenshot(path=screenshots(tmp_path) / f"inbox-{size['width']}-{scheme}.png")
    page.locator("#switches summary").click()
    assert (0, []) == (overflow(page), accessibility_faults(page))
    pages.errors[:] = [error for error in pages.errors if "404" not in error]


def overlaps(page: Page) -> list[tuple[str, str]]:
    """Pairs of things with text of their own, neither in the other, that lie on each other."""
    boxes = page.evaluate(
        """() => [...document.querySelectorAll('a,button,summary,input,h1,p,dd,dt,pre,time,.row > *')]
            .filter(each => each.offsetParent && !each.closest('.visually-hidden, .skip'))
            .filter(each => each.checkVisibility({contentVisibilityAuto: true}))
            .map((each, at) => {
                each.dataset.at = at;
                const box = each.getBoundingClientRect(), pane = each.closest('.list, .pane, .panel');
                const within = pane ? pane.getBoundingClientRect() : {top: 0, bottom: 1e6};
                return {
                    name: each.className + each.textContent.trim().slice(0, 30),
                    left: box.left, right: box.right,
                    top: Math.max(box.top, within.top), bottom: Math.min(box.bottom, within.bottom),
                    parents: [...function* () {
                        for (let up = each.parentElement; up; up = up.parentElement)
                            if (up.dataset.at) yield Number(up.dataset.at);
                    }()],
                };
            })"""
    )
    return [
        (one["name"], other["name"])
        for (at, one), (there, other) in combinations(enumerate(boxes), 2)
        if at not in other["parents"]
        and there not in one["parents"]
        and min(one["right"], other["right"]) - max(one["left"], other["left"]) > 1
        and min(one["bottom"], other["bottom"]) - max(one["top"], other["top"]) > 1
    ]
