"""The queue's page in a real browser: live, calm, harmless, and the same at every size."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from playwright.sync_api import Page, expect

from mailroom import __version__
from mailroom.console.server import ConsoleServer
from mailroom.demo.postgres import PostgresServer
from mailroom.inbox.server import InboxServer
from mailroom.settings.collector import QueueSettings
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
from support.events import event, tell
from support.queue_sql import Db, claim, reserve, sign_up, sign_up_many
from support.runs import UNSETTLED, Start, ledger, wait_until

pytestmark = pytest.mark.slow

HOSTILE: Final = "<script>alert(1)</script>"
PEOPLE: Final = ("ada", "grace", "linus", "margaret", "barbara", "edsger", "katherine", "alan", "hedy", "tim")
INSERT: Final = (
    "INSERT INTO mailroom.deliveries"
    " (token, attempt, outcome, result, provider, message_id, detail, worker, at) VALUES"
    " (%s, %s, %s, %s, 'ses', %s, %s, 'mail-1:4711:9f2c', clock_timestamp() - %s * interval '1 second')"
)
THROTTLED: Final = "Maximum sending rate exceeded."
REFUSED: Final = "Address is on the suppression list"


def seed(db: Db) -> None:
    """Ten minutes of a queue: a steady stream, a throttle in the middle, and now and then a refusal."""
    chance = random.Random(7)
    tokens = [sign_up(db, name) for name in PEOPLE]
    rows: list[tuple[object, ...]] = []
    for back in range(600, 0, -1):
        throttled = 330 > back > 240
        for _ in range(chance.randrange(0, 2 if throttled else 5)):
            fate, token = chance.random(), chance.choice(tokens)
            message = f"0100019{chance.getrandbits(72):018x}-000000"
            if throttled and fate < 0.8:
                rows.append((token, 1, "retried", "throttled", "", THROTTLED, back))
            elif fate > 0.992:
                rows.append((token, 1, "unknown", "unknown", "", "the answer did not come in time", back))
            else:
                rows.append((token, 2 if 240 > back > 200 else 1, "sent", "sent", message, "", back))
    refused = sign_up(db, "refused")
    rows += [(refused, 1, "rejected", "rejected", "", REFUSED, back) for back in (410, 150, 9)]
    rows.sort(key=lambda row: -int(str(row[-1])))
    with db.cursor() as cursor:
        cursor.executemany(INSERT, rows)
    claim(db)
    db.execute("DELETE FROM mailroom.leases")
    sign_up(db, "max")
    sign_up(db, "zoe")
    claim(db, 1, worker="mail-1:4711:9f2c")
    for worker, trouble in (("mail-1:4711:9f2c", ""), ("mail-2:815:01ab", "")):
        db.execute("SELECT mailroom.heartbeat(%s, %s, %s)", [worker, __version__, trouble])
    tell(
        db,
        *(event("delivered", message_id=f"m-{number}") for number in range(240)),
        event("bounced", message_id="b-1", type="permanent", recipient="gone@example.com"),
        event("delayed", message_id="d-1", recipient="full@example.com"),
    )
    reserve(db, 1, 14)


def settings(url: str) -> QueueSettings:
    return QueueSettings(url, "token_insert")


@pytest.fixture
def console(database: str) -> Iterator[ConsoleServer]:
    with ConsoleServer(settings(database)) as server:
        yield server


def served(request: pytest.FixtureRequest) -> ConsoleServer:
    """The fixture, once what it is to show is there: the past is counted when it starts."""
    server: ConsoleServer = request.getfixturevalue("console")
    return server


def live(page: Page) -> Page:
    expect(page.locator("#live")).to_have_text("Live")
    return page


def tile(page: Page, name: str) -> Any:
    return expect(page.locator(".tile", has=page.get_by_text(name, exact=True)).locator(".value"))


def deliver(db: Db, token: int, outcome: str, detail: str = "") -> None:
    db.execute(INSERT, [token, 1, outcome, outcome, "0100-abc" if outcome == "sent" else "", detail, 0])


def test_the_picture_changes_without_a_reload(db: Db, console: ConsoleServer, pages: BrowserPages) -> None:
    page = live(pages.open(console.url))
    page.evaluate("window.never = 'reloaded'")
    expect(page.locator("h1")).to_have_text("All sent")
    token = sign_up(db, "zoe")
    tile(page, "Waiting").to_have_text("1")
    expect(page.locator("h1")).to_have_text("No worker")
    expect(page.locator("#announcement")).to_have_text("No worker")
    claim(db)
    deliver(db, token, "retried", THROTTLED)
    tile(page, "In flight").to_have_text("1")
    expect(page.locator(".ledger tbody tr")).to_have_count(1)
    expect(page.locator("svg path.retried")).to_have_count(1)
    page.locator(".ledger tbody tr").evaluate("row => { row.mine = true }")
    deliver(db, token, "sent")
    expect(page.locator(".ledger .outcome")).to_have_text(["sent", "retried"])
    assert page.locator(".ledger tbody tr").nth(1).evaluate("row => row.mine")
    page.get_by_text("In numbers").click()
    expect(page.get_by_role("row", name="this minute")).to_have_text(re.compile("this minute *110 *0"))
    assert "In the last 10 minutes 1 sent, 1 retried, 0 rejected" in str(
        page.locator("svg").get_attribute("aria-label")
    )
    assert "reloaded" == page.evaluate("window.never")
    assert all(url.startswith(console.url) for url in pages.requests)


def test_a_throttle_switched_on_in_the_inbox_is_seen_and_so_is_its_end(
    db: Db, ses: InboxServer, start: Start, console: ConsoleServer, pages: BrowserPages
) -> None:
    start(BATCH_TIMEOUT=50)
    page, inbox = live(pages.open(console.url)), pages.open(ses.url)
    expect(page.locator(".workers li")).to_have_count(1)
    sign_up_many(db, 20, "before")
    expect(page.locator("h1")).to_have_text("All sent")
    tile(page, "Sent").to_have_text(re.compile("^20 "))
    inbox.get_by_text("Faults").click()
    throttle = inbox.get_by_role("switch", name="Throttle")
    throttle.click()
    expect(throttle).to_be_checked()
    sign_up_many(db, 30, "during")
    expect(page.locator("h1")).to_have_text(re.compile("Retrying|Workers in trouble"))
    expect(page.locator(".workers .trouble")).to_contain_text("Throttling")
    expect(page.locator(".legend li", has_text="Retried")).not_to_have_text("Retried 0")
    page.get_by_role("link", name="Retried").click()
    expect(page.locator(".ledger .reason").first).to_contain_text("SES: ")
    throttle.click()
    expect(throttle).not_to_be_checked()
    expect(live(page).locator("h1")).to_have_text("All sent", timeout=60_000)
    expect(page.locator(".workers .trouble")).to_have_count(0)
    tile(page, "Retrying").to_have_text("0")
    page.get_by_role("link", name="Sent", exact=True).click()
    expect(page.locator(".ledger tbody tr")).to_have_count(50)
    wait_until(db, UNSETTLED, 0)
    arrived = {mail.recipient for mail in ses.inbox.mails.find()}
    assert arrived == {
        f"{name}{number}@example.com"
        for name, count in (("before", 20), ("during", 30))
        for number in range(1, count + 1)
    }
    assert {"sent", "retried"} == {row[0] for row in ledger(db, "outcome")}


def test_one_pauses_for_a_reason_and_goes_on(db: Db, console: ConsoleServer, pages: BrowserPages) -> None:
    page = live(pages.open(console.url))
    page.get_by_text("Pause", exact=False).first.click()
    page.get_by_label("Reason").fill(f"wrong {HOSTILE}")
    sign_up(db, "zoe")
    tile(page, "Waiting").to_have_text("1")  # the page went on, and the reason stays as it is being written
    page.get_by_label("Reason").press("Enter")
    expect(page.locator("h1")).to_have_text("Paused")
    expect(page.locator(".notice.warn")).to_contain_text(f"wrong {HOSTILE}")
    other = live(pages.open(console.url))
    page.get_by_role("button", name="Resume").click()
    expect(other.locator("h1")).to_have_text("No worker")
    expect(other.get_by_text("Pause", exact=False).first).to_be_visible()
    other.locator("#brake summary").click()
    other.keyboard.press("Escape")
    expect(other.get_by_label("Reason")).to_be_hidden()


def test_one_finds_a_mail_and_decides_about_dead_letters(
    db: Db, console: ConsoleServer, pages: BrowserPages
) -> None:
    token = sign_up(db, "zoe")
    claim(db)
    db.execute("DELETE FROM mailroom.leases")
    deliver(db, token, "rejected", "<b>zoe@example.com</b> is suppressed")
    page = live(pages.open(console.url))
    page.locator(".ledger a").focus()
    page.keyboard.press("Enter")
    expect(page.locator("h2")).to_contain_text("rejected Token 1, activation")
    expect(page.locator(".conclusion")).to_contain_text("SES answered: <b>z…@example.com</b> is suppressed")
    page.keyboard.press("/")
    page.keyboard.type("nobody@example.com")
    page.keyboard.press("Enter")
    expect(page.locator(".none-found")).to_contain_text("no account or token matches")
    page.get_by_role("link", name="Dead letters 1").click()
    page.get_by_role("button", name="Retry token 1").click()
    expect(page.get_by_role("status").last).to_have_text("Token 1: retried")
    expect(page.locator(".none")).to_have_text("No dead letters.")
    assert [(1,)] == db.execute("SELECT count(*) FROM mailroom.leases").fetchall()


def test_hostile_words_do_nothing(db: Db, console: ConsoleServer, pages: BrowserPages) -> None:
    token = sign_up(db, "zoe")
    escape = f"</td></table>{HOSTILE}<img src=x onerror=alert(2)><style>*{{display:none}}</style>"
    db.execute("UPDATE accounts SET login = %s", [HOSTILE])
    claim(db)
    db.execute("SELECT mailroom.heartbeat(%s, %s, %s)", ["w" + escape, escape, escape])
    db.execute("SELECT mailroom.pause(%s)", [escape])
    db.execute("DELETE FROM mailroom.leases")
    page = live(pages.open(console.url))
    page.on("dialog", lambda dialog: pages.errors.append(f"dialog: {dialog.message}"))
    deliver(db, token, "rejected", escape)
    expect(page.locator(".ledger .reason")).to_have_text(f"SES: {escape}")
    for path in ("/?addresses=1", "/dead", f"/why?who={token}", f"/why?who={HOSTILE}"):
        page.goto(console.url + path)
        expect(page.get_by_text(HOSTILE).first).to_be_visible()
        assert 0 == page.locator("main script, main img, main style").count()


def test_everything_is_read_and_done_without_javascript(
    db: Db, request: pytest.FixtureRequest, pages: BrowserPages
) -> None:
    seed(db)
    page = pages.open(served(request).url, java_script_enabled=False)
    expect(page.locator("#live")).to_be_hidden()
    assert "5" == page.locator("meta[http-equiv=refresh]").get_attribute("content")
    tile(page, "Waiting").to_have_text("1")
    assert 120 >= str(page.locator("svg path.sent").get_attribute("d")).count("z") > 50
    page.get_by_role("link", name="Older").click()
    expect(page.locator(".ledger tbody tr")).to_have_count(50)
    page.get_by_role("link", name="Newest").click()
    page.get_by_role("link", name="Show addresses").click()
    expect(page.locator(".ledger .to").first).to_contain_text(re.compile("^[a-z]{2,}@example.com"))
    page.get_by_role("link", name="Mask addresses").click()
    expect(page.locator(".ledger .to").first).to_have_text(re.compile("^[a-z]…@example.com"))
    page.locator("#brake summary").click()
    page.get_by_label("Reason").fill("no reason")
    page.get_by_role("button", name="Pause the queue").click()
    expect(page.locator("h1")).to_have_text("Paused")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("h1")).not_to_have_text("Paused")


def test_an_outage_greys_the_picture_and_it_comes_back(
    own_server: PostgresServer, pages: BrowserPages
) -> None:
    with psycopg.connect(own_server.url(), autocommit=True) as db:
        sign_up(db, "zoe")
    with ConsoleServer(settings(own_server.url())) as server:
        page = live(pages.open(server.url))
        own_server.stop()
        expect(page.locator("#live")).to_have_text("No database")
        expect(page.locator("h1")).to_have_text("The database does not answer")
        expect(page.locator("main")).to_have_class(re.compile("stale"))
        tile(page, "Waiting").to_have_text("1")
        own_server.start()
        live(page)
        expect(page.locator("main")).not_to_have_class(re.compile("stale"))
        expect(page.locator("h1")).to_have_text("No worker")
    expect(page.locator("#live")).to_have_text("Not connected")
    expect(page.locator("main")).to_have_class(re.compile("stale"))
    pages.errors.clear()  # the browser's own, of a connection that was lost


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["360", "1440"])
def test_pages_fit_and_are_accessible(
    db: Db, request: pytest.FixtureRequest, pages: BrowserPages, tmp_path: Path, size: Any, scheme: Any
) -> None:
    seed(db)
    console = served(request)
    page = pages.open(console.url, viewport=size, color_scheme=scheme, bypass_csp=True)
    live(page).screenshot(path=screenshots(tmp_path) / f"console-{size['width']}-{scheme}.png")
    assert (0, [], []) == (overflow(page), overlaps(page), accessibility_faults(page))
    page.get_by_text("In numbers").click()
    page.locator("#brake summary").click()
    assert (0, []) == (overflow(page), accessibility_faults(page))
    long = "w" * 200
    token = sign_up(db, "x" * 60)
    db.execute(
        "UPDATE accounts SET login = %s, email = %s WHERE login = %s", [long, f"{long}@e.org", "x" * 60]
    )
    claim(db)
    db.execute("DELETE FROM mailroom.leases")
    deliver(db, token, "rejected", long)
    db.execute("SELECT mailroom.heartbeat(%s, %s, %s)", [long, __version__, f"Throttling: {long}"])
    db.execute("SELECT mailroom.pause(%s)", [f"{long} <b>"])
    for path in [
        "/?addresses=1",
        "/?outcome=skipped",
        f"/why?who={token}",
        "/why?who=nobody",
        "/dead",
        "/no",
    ]:
        page.goto(console.url + path)
        assert (path, 0, [], []) == (path, overflow(page), overlaps(page), accessibility_faults(page))
    pages.errors[:] = [error for error in pages.errors if "404" not in error]


def overlaps(page: Page) -> list[tuple[str, str]]:
    """Pairs of things with text of their own, neither in the other, that lie on each other."""
    boxes = page.evaluate(
        """() => [...document.querySelectorAll('a,button,summary,input,h1,h2,p,dt,dd,td,time,li,.badge,svg')]
            .filter(each => !each.closest('.visually-hidden, .skip, thead, .scale') && each.checkVisibility())
            .map((each, at) => {
                each.dataset.at = at;
                const box = each.getBoundingClientRect();
                return {
                    name: each.className + each.textContent.trim().slice(0, 30),
                    left: box.left, right: box.right, top: box.top, bottom: box.bottom,
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
