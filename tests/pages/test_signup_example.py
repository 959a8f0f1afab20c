"""The example application, served for real: what a user does, and what an attacker tries."""

from __future__ import annotations

import asyncio
import http.client
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from urllib.parse import urlencode

import httpx
import pytest
from playwright.sync_api import Page, sync_playwright
from psycopg.conninfo import make_conninfo

import mailroom
from mailroom.demo.postgres import free_port
from mailroom.demo.signup import forms
from mailroom.demo.signup.app import COOKIE, create_app
from mailroom.demo.signup.database import ACTIONS
from support.actions import add_actions
from support.browser import ARGUMENTS, NAMES, accessibility_faults, overflow
from support.processes import KEY
from support.signup import (
    DESK,
    FORM,
    HERE,
    NEW_PASSWORD,
    PASSWORD,
    PHONE,
    TOKEN,
    Db,
    Site,
    at_once,
    explained,
    fill,
    site_fixture,  # noqa: F401
    wrong,
)


@pytest.mark.slow
def test_a_user_signs_up_activates_forgets_and_comes_back(site: Site) -> None:
    site.sign_up()
    assert "a mail is on its way" in site.get("/sent/signup").text
    token, _ = site.mails("activation")[0]
    page = site.get(f"/activate?token={token}")
    assert (200, "Activate your account") == explained(page)
    assert token in page.text
    assert "provisioned" == site.status()
    assert "/signin?done=active" == site.post("/activate", token=token).headers["location"]
    assert "Your account is active" in site.get("/signin?done=active").text
    assert "active" == site.status()

    assert "/" == site.sign_in("Zoe@Example.com").headers["location"]
    assert "Hello zoe" in site.get("/").text
    assert 303 == site.post("/signout").status_code
    assert not site.is_signed_in()

    token, code = site.forgotten()
    page = site.get(f"/recover?token={token}")
    assert (200, "Set a new password") == explained(page)
    assert 'autocomplete="one-time-code"' in page.text
    done = site.post("/recover", token=token, code=f" {code} ", password=NEW_PASSWORD)
    assert "/signin?done=password" == done.headers["location"]
    assert 422 == site.sign_in().status_code
    assert 303 == site.sign_in(password=NEW_PASSWORD).status_code
    assert site.is_signed_in()


def test_a_scanner_that_follows_the_links_consumes_nothing(site: Site) -> None:
    site.sign_up()
    before = site.everything()
    for _ in range(3):
        assert 200 == site.browser.get(f"/activate?token={site.mails('activation')[0][0]}").status_code
        assert 200 == site.browser.head(f"/activate?token={site.mails('activation')[0][0]}").status_code
    assert before == site.everything()
    site.post("/activate", token=site.mails("activation")[0][0])
    token, _ = site.forgotten()
    before = site.everything()
    for method in ("GET", "HEAD"):
        assert 200 == site.browser.request(method, f"/recover?token={token}").status_code
    assert before == site.everything()


def test_where_a_link_leads_nobody_asks_the_database() -> None:
    app = create_app("postgresql://nobody@127.0.0.1:1/none", KEY, session_secret="s" * 32)
    token = mailroom.sign(bytes(32), "activation", keys=KEY)

    async def ask() -> list[int]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as browser:
            paths = (f"/activate?token={token}", f"/recover?token={TOKEN}", "/signin")
            answers = [await browser.get(path) for path in paths]
            answers.append(await browser.post("/activate", data={"token": token}))
            return [answer.status_code for answer in answers]

    assert [200, 200, 200, 503] == asyncio.run(ask())


