"""The mails of the catalogue: each action in each language, with anything that a user may have written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from email import message_from_bytes, policy
from email.headerregistry import Address
from email.message import EmailMessage
from functools import cache
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mailroom.actions import BUILT_IN, Action, load_catalogue
from mailroom.templates.checks import check_action, check_fetched
from mailroom.templates.mails import (
    RenderedMail,
    closed,
    field_names,
    for_ses,
    render,
    ses_data,
    user_fields,
)
from mailroom.templates.sources import Template, TemplateFolder, load
from mailroom.templates.tags import Kind, render_source, tags
from mailroom.transports.mime import compose
from mailroom.wire import Message

CONSTANTS: Final = {"app_name": "Example & Sons", "app_url": "https://app.example.com"}
CATALOGUE: Final = load_catalogue().actions
LANGUAGES: Final = ("en", "de")
FOLDER: Final = TemplateFolder(None, CONSTANTS)
TEMPLATES: Final = load(None, CONSTANTS)
TOKEN, CODE = "A-_" * 28 + "zz", "04217"
FIELDS: Final = sorted(
    {name for action in CATALOGUE.values() for name in user_fields(action)} - {"expires_in"}
)
MARK: Final = re.compile("\ue000([a-z_]+)\ue001")

each_action = pytest.mark.parametrize("action", CATALOGUE.values(), ids=lambda action: action.name)
each_template = pytest.mark.parametrize("name", TEMPLATES)


def message(action: Action, locale: str, values: Mapping[str, str]) -> Message:
    data = {name: values[name] for name in action.fields if name in values}
    return Message(action, "peter@example.com", values.get("login", ""), TOKEN, CODE, locale, data)


class Page(HTMLParser):
    """A page's elements and its text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[tuple[str, str | None], ...]]] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@each_action
def test_each_action_has_its_mail_in_both_languages_and_no_fault(action: Action) -> None:
    assert ["de"] == FOLDER.languages(action)
    assert [] == check_action(FOLDER, action)
    for template in FOLDER.templates(action):
        parts = {name: text for name, text in for_ses(template, "x").items() if name != "TemplateName"}
        assert ([], []) == check_fetched(parts, action)


@each_template
def test_links_and_codes_are_in_both_parts(name: str) -> None:
    template = TEMPLATES[name]
    action = template.action
    mail = render(template, message(action, "", dict.fromkeys(FIELDS, "Zoë")))
    link = f"https://app.example.com{action.prefix.decode()}?token={TOKEN}"
    page = Page(mail.html)
    links = [dict(attrs)["href"] for tag, attrs in page.elements if tag == "a"]
    if action.has_link:
        assert link in mail.text.splitlines()
        assert [link, link] == links
        assert link in page.text
    else:
        assert ["https://app.example.com"] == links
        assert "https://app.example.com" in mail.text
    for part in (mail.text, page.text):
        assert action.has_link == (TOKEN in part)
        assert action.needs_code == (CODE in part)
        assert all(part.count("Zoë") > action.fields.index(field) for field in action.fields)
    assert "Example & Sons" in mail.subject
    assert "Example &amp; Sons" in mail.html
    assert "{{" not in "".join(mail)


@each_template
@pytest.mark.parametrize("part", ["subject", "text", "html"])
def test_a_lifetime_is_a_field_and_never_a_number_in_a_text(name: str, part: str) -> None:
    template = TEMPLATES[name]
    source = {"subject": template.subject, "text": template.text, "html": template.html}[part]
    shown = re.sub(r"<[^>]*>", "", source)
    assert not re.search(r"\d", shown), shown
    if template.action.has_link or template.action.needs_code:
        assert part == "subject" or "{{expires_in}}" in source


@each_action
def test_mails_read_well_without_any_field(action: Action) -> None:
    for template in FOLDER.templates(action):
        mail = render(template, message(action, "", {}))
        for part in (mail.subject, mail.text):
            assert not re.search(r" [,.:!?]|: +$|\n\n\n", part, re.MULTILINE), part
        assert re.match(r"(Hello|Guten Tag),\n", mail.text)


@each_action
def test_both_languages_show_the_same_fields(action: Action) -> None:
    def shown(template: Template) -> list[list[tuple[Kind, str]]]:
        return [
            sorted({(tag.kind, tag.name) for tag in tags(part)}, key=str)
            for part in template.parts().values()
        ]

    english, german = FOLDER.templates(action)
    assert shown(english) == shown(german)


def test_the_folder_holds_nothing_else() -> None:
    names = {
        f"{action}{language}{part}"
        for action, language, part in product(CATALOGUE, ("", ".de"), (".subject.txt", ".txt", ".html"))
    }
    assert {"actions.toml", "layout.html", *names} == {path.name for path in Path(BUILT_IN).iterdir()}


@pytest.mark.parametrize(("locale", "sentence"), [("en", "for 15 minutes."), ("de-AT", "gilt 15 Minuten.")])
def test_the_lifetime_is_in_the_readers_language(locale: str, sentence: str) -> None:
    action = CATALOGUE["activation"]
    mail = render(FOLDER.template(action, FOLDER.language_for(action, locale)), message(action, locale, {}))
    assert sentence in mail.text
    assert sentence in Page(mail.html).text


