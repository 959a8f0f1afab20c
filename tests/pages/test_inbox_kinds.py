"""What the inbox recognises in a mail: its action, its language, its link and its code."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import expect

from mailroom.actions import Action, load_actions
from mailroom.inbox.calls import BulkCall, Destination
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.kinds import Kinds, code_of, is_template, language_of
from mailroom.inbox.links import Link, find_links
from mailroom.inbox.server import InboxServer
from mailroom.templates.mails import RenderedMail
from support.browser import (
    PHONE,
    BrowserPages,
    accessibility_faults,
    browser_fixture,  # noqa: F401
    overflow,
    pages_fixture,  # noqa: F401
)
from support.inbox import DATA, ask, mail
from support.senders import with_templates

CATALOGUE = load_actions()
KINDS = Kinds(CATALOGUE.values())
MORE = {name: f"<b>{name}</b>" for action in CATALOGUE.values() for name in action.fields}
RTL = (
    "הוזמנת {{login}}",
    "שלום {{login}},\n\nEnglish line.\n\nhttps://acme.example/join?token={{secret}}\n",
    '<!doctype html><html lang="he" dir="rtl"><body><p>שלום {{login_html}}</p></body></html>',
)


@pytest.fixture
def server() -> Iterator[InboxServer]:
    with InboxServer(inbox=with_templates(Inbox())) as server:
        yield server


def arrived(server: InboxServer, **wanted: str) -> list[dict[str, Any]]:
    answer = ask(server.url, f"/api/mails/wait?{urlencode(wanted | {'timeout': '0'})}")
    assert 200 == answer.status, answer.text
    found: list[dict[str, Any]] = answer.json["mails"]
    return found


def send(server: InboxServer, action: Action, language: str, recipient: str = "a@example.com") -> None:
    data = MORE | {f"{name}_html": "x" for name in MORE}
    suffix = "" if language == "en" else f"-{language}"
    mail(server, recipient, template=f"{action.template}{suffix}", **data)


@pytest.mark.parametrize("action", CATALOGUE.values(), ids=lambda action: action.name)
def test_each_mail_of_the_catalogue_is_recognised_in_each_language(
    server: InboxServer, action: Action
) -> None:
    for language in ("en", "de"):
        send(server, action, language)
    english, german = arrived(server, action=action.name, recipient="a@example.com")
    assert ["en", "de"] == [english["language"], german["language"]]
    for found in (english, german):
        assert action.name == found["action"]
        assert (DATA["code"] if action.needs_code else None) == found["code"]
        tokens = [link["token"] for link in found["links"] if "token" in link]
        assert tokens == [DATA["secret"]] * action.has_link


def test_a_wait_takes_mails_of_one_action_and_one_recipient(server: InboxServer) -> None:
    for action in CATALOGUE.values():
        for recipient in ("a@example.com", "b@example.com"):
            send(server, action, "de", recipient)
    for action in CATALOGUE.values():
        (found,) = arrived(server, action=action.name, recipient="b@example.com")
        assert (action.name, "b@example.com") == (found["action"], found["recipient"])
    assert len(CATALOGUE) == len(arrived(server, recipient="a@example.com"))


def test_an_action_of_ones_own_is_waited_for_by_its_name(server: InboxServer) -> None:
    refused = ask(server.url, "/api/mails/wait?action=team_invitation&timeout=0")
    assert (400, True) == (refused.status, "has no template here" in refused.json["error"])
    server.inbox.account.put_template("teaminvitationv1-he", RTL, new=True)
    mail(server, "a@example.com", template="teaminvitationv1-he")
    mail(server, "a@example.com")
    (found,) = arrived(server, action="team_invitation")
    # Its name is not in the catalogue, and cannot be read from the template's.
    assert (None, "he", "teaminvitationv1-he") == (found["action"], found["language"], found["template"])


def test_an_inbox_that_knows_the_folder_names_its_actions(tmp_path: Path) -> None:
    (tmp_path / "actions.toml").write_text(
        '[team_invitation]\nnumber = 30\nprefix = "/join"\n'
        '[goodbye]\nnumber = 31\nprefix = "/bye"\nlink = false\n'
    )
    kinds = Kinds(load_actions(tmp_path).values())
    assert "team_invitation" == kinds.action("teaminvitationv1-he", [])
    assert "team_invitation" == kinds.action("", at("/join?token=T"))
    assert "goodbye" == kinds.action("goodbyev1", [])
    assert None is kinds.action("", at("/bye?token=T"))  # a notice has no link
    assert None is kinds.action("activationv1", [])


def at(path: str) -> list[Link]:
    return find_links(RenderedMail("", f"https://a.example{path}", ""))


def test_an_action_shows_by_the_template_or_by_the_link() -> None:
    assert "activation" == KINDS.action("activationv1", [])
    assert "activation" == KINDS.action("activationv1-pt-BR", [])
    assert "activation" == KINDS.action("my-own", at("/users/activate?token=T"))
    assert "password_recovery" == KINDS.action("", at("/recover/?token=T"))
    assert "invitation" == KINDS.action("", at("/accept-invitation?token=T"))
    for template, path in [
        ("", "/recover"),
        ("", "/elsewhere?token=T"),
        ("activationv12", ""),
        ("activationv1-", ""),
    ]:
        assert None is KINDS.action(template, at(path))
    assert not is_template("", "activationv1")


@pytest.mark.parametrize(
    ("html", "language"),
    [
        ('<!DOCTYPE html>\n<html lang="de" dir="ltr">', "de"),
        ("<HTML dir=rtl LANG='ar-EG'><body>", "ar-EG"),
        ("<html lang=pt_BR>", "pt_BR"),
        ("<html data-lang='x'>", None),
        ('<html lang="">', None),
        ('<html lang="<script>">', None),
        ('<html xml:lang="de">', None),
        ("<p lang=de>", None),
    ],
)
def test_the_language_is_what_the_html_declares(html: str, language: str | None) -> None:
    assert language == language_of(RenderedMail("", "", html))


@pytest.mark.parametrize(
    ("data", "text", "code"),
    [
        ({"code": "12345"}, "It is 12345.", "12345"),
        ({"code": "12345"}, "It is a secret.", None),
        ({"code": "<b>12"}, "It is <b>12.", None),
        ({"code": 12345}, "12345", None),
        ({"login": "a"}, "Hello\n54321\n", None),
        ({}, "Hello\n54321\nBye", "54321"),  # as over SMTP
        ({}, "Hello\n54321\n54321\n", "54321"),
        ({}, "54321\n12345", None),
        ({}, "５４３２１", None),
    ],
)
def test_a_code_is_the_one_that_the_mail_shows(data: dict[str, Any], text: str, code: str | None) -> None:
    assert code == code_of(data, RenderedMail("", text, ""))
    assert None is code_of(data, None)


def test_a_mail_over_smtp_is_recognised_by_its_link() -> None:
    inbox = Inbox()
    letter = EmailMessage()
    letter["From"], letter["Subject"] = "app@example.com", "Hello"
    letter.set_content("https://a.example/recover?token=T\n\n54321\n")
    letter.add_alternative('<html lang="de"><p>54321</p></html>', subtype="html")
    call = BulkCall("app@example.com", "", "", "", [Destination(("a@b",), "")], message=letter.as_bytes())
    inbox.send_bulk(call)
    (found,) = inbox.mails.find()
    assert ("Hello", "password_recovery", "de", "54321") == inbox.brief(found)


@given(st.text(), st.text())
def test_any_mail_has_a_language_and_a_code_or_none(text: str, html: str) -> None:
    mail = RenderedMail("", text, f"<html {html}")
    language, code = language_of(mail), code_of({}, mail)
    assert language is None or language in html
    assert code is None or code in text


@pytest.mark.parametrize("piece", ["<html ", "<html lang", "<html lang =" + " " * 30, "12345\n", "<html x"])
def test_a_large_hostile_mail_is_recognised_in_time(piece: str) -> None:
    start = time.process_time()
    mail = RenderedMail("", piece * 100_000, piece * 100_000)
    language_of(mail), code_of({}, mail)
    assert 5 > time.process_time() - start


@pytest.mark.slow
@pytest.mark.parametrize("viewport", [PHONE, {"width": 1280, "height": 800}], ids=["phone", "desk"])
def test_the_page_shows_kind_language_link_and_code(
    server: InboxServer, pages: BrowserPages, viewport: dict[str, int]
) -> None:
    server.inbox.account.put_template("teaminvitationv1-he", RTL, new=True)
    server.inbox.account.put_template("bare", ("Nothing to click", "Hello", ""), new=True)
    mail(server, "a@example.com", template="bare")
    send(server, CATALOGUE["password_changed"], "de")
    send(server, CATALOGUE["reauthentication"], "en")
    mail(server, "he@example.com", template="teaminvitationv1-he", login="Zoë")
    page = pages.open(server.url, viewport=viewport, bypass_csp=True)
    expect(page.locator(".row .badge")).to_have_text(
        ["teaminvitationv1-he", "reauthentication", "password changed", "bare"]
    )
    languages = [when.partition(" · ")[0] for when in page.locator(".row .when").all_inner_texts()]
    assert ["he", "en", "de"] == languages[:3]
    assert "rtl" == page.locator(".row .subject").first.evaluate("row => getComputedStyle(row).direction")

    page.locator(".row").nth(0).click()
    expect(page.locator("h1")).to_contain_text("הוזמנת")
    assert "rtl" == page.locator("h1").evaluate("h1 => getComputedStyle(h1).direction")
    expect(page.locator(".facts")).to_contain_text("he")
    body = page.frame_locator("iframe").locator("p")
    assert "rtl" == body.evaluate("p => getComputedStyle(p).direction")
    assert [] == accessibility_faults(page)
    assert 0 == overflow(page)
    page.get_by_role("link", name="Text", exact=True).click()
    style = page.locator("pre.body").evaluate(
        "pre => [getComputedStyle(pre).unicodeBidi, getComputedStyle(pre).textAlign]"
    )
    assert ["plaintext", "start"] == style
    assert 0 == overflow(page)

    page.goto(server.url)
    page.locator(".row").nth(1).click()
    expect(page.locator(".links h2")).to_have_text("1 link")  # to the application
    expect(page.locator(".links .code")).to_have_text(f"Code {DATA['code']}")
    assert [] == accessibility_faults(page)
    page.goto(server.url)
    page.locator(".row").nth(2).click()
    expect(page.locator(".facts")).to_contain_text("password changed")
    expect(page.locator(".links .code")).to_have_count(0)
    page.goto(server.url)
    page.locator(".row").nth(3).click()
    expect(page.locator("h1")).to_have_text("Nothing to click")
    expect(page.locator(".links")).to_have_count(0)
    assert [] == accessibility_faults(page)
    assert 0 == overflow(page)


def test_the_command_reads_the_folder(tmp_path: Path) -> None:
    (tmp_path / "actions.toml").write_text('[goodbye]\nnumber = 31\nprefix = "/bye"\nlink = false\n')
    arguments = [sys.executable, "-m", "mailroom", "inbox", "--port", "0", "--no-print"]
    with subprocess.Popen(
        arguments,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"MAILROOM_TEMPLATES": str(tmp_path)},
    ) as process:
        assert process.stderr
        url = next(line for line in process.stderr if "The inbox is at" in line).split()[4].rstrip(".")
        assert 200 == ask(url, "/api/mails/wait?action=goodbye&timeout=0").status
        refused = ask(url, "/api/mails/wait?action=magic_link&timeout=0")
        assert (400, True) == (refused.status, refused.json["error"].endswith("is not one of goodbye"))
        process.terminate()
        assert 0 == process.wait(30)