def test_a_link_for_activation_says_why_it_is_refused(site: Site) -> None:
    site.sign_up()
    token, _ = site.mails("activation")[0]
    recovery = mailroom.sign(bytes(32), "password_recovery", keys=KEY, code="12345")
    forged = mailroom.sign(bytes(32), "activation", keys="00" * 32)
    for shown in (True, False):

        def follow(token: str) -> tuple[int, str]:
            return explained(
                site.get(f"/activate?token={token}") if shown else site.post("/activate", token=token)  # noqa: B023
            )

        assert (400, "This link is incomplete") == follow(token[:-1])
        assert (400, "This link is incomplete") == follow("")
        assert (400, "This link is not from us") == follow(forged)
        assert (400, "This link is not from us") == follow(recovery)
    unknown = mailroom.sign(bytes(32), "activation", keys=KEY)
    assert (404, "This link is unknown") == explained(site.post("/activate", token=unknown))
    assert (400, "This link is for another page") == explained(site.get(f"/recover?token={token}"))
    site.suspend()
    assert (403, "This account is suspended") == explained(site.post("/activate", token=token))
    site.db.execute("UPDATE accounts SET status = 'active'")
    assert "provisioned" == site.status()
    site.db.execute("UPDATE tokens SET expires_at = clock_timestamp()")
    assert (410, "This link has expired") == explained(site.post("/activate", token=token))
    site.post("/resend", email="zoe@example.com")
    token, _ = site.mails("activation")[0]
    assert 303 == site.post("/activate", token=token).status_code
    assert (409, "This link was used before") == explained(site.post("/activate", token=token))
    site.db.execute("UPDATE tokens SET consumed_at = NULL")
    assert (409, "This link is no longer needed") == explained(site.post("/activate", token=token))


def test_a_link_for_recovery_says_why_it_is_refused(site: Site) -> None:
    site.signed_up()
    token, code = site.forgotten()

    def recover(token: str) -> tuple[int, str]:
        return explained(site.post("/recover", token=token, code=code, password=NEW_PASSWORD))

    assert (400, "This link is incomplete") == recover(token[:-1])
    assert (404, "This link is unknown") == recover(mailroom.sign(bytes(32), "activation", keys="00" * 32))
    site.suspend()
    assert (403, "This account is suspended") == recover(token)
    site.db.execute("UPDATE accounts SET status = 'active'")
    older = token
    token, code = site.forgotten()
    assert 303 == site.post("/recover", token=token, code=code, password=NEW_PASSWORD).status_code
    assert (409, "This link was used before") == recover(token)
    code = site.mails("password_recovery")[1][1]
    assert (410, "This link has expired") == recover(older)


def test_five_wrong_codes_end_a_link(site: Site) -> None:
    site.signed_up()
    token, code = site.forgotten()
    for left in (4, 3, 2, 1):
        answer = site.post("/recover", token=token, code=wrong(code), password=NEW_PASSWORD)
        assert 422 == answer.status_code
        assert f"Tries left: {left}." in answer.text
        assert NEW_PASSWORD not in answer.text
    for typed in (wrong(code), code):
        answer = site.post("/recover", token=token, code=typed, password=NEW_PASSWORD)
        assert (410, "Too many wrong codes") == explained(answer)
    assert 303 == site.sign_in().status_code


def test_what_is_typed_wrong_costs_no_try_and_no_link(site: Site) -> None:
    site.signed_up()
    token, code = site.forgotten()
    for typed, password in ((code, "short"), ("1234", NEW_PASSWORD), ("12a45", "short"), ("１２３４５", "")):
        assert 422 == site.post("/recover", token=token, code=typed, password=password).status_code
    assert (0,) == site.db.execute("SELECT max(wrong_codes) FROM tokens").fetchone()
    assert 303 == site.post("/recover", token=token, code=code, password=NEW_PASSWORD).status_code


def test_a_new_password_ends_all_sessions(site: Site) -> None:
    site.signed_up()
    site.sign_in()
    assert site.is_signed_in()
    token, code = site.forgotten()
    with site.new_browser() as other:
        other.post("/recover", data={"token": token, "code": code, "password": NEW_PASSWORD})
    assert not site.is_signed_in()


def test_a_copied_cookie_does_not_outlive_signing_out(site: Site) -> None:
    site.signed_up()
    site.sign_in()
    with site.new_browser() as thief:
        thief.cookies.update(site.browser.cookies)
        assert "You are signed in" in thief.get("/").text
        site.post("/signout")
        assert "You are signed in" not in thief.get("/").text


def test_a_suspension_ends_a_session_and_is_shown_with_the_right_password_only(site: Site) -> None:
    site.signed_up()
    site.sign_in()
    site.suspend()
    assert not site.is_signed_in()
    assert (403, "Your account is suspended") == explained(site.sign_in())
    assert 422 == site.sign_in(password="wrong password").status_code
    site.post("/forgot", email="zoe@example.com")
    assert [] == site.mails("password_recovery")


