"""The example application's further mails: language, magic link, new address, invitation, notices."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

import mailroom
from mailroom.demo.signup import forms
from mailroom.inbox.server import InboxServer
from support.browser import (
    BrowserPages,
    accessibility_faults,
    browser_fixture,  # noqa: F401
    overflow,
    pages_fixture,  # noqa: F401
)
from support.processes import KEY
from support.runs import UNSETTLED, Start, wait_until
from support.signup import NEW_PASSWORD, PASSWORD, PHONE, Db, Site, at_once, explained, site_fixture  # noqa: F401

NEW = "zoe@new.example"
BOB = "bob@example.com"
DESK = {"width": 1280, "height": 800}


@pytest.fixture
def zoe(site: Site) -> Site:
    """Zoe is signed in, and her mails are in German."""
    assert (
        303
        == site.post(
            "/signup", email="zoe@example.com", login="zoe", locale="de", password=PASSWORD
        ).status_code
    )
    site.post("/activate", token=site.mails("activation")[0][0])
    site.sign_in()
    assert site.is_signed_in()
    return site


def asked(db: Db, action: str) -> list[tuple[object, ...]]:
    """Address, login, language and data of an action's mails."""
    return db.execute(
        "SELECT email, login, locale, data FROM tokens WHERE action = %s::token_action ORDER BY id", [action]
    ).fetchall()


def post_link(site: Site, path: str, action: str, email: str, **fields: str) -> tuple[int, str]:
    answer = site.post(path, token=site.mails(action, email)[0][0], **fields)
    return answer.status_code, answer.headers.get("location", "")


def change_email(site: Site, email: str = NEW, password: str = PASSWORD) -> tuple[int, str]:
    answer = site.post("/email", email=email, current=password)
    return answer.status_code, answer.headers.get("location", "")


# Language


def test_the_mails_follow_the_language_of_the_account(zoe: Site) -> None:
    assert "de" == asked(zoe.db, "activation")[0][2]
    page = zoe.get("/").text
    assert '<option value="de" lang="de" selected>' in page
    assert "/?done=language" == zoe.post("/language", locale="en").headers["location"]
    assert "From now on your mails are in this language." in zoe.get("/?done=language").text
    zoe.post("/signin-link", email="zoe@example.com")
    assert "en" == asked(zoe.db, "magic_link")[0][2]
    for locale in ("", "fr", "<script>"):
        assert 400 == zoe.post("/language", locale=locale).status_code
    assert [("en",)] == zoe.db.execute("SELECT locale FROM accounts").fetchall()


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("de-AT,de;q=0.9,en;q=0.8", "de"),
        ("fr, de", "de"),
        ("en-GB", "en"),
        ("", "en"),
        ("fr", "en"),
        (";,,", "en"),
        ("den, DE;q=0.5", "de"),
    ],
)
def test_the_form_begins_with_a_language_of_the_browser(accepted: str, language: str) -> None:
    assert language == forms.preferred_language(accepted)


# Magic link


def test_a_magic_link_signs_in_once(site: Site) -> None:
    site.signed_up()
    assert "/sent/signin-link" == site.post("/signin-link", email="Zoe@Example.com").headers["location"]
    link = site.link("/magic-link", "magic_link")
    page = site.get(link)
    assert (200, "Sign in to Acme") == explained(page)
    assert not site.is_signed_in()
    assert (303, "/") == post_link(site, "/magic-link", "magic_link", "zoe@example.com")
    assert site.is_signed_in()
    with site.new_browser() as other:
        token = site.mails("magic_link")[0][0]
        again = other.post("/magic-link", data={"token": token})
        assert (409, "This link was used before") == explained(again)
        assert "Welcome" in other.get("/").text


def test_of_eight_who_use_a_magic_link_at_once_one_is_signed_in(site: Site) -> None:
    site.signed_up()
    site.post("/signin-link", email="zoe@example.com")
    token = site.mails("magic_link")[0][0]
    answers = at_once(8, lambda _: site.post("/magic-link", token=token))
    assert [303, *[409] * 7] == sorted(answer.status_code for answer in answers)


