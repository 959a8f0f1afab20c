"""Templates: what is put in, what is escaped, what is refused, and the way into SES."""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from click.testing import CliRunner, Result
from dotpromptz_handlebars import StrictModeError
from hypothesis import given, settings
from hypothesis import strategies as st

from mailroom.actions import Action
from mailroom.cli.templates import SAMPLE_TOKEN
from mailroom.cli.templates import templates as command
from mailroom.errors import MailroomError, TemplateError, WireError
from mailroom.operations.action_files import write_built_in
from mailroom.templates.checks import check, check_fetched
from mailroom.templates.listing import PARTS
from mailroom.templates.mails import fields, for_ses
from mailroom.templates.remote import due_change, fetch, push
from mailroom.templates.sources import Template, load
from mailroom.templates.tags import _compiled, placeholders, render_source
from mailroom.wire import Message
from support.messages import ACTIVATION, CATALOGUE, PASSWORD_RECOVERY

CONSTANTS = {"app_name": "Example & Sons", "app_url": "https://app.example.com"}
BUILT_IN = load(None, CONSTANTS)
TOKEN, CODE = "A-_" * 28 + "zz", "04217"

INVITATION = CATALOGUE["invitation"]
NAMES = list(CATALOGUE)


def message(action: Action, login: str = "peter.pan") -> Message:
    return Message(action, "peter.pan@example.com", login, TOKEN, CODE)


def template(
    html: str = "<p>{{login}} {{secret}}</p>", text: str = "{{login}} {{secret}}", subject: str = "Hello"
) -> Template:
    return Template(ACTIVATION, subject, text, html)


def test_the_data_are_the_actions_fields_and_the_escaped_ones() -> None:
    assert {
        "login": "<",
        "login_html": "&lt;",
        "secret": TOKEN,
        "expires_in": "15 Minuten",
        "expires_in_html": "15 Minuten",
    } == fields(message(ACTIVATION, "<"), "de")
    assert {"login", "login_html", "secret", "code", "expires_in", "expires_in_html"} == fields(
        message(PASSWORD_RECOVERY), "en"
    ).keys()


def test_a_field_that_the_data_does_not_have_is_empty_and_one_of_another_action_is_left_out() -> None:
    one = message(INVITATION)
    assert "" == fields(one, "en")["inviter"] == fields(one, "en")["inviter_html"]
    data = fields(one._replace(data={"inviter": "A&B", "phone": "1"}, expires_in_s=5400), "en")
    assert ("A&B", "A&amp;B", "90 minutes") == (data["inviter"], data["inviter_html"], data["expires_in"])
    assert "phone" not in data


@pytest.mark.parametrize(
    ("source", "sent"),
    [
        ("{{login}}", "{{login_html}}"),
        ("{{ login }}", "{{ login_html }}"),
        ("{{~login~}}", "{{~login_html~}}"),
        ("{{{login}}}", "{{{login_html}}}"),
        ("{{&login}}", "{{&login_html}}"),
        ("{{#if login}}{{login}}{{/if}}", "{{#if login}}{{login_html}}{{/if}}"),
        ("{{! login }}{{!-- {{login}} --}}", "{{! login }}{{!-- {{login}} --}}"),
        ("{{logins}} {{secret}} login", "{{logins}} {{secret}} login"),
    ],
)
def test_ses_gets_the_escaped_login_in_html(source: str, sent: str) -> None:
    parts = for_ses(template(html=source, text=source), "name")
    assert {"TemplateName": "name", "SubjectPart": "Hello", "TextPart": source, "HtmlPart": sent} == parts


