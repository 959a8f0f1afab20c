"""Templates: what is put in, what is escaped, what is refused, and the way into SES."""

from __future__ import annotations

import contextlib
import html
import json
import secrets
import time
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from click.testing import CliRunner, Result
from dotpromptz_handlebars import StrictModeError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mailroom.actions import Action
from mailroom.cli.templates import SAMPLE_TOKEN
from mailroom.cli.templates import templates as command
from mailroom.errors import MailroomError, TemplateError, WireError
from mailroom.templates.checks import check, check_fetched
from mailroom.templates.mails import fields, for_ses, render, ses_data
from mailroom.templates.remote import due_change, fetch, push
from mailroom.templates.sources import PARTS, Template, load, write_built_in
from mailroom.templates.tags import _compiled, placeholders, render_source
from mailroom.wire import Message, encode
from support.messages import ACTIVATION, PASSWORD_RECOVERY

CONSTANTS = {"app_name": "Example & Sons", "app_url": "https://app.example.com"}
BUILT_IN = load(None, CONSTANTS)
TOKEN, CODE = "A-_" * 28 + "zz", "04217"

logins = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=254)
hostile = st.text("<>&\"'`={}!-/ab \u2028\u202e{{login}}", min_size=1, max_size=40)
ACTIONS = [ACTIVATION, PASSWORD_RECOVERY]
NAMES = [action.name for action in ACTIONS]
actions = st.sampled_from(ACTIONS)


def message(action: Action, login: str = "peter.pan") -> Message:
    return Message(action, "peter.pan@example.com", login, TOKEN, CODE)


def template(
    html: str = "<p>{{login}} {{secret}}</p>", text: str = "{{login}} {{secret}}", subject: str = "Hello"
) -> Template:
    return Template(ACTIVATION, subject, text, html)