def test_a_magic_link_ends_the_session_before_it(zoe: Site) -> None:
    zoe.signed_up(BOB, "bob")
    zoe.post("/signin-link", email=BOB)
    post_link(zoe, "/magic-link", "magic_link", BOB)
    assert "Hello bob" in zoe.get("/").text


def test_a_magic_link_works_without_a_password(site: Site) -> None:
    site.db.execute("INSERT INTO accounts (email, login, status) VALUES (%s, 'bob', 'active')", [BOB])
    assert 422 == site.sign_in(BOB, "").status_code
    site.post("/signin-link", email=BOB)
    assert (303, "/") == post_link(site, "/magic-link", "magic_link", BOB)
    assert "Hello bob" in site.get("/").text
    assert 422 == site.sign_in(BOB, "").status_code
    assert 422 == site.post("/password", current="", password=NEW_PASSWORD).status_code


def test_only_an_active_account_gets_a_magic_link(site: Site) -> None:
    site.sign_up()
    for _ in range(2):
        site.post("/signin-link", email="zoe@example.com")
        site.suspend()
    assert [] == asked(site.db, "magic_link")


def test_a_magic_link_does_not_outlive_a_suspension(site: Site) -> None:
    site.signed_up()
    site.post("/signin-link", email="zoe@example.com")
    site.suspend()
    answer = site.post("/magic-link", token=site.mails("magic_link")[0][0])
    assert (403, "This account is suspended") == explained(answer)
    assert not site.is_signed_in()


# A new address


def test_a_new_address_is_proven_before_it_is_used(zoe: Site) -> None:
    assert (303, "/sent/email") == change_email(zoe)
    assert [(NEW, "zoe", "de", None)] == asked(zoe.db, "email_change")
    link = zoe.link("/change-email", "email_change", NEW)
    assert (200, "Confirm your new address") == explained(zoe.get(link))
    assert "provisioned" != zoe.status("zoe@example.com")
    assert [] == asked(zoe.db, "email_changed")
    zoe.post("/forgot", email="zoe@example.com")
    recovery, code = zoe.mails("password_recovery")[0]

    assert (303, "/?done=email") == post_link(zoe, "/change-email", "email_change", NEW)
    assert NEW in zoe.get("/").text
    assert [("zoe@example.com", "zoe", "de", {"new_email": NEW})] == asked(zoe.db, "email_changed")
    # What was mailed to the old address works no more.
    answer = zoe.post("/recover", token=recovery, code=code, password=NEW_PASSWORD)
    assert (410, "This link has expired") == explained(answer)
    answer = zoe.post("/change-email", token=zoe.mails("email_change", NEW)[0][0])
    assert (409, "This link was used before") == explained(answer)


def test_the_link_to_a_new_address_works_in_another_browser(zoe: Site) -> None:
    change_email(zoe)
    with zoe.new_browser() as phone:
        answer = phone.post("/change-email", data={"token": zoe.mails("email_change", NEW)[0][0]})
        assert "/?done=email" == answer.headers["location"]
        page = phone.get("/?done=email").text
        assert "The address is changed." in page
        assert NEW not in page
    assert NEW in zoe.get("/").text


def test_an_address_that_was_taken_meanwhile_changes_nothing(zoe: Site) -> None:
    change_email(zoe)
    zoe.db.execute("INSERT INTO accounts (email, login) VALUES (upper(%s), 'other')", [NEW])
    token = zoe.mails("email_change", NEW)[0][0]
    before = zoe.everything()
    for _ in range(2):  # the token is not consumed
        assert (409, "This address has an account") == explained(zoe.post("/change-email", token=token))
    assert before == zoe.everything()
    zoe.db.execute("DELETE FROM accounts WHERE login = 'other'")
    assert 303 == zoe.post("/change-email", token=token).status_code