@pytest.mark.parametrize(
    ("html", "fault"),
    [
        ("", "activation.html: empty"),
        ("{{login}}", "activation.html: {{secret}} is missing"),
        ("{{login}} {{#unless login}}{{secret}}{{/unless}}", "activation.html: {{secret}} is missing"),
        ("{{#if login}}{{secret}}{{/if}}", "activation.html: {{secret}} is missing when login is empty"),
        (
            "{{#unless expires_in}}{{else}}{{#if login}}{{else}}{{secret}}{{/if}}{{/unless}}",
            "activation.html: {{secret}} is missing",
        ),
        (
            "{{secret}}{{#unless login}}<a href='{{expires_in}}'>{{/unless}}",
            "activation.html: {{expires_in}} is in the attribute href",
        ),
        (
            "{{secret}}<!--[if mso]><a href='{{login}}'><![endif]-->",
            "activation.html: {{login}} is in the attribute href",
        ),
        ("{{secret}}<!DOCTYPE {{login}}>", "activation.html: {{login}} is in a declaration"),
        ("{{login}} {{secret}} {{#if login}}", "activation.html: not Handlebars: unclosed block"),
        ("{{login}} {{secret}} {{", "activation.html: not Handlebars: unclosed tag"),
        ("{{login}} {{secret}} {{/}}", "activation.html: not Handlebars"),
        ("{{secret}} {{code}}", "activation.html: {{code}} is not a field of activation: SES would accept"),
        ("{{secret}} {{#if code}}{{/if}}", "activation.html: {{code}} is not a field of activation"),
        ("{{secret}} {{login_html}}", "activation.html: {{login_html}} is made for SES; write {{login}}"),
        (
            "{{secret}} {{{login}}}",
            "activation.html: {{{login}}} shows a user's text without escaping; write {{login}}",
        ),
        ("{{secret}} {{& login}}", "activation.html: {{& login}} shows a user's text"),
        ("{{secret}} {{#with login}}{{this}}{{/with}}", "activation.html: {{#with login}} is refused"),
        ("{{secret}} {{#login}}{{this}}{{/login}}", "activation.html: {{#login}} is refused"),
        ("{{secret}} {{#each login}}{{this}}{{/each}}", "activation.html: {{#each login}} is refused"),
        ("{{secret}} {{lookup this 'login'}}", "activation.html: {{lookup this 'login'}} is refused"),
        ("{{secret}} {{this.login}}", "activation.html: {{this.login}} is refused"),
        ("{{secret}} {{@root.login}}", "activation.html: {{@root.login}} is refused"),
        ("{{secret}} {{[login]}}", "activation.html: {{[login]}} is refused"),
        ("{{secret}} {{login login}}", "activation.html: {{login login}} is refused"),
        ("{{secret}} {{log login}}", "activation.html: {{log login}} is refused"),
        ("{{secret}} {{> other}}", "activation.html: {{> other}} is refused"),
        ('{{secret}} {{#*inline "a"}}{{login}}{{/inline}}', 'activation.html: {{#*inline "a"}} is refused'),
        ("{{secret}} {{{{raw}}}}{{login}}{{{{/raw}}}}", "activation.html: {{{{raw}}} is refused"),
        ("{{secret}} \\{{login}}", "activation.html: {{login}} is refused"),
        ("{{secret}} {{login}}}", "activation.html: {{login}} is refused"),
        (
            "{{secret}} {{#if login}}a{{else  if login}}{{/if}}",
            "activation.html: {{else  if login}} is refused",
        ),
        ("{{secret}} <a title={{login}}>", "activation.html: {{login}} is in a tag and not in quotes"),
        ("{{secret}} <{{login}}>", "activation.html: {{login}} is in the name of an element"),
        ('{{secret}} <a href="/{{login}}">', "activation.html: {{login}} is in the attribute href"),
        ('{{secret}} <a onclick="x({{login}})">', "activation.html: {{login}} is in the attribute onclick"),
        ("{{secret}} <script>'{{login}}'</script>", "activation.html: {{login}} is in <script>"),
        ("{{secret}} <style>.{{login}} {}</style>", "activation.html: {{login}} is in <style>"),
        (
            "{{secret}} {{app_name}}",
            "activation.html: {{app_name}} needs MAILROOM_APP_NAME, which is not set",
        ),
        ("{{secret}} {{app_url}}", "activation.html: {{app_url}} needs MAILROOM_APP_URL, which is not set"),
        (
            "{{secret}} {{~app_url~}}",
            "activation.html: {{~app_url~}} is refused: for a constant, write {{app_url}}",
        ),
        (
            "{{secret}} {{#if app_url}}{{/if}}",
            "activation.html: {{#if app_url}} is refused: for a constant, write ",
        ),
    ],
)
def test_what_cannot_be_promised_is_refused(html: str, fault: str) -> None:
    first, *others = check(template(html=html))
    assert first.startswith(fault)
    assert all("is refused" in other for other in others)


