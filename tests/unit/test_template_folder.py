"""The folder of templates: languages, the layout, and files that come and change while a program runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from babel import Locale
from babel.localedata import locale_identifiers
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mailroom.actions import Action
from mailroom.cli.templates import templates
from mailroom.errors import TemplateError
from mailroom.operations.action_files import write_built_in
from mailroom.templates import sources
from mailroom.templates.checks import check, check_action, usable
from mailroom.templates.languages import canonical, choose, direction, duration
from mailroom.templates.mails import for_ses, render
from mailroom.templates.sources import TemplateFolder
from mailroom.wire import Message
from support.messages import ACTIVATION, CATALOGUE

CONSTANTS = {"app_name": "Acme", "app_url": "https://acme.example"}
TRANSLATIONS = ["de", "de-CH", "pt-BR", "zh-Hant"]
LAYOUT = '<html lang="{{lang}}" dir="{{dir}}"><body>{{body}}</body></html>'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own; each look at it is a new one."""
    monkeypatch.setattr(sources, "LOOK_INTERVAL_S", 0.0)
    write_built_in(tmp_path)
    return tmp_path


def write(folder: Path, name: str, subject: str, text: str, html: str) -> None:
    for part, source in ((".subject.txt", subject), (".txt", text), (".html", html)):
        (folder / f"{name}{part}").write_text(source)


def subject(opened: TemplateFolder, action: Action, locale: str) -> str:
    return usable(opened, action, locale).subject


@pytest.mark.parametrize(
    ("locale", "chosen"),
    [
        ("", ""),
        ("de", "de"),
        ("DE", "de"),
        ("de-AT", "de"),
        ("de_AT", "de"),
        ("de-at-1996", "de"),
        ("de-CH", "de-CH"),
        ("de_ch", "de-CH"),
        ("de-CH-1996", "de-CH"),
        ("pt-BR", "pt-BR"),
        ("pt_br", "pt-BR"),
        ("pt", ""),
        ("pt-PT", ""),
        ("zh-hant-TW", "zh-Hant"),
        ("zh-TW", ""),
        ("en", ""),
        ("en-GB", ""),
        ("fr", ""),
        ("deu", ""),
        ("-", ""),
        ("de-", ""),
        ("../de", ""),
        ("x" * 1000, ""),
    ],
)
def test_a_locale_falls_back_to_wider_languages_and_then_to_the_plain_one(locale: str, chosen: str) -> None:
    assert chosen == choose(locale, TRANSLATIONS, "en")


@pytest.mark.parametrize(
    ("locale", "chosen"), [("de-AT", ""), ("de", ""), ("de-CH", "de-CH"), ("en-GB", "en"), ("fr", "")]
)
def test_the_language_of_the_plain_templates_is_the_plain_one(locale: str, chosen: str) -> None:
    assert chosen == choose(locale, ["de-CH", "en"], "DE")


@given(st.text(max_size=40))
def test_any_locale_has_a_language(locale: str) -> None:
    assert choose(locale, TRANSLATIONS, "en") in ["", *TRANSLATIONS]


def test_a_tag_has_one_spelling() -> None:
    assert ["pt-BR", "zh-Hant-TW", "es-419", "de-1996"] == [
        canonical(tag) for tag in ("PT_br", "zh_hant_tw", "ES-419", "de_1996")
    ]


@pytest.mark.parametrize("language", ["ar", "he", "fa", "ur", "ar-EG", "ps", "yi", "az-Arab", "ckb"])
def test_text_that_runs_to_the_left_is_known(language: str) -> None:
    assert "rtl" == direction(language)


@pytest.mark.parametrize("language", ["en", "de-AT", "ja", "zh-Hant", "tlh", "xx-YY", "az"])
def test_other_text_runs_to_the_right(language: str) -> None:
    assert "ltr" == direction(language)


@pytest.mark.parametrize(
    ("seconds", "language", "text"),
    [
        (900, "en", "15 minutes"),
        (900, "de-AT", "15 Minuten"),
        (60, "en", "1 minute"),
        (3600, "de", "1 Stunde"),
        (86_400, "en", "1 day"),
        (7 * 86_400, "de", "7 Tage"),
        (5400, "en", "90 minutes"),
        (90_000, "en", "25 hours"),
        (61, "en", "61 seconds"),
        (7 * 86_400, "pl", "7 dni"),
        (900, "ja", "15 分"),
        (900, "xx", "15 minutes"),
    ],
)
def test_a_lifetime_is_in_the_largest_unit_that_divides_it(seconds: int, language: str, text: str) -> None:
    assert text == duration(seconds, language)