class ParsedPage(HTMLParser):
    """A page's elements and its text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.name)
def test_the_built_in_templates_fit(action: Action) -> None:
    assert [] == check(BUILT_IN[action.name])
    parts = {
        name: text for name, text in for_ses(BUILT_IN[action.name], "x").items() if name != "TemplateName"
    }
    assert ([], []) == check_fetched(parts, action)


@pytest.mark.parametrize(("action", "path"), [(ACTIVATION, "activate"), (PASSWORD_RECOVERY, "recover")])
def test_links_and_codes_are_in_both_parts(action: Action, path: str) -> None:
    mail = render(BUILT_IN[action.name], message(action))
    link = f"https://app.example.com/{path}?token={TOKEN}"
    assert link in mail.text.splitlines()
    assert [link, link] == [attrs["href"] for tag, attrs in ParsedPage(mail.html).elements if tag == "a"]
    assert link in ParsedPage(mail.html).text
    for part in (mail.text, mail.html):
        assert action.needs_code == (CODE in part)
    assert "Example & Sons" in mail.subject
    assert "Example &amp; Sons" in mail.html


@settings(deadline=None)
@given(actions, logins | hostile)
@example(ACTIVATION, "<b>&\"'`=")
@example(PASSWORD_RECOVERY, "{{secret}}")
@example(PASSWORD_RECOVERY, "\u202e\u2028</p><script>alert(1)</script>")
def test_a_login_is_itself_in_text_and_no_more_than_text_in_html(action: Action, login: str) -> None:
    mail = render(BUILT_IN[action.name], message(action, login))
    plain = render(BUILT_IN[action.name], message(action, "plain"))
    assert f"Hello {login},\n" in mail.text
    assert f"Hello {html.escape(login)}," in mail.html
    page, plain_page = ParsedPage(mail.html), ParsedPage(plain.html)
    assert plain_page.elements == page.elements
    assert plain_page.text.replace("Hello plain,", f"Hello {login},") == page.text


@settings(deadline=None)
@given(actions, logins | hostile)
def test_ses_and_smtp_send_the_same(action: Action, login: str) -> None:
    encode([message(action, login)])
    data = json.loads(ses_data(action, message(action, login)))
    parts = for_ses(BUILT_IN[action.name], "x")
    from_ses = [render_source(parts[part], data) for part in ("SubjectPart", "TextPart", "HtmlPart")]
    assert from_ses == list(render(BUILT_IN[action.name], message(action, login)))


def test_the_data_are_the_actions_fields_and_the_escaped_ones() -> None:
    assert {"login": "<", "login_html": "&lt;", "secret": TOKEN} == fields(
        ACTIVATION, message(ACTIVATION, "<")
    )
    assert {"login", "login_html", "secret", "code"} == fields(
        PASSWORD_RECOVERY, message(PASSWORD_RECOVERY)
    ).keys()


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
        ("", "html: empty"),
        ("{{login}}", "html: {{secret}} is missing"),
        ("{{login}} {{#unless login}}{{secret}}{{/unless}}", "html: {{secret}} is missing"),
        ("{{login}} {{secret}} {{#if login}}", "html: not Handlebars: unclosed block"),
        ("{{login}} {{secret}} {{", "html: not Handlebars: unclosed tag"),
        ("{{login}} {{secret}} {{/}}", "html: not Handlebars"),
        ("{{secret}} {{code}}", "html: {{code}} is not a field of activation: SES would accept"),
        ("{{secret}} {{#if code}}{{/if}}", "html: {{code}} is not a field of activation"),
        ("{{secret}} {{login_html}}", "html: {{login_html}} is made for SES; write {{login}}"),
        ("{{secret}} {{{login}}}", "html: {{{login}}} shows a user's text without escaping; write {{login}}"),
        ("{{secret}} {{& login}}", "html: {{& login}} shows a user's text"),
        ("{{secret}} {{#with login}}{{this}}{{/with}}", "html: {{#with login}} is refused"),
        ("{{secret}} {{#login}}{{this}}{{/login}}", "html: {{#login}} is refused"),
        ("{{secret}} {{#each login}}{{this}}{{/each}}", "html: {{#each login}} is refused"),
        ("{{secret}} {{lookup this 'login'}}", "html: {{lookup this 'login'}} is refused"),
        ("{{secret}} {{this.login}}", "html: {{this.login}} is refused"),
        ("{{secret}} {{@root.login}}", "html: {{@root.login}} is refused"),
        ("{{secret}} {{[login]}}", "html: {{[login]}} is refused"),
        ("{{secret}} {{login login}}", "html: {{login login}} is refused"),
        ("{{secret}} {{log login}}", "html: {{log login}} is refused"),
        ("{{secret}} {{> other}}", "html: {{> other}} is refused"),
        ('{{secret}} {{#*inline "a"}}{{login}}{{/inline}}', 'html: {{#*inline "a"}} is refused'),
        ("{{secret}} {{{{raw}}}}{{login}}{{{{/raw}}}}", "html: {{{{raw}}} is refused"),
        ("{{secret}} \\{{login}}", "html: {{login}} is refused"),
        ("{{secret}} {{login}}}", "html: {{login}} is refused"),
        ("{{secret}} {{#if login}}a{{else  if login}}{{/if}}", "html: {{else  if login}} is refused"),
        ("{{secret}} <a title={{login}}>", "html: {{login}} is in a tag and not in quotes"),
        ("{{secret}} <{{login}}>", "html: {{login}} is in the name of an element"),
        ('{{secret}} <a href="/{{login}}">', "html: {{login}} is in the attribute href"),
        ('{{secret}} <a onclick="x({{login}})">', "html: {{login}} is in the attribute onclick"),
        ("{{secret}} <script>'{{login}}'</script>", "html: {{login}} is in <script>"),
        ("{{secret}} <style>.{{login}} {}</style>", "html: {{login}} is in <style>"),
        ("{{secret}} {{app_name}}", "{{app_name}} needs MAILROOM_APP_NAME, which is not set"),
        ("{{secret}} {{app_url}}", "{{app_url}} needs MAILROOM_APP_URL, which is not set"),
        ("{{secret}} {{~app_url~}}", "{{~app_url~}} is refused: for a constant, write {{app_url}}"),
        ("{{secret}} {{#if app_url}}{{/if}}", "{{#if app_url}} is refused: for a constant, write "),
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
    assert [] == check(template(html=html))


def test_subjects_and_sizes_have_limits() -> None:
    assert ["subject: more than one line"] == check(template(subject="one\ntwo"))
    assert ["larger than 500000 bytes, the limit of SES"] == check(
        template(text="{{login}} {{secret}}" + "é" * 250_000)
    )


def test_a_login_has_to_be_shown_somewhere() -> None:
    assert ["{{login}} is missing"] == check(template(html="{{secret}}", text="{{secret}}"))
    assert [] == check(template(html="{{secret}}", text="{{secret}}", subject="Hello {{login}}"))


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
    faults = [fault for loaded in load(None, {}).values() for fault in check(loaded)]
    assert [
        f"{{{{{name.lower()}}}}} needs MAILROOM_{name}, which is not set; set it in the environment"
        for name in ("APP_NAME", "APP_URL") * 2
    ] == faults


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    (folder / "activation.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(TemplateError, match=r"activation\.txt: not UTF-8"):
        load(folder, CONSTANTS)
    (folder / "activation.txt").unlink()
    with pytest.raises(TemplateError, match=r"activation\.txt: No such file") as missing:
        load(folder, CONSTANTS)
    assert "mailroom templates init" in missing.value.hint


def test_built_in_files_overwrite_nothing(tmp_path: Path) -> None:
    written = write_built_in(tmp_path / "new" / "folder")
    assert 6 == len(written)
    assert BUILT_IN == load(tmp_path / "new" / "folder", CONSTANTS)
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
        ({"HtmlPart": "", "TextPart": ""}, ["neither a text nor an HTML part"], ["{{login}} is missing"]),
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
        ({"TextPart": "{{secret}}", "HtmlPart": "{{secret}}"}, [], ["{{login}} is missing"]),
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


def test_push_and_diff_tell_what_changes(environment: dict[str, str], client: Any, tmp_path: Path) -> None:
    one, two = (environment[f"MAILROOM_TEMPLATE_{name.upper()}"] for name in NAMES)
    done = run("push", "--dry-run")
    assert (0, f"{one}: would be created\n{two}: would be created\n") == (done.exit_code, done.stdout)
    done = run("push", "activation")
    assert (0, f"{one}: created\n") == (done.exit_code, done.stdout)
    assert (0, "") == (run("diff", "activation").exit_code, run("diff", "activation").stdout)
    assert 1 == run("diff").exit_code
    done = run("push")
    assert (0, f"{one}: unchanged\n{two}: created\n") == (done.exit_code, done.stdout)
    folder = folder_with(tmp_path, text="Hi {{login}},\n\n{{app_url}}?{{secret}}\n")
    done = run("diff", TEMPLATES=str(folder))
    assert 1 == done.exit_code
    assert done.stdout.startswith(f"--- SES/{one}/TextPart\n+++ Mailroom/{one}/TextPart\n")
    assert "\n-Hello {{login}},\n+Hi {{login}},\n" in done.stdout
    done = run("push", TEMPLATES=str(folder))
    assert (0, f"{one}: updated\n{two}: unchanged\n") == (done.exit_code, done.stdout)


def test_what_has_faults_is_not_pushed(environment: dict[str, str], client: Any, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, text="{{login}} {{code}}")
    done = run("push", TEMPLATES=str(folder))
    assert isinstance(done.exception, TemplateError)
    assert "activation: text: {{code}} is not a field of activation" in str(done.exception)
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
    done = run("check", APP_NAME="Example", APP_URL="https://app.example.com")
    assert (0, "activation: ok\npassword_recovery: ok\n") == (done.exit_code, done.stdout)
    folder = folder_with(tmp_path, text="{{login}}")
    variables = {"TEMPLATES": str(folder), "APP_NAME": "Example", "APP_URL": "https://app.example.com"}
    done = run("check", **variables)
    assert 78 == done.exit_code
    assert "activation:\n  text: {{secret}} is missing\npassword_recovery: ok\n" == done.stdout
    report = run("check", "--json", **variables)
    assert 78 == report.exit_code
    assert {
        "ok": False,
        "faults": {"activation": ["text: {{secret}} is missing"], "password_recovery": []},
    } == json.loads(report.stdout)


def test_render_shows_a_sample() -> None:
    variables = {"APP_NAME": "Example", "APP_URL": "https://app.example.com"}
    done = run("render", "password_recovery", "--login", "<b>", **variables)
    assert 0 == done.exit_code
    assert done.stdout.startswith("--- subject\nSet a new password for Example\n\n--- text\nHello <b>,\n")
    assert "\n--- html\n<!DOCTYPE html>\n" in done.stdout
    assert "Hello &lt;b&gt;," in done.stdout
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


def test_init_writes_files_once(tmp_path: Path) -> None:
    done = run("init", str(tmp_path / "mine"))
    assert 0 == done.exit_code
    assert sorted(str(path) for path in (tmp_path / "mine").iterdir()) == sorted(done.stdout.splitlines())
    assert isinstance(run("init", str(tmp_path / "mine")).exception, TemplateError)


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
    assert f"{tmp_path / 'mine' / 'activation.subject.txt'}: No space left on device" == str(caught.value)


@pytest.mark.parametrize("unit", ["{{", "{{!", "{{!--", "<a ", "<!--", "{{{"])
def test_a_template_that_is_made_to_be_slow_is_refused_at_once(unit: str) -> None:
    hostile = unit * (200_000 // len(unit))
    started = time.monotonic()
    assert check(template(html=hostile))
    assert check_fetched({"HtmlPart": hostile, "TextPart": "{{login}} {{secret}}"}, ACTIVATION).faults
    assert 20 > time.monotonic() - started