def test_who_is_not_active_yet_is_offered_the_mail_again(site: Site) -> None:
    site.sign_up()
    answer = site.sign_in()
    assert 422 == answer.status_code
    assert "an account that is not active yet" in answer.text
    assert 'action="/resend"' in answer.text
    assert 'action="/resend"' not in site.get("/signin").text
    assert "/sent/resend" == site.post("/resend", email="zoe@example.com").headers["location"]
    assert 2 == len(site.mails("activation"))
    site.post("/forgot", email="zoe@example.com")
    assert [] == site.mails("password_recovery")


def test_the_cookie_is_out_of_reach(site: Site) -> None:
    site.signed_up()
    cookie = site.sign_in().headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "secure" in over_https(site)
    assert PASSWORD not in cookie


def over_https(site: Site) -> str:
    """The cookie that is set where browsers come by HTTPS."""
    database = make_conninfo(site.db.info.dsn, password=site.db.info.password)
    app = create_app(database, KEY, session_secret="s" * 32, https=True, scrypt_cost=2)

    async def ask() -> str:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="https://x") as browser:
            answer = await browser.post("/signin", data={"email": "zoe@example.com", "password": PASSWORD})
            return answer.headers["set-cookie"].lower()

    return asyncio.run(ask())


def test_the_first_password_stands_when_a_stranger_signs_up_again(site: Site) -> None:
    site.sign_up()
    site.sign_up("ZOE@example.com", "mallory", "a password of mallory's")
    assert 2 == len(site.mails("activation"))
    site.post("/activate", token=site.mails("activation")[0][0])
    assert 422 == site.sign_in(password="a password of mallory's").status_code
    assert 303 == site.sign_in().status_code
    assert "Hello zoe" in site.get("/").text


@pytest.mark.parametrize("path", ["/signup", "/resend", "/forgot", "/signin", "/signin-link"])
def test_no_answer_tells_whether_an_address_has_an_account(site: Site, path: str) -> None:
    site.signed_up("active@example.com", "active")
    site.signed_up("suspended@example.com", "suspended")
    site.suspend()
    site.db.execute("UPDATE accounts SET status = 'active' WHERE login = 'active'")
    site.sign_up("fresh@example.com", "fresh")
    answers = set()
    for number, name in enumerate(("active", "suspended", "fresh", "unknown")):
        fields = {"email": f"{name}@example.com", "login": f"login{number}", "password": "wrong password"}
        answer = site.post(path, **fields)
        page = answer.text.replace(fields["email"], "")
        headers = {
            key: re.sub(rf"{COOKIE}=[^;]+", "", value)  # test_signup_bounce.py compares what cookies hold
            for key, value in answer.headers.items()
            if key not in ("date", "content-length")
        }
        answers.add((answer.status_code, page, repr(headers)))
    assert 1 == len(answers)


@pytest.mark.parametrize("known", ["active", "provisioned", "suspended", "suspended before it was active"])
def test_signing_up_and_then_in_does_not_tell_whether_an_address_has_an_account(
    site: Site, known: str
) -> None:
    site.sign_up("known@example.com", "known")
    if known in ("active", "suspended"):
        site.post("/activate", token=site.mails("activation", "known@example.com")[0][0])
    if known.startswith("suspended"):
        site.suspend()
    answers = set()
    for number, email in enumerate(("known@example.com", "new@example.com")):
        site.sign_up(email, f"probe{number}", NEW_PASSWORD)
        answer = site.sign_in(email, NEW_PASSWORD)
        answers.add((answer.status_code, answer.text.replace(email, "")))
    assert 1 == len(answers)
    assert 422 == answers.pop()[0]


def test_a_suspension_before_the_activation_is_shown_to_nobody(site: Site) -> None:
    site.sign_up()
    site.suspend()
    assert 422 == site.sign_in().status_code


def test_a_login_is_reported_as_taken_whatever_the_address(site: Site) -> None:
    site.signed_up()
    site.db.execute("INSERT INTO accounts (email, login) VALUES ('max@example.com', 'max')")
    for login in ("zoe", "ZOE", "max"):
        for email in ("zoe@example.com", "max@example.com", "new@example.com"):
            answer = site.post("/signup", email=email, login=login, password=PASSWORD)
            assert 422 == answer.status_code
            assert "This login is taken" in answer.text
    # Nor does asking for a login twice tell whether the address that came first was known.
    site.sign_up("zoe@example.com", "first")
    site.sign_up("new@example.com", "second")
    for login in ("first", "second"):
        answer = site.post("/signup", email="other@example.com", login=login, password=PASSWORD)
        assert "This login is taken" in answer.text