@pytest.mark.parametrize(
    "html",
    [
        "{{#if login}}{{login}}{{else}}you{{/if}} {{secret}}",
        "{{#if login}}{{login}}{{else if secret}}you{{else}}they{{/if}} {{secret}}",
        "{{#unless login}}you{{/unless}} {{~login~}} {{secret}}",
        "{{! {{}} {{!-- {{code}} --}} {{login}} {{{secret}}}",
        '<a href="/?{{secret}}" title="{{login}}">{{login}}</a>',
        "<a {{#if login}}class=x{{/if}}>{{secret}}</a><style>a{}</style>{{login}}",
    ],
)
def test_what_can_be_promised_is_allowed(html: str) -> None:
    assert () == check(template(html=html))


def test_subjects_and_sizes_have_limits() -> None:
    assert ("activation.subject.txt: more than one line",) == check(template(subject="one\ntwo"))
    large = template(text="{{login}} {{secret}}" + "é" * 250_000)
    assert ("activation.html: larger than 500000 bytes with its text, the limit of SES",) == check(large)


def test_a_text_of_a_user_need_not_be_shown() -> None:
    assert () == check(template(html="{{secret}}", text="{{secret}}"))


def test_a_code_is_required_and_a_notice_requires_nothing() -> None:
    code = Template(CATALOGUE["reauthentication"], "Code", "{{code}}", "<p>{{login}}</p>")
    assert ("reauthentication.html: {{code}} is missing",) == check(code)
    assert () == check(
        Template(CATALOGUE["password_changed"], "Changed", "It was changed", "<p>It was changed")
    )
    linked = Template(CATALOGUE["password_changed"], "Changed", "{{secret}}", "<p>It was changed")
    (fault,) = check(linked)
    assert fault.startswith("password_changed.txt: {{secret}} is not a field of password_changed")
    assert fault.endswith("remove it, or add it to fields in actions.toml")


