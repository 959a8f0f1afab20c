"""The example application, when its mail to a new address bounces."""

from __future__ import annotations

import json
import re
import threading
import time

import httpx
import pytest

from support.signup import PASSWORD, Site, at_once, explained, site_fixture  # noqa: F401

WRONG = "Your address seems to be wrong"
RECORD = "SELECT mailroom.record_events(%s)"


def bounce(site: Site, email: str, kind: str = "bounced", type: str = "permanent") -> None:
    """What Mailroom's reader of events does with SES's."""
    event = {
        "kind": kind,
        "recipient": email,
        "type": type,
        "at": "2026-01-31T12:00:00Z",
        "message_id": email,
    }
    site.db.execute(RECORD, [json.dumps([event])])


def page(site: Site, path: str = "/sent/signup") -> tuple[int, str]:
    return explained(site.browser.get(path, follow_redirects=True))


def test_a_visitor_corrects_an_address_that_bounced(site: Site) -> None:
    site.sign_up("zoe@exmaple.com")
    assert (200, "Look for our mail") == page(site)
    assert (200, "Look for our mail") == page(site, "/correct")
    old = site.mails("activation", "zoe@exmaple.com")[0][0]
    bounce(site, "Zoe@exmaple.com")
    assert (200, WRONG) == page(site)
    wrong = site.post("/correct", email="zoe@@example.com")
    assert (422, True) == (wrong.status_code, "Enter an e-mail address" in wrong.text)
    assert "<b>zoe@exmaple.com</b>" in wrong.text
    assert "/sent/signup" == site.post("/correct", email="zoe@example.com").headers["location"]
    assert (200, "Look for our mail") == page(site)
    assert (410, "This link has expired") == explained(site.post("/activate", token=old))
    ((token, _),) = site.mails("activation", "zoe@example.com")
    assert "/signin?done=active" == site.post("/activate", token=token).headers["location"]
    assert 303 == site.sign_in().status_code
    assert [("zoe", "zoe@example.com")] == site.db.execute("SELECT login, email FROM accounts").fetchall()


def test_only_a_permanent_bounce_is_told(site: Site) -> None:
    site.sign_up()
    bounce(site, "zoe@example.com", type="transient")
    assert (200, "Look for our mail") == page(site)
    bounce(site, "zoe@example.com", "complained", "abuse")
    assert (200, "Look for our mail") == page(site)
    assert ("complained",) == site.db.execute("SELECT mailroom.suppressed('zoe@example.com')").fetchone()


def test_a_bounce_is_told_to_the_visitor_who_signed_up(site: Site) -> None:
    site.sign_up()
    bounce(site, "zoe@example.com")
    before = site.everything()
    with site.new_browser() as stranger:
        assert "/sent/signup" == stranger.get("/correct").headers["location"]
        assert 200 == stranger.get("/sent/signup").status_code
        answer = stranger.post("/correct", data={"email": "mallory@example.com"})
        assert "/sent/signup" == answer.headers["location"]
    assert before == site.everything()
    assert (200, WRONG) == page(site)


def test_an_account_that_is_active_keeps_its_address(site: Site) -> None:
    site.signed_up()
    bounce(site, "zoe@example.com")
    assert (200, WRONG) == page(site)
    site.post("/correct", email="mallory@example.com")
    assert [("zoe@example.com",)] == site.db.execute("SELECT email FROM accounts").fetchall()


def test_no_answer_tells_whether_a_corrected_address_has_an_account(site: Site) -> None:
    site.signed_up("ada@example.com", "ada")
    answers, emails = set(), ("ada@example.com", "new@example.com")
    for number, email in enumerate(emails):
        site.sign_up(f"typo{number}@example.com", f"zoe{number}")
        bounce(site, f"typo{number}@example.com")
        answer = site.post("/correct", email=email)
        answers.add((answer.status_code, answer.headers["location"], page(site)))
    assert 1 == len(answers)
    assert 1 == len(site.mails("activation", "ada@example.com"))
    assert 1 == len(site.mails("activation", "new@example.com"))
    # A sign-up with a known address that bounces made no account. Corrected, it makes one.
    bounce(site, "ada@example.com")
    site.sign_up("ada@example.com", "max")
    assert (200, WRONG) == page(site)
    site.post("/correct", email="max@example.com")
    ((token, _),) = site.mails("activation", "max@example.com")
    assert "/signin?done=active" == site.post("/activate", token=token).headers["location"]
    assert 303 == site.sign_in("max@example.com").status_code


@pytest.mark.slow
def test_one_bounce_is_worth_one_mail(site: Site) -> None:
    site.sign_up("typo@example.com")
    bounce(site, "typo@example.com")
    cookies = dict(site.browser.cookies)

    def correct(number: int) -> httpx.Response:
        with site.new_browser() as browser:
            browser.cookies.update(cookies)
            return browser.post("/correct", data={"email": f"victim{number % 2}@example.com"})

    assert {"/sent/signup"} == {answer.headers["location"] for answer in at_once(8, correct)}
    assert 1 == sum(len(site.mails("activation", f"victim{number}@example.com")) for number in (0, 1))


def test_the_cookie_holds_no_answer_about_the_address(site: Site) -> None:
    site.signed_up("ada@example.com", "ada")
    kept = []
    for email in ("ada@example.com", "new@example.com"):
        with site.new_browser() as browser:
            fields = {"email": email, "login": email[:3], "password": PASSWORD}
            fields["login"] = "other-" + fields["login"]
            browser.post("/signup", data=fields)
            kept.append([len(value) for value in browser.cookies.values()])
    assert kept[0] == kept[1]


@pytest.mark.slow
def test_the_page_hears_of_the_bounce_in_a_second(site: Site) -> None:
    site.sign_up()
    heard: list[float] = []
    listening = threading.Event()

    def listen() -> None:
        with site.browser.stream("GET", "/news") as news:
            for line in news.iter_lines():
                listening.set()
                if line == "event: bounced":
                    heard.append(time.monotonic())

    thread = threading.Thread(target=listen)
    thread.start()
    assert listening.wait(30)
    bounce(site, "max@example.com")  # somebody else's
    bounce(site, "zoe@example.com", type="transient")
    assert [] == heard
    start = time.monotonic()
    bounce(site, "zoe@example.com")
    thread.join(30)
    assert 3 > heard[0] - start
    assert "bounced" not in httpx.get(f"{site.url}/sent/signup").text


@pytest.mark.slow
def test_the_page_hears_of_a_bounce_after_its_connection_was_lost(site: Site) -> None:
    site.sign_up()
    ended = site.db.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE query LIKE 'LISTEN mailroom_events%' AND datname = current_database()"
    ).fetchall()
    assert [(True,)] == ended
    bounce(site, "zoe@example.com")
    assert "event: bounced" in site.get("/news").text


def test_the_only_script_is_on_the_page_that_waits(site: Site) -> None:
    site.sign_up()
    scripts = {path: re.findall("<script.*", site.get(path).text) for path in ("/signup", "/sent/forgot")}
    assert {"/signup": [], "/sent/forgot": []} == scripts
    waiting = site.get("/sent/signup")
    assert ['<script src="/static/news.js" defer></script>'] == re.findall("<script.*", waiting.text)
    assert "script-src 'self'" in waiting.headers["content-security-policy"]
    assert "script-src" not in site.get("/signup").headers["content-security-policy"]