def test_a_new_password_ends_what_was_asked_for_with_the_old_one(zoe: Site) -> None:
    change_email(zoe, "thief@example.com")
    token, code = zoe.forgotten()
    zoe.post("/recover", token=token, code=code, password=NEW_PASSWORD)
    before = zoe.everything()
    answer = zoe.post("/change-email", token=zoe.mails("email_change", "thief@example.com")[0][0])
    assert (409, "This link is no longer needed") == explained(answer)
    assert before == zoe.everything()
    zoe.sign_in(password=NEW_PASSWORD)
    change_email(zoe, password=NEW_PASSWORD)
    assert (303, "/?done=email") == post_link(zoe, "/change-email", "email_change", NEW)


def test_an_address_goes_to_one_of_two_accounts_that_ask_for_it(zoe: Site) -> None:
    change_email(zoe)
    tokens = [zoe.mails("email_change", NEW)[0][0]]
    zoe.signed_up(BOB, "bob")
    zoe.sign_in(BOB)
    change_email(zoe)
    tokens.append(zoe.mails("email_change", NEW)[0][0])
    answers = at_once(2, lambda number: zoe.post("/change-email", token=tokens[number]))
    assert [303, 409] == sorted(answer.status_code for answer in answers)
    assert 1 == len(asked(zoe.db, "email_changed"))


def test_only_the_password_changes_the_address(zoe: Site) -> None:
    answer = zoe.post("/email", email=NEW, current="wrong password")
    assert (422, True) == (answer.status_code, "The password is wrong." in answer.text)
    assert f'value="{NEW}"' in answer.text
    assert "wrong password" not in answer.text
    assert 422 == change_email(zoe, "ZOE@example.com")[0]
    assert [] == asked(zoe.db, "email_change")


@pytest.mark.parametrize("path", ["/email", "/invite"])
def test_no_answer_to_a_user_tells_whether_an_address_has_an_account(zoe: Site, path: str) -> None:
    zoe.signed_up(BOB, "bob")
    answers = set()
    for email in (BOB, "unknown@example.com"):
        answer = zoe.post(path, email=email, current=PASSWORD)
        answers.add((answer.status_code, answer.headers["location"], answer.text))
    assert 1 == len(answers)
    mailed = zoe.db.execute(
        "SELECT email FROM tokens WHERE action IN ('email_change', 'invitation')"
    ).fetchall()
    assert [("unknown@example.com",)] == mailed


# Password


def test_a_new_password_is_noticed_and_ends_other_sessions(zoe: Site) -> None:
    with zoe.new_browser() as other:
        other.post("/signin", data={"email": "zoe@example.com", "password": PASSWORD})
        assert 422 == zoe.post("/password", current=NEW_PASSWORD, password=NEW_PASSWORD).status_code
        assert 422 == zoe.post("/password", current=PASSWORD, password="short").status_code
        assert [] == asked(zoe.db, "password_changed")
        answer = zoe.post("/password", current=PASSWORD, password=NEW_PASSWORD)
        assert "/?done=password" == answer.headers["location"]
        assert zoe.is_signed_in()
        assert "Welcome" in other.get("/").text
    assert [("zoe@example.com", "zoe", "de", None)] == asked(zoe.db, "password_changed")
    assert 303 == zoe.sign_in(password=NEW_PASSWORD).status_code


def test_a_recovery_is_noticed_too(site: Site) -> None:
    site.signed_up()
    token, code = site.forgotten()
    site.post("/recover", token=token, code=code, password=NEW_PASSWORD)
    assert 1 == len(asked(site.db, "password_changed"))


# Invitation


def invited(zoe: Site, email: str = BOB) -> str:
    """The token of an invitation, and a browser that is not signed in."""
    assert "/sent/invite" == zoe.post("/invite", email=email).headers["location"]
    zoe.post("/signout")
    return zoe.mails("invitation", email)[0][0]