def test_an_answer_about_an_address_takes_its_time(database: str) -> None:
    app = create_app(database, KEY, session_secret="s" * 32, uniform_s=0.3, scrypt_cost=2)

    async def ask() -> float:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as browser:
            started = time.monotonic()
            await browser.post("/forgot", data={"email": "nobody@example.com"})
            return time.monotonic() - started

    assert asyncio.run(ask()) >= 0.3


def test_eight_who_ask_for_the_activation_at_once_get_three_mails(site: Site) -> None:
    site.sign_up()  # which is the first of the three
    answers = at_once(8, lambda _: site.post("/resend", email="zoe@example.com"))
    assert {303} == {answer.status_code for answer in answers}
    assert 3 == len(site.mails("activation"))
    site.db.execute("UPDATE tokens SET created_at = created_at - interval '15 minutes'")
    site.post("/resend", email="zoe@example.com")
    assert 4 == len(site.mails("activation"))


def test_eight_who_sign_up_with_one_address_are_one_account(site: Site) -> None:
    answers = at_once(
        8, lambda n: site.post("/signup", email="zoe@example.com", login=f"zoe{n}", password=PASSWORD)
    )
    assert {"/sent/signup"} == {answer.headers["location"] for answer in answers}
    assert (1,) == site.db.execute("SELECT count(*) FROM accounts").fetchone()
    assert 3 == len(site.mails("activation"))


def test_eight_who_sign_up_with_one_login_are_one_account(site: Site) -> None:
    answers = at_once(
        8, lambda n: site.post("/signup", email=f"zoe{n}@example.com", login="zoe", password=PASSWORD)
    )
    assert [303, *[422] * 7] == sorted(answer.status_code for answer in answers)
    assert (1,) == site.db.execute("SELECT count(*) FROM accounts").fetchone()


def test_eight_who_use_one_link_at_once_use_it_once(site: Site) -> None:
    site.sign_up()
    token, _ = site.mails("activation")[0]
    answers = at_once(8, lambda _: site.post("/activate", token=token))
    assert [303, *[409] * 7] == sorted(answer.status_code for answer in answers)


BAD_FIELDS = {
    "email": [
        *["", "zoe", "@", "a@b@c", "a b@c", "zoe@example.com\x01", "a\u2028@b", "a" * 250 + "@b.de", " "],
        # These could not be mailed.
        *["zoe@example.com.", "zoe@example..com", "zoe@" + "x" * 64 + ".com", "x" * 65 + "@b", "İ@x.y"],
        *[
            "zoe@bücher.example",
            "zoe@[127.0.0.1]",
            '"zoe"@b',
            "zoe@b" + ".c" * 125,
            "zoe@\u00adb",
            "z\u200b@b",
        ],
    ],
    "login": ["", "a", "<script>alert(1)</script>", "zo\x01e", "zoé", "a" * 33, "-zoe", "zo\ne", '"zoe",'],
    "password": ["", "short", "a" * 201],
    "locale": ["fr", "de-AT", "<script>", "../de"],
}


def test_the_form_says_how_long_a_password_is(site: Site) -> None:
    page = site.get("/signup").text
    assert f"At least {forms.MIN_PASSWORD} characters." in page
    assert f'minlength="{forms.MIN_PASSWORD}" maxlength="{forms.MAX_PASSWORD}"' in page


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name in BAD_FIELDS for value in BAD_FIELDS[name]]
)
def test_what_does_not_fit_a_field_is_shown_beside_it(value: str, name: str) -> None:
    fields = {"email": "zoe@example.com", "login": "zoe", "password": PASSWORD, "code": "12345"}
    assert {} == forms.faults(fields)
    assert [name] == list(forms.faults(fields | {name: value}))


SPELLINGS = [
    "ｂomb.example",
    "bｏmb.example",
    "bomb.ｅxample",
    "bomb。example",
    "BOMB．EXAMPLE",
    "bo\u00admb.example",
]


