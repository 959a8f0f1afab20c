"""The mails of the catalogue in a real browser: they fit, say everything, and can be read in the dark."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from mailroom.actions import load_actions
from mailroom.operations.action_files import write_built_in
from mailroom.templates.checks import usable
from mailroom.templates.mails import render
from mailroom.templates.sources import Template, TemplateFolder, load
from mailroom.wire import Message
from support.browser import (
    BrowserPages,
    accessibility_faults,
    browser_fixture,  # noqa: F401
    overflow,
    pages_fixture,  # noqa: F401
    screenshots,
)

pytestmark = pytest.mark.slow

CONSTANTS: Final = {"app_name": "Acme", "app_url": "https://acme.example"}
TEMPLATES: Final = load(None, CONSTANTS)
TOKEN, CODE = "A-_" * 28 + "zz", "04217"
WIDTHS: Final = (360, 800)
SCHEMES: Final = ("light", "dark")
# What people write into such fields, and what no line holds.
DATA: Final = {
    "inviter": "Anna-Katharina Österreicher",
    "new_email": "a-rather-long-name.of-somebody@subdomain.of-a-long-domain.example.org",
    "phone": "+49 30 1234567",
    "provider": "Google",
    "factor": "Authenticator app",
    "device": "Firefox 148 on Windows 11",
    "place": "Berlin, Germany",
}
LONG: Final = "ThisIsANameWithoutAnyBlankThatIsMuchLongerThanALineOfAMail" * 3
ARABIC: Final = {
    ".subject.txt": "فعّل حسابك في {{app_name}}",
    ".txt": "{{app_url}}/activate?token={{secret}}",
    ".html": """<h1 class="strong">فعّل حسابك</h1>
<p class="plain" id="hello">مرحبًا <bdi>{{login}}</bdi>،</p>
<p class="plain">يعمل الرابط لمدة {{expires_in}}.</p>
<p class="quiet"><a id="link" href="{{app_url}}/activate?token={{secret}}" dir="ltr">{{app_url}}/activate?token={{secret}}</a></p>
""",  # noqa: E501
}


def message(template: Template, login: str = "zoë", **data: str) -> Message:
    fields = {name: data.get(name, DATA[name]) for name in template.action.fields}
    return Message(template.action, "zoe@example.com", login, TOKEN, CODE, template.tag, fields)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_mail_fits_and_says_everything(name: str, pages: BrowserPages, tmp_path: Path) -> None:
    template = TEMPLATES[name]
    one = message(template)
    path = tmp_path / "mail.html"
    path.write_text(render(template, one).html)
    page = pages.open(path.as_uri(), bypass_csp=True)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)
            assert 0 >= overflow(page)
            shot = screenshots(tmp_path) / f"{name}-{width}-{scheme}.png"
            shot.parent.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=shot, full_page=True)
            found = [
                fault for fault in accessibility_faults(page) if not fault.startswith(("landmark", "region"))
            ]
            assert [] == found
    shown = page.inner_text("body")
    assert "{{" not in page.content()
    assert (template.language, "ltr") == (
        page.get_attribute("html", "lang"),
        page.get_attribute("html", "dir"),
    )
    assert "Acme" == page.title()
    assert 1 == page.locator("h1").count()
    for text in ("zoë", "Acme", *one.data.values(), *([CODE] if template.action.needs_code else [])):
        assert text in shown
    links = [link.get_attribute("href") for link in page.locator("a").all()]
    path_of_link = f"{template.action.prefix.decode()}?token={TOKEN}" if template.action.has_link else ""
    assert {f"https://acme.example{path_of_link}"} == set(links)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_mail_fits_whatever_a_user_wrote(name: str, pages: BrowserPages, tmp_path: Path) -> None:
    template = TEMPLATES[name]
    page = pages.open("about:blank")
    for text in (
        LONG,
        "</p><script>document.title = 'escaped'</script><img src=x onerror=alert(1)>",
        "\u202eevil",
    ):
        path = tmp_path / "mail.html"
        path.write_text(render(template, message(template, text, **dict.fromkeys(DATA, text))).html)
        page.goto(path.as_uri())
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 800})
            assert 0 >= overflow(page)
        assert text in page.inner_text("body")
        assert "Acme" == page.title()
        assert [] == page.locator("script, img").all()


@pytest.mark.parametrize("login", ["\u202eevil", "\u2067evil\u2069\u202e", "\u2069\u202eevil", "שלום"])
def test_a_text_of_another_direction_reorders_nothing(
    pages: BrowserPages, tmp_path: Path, login: str
) -> None:
    path = tmp_path / "mail.html"
    path.write_text(render(TEMPLATES["activation"], message(TEMPLATES["activation"], login)).html)
    page = pages.open(path.as_uri())
    name = page.locator("bdi").bounding_box()
    assert name
    comma = page.locator("bdi").evaluate(
        "bdi => { const range = document.createRange(); range.selectNode(bdi.nextSibling);"
        " return range.getBoundingClientRect().left }"
    )
    assert name["x"] + name["width"] <= comma + 1


def test_a_language_that_runs_to_the_left_does(pages: BrowserPages, tmp_path: Path) -> None:
    write_built_in(tmp_path)
    for part, source in ARABIC.items():
        (tmp_path / f"activation.ar{part}").write_text(source)
    action = load_actions()["activation"]
    template = usable(TemplateFolder(tmp_path, CONSTANTS), action, "ar-EG")
    path = tmp_path / "mail.html"
    path.write_text(render(template, message(template)).html)
    page = pages.open(path.as_uri())
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        assert 0 >= overflow(page)
        page.screenshot(path=screenshots(tmp_path) / f"activation.ar-{width}.png", full_page=True)
    assert ("ar", "rtl") == (page.get_attribute("html", "lang"), page.get_attribute("html", "dir"))
    card, hello = page.locator(".inner").bounding_box(), page.locator("#hello").bounding_box()
    assert card
    assert hello
    start = page.evaluate(
        "() => { const range = document.createRange();"
        " range.selectNodeContents(document.querySelector('#hello'));"
        " return range.getBoundingClientRect().right }"
    )
    assert hello["x"] + hello["width"] - 1 <= start
    assert "ltr" == page.locator("#link").evaluate("link => getComputedStyle(link).direction")
    assert "15 دقيقة" in page.inner_text("body")