def join(site: Site, token: str, login: str = "bob") -> tuple[int, str]:
    answer = site.post("/accept-invitation", token=token, login=login, locale="en", password=NEW_PASSWORD)
    return answer.status_code, answer.headers.get("location", "")


def test_somebody_who_is_invited_is_active_at_once(zoe: Site) -> None:
    token = invited(zoe)
    assert [(BOB, None, "de", {"inviter": "zoe"})] == asked(zoe.db, "invitation")
    page = zoe.get(f"/accept-invitation?token={token}")
    assert (200, "Accept the invitation") == explained(page)
    assert BOB not in page.text  # the page does not ask the database
    assert (303, "/") == join(zoe, token)
    assert "Hello bob" in zoe.get("/").text
    assert "active" == zoe.status(BOB)
    assert 1 == len(asked(zoe.db, "activation"))  # zoe's own
    zoe.post("/signout")
    assert 303 == zoe.sign_in(BOB, NEW_PASSWORD).status_code
    answer = zoe.post("/accept-invitation", token=token, login="other", password=NEW_PASSWORD)
    assert (409, "This link was used before") == explained(answer)


@pytest.mark.parametrize("known", ["active", "provisioned", "suspended"])
def test_an_invitation_takes_no_account_over(zoe: Site, known: str) -> None:
    token = invited(zoe)
    zoe.db.execute(
        "INSERT INTO accounts (email, login, status) VALUES (%s, 'robert', %s::account_status)",
        [BOB.upper(), known],
    )
    before = zoe.everything()
    answer = zoe.post("/accept-invitation", token=token, login="bob", password=NEW_PASSWORD)
    assert (409, "This address has an account") == explained(answer)
    assert before == zoe.everything()
    assert not zoe.is_signed_in()


def test_a_login_that_is_taken_does_not_use_the_invitation_up(zoe: Site) -> None:
    token = invited(zoe)
    answer = zoe.post("/accept-invitation", token=token, login="ZOE", locale="de", password=NEW_PASSWORD)
    assert (422, True) == (answer.status_code, "This login is taken" in answer.text)
    assert f'value="{token}"' in answer.text
    assert '<option value="de" lang="de" selected>' in answer.text
    assert 422 == join(zoe, token, "<b>")[0]
    assert (303, "/") == join(zoe, token)


def test_of_two_invitations_to_one_address_one_is_accepted(zoe: Site) -> None:
    zoe.post("/invite", email=BOB)
    zoe.post("/invite", email=BOB)
    tokens = [token for token, _ in zoe.mails("invitation", BOB)]
    answers = at_once(
        2,
        lambda number: zoe.post(
            "/accept-invitation", token=tokens[number], login=f"bob{number}", password=NEW_PASSWORD
        ),
    )
    assert 303 in {answer.status_code for answer in answers}
    assert 1 == len([answer for answer in answers if answer.status_code == 303])
    assert (1,) == zoe.db.execute("SELECT count(*) FROM accounts WHERE email = %s", [BOB]).fetchone()


def test_who_invites_is_named_by_a_login_that_is_plain(zoe: Site) -> None:
    zoe.db.execute("UPDATE accounts SET login = '<b>Zoe</b> {{secret}}'")
    zoe.post("/invite", email=BOB)
    assert [(BOB, None, "de", {"inviter": "<b>Zoe</b> {{secret}}"})] == asked(zoe.db, "invitation")


# All of them

LINKS = {"/magic-link": "magic_link", "/change-email": "email_change", "/accept-invitation": "invitation"}


@pytest.mark.parametrize("path", LINKS)
def test_following_a_link_consumes_nothing(zoe: Site, path: str) -> None:
    zoe.post("/signin-link", email="zoe@example.com")
    change_email(zoe)
    zoe.post("/invite", email=BOB)
    email = {"/change-email": NEW, "/accept-invitation": BOB}.get(path, "zoe@example.com")
    link = zoe.link(path, LINKS[path], email)
    before = zoe.everything()
    for method in ("HEAD", "GET", "GET"):
        answer = zoe.browser.request(method, link)
        assert (200, "no-referrer") == (answer.status_code, answer.headers["referrer-policy"])
    assert before == zoe.everything()