def test_no_spelling_of_a_domain_evades_the_limit(site: Site) -> None:
    for number, domain in enumerate(["bomb.example", *SPELLINGS, "bomb.example."]):
        fields = {"email": f"victim@{domain}", "login": f"login{number}", "password": PASSWORD}
        assert (422 if domain[-1] == "." else 303) == site.post("/signup", **fields).status_code
        site.post("/resend", email=fields["email"])
    assert [("victim@bomb.example", 3)] == site.db.execute(
        "SELECT a.email, count(*) FROM accounts a JOIN tokens t ON t.account = a.id GROUP BY a.email"
    ).fetchall()


def test_an_international_domain_is_kept_as_it_is_mailed(site: Site) -> None:
    site.sign_up("zoe@bücher.example")
    assert "provisioned" == site.status("zoe@xn--bcher-kva.example")
    site.post("/activate", token=site.mails("activation", "zoe@xn--bcher-kva.example")[0][0])
    assert 303 == site.sign_in("zoe@BÜCHER.example").status_code


def test_what_was_typed_is_shown_again_and_harmless(site: Site) -> None:
    answer = site.post("/signup", email='"><b>@x y', login="<script>alert(1)</script>", password="sh<rt")
    assert 422 == answer.status_code
    assert "<script" not in answer.text
    assert "<b>" not in answer.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in answer.text
    assert "sh&lt;rt" not in answer.text
    assert 3 == len(re.findall('aria-invalid="true"', answer.text))
    for name in ("email", "login", "password"):
        assert f'<li><a href="#{name}">' in answer.text
    assert [] == site.db.execute("SELECT FROM accounts").fetchall()


def test_a_login_from_elsewhere_is_shown_and_harmless(site: Site) -> None:
    site.signed_up()
    site.db.execute("UPDATE accounts SET login = '<script>alert(1)</script>'")
    site.sign_in()
    assert "Hello &lt;script&gt;" in site.get("/").text


PATHS = ["/signup", "/activate", "/resend", "/signin", "/signout", "/forgot", "/recover"]
PATHS += ["/signin-link", "/magic-link", "/change-email", "/accept-invitation"]
PATHS += ["/language", "/email", "/password", "/invite"]  # of those who are signed in


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_hostile_forms_are_refused(site: Site, path: str) -> None:
    """And none of them is an error of ours, or changes anything."""
    site.signed_up()
    site.sign_in()
    fields = {
        "email": "zoe@example.com",
        "login": "x" * 9,
        "locale": "de",
        "current": PASSWORD,
        "password": PASSWORD,
        "code": "12345",
        "token": TOKEN,
    }
    before = site.everything()
    whole = urlencode(fields)
    bodies: list[tuple[int, str | bytes, dict[str, str]]] = [
        (400, urlencode(fields | {"email": "a\0@b", "password": "a\0bcdefghijk", "token": "\0"}), FORM),
        (400, whole + "&email=mallory%40example.com&token=x", FORM),
        (400, "email=%ff%fe&password=%80", FORM),
        (400, b"email=\xff\xfe&token=\xc3\xa9", FORM),
        (400, "&".join(f"f{n}=1" for n in range(500)), FORM),
        (413, "email=" + "a" * 20_000, FORM),
        (415, whole, {"Content-Type": "text/plain"}),
        (415, whole, {}),
        (415, "{}", {"Content-Type": "application/json"}),
        (403, whole, FORM | {"Sec-Fetch-Site": "cross-site"}),
        (403, whole, FORM | {"Sec-Fetch-Site": "same-site"}),
    ]
    for status, body, headers in bodies:
        answer = site.browser.post(path, content=body, headers=headers)
        assert status == answer.status_code, body[:40]
        assert "Traceback" not in answer.text
    if path != "/signout":
        for body in ("", "%zz=%", "email=%zz%&token=%&code=%2", "&&&;;;==="):
            assert site.browser.post(path, content=body, headers=FORM).status_code in (400, 422)
    assert before == site.everything()


def test_without_fetch_metadata_the_origin_decides(site: Site) -> None:
    with httpx.Client(base_url=site.url) as old_browser:
        fields = {"email": "zoe@example.com"}
        for origin in ("https://evil.example", "null", f"{site.url}.evil.example"):
            assert 403 == old_browser.post("/forgot", data=fields, headers={"Origin": origin}).status_code
        assert 303 == old_browser.post("/forgot", data=fields, headers={"Origin": site.url}).status_code
        assert 303 == old_browser.post("/forgot", data=fields).status_code