texts = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=120)
PIECES: Final = [
    *(
        "<",
        ">",
        "&",
        '"',
        "'",
        "`",
        "=",
        "{",
        "}",
        "{{",
        "}}",
        "{{{",
        "!--",
        "--",
        "/",
        "\\",
        " ",
        "a",
        "\u00a0",
    ),
    *("{{secret}}", "{{#if login}}", "{{/if}}", "</p>", "</style>", "<script>", "&amp;", "&#x3c;", "]]>"),
    *("\u202e", "\u2066", "\u2069", "\u200f", "\u2028", "\u2029", "\u200d", "👩\u200d💻", "é", "e\u0301"),
    *("javascript:alert(1)", " onload=x", "=?utf-8?q?x?=", "%0d%0a", "\ufeff", "\ufffd"),
]
hostile = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
values = st.fixed_dictionaries(dict.fromkeys(FIELDS, texts | hostile))


@cache
def marked(name: str, empty: frozenset[str]) -> tuple[RenderedMail, Page]:
    """A mail whose fields are marks, except those that are empty."""
    template = TEMPLATES[name]
    marks = {field: "" if field in empty else f"\ue000{field}\ue001" for field in FIELDS}
    mail = render(template, message(template.action, template.tag, marks))
    return mail, Page(mail.html)


def assert_nothing_escapes(name: str, given_values: Mapping[str, str]) -> None:
    """Each value is itself in subject and text, text in HTML, and a string in SES's JSON."""
    template = TEMPLATES[name]

    def filled(text: str) -> str:
        return MARK.sub(lambda mark: closed(given_values[mark[1]]), text)

    expected, expected_page = marked(name, frozenset(field for field in FIELDS if not given_values[field]))
    one = message(template.action, template.tag, given_values)
    mail = render(template, one)
    page = Page(mail.html)
    assert filled(expected.subject) == mail.subject
    assert filled(expected.text) == mail.text
    assert expected_page.elements == page.elements
    assert filled(expected_page.text) == page.text

    data = json.loads(ses_data(one, template.language))
    assert set(field_names(template.action)) == set(data)
    assert {closed(given_values[field]) for field in template.action.fields} <= set(data.values())
    parts = for_ses(template, "x")
    assert list(mail) == [
        render_source(parts[part], data) for part in ("SubjectPart", "TextPart", "HtmlPart")
    ]


HOSTILE: Final = (
    "<b>&\"'`=",
    "{{secret}}{{#if login}}",
    "\u202e\u2028</p><script>alert(1)</script>",
    '" onmouseover="alert(1)',
    "{{{login}}} \\{{login}} }} {{",
    "</style><img src=x onerror=alert(1)>",
    "\u2067שלום 👩\u200d💻",
    "=?utf-8?q?x?=",
    "",
)


@each_template
@pytest.mark.parametrize("value", HOSTILE)
def test_what_a_user_wrote_stays_in_its_place(name: str, value: str) -> None:
    assert_nothing_escapes(name, dict.fromkeys(FIELDS, value))


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(sorted(TEMPLATES)), values)
def test_nothing_escapes_its_place(name: str, given_values: dict[str, str]) -> None:
    assert_nothing_escapes(name, given_values)


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(values)
def test_nothing_escapes_its_place_in_any_template(given_values: dict[str, str]) -> None:
    """More than a thousand values, since each example has one for each field."""
    for name in TEMPLATES:
        assert_nothing_escapes(name, given_values)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(sorted(TEMPLATES)), values)
@example("invitation.de", dict.fromkeys(FIELDS, "=?utf-8?q?x?= \u2028 " + "é" * 90))
def test_a_mail_over_smtp_says_the_same(name: str, given_values: dict[str, str]) -> None:
    template = TEMPLATES[name]
    mail = render(template, message(template.action, template.tag, given_values))
    sender, recipient = Address("", "noreply", "example.com"), Address("", "zoe", "example.org")
    content = compose(mail, template.language, sender, recipient, "1@example.com")
    parsed = message_from_bytes(content, policy=policy.default)
    assert isinstance(parsed, EmailMessage)
    assert (template.language, "zoe@example.org") == (parsed["Content-Language"], parsed["To"])
    text, html_part = parsed.iter_parts()
    assert isinstance(text, EmailMessage)
    assert isinstance(html_part, EmailMessage)
    assert mail.text.splitlines() == text.get_content().splitlines()
    assert mail.html.splitlines() == html_part.get_content().splitlines()
    assert content.count(b"\r\nSubject: ") + content.startswith(b"Subject: ") == 1
    assert {"Subject", "From", "To", "Date", "Message-ID", "Auto-Submitted", "Content-Language"} >= {
        name for name in parsed if name not in ("MIME-Version", "Content-Type")
    }


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("plain", ""),
        ("שלום \u200f", ""),
        ("\u202eevil", "\u202c"),
        ("\u202eevil\u202c", ""),
        ("\u2067evil", "\u2069"),
        ("\u2067\u202eevil", "\u202c\u2069"),
        ("\u2067\u202eevil\u2069", ""),
        ("\u202e\u2067evil\u202c", "\u2069\u202c"),
        ("\u202c\u2069evil", ""),
        ("\u2069\u202eevil\u2069", "\u202c"),
    ],
)
def test_a_text_of_another_direction_ends_with_its_field(text: str, ends: str) -> None:
    assert text + ends == closed(text)


@settings(deadline=None)
@given(st.text("a\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069", max_size=30))
def test_what_is_closed_stays_closed(text: str) -> None:
    once = closed(text)
    assert once.startswith(text)
    assert once == closed(once)