@pytest.mark.parametrize("path", LINKS)
def test_a_link_says_why_it_is_refused(zoe: Site, path: str) -> None:
    fields = {"login": "bob", "password": NEW_PASSWORD}
    token = mailroom.sign(bytes(32), LINKS[path], keys=KEY)
    forged = mailroom.sign(bytes(32), LINKS[path], keys="00" * 32)
    other = mailroom.sign(bytes(32), "activation", keys=KEY)
    assert (404, "This link is unknown") == explained(zoe.post(path, token=token, **fields))
    for bad, headline in [
        (token[:-1], "This link is incomplete"),
        ("", "This link is incomplete"),
        (forged, "This link is not from us"),
        (other, "This link is for another page"),
    ]:
        assert (400, headline) == explained(zoe.post(path, token=bad, **fields))
        assert (400, headline) == explained(zoe.get(f"{path}?token={bad}"))


@pytest.mark.parametrize("path", ["/language", "/email", "/password", "/invite"])
def test_what_needs_a_session_does_nothing_without_one(site: Site, path: str) -> None:
    site.signed_up()
    before = site.everything()
    fields = {"email": NEW, "current": PASSWORD, "password": NEW_PASSWORD, "locale": "de"}
    answers = [site.post(path, **fields), *([] if path == "/language" else [site.get(path)])]
    for answer in answers:
        assert (303, "/signin") == (answer.status_code, answer.headers["location"])
    assert before == site.everything()


def test_no_redirect_leads_elsewhere(zoe: Site) -> None:
    evil = {"next": "//evil.example", "back": "https://evil.example", "done": "//evil.example"}
    for path, fields in {
        "/language": {"locale": "en"},
        "/invite": {"email": BOB},
        "/email": {"email": NEW, "current": PASSWORD},
        "/signin-link": {"email": BOB},
        "/signout": {},
    }.items():
        answer = zoe.post(f"{path}?next=//evil.example", **evil, **fields)
        assert 303 == answer.status_code
        assert re.fullmatch(r"/[a-z/?=-]*", answer.headers["location"])
    assert "evil" not in zoe.get("/?done=//evil.example").text