@pytest.mark.slow
@pytest.mark.parametrize("declared", [True, False])
def test_ten_megabytes_are_not_read(site: Site, declared: bool) -> None:
    chunks = (b"a" * 65_536 for _ in range(160))
    host, port = site.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    headers = FORM | ({"Content-Length": str(160 * 65_536)} if declared else {})
    sent = 0

    def counted() -> Iterator[bytes]:
        nonlocal sent
        for chunk in chunks:
            yield chunk
            sent += len(chunk)

    try:
        connection.request("POST", "/signup", counted(), headers, encode_chunked=not declared)
    except OSError:
        pass  # it hung up, which is the answer
    else:
        assert 413 == connection.getresponse().status
    finally:
        connection.close()
    assert 200 == site.get("/signup").status_code


def test_hostile_addresses_are_refused(site: Site) -> None:
    paths = [
        *(f"/activate?token={token}" for token in ("%ff", "%", "%00", "<script>", "&token=", "a" * 5000))
    ]
    paths += [
        "/recover?token=%zz",
        "/sent/other",
        "/sent/%ff",
        "/nowhere",
        "/%00",
        "/%2e%2e/",
        "//evil.example",
    ]
    paths += ["/static/../app.py", "/static/%2e%2e/app.py", "/static/", "/static/%00"]
    host, port = site.url.removeprefix("http://").split(":")
    for path in paths:
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        connection.putrequest("GET", path, skip_accept_encoding=True)
        connection.endheaders()
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        assert answer.status in (400, 404), path
        assert "Traceback" not in text
        assert "<script" not in text


def test_a_cookie_that_was_made_up_is_no_session(site: Site) -> None:
    for cookie in ("x", "a.b.c", "é".encode().hex(), "eyJhY2NvdW50IjoxfQ==.x.y"):
        with httpx.Client(base_url=site.url, cookies={COOKIE: cookie}) as browser:
            assert "Welcome" in browser.get("/").text


def test_every_answer_has_strict_headers(site: Site) -> None:
    token = mailroom.sign(bytes(32), "activation", keys=KEY)
    paths = ["/", "/signup", "/signin", "/nowhere", "/static/style.css", "/sent/forgot"]
    paths += [f"/activate?token={token}", "/activate", f"/recover?token={TOKEN}", "/recover"]
    paths += [f"{path}?token={TOKEN}" for path in ("/magic-link", "/change-email", "/accept-invitation")]
    leaky_paths = ("/activate", "/recover", "/magic-link", "/change-email", "/accept-invitation")
    for path in paths:
        headers = site.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "nosniff" == headers["x-content-type-options"]
        assert ("max-age=600" if "static" in path else "no-store") == headers["cache-control"]
        leaky = path.startswith(leaky_paths)
        assert ("no-referrer" if leaky else "same-origin") == headers["referrer-policy"]
    assert "no-store" == site.post("/forgot", email="a@b").headers["cache-control"]
    assert "GET" in site.browser.delete("/signup").headers["allow"]


def test_the_pages_need_nothing_from_elsewhere_and_one_script() -> None:
    sources = [path.read_text() for path in HERE.rglob("*") if path.suffix in (".html", ".css", ".js")]
    assert len(sources) > 10
    for source in sources:
        source = source.replace('<script src="/static/news.js" defer></script>', "", 1)
        assert not re.findall(r"https?:|//[a-z]|<script|\bon\w+=|style=|@import|url\(", source)