def test_fields_that_decide_what_is_shown_have_a_limit() -> None:
    action = replace(ACTIVATION, fields=tuple("abcdefgh"))
    tests = "".join(f"{{{{#if {name}}}}}x{{{{/if}}}}" for name in action.fields)
    (fault,) = check(Template(action, "Hello", "{{secret}}", "{{secret}}" + tests))
    assert fault.startswith("activation.html: tests 8 fields (a, b, c, d, e, f, g, h); test at most 6")
    started = time.monotonic()
    assert () == check(Template(action, "Hello", "{{secret}}", "{{secret}}" + tests[: 6 * len(tests) // 8]))
    assert 20 > time.monotonic() - started


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("{{a}} {{ b }} {{~c~}} {{{d}}} {{&e}} {{ f-g }}", {"a", "b", "c", "d", "e", "f-g"}),
        ("{{#if a}}{{b}}{{else if c}}{{d}}{{else}}{{e}}{{/if}}", {"a", "b", "c", "d", "e"}),
        ("{{! a }}{{!-- {{b}} --}} {c} {{'d'}} {{1}} {{true}} {{this}} {{@first}} {{../up}}", set()),
        ("{{user.name}} {{this.a}} {{@root.b}} {{lookup c d}} {{help e=f}}", {*"abcd", "user", "help", "f"}),
        ("{{#each a}}{{b}}{{#if c}}{{d}}{{/if}}{{/each}}{{e}}", {"a", "e"}),
        ("{{#with a as |b|}}{{b}}{{/with}} {{#c}}{{d}}{{/c}}", {"a", "c"}),
        ('{{#* inline "a"}}{{b}}{{/inline}}{{> a}}', {"b"}),
    ],
)
def test_placeholders_are_the_names_that_a_template_reads(source: str, names: set[str]) -> None:
    assert names == placeholders(source)


class Recorder(dict[str, object]):
    """Says which names were asked for."""

    asked: set[str]

    def __contains__(self, name: object) -> bool:
        self.asked.add(str(name))
        return super().__contains__(name)


TAGS = "{{a}} {{~b}} {{{a}}} {{&b}} {{#unless}} {{else}} {{/if}} {{/unless}} {{! {{!-- --}} }} {{ { } \\ x ~"
pieces = st.sampled_from([*TAGS.split(), "{{#if a}}", "{{#unless b}}", "{{else if b}}", "{{ a }}", " ", "\n"])


@pytest.mark.slow
@settings(deadline=None, max_examples=500)
@given(st.lists(pieces, max_size=12).map("".join), st.booleans())
def test_no_name_is_read_that_placeholders_do_not_tell(source: str, value: bool) -> None:
    data = Recorder(a=value, b=not value)
    data.asked = set()
    with contextlib.suppress(ValueError, IndexError, StrictModeError):
        _compiled(source)(data)
    if "\\" not in source:
        assert data.asked <= placeholders(source)


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(st.lists(pieces | st.text(max_size=3), max_size=12).map("".join))
def test_any_source_is_checked_without_a_crash(source: str) -> None:
    assert check(template(html=source)) is not None
    assert check_fetched({"HtmlPart": source, "SubjectPart": source}, ACTIVATION) is not None
    try:
        render_source(source, {"a": "b"})
    except TemplateError:
        return


def folder_with(folder: Path, **sources: str) -> Path:
    for path in write_built_in(folder):
        for part, source in sources.items():
            if path.name == f"activation{PARTS[part]}":
                path.write_text(source)
    return folder


def test_a_constant_is_escaped_in_html_alone(tmp_path: Path) -> None:
    source = "{{app_name}}|{{ app_name }}|{{{app_name}}}|{{&app_name}}|{{login}}"
    folder = folder_with(tmp_path, subject=source, text=source, html=source)
    loaded = load(folder, {"app_name": '<b>&"'})["activation"]
    assert "|".join(['<b>&"'] * 4 + ["{{login}}"]) == loaded.text == loaded.subject
    assert "|".join(["&lt;b&gt;&amp;&quot;"] * 4 + ["{{login}}"]) == loaded.html


def test_a_constant_that_is_not_set_is_named() -> None:
    faults = check(load(None, {})["activation.de"])
    for file, name in (
        ("layout.html", "APP_NAME"),
        ("activation.de.subject.txt", "APP_NAME"),
        ("activation.de.html", "APP_URL"),
    ):
        why = f"needs MAILROOM_{name}, which is not set; set it in the environment"
        assert f"{file}: {{{{{name.lower()}}}}} {why}" in faults


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    (folder / "activation.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(TemplateError, match=r"activation\.txt: not UTF-8"):
        load(folder, CONSTANTS)
    (folder / "activation.txt").unlink()
    with pytest.raises(TemplateError, match=r"activation\.txt: No such file") as missing:
        load(folder, CONSTANTS)
    assert "mailroom init" in missing.value.hint


def test_built_in_files_overwrite_nothing(tmp_path: Path) -> None:
    written = write_built_in(tmp_path / "new" / "folder")
    assert 14 == len(written)
    loaded = load(tmp_path / "new" / "folder", CONSTANTS)
    assert {"activation", "activation.de", "password_recovery", "password_recovery.de"} == set(loaded)
    assert loaded == {name: BUILT_IN[name] for name in loaded}
    written[0].write_text("mine")
    for path in written[1:]:
        path.unlink()
    with pytest.raises(TemplateError, match="exists already"):
        write_built_in(tmp_path / "new" / "folder")
    assert written[:1] == list((tmp_path / "new" / "folder").iterdir())
    assert "mine" == written[0].read_text()


OLD = {"SubjectPart": "Hello", "TextPart": "{{login}} {{secret}}", "HtmlPart": "{{login_html}} {{secret}}"}


@pytest.mark.parametrize(
    ("changed", "faults", "warnings"),
    [
        ({}, [], []),
        ({"TextPart": ""}, [], []),
        ({"HtmlPart": ""}, [], []),
        ({"HtmlPart": "", "TextPart": ""}, ["neither a text nor an HTML part"], []),
        ({"TextPart": "{{login}} {{secret}} {{name}}"}, ["text: {{name}} is not a field of activation"], []),
        ({"SubjectPart": "{{app_name}}"}, ["subject: {{app_name}} is not a field of activation"], []),
        ({"HtmlPart": "{{login_html}}"}, ["html: {{secret}} is missing"], []),
        ({"HtmlPart": "{{login}} {{secret}}"}, [], ["html: {{login}} shows a user's text without escaping"]),
        ({"HtmlPart": "{{{login}}} {{secret}}"}, [], ["html: {{login}} shows a user's text"]),
        ({"HtmlPart": "{{secret}} {{#with login}}{{this}}{{/with}}"}, [],
         ["html: {{#with login}} is not checked", "html: {{this}} is not checked"]),
        ({"HtmlPart": '<a href="{{login_html}}">{{secret}}'}, [],
         ["html: {{login_html}} is in the attribute href"]),
        ({"HtmlPart": "{{secret}", "SubjectPart": "{{login"},
         ["subject: not Handlebars: unclosed tag", "html: not Handlebars: unclosed tag"], []),
        ({"TextPart": "{{secret}}", "HtmlPart": "{{secret}}"}, [], []),
        ({"TextPart": "{{#if login}}{{secret}}{{/if}}"},
         ["text: {{secret}} is missing when login is empty"], []),
        ({"HtmlPart": "{{#unless login_html}}<a href='{{expires_in_html}}'>{{/unless}}{{secret}}"}, [],
         ["html: {{expires_in_html}} is in the attribute href"]),
    ],
)  # fmt: skip
def test_a_template_in_ses_is_checked(
    changed: Mapping[str, str], faults: list[str], warnings: list[str]
) -> None:
    findings = check_fetched({**OLD, **changed}, ACTIVATION)
    for expected, told in ((faults, findings.faults), (warnings, findings.warnings)):
        assert len(expected) == len(told), told
        assert [True] * len(told) == [
            text.startswith(start) for text, start in zip(told, expected, strict=True)
        ]


@pytest.fixture(scope="module")
def ses_url() -> Iterator[str]:
    """The address of a server that plays SES."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def environment(ses_url: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What commands need to reach it, as an account of the test's own."""
    variables = {
        "AWS_ENDPOINT_URL_SES": ses_url,
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "AKIATEST",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_EC2_METADATA_DISABLED": "true",
        "MAILROOM_APP_NAME": "Example & Sons",
        "MAILROOM_APP_URL": "https://app.example.com",
    } | {f"MAILROOM_TEMPLATE_{name.upper()}": f"{name}-{secrets.token_hex(4)}" for name in NAMES}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


@pytest.fixture
def client(environment: dict[str, str]) -> Iterator[Any]:
    client = botocore.session.get_session().create_client("ses")
    yield client
    client.close()


def run(*arguments: str, **variables: str) -> Result:
    return CliRunner().invoke(
        command, arguments, env={f"MAILROOM_{name}": v for name, v in variables.items()}
    )


def test_what_is_pushed_is_fetched(client: Any, environment: dict[str, str]) -> None:
    name = environment["MAILROOM_TEMPLATE_ACTIVATION"]
    ours = BUILT_IN["activation"]
    assert fetch(client, name) is None
    assert "created" == due_change(client, ours, name)
    assert fetch(client, name) is None
    assert "created" == push(client, ours, name)
    assert {part: text for part, text in for_ses(ours, name).items() if part != "TemplateName"} == fetch(
        client, name
    )
    assert "unchanged" == push(client, ours, name)
    changed = template(text="{{login}} {{secret}} changed")
    assert "updated" == push(client, changed, name)
    parts = fetch(client, name)
    assert parts is not None
    assert "{{login}} {{secret}} changed" == parts["TextPart"]
    assert "<p>{{login_html}} {{secret}}</p>" == parts["HtmlPart"]


@pytest.mark.slow
def test_push_and_diff_tell_what_changes(environment: dict[str, str], client: Any, tmp_path: Path) -> None:
    one, two = (environment[f"MAILROOM_TEMPLATE_{name.upper()}"] for name in NAMES[:2])
    folder = folder_with(tmp_path)
    changes = {one: "would be created", f"{one}-de": "would be created"}
    changes |= {two: "would be created", f"{two}-de": "would be created"}

    def printed(changes: dict[str, str]) -> str:
        return "".join(f"{name}: {change}\n" for name, change in changes.items())

    done = run("push", "--dry-run", TEMPLATES=str(folder))
    assert (0, printed(changes)) == (done.exit_code, done.stdout)
    done = run("push", "activation", TEMPLATES=str(folder))
    assert (0, printed({one: "created", f"{one}-de": "created"})) == (done.exit_code, done.stdout)
    done = run("diff", "activation", TEMPLATES=str(folder))
    assert (0, "") == (done.exit_code, done.stdout)
    assert 1 == run("diff", TEMPLATES=str(folder)).exit_code
    done = run("push", TEMPLATES=str(folder))
    changes = {one: "unchanged", f"{one}-de": "unchanged", two: "created", f"{two}-de": "created"}
    assert (0, printed(changes)) == (done.exit_code, done.stdout)
    (folder / "activation.de.txt").write_text("Hallo {{login}},\n\n{{app_url}}?{{secret}}\n")
    done = run("diff", TEMPLATES=str(folder))
    assert 1 == done.exit_code
    assert done.stdout.startswith(f"--- SES/{one}-de/TextPart\n+++ Mailroom/{one}-de/TextPart\n")
    assert "\n+Hallo {{login}},\n" in done.stdout
    done = run("push", TEMPLATES=str(folder))
    changes = {one: "unchanged", f"{one}-de": "updated", two: "unchanged", f"{two}-de": "unchanged"}
    assert (0, printed(changes)) == (done.exit_code, done.stdout)


def test_a_layout_is_pushed_around_each_html_part(
    environment: dict[str, str], client: Any, tmp_path: Path
) -> None:
    folder = folder_with(tmp_path)
    (folder / "layout.html").write_text("<html lang={{lang}} dir={{dir}}>{{app_name}} {{body}}</html>")
    assert 0 == run("push", "activation", TEMPLATES=str(folder)).exit_code
    name = environment["MAILROOM_TEMPLATE_ACTIVATION"]
    for template, start in ((name, "<html lang=en dir=ltr>"), (f"{name}-de", "<html lang=de dir=ltr>")):
        parts = fetch(client, template)
        assert parts is not None
        assert parts["HtmlPart"].startswith(f"{start}Example &amp; Sons <")


def test_what_has_faults_is_not_pushed(environment: dict[str, str], client: Any, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, text="{{login}} {{code}}")
    done = run("push", TEMPLATES=str(folder))
    assert isinstance(done.exception, TemplateError)
    assert "activation.txt: {{code}} is not a field of activation" in str(done.exception)
    assert "" == done.stdout
    assert fetch(client, environment["MAILROOM_TEMPLATE_PASSWORD_RECOVERY"]) is None


def test_ses_being_away_is_an_error_with_a_remedy(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SES", "http://127.0.0.1:1")
    done = run("diff")
    assert isinstance(done.exception, MailroomError)
    assert done.exception.hint


def test_check_tells_each_actions_faults(tmp_path: Path) -> None:
    constants = {"APP_NAME": "Example", "APP_URL": "https://app.example.com"}
    done = run("check", **constants)
    assert (0, "".join(f"{name}: ok (en, de)\n" for name in NAMES)) == (done.exit_code, done.stdout)
    folder = folder_with(tmp_path, text="{{login}}")
    (folder / "activation.fr.html").write_text("<p>Bonjour")
    (folder / "password_recovery.de.txt").write_text("{{secret}}")
    variables = {"TEMPLATES": str(folder), **constants}
    done = run("check", **variables)
    assert 78 == done.exit_code
    expected = {
        "activation": [
            "activation.fr.subject.txt: missing, so mails in fr are sent in en",
            "activation.fr.txt: missing, so mails in fr are sent in en",
            "activation.txt: {{secret}} is missing",
        ],
        "password_recovery": ["password_recovery.de.txt: {{code}} is missing"],
    }
    assert (
        "".join("\n  ".join([f"{name}:", *faults]) + "\n" for name, faults in expected.items()) == done.stdout
    )
    report = run("check", "--json", **variables)
    assert 78 == report.exit_code
    assert {"ok": False, "faults": expected} == json.loads(report.stdout)


def test_render_shows_the_language_and_the_data_of_a_recipient() -> None:
    variables = {"APP_NAME": "Example", "APP_URL": "https://app.example.com"}
    done = run(
        "render", "invitation", "--locale", "de-AT", "--data", "inviter=A & B", "--login", "", **variables
    )
    assert 0 == done.exit_code
    assert done.stdout.startswith("--- subject\nA & B lädt Sie zu Example ein\n\n--- text\nGuten Tag,\n")
    assert "gilt 7 Tage." in done.stdout
    assert '<html lang="de" dir="ltr">' in done.stdout
    assert "<bdi>A &amp; B</bdi>" in done.stdout
    assert "(inviter) invites you" in run("render", "invitation", "--part", "subject", **variables).stdout
    refused = run("render", "invitation", "--data", "phone=1", **variables)
    assert (2, True) == (refused.exit_code, "own fields are inviter" in refused.stderr)
    refused = run("render", "nothing", **variables)
    assert (2, True) == (refused.exit_code, "'nothing' is not one of activation, " in refused.stderr)


def test_render_shows_a_sample() -> None:
    variables = {"APP_NAME": "Example", "APP_URL": "https://app.example.com"}
    done = run("render", "password_recovery", "--login", "<b>", **variables)
    assert 0 == done.exit_code
    assert done.stdout.startswith("--- subject\nSet a new password for Example\n\n--- text\nHello <b>,\n")
    assert "\n--- html\n<!DOCTYPE html>\n" in done.stdout
    assert "Hello <bdi>&lt;b&gt;</bdi>," in done.stdout
    one = run("render", "activation", "--part", "subject", **variables)
    assert (0, "Activate your Example account\n") == (one.exit_code, one.stdout)
    report = json.loads(run("render", "activation", "--json", **variables).stdout)
    assert {"subject", "text", "html"} == report.keys()
    assert SAMPLE_TOKEN in report["html"]
    assert 86 == len(SAMPLE_TOKEN)


def test_render_refuses_what_no_mail_would_have() -> None:
    done = run(
        "render", "activation", "--login", "two\nlines", APP_NAME="E", APP_URL="https://app.example.com"
    )
    assert isinstance(done.exception, WireError)
    assert isinstance(run("render", "activation").exception, TemplateError)


def test_a_full_disk_is_told_with_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this machine has no /dev/full")
    real = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda path, mode="r", *rest, **named: (
            real(full, "wb") if mode == "xb" else real(path, mode, *rest, **named)
        ),
    )
    with pytest.raises(TemplateError) as caught:
        write_built_in(tmp_path / "mine")
    assert f"{tmp_path / 'mine' / 'actions.toml'}: No space left on device" == str(caught.value)


@pytest.mark.parametrize("unit", ["{{", "{{!", "{{!--", "<a ", "<!--", "{{{"])
def test_a_template_that_is_made_to_be_slow_is_refused_at_once(unit: str) -> None:
    hostile = unit * (200_000 // len(unit))
    started = time.monotonic()
    assert check(template(html=hostile))
    assert check_fetched({"HtmlPart": hostile, "TextPart": "{{login}} {{secret}}"}, ACTIVATION).faults
    assert 20 > time.monotonic() - started