@pytest.mark.slow
def test_each_language_that_babel_knows_has_durations() -> None:
    languages = {identifier for identifier in locale_identifiers() if Locale.parse(identifier).language}
    for language in sorted(languages):
        for seconds in (60, 900, 7200, 86_400, 7 * 86_400):
            text = duration(seconds, language.replace("_", "-"))
            assert text.strip(), language
            assert "{" not in text


def test_a_translation_is_used_when_all_three_of_its_files_are_there(folder: Path) -> None:
    opened = TemplateFolder(folder, CONSTANTS)
    (folder / "activation.FR.subject.txt").write_text("Bonjour")
    (folder / "activation.fr.txt").write_text("{{secret}}")
    assert "Activate your Acme account" == subject(opened, ACTIVATION, "fr-CA")
    assert ["activation.fr.html: missing, so mails in fr are sent in en"] == check_action(opened, ACTIVATION)
    (folder / "activation.fr.html").write_text("<p>{{secret}}</p>")
    assert "Bonjour" == subject(opened, ACTIVATION, "fr-CA")
    assert ["de", "fr"] == opened.languages(ACTIVATION)
    assert [] == check_action(opened, ACTIVATION)
    (folder / "activation.fr.html").unlink()
    assert "Activate your Acme account" == subject(opened, ACTIVATION, "fr-CA")


def test_files_that_changed_are_read_again(folder: Path) -> None:
    opened = TemplateFolder(folder, CONSTANTS)
    assert "Aktivieren Sie Ihr Konto bei Acme" == subject(opened, ACTIVATION, "de")
    (folder / "activation.de.subject.txt").write_text("Hallo")
    assert "Hallo" == subject(opened, ACTIVATION, "de")
    (folder / "layout.html").write_text(LAYOUT)
    assert usable(opened, ACTIVATION, "de").page.startswith('<html lang="de" dir="ltr"><body><div')


def test_an_action_without_files_is_found_when_they_come(tmp_path: Path) -> None:
    write_built_in(tmp_path)
    opened = TemplateFolder(tmp_path, CONSTANTS)
    own = Action("join", 30, b"/join")
    for _ in range(2):
        with pytest.raises(TemplateError, match=r"join\.subject\.txt: No such file") as missing:
            usable(opened, own, "")
        assert "mailroom init" in missing.value.hint
    write(tmp_path, "join", "Join {{nobody}}", "{{secret}}", "{{secret}}")
    with pytest.raises(
        TemplateError, match=r"join\.subject\.txt: \{\{nobody\}\} is not a field of join"
    ) as wrong:
        usable(opened, own, "")
    assert "`mailroom templates check`" in wrong.value.hint
    (tmp_path / "join.subject.txt").write_text("Join")
    assert "Join" == subject(opened, own, "")


def test_check_finds_an_action_without_files(folder: Path) -> None:
    (folder / "actions.toml").write_text(
        '[activation]\nnumber = 1\nprefix = "/activate"\n[join]\nnumber = 30\nprefix = "/join"\n'
    )
    variables = {"TEMPLATES": str(folder), "APP_NAME": "Acme", "APP_URL": "https://acme.example"}
    done = CliRunner().invoke(
        templates, ["check"], env={f"MAILROOM_{name}": value for name, value in variables.items()}
    )
    assert 78 == done.exit_code
    assert done.stdout.startswith("activation: ok (en, de)\njoin:\n")
    assert f"{folder}/join.subject.txt: No such file" in done.stdout


def test_a_folder_that_is_gone_is_a_missing_template(folder: Path) -> None:
    opened = TemplateFolder(folder, CONSTANTS)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    with pytest.raises(TemplateError, match="No such file"):
        usable(opened, ACTIVATION, "de")


def test_the_folder_says_the_language_of_its_plain_templates(folder: Path) -> None:
    table = '[activation]\nnumber = 1\nprefix = "/activate"\naccount = "provisioned"\n'
    (folder / "actions.toml").write_text(f'language = "de"\n{table}')
    write(folder, "activation", "Hallo", "{{secret}} {{expires_in}}", "<p>{{secret}}</p>")
    write(folder, "activation.en", "Hello", "{{secret}} {{expires_in}}", "<p>{{secret}}</p>")
    opened = TemplateFolder(folder, CONSTANTS)
    assert ["Hallo", "Hallo", "Hallo", "Hello"] == [
        subject(opened, ACTIVATION, locale) for locale in ("", "de-AT", "fr", "en-GB")
    ]
    template = usable(opened, ACTIVATION, "")
    assert ("de", "") == (template.language, template.tag)
    assert render(template, Message(ACTIVATION, "a@b.example", "", "T", "1")).text.endswith("15 Minuten")
    (unused,) = check_action(opened, ACTIVATION)
    assert (
        unused == "activation.de.html: not used, since actions.toml says that the plain templates are in de"
    )
    (folder / "actions.toml").write_text('language = "d')  # half written
    assert "Hallo" == subject(opened, ACTIVATION, "de")
    (folder / "actions.toml").write_text(f'language = "en"\n{table}')
    assert "Aktivieren Sie Ihr Konto bei Acme" == subject(opened, ACTIVATION, "de")