@pytest.mark.slow
def test_in_a_browser_every_page_can_be_used_by_everyone(site: Site) -> None:
    """The lifecycle, clicked, on a phone in the dark and at a desk in the light; then without JavaScript."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"there is no browser: none of {', '.join(NAMES)} is installed")
    # One that ends with the test: while it runs, nothing else in this thread can start an event loop.
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        contexts = [
            chromium.new_context(viewport=PHONE, color_scheme="dark", bypass_csp=True),
            chromium.new_context(viewport=DESK, color_scheme="light", bypass_csp=True),
        ]
        for number, context in enumerate(contexts):
            click_through(site, context.new_page(), f"zoe{number}")
        scriptless = chromium.new_context(java_script_enabled=False)
        page = scriptless.new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        fill(page, f"{site.url}/signup", email="max@example.com", login="max", password=PASSWORD)
        page.goto(f"{site.url}/activate?token={site.mails('activation', 'max@example.com')[0][0]}")
        page.click("main button")
        fill(page, page.url, email="max@example.com", password=PASSWORD)
        assert "Hello max" == page.inner_text("h1")
        page.click("header button")
        assert "You are signed out on every device." == page.inner_text("[role=status]")
        assert [] == said
        chromium.close()


def click_through(site: Site, page: Page, login: str) -> None:
    """What a user sees from sign-up to the new password."""
    email = f"{login}@example.com"

    def arrives(headline: str) -> None:
        assert headline == page.inner_text("h1")
        assert [] == accessibility_faults(page), headline
        assert 0 == overflow(page), headline

    page.goto(site.url)
    arrives("Welcome")
    page.keyboard.press("Tab")
    assert "Skip to the content" == page.evaluate("document.activeElement.textContent")
    fill(page, f"{site.url}/signup", email="a@b@c", login="<b>", password="x" * 10)
    arrives("Sign up")
    assert "faults" == page.evaluate("document.activeElement.className")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert "email" == page.evaluate("document.querySelector(':target').id")
    fill(page, page.url, email=email, login=login, password=PASSWORD)
    arrives("Look for our mail")
    fill(page, f"{site.url}/signin", email=email, password=PASSWORD)
    arrives("Sign in")
    page.get_by_role("button", name="Send it again").click()
    arrives("Look for our mail")
    page.goto(f"{site.url}/activate?token={site.mails('activation', email)[0][0]}")
    arrives("Activate your account")
    page.click("main button")
    arrives("Sign in")
    page.goto(f"{site.url}/activate?token={site.mails('activation', email)[0][0]}")
    page.click("main button")
    arrives("This link was used before")
    fill(page, f"{site.url}/forgot", email=email)
    token, code = site.mails("password_recovery", email)[0]
    fill(page, f"{site.url}/recover?token={token}", code=wrong(code), password=NEW_PASSWORD)
    arrives("Set a new password")
    assert token not in page.url
    fill(page, "", code=code, password=NEW_PASSWORD)
    fill(page, "", email=email, password=NEW_PASSWORD)
    arrives(f"Hello {login}")


def test_the_document_quotes_the_code() -> None:
    document = (HERE.parents[3] / "docs" / "example.md").read_text()
    # Without blanks, for a line may be folded where it stands further to the right.
    code = re.sub(r"\s", "", "".join(path.read_text() for path in HERE.glob("*.py")))
    quotes = re.findall("```(?:python|sql)\n(.*?)```", document, re.DOTALL)
    assert quotes
    for line in "".join(quotes).splitlines():
        assert re.sub(r"\s", "", line) in code


def test_it_is_among_the_examples() -> None:
    example = HERE.parents[3] / "examples" / "signup"
    assert (HERE / "app.py").read_text() == (example / "app.py").read_text()
    assert not example.is_symlink() or not example.readlink().is_absolute()


def test_keys_that_are_none_are_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="hexadecimal"):
        create_app("postgresql://x", "no key", session_secret="s" * 32)


def test_without_its_actions_it_says_what_to_do(database: str) -> None:
    async def begin() -> None:
        app = create_app(database, KEY, session_secret="s" * 32)
        async with app.router.lifespan_context(app):
            pass

    with pytest.raises(
        RuntimeError, match=r"run `mailroom actions apply magic_link email_change .*email_changed`"
    ):
        asyncio.run(begin())


def test_it_starts_from_the_command_line(database: str, db: Db) -> None:
    add_actions(db, *ACTIONS)
    variables = {"MAILROOM_DATABASE_URL": database, "MAILROOM_SECRET_KEY": KEY, "PORT": str(free_port())}
    with subprocess.Popen(
        [sys.executable, "-m", "mailroom.demo.signup"],
        stderr=subprocess.PIPE,
        env=os.environ | variables,
        text=True,
    ) as process:
        assert process.stderr
        try:
            assert any("running on" in line for line in process.stderr)
            address = f"http://127.0.0.1:{variables['PORT']}"
            assert "Sign up" in httpx.get(f"{address}/signup?token=secret").text
        finally:
            process.terminate()
        assert "secret" not in process.stderr.read()