@pytest.mark.slow
@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
def test_in_a_browser_every_flow_can_be_used_with_the_keyboard(
    site: Site, pages: BrowserPages, viewport: dict[str, int]
) -> None:
    page = pages.open(site.url, viewport=viewport, bypass_csp=True)

    def arrives(headline: str) -> None:
        expect(page.locator("h1")).to_have_text(headline)
        assert [] == accessibility_faults(page), headline
        assert 0 == overflow(page), headline

    def go(path: str, headline: str) -> None:
        page.goto(f"{site.url}{path}")
        arrives(headline)

    go("/signup", "Sign up")
    page.select_option("#locale", "de")
    type_in(page, email="zoe@example.com", login="zoe", password=PASSWORD)
    arrives("Look for our mail")
    go(site.link("/activate", "activation"), "Activate your account")
    press(page, "Activate my account")
    arrives("Sign in")

    press(page, "Sign in without a password", role="link")
    arrives("Sign in without a password")
    type_in(page, email="zoe@example.com")
    arrives("Look for our mail")
    go(site.link("/magic-link", "magic_link"), "Sign in to Acme")
    press(page, "Sign me in")
    arrives("Hello zoe")

    expect(page.locator("#locale")).to_have_value("de")
    page.focus("#locale")
    page.keyboard.press("ArrowUp")
    press(page, "Save")
    expect(page.get_by_role("status")).to_have_text("From now on your mails are in this language.")
    expect(page.locator("#locale")).to_have_value("en")
    arrives("Hello zoe")

    press(page, "Change your address", role="link")
    arrives("Change your address")
    type_in(page, email=NEW, current="wrong password")
    arrives("Change your address")
    expect(page.get_by_role("alert")).to_contain_text("The password is wrong.")
    type_in(page, email=NEW, current=PASSWORD)
    arrives("Look for our mail")
    go(site.link("/change-email", "email_change", NEW), "Confirm your new address")
    press(page, "Use this address")
    arrives("Hello zoe")
    expect(page.get_by_role("status")).to_contain_text("The address is changed.")

    press(page, "Change your password", role="link")
    arrives("Change your password")
    type_in(page, current=PASSWORD, password=NEW_PASSWORD)
    arrives("Hello zoe")

    press(page, "Invite somebody", role="link")
    arrives("Invite somebody")
    type_in(page, email=BOB)
    arrives("Look for our mail")
    go(site.link("/accept-invitation", "invitation", BOB), "Accept the invitation")
    type_in(page, login="bob", password=PASSWORD)
    arrives("Hello bob")
    go(site.link("/accept-invitation", "invitation", BOB), "Accept the invitation")
    type_in(page, login="bob2", password=PASSWORD)
    arrives("This link was used before")
    site.db.execute("UPDATE tokens SET consumed_at = NULL WHERE action = 'invitation'")
    go(site.link("/accept-invitation", "invitation", BOB), "Accept the invitation")
    type_in(page, login="bob2", password=PASSWORD)
    arrives("This address has an account")
    pages.errors[:] = [error for error in pages.errors if "422" not in error and "409" not in error]


def type_in(page: Page, **fields: str) -> None:
    """Fill a form in with the keyboard: Tab goes from field to field, Enter sends it."""
    for number, (name, value) in enumerate(fields.items()):
        if number == 0:
            page.focus(f"#{name}")
        while page.evaluate("document.activeElement.id") != name:
            page.keyboard.press("Tab")
        page.keyboard.press("Control+A")
        page.keyboard.type(value)
    with page.expect_navigation():
        page.keyboard.press("Enter")


def press(page: Page, name: str, role: str = "button") -> None:
    """Reach a button or a link with Tab, and press Enter."""
    wanted = page.locator("main").get_by_role("link" if role == "link" else "button", name=name)
    page.focus("main")
    for _ in range(30):
        page.keyboard.press("Tab")
        if wanted.evaluate("element => element === document.activeElement"):
            break
    else:
        raise AssertionError(f"Tab does not reach {name!r}")
    with page.expect_navigation():
        page.keyboard.press("Enter")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "action"),
    [("/forgot", "password_recovery"), ("/signin-link", "magic_link"), ("/invite", "invitation")],
)
def test_mailroom_limits_what_anybody_may_ask_for(
    zoe: Site, ses: InboxServer, start: Start, path: str, action: str
) -> None:
    """Of twelve mails to one address at most five go out, and the newest that does works."""
    start().wait_for_log("run.started")
    email = BOB if path == "/invite" else "zoe@example.com"
    for name in (email, email.upper().replace("EXAMPLE.COM", "example.com")) * 6:
        assert 303 == zoe.post(path, email=name).status_code
    wait_until(zoe.db, UNSETTLED, 0)
    wait_until(zoe.db, f"SELECT count(*) FROM tokens WHERE action = '{action}'", 12)
    mails = [mail for mail in ses.inbox.mails.find() if ses.inbox.is_of(mail, action)]
    assert 1 <= len(mails) <= 5
    token, code = mails[-1].data["secret"], mails[-1].data.get("code", "")
    fields = {"code": code, "login": "bob", "locale": "de", "password": NEW_PASSWORD}
    path = {"/forgot": "/recover", "/signin-link": "/magic-link"}.get(path, "/accept-invitation")
    assert 303 == zoe.post(path, token=token, **fields).status_code