def test_text_that_runs_to_the_left_has_its_direction_in_the_layout(folder: Path) -> None:
    write(
        folder,
        "activation.ar",
        "مرحبا {{login}}",
        "{{secret}}",
        "<p>مرحبا {{login}} {{secret}} {{expires_in}}</p>",
    )
    template = usable(TemplateFolder(folder, CONSTANTS), ACTIVATION, "ar-EG")
    page = for_ses(template, "x")["HtmlPart"]
    assert '<html lang="ar" dir="rtl">' in page
    assert "مرحبا {{login_html}}" in page
    assert "15 دقيقة" in render(template, Message(ACTIVATION, "a@b.example", "", "T", "1")).html


@pytest.mark.parametrize(
    "start", ["<!DOCTYPE html>", "\n<html>", "<!-- ours --> <!doctype html>", "<HTML lang=en>"]
)
def test_a_whole_page_has_no_layout_around_it(folder: Path, start: str) -> None:
    (folder / "activation.html").write_text(f"{start}<p>{{{{secret}}}}</p>")
    (folder / "layout.html").write_text("{{nothing}}")
    template = usable(TemplateFolder(folder, CONSTANTS), ACTIVATION, "")
    assert f"{start}<p>{{{{secret}}}}</p>" == template.page


def test_a_layout_is_optional(folder: Path) -> None:
    (folder / "layout.html").unlink()
    template = usable(TemplateFolder(folder, CONSTANTS), ACTIVATION, "")
    assert template.page == template.html


@pytest.mark.parametrize(
    ("layout", "fault"),
    [
        ("<html>", "layout.html: {{body}} is missing"),
        ("{{body}}{{body}}", "layout.html: {{body}} is there more than once"),
        (
            "{{body}}{{login}}",
            "layout.html: {{login}} is refused: a layout may have {{body}}, {{lang}}, {{dir}}",
        ),
        ("{{#if body}}{{body}}{{/if}}", "layout.html: {{#if body}} is refused"),
        ("{{~body}}", "layout.html: {{~body}} is refused"),
        ("{{body}}{{#if", "layout.html: not Handlebars"),
        ("{{body}}{{other}}", "layout.html: {{other}} is refused"),
        (
            "{{body}}{{~app_name}}",
            "layout.html: {{~app_name}} is refused: for a constant, write {{app_name}}",
        ),
        ('<a href="{{body}}">', "activation.html: {{login}} is in the attribute href, where"),
        ("<script>{{body}}</script>", "activation.html: {{login}} is in <script>"),
    ],
)
def test_a_layout_is_checked(folder: Path, layout: str, fault: str) -> None:
    write(folder, "activation", "Hello", "{{secret}}", "<p class='x'>{{login}} {{secret}}</p>")
    (folder / "layout.html").write_text(layout)
    first, *_ = check(TemplateFolder(folder, CONSTANTS).template(ACTIVATION))
    assert first.startswith(fault)


def test_names_that_are_no_templates_are_not_read(folder: Path) -> None:
    for name in (
        "README.md",
        "activation.html.orig",
        "activation..html",
        "Activation.txt",
        "activation.d.html",
    ):
        (folder / name).write_text("{{")
    (folder / "activation.nl.html").symlink_to(folder / "nothing")
    opened = TemplateFolder(folder, CONSTANTS)
    assert [] == check_action(opened, ACTIVATION)
    assert ["de"] == opened.languages(ACTIVATION)


def test_a_template_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = TemplateFolder(folder, CONSTANTS)
    first = usable(opened, ACTIVATION, "de")
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: pytest.fail("read again"))
    assert first is usable(opened, ACTIVATION, "de")


@pytest.mark.parametrize("module", ["mailroom", "mailroom.collector.program", "mailroom.cli.main"])
def test_babel_is_imported_by_what_writes_mails_alone(module: str) -> None:
    code = f"import {module}, sys; assert not any(name.partition('.')[0] == 'babel' for name in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_action_has_a_template_in_ses_of_its_own() -> None:
    assert len(CATALOGUE) == len({action.template for action in CATALOGUE.values()})
