"""Content that comes with a call: what SES makes of it by replacing fields alone is the mail."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailroom.errors import TemplateError
from mailroom.inbox.account import inline_template
from mailroom.inbox.ses_protocol import Refusal
from mailroom.templates.checks import check
from mailroom.templates.inline import InlineContent, fields_tested, inline_content
from mailroom.templates.mails import fields, render
from mailroom.templates.sources import Template, load
from mailroom.wire import Message
from support.messages import CATALOGUE, message

INVITATION = CATALOGUE["invitation"]
CONSTANTS = {"app_name": "Acme", "app_url": "https://acme.example"}


def template(source: str) -> Template:
    return Template(INVITATION, "{{secret}}", "{{secret}}", source)


def replaced(part: str, data: Mapping[str, str]) -> str:
    """What SES does with content of a call, and nothing else."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: data[found[1]], part)


def content_of(source: Template, data: Mapping[str, str]) -> InlineContent:
    return inline_content(source, tuple(name for name in fields_tested(source) if not data[name]))


def same_as_rendered(source: Template, one: Message) -> InlineContent:
    data = fields(one, source.language)
    content = content_of(source, data)
    assert tuple(render(source, one)) == tuple(replaced(part, data) for part in content)
    return content


@pytest.mark.parametrize("name", load(None, CONSTANTS))
def test_each_template_of_the_catalogue_makes_the_same_mail(name: str) -> None:
    source = load(None, CONSTANTS)[name]
    every = {field: f"<{field}> & {{{{login}}}}" for field in source.action.fields}
    for login in ("", "Zoë <b>"):
        for data in ({}, every):
            one = message(1, source.action)._replace(username=login, data=data)
            inline_template(same_as_rendered(source, one))  # which refuses all but simple fields


@pytest.mark.parametrize(
    ("source", "login", "expected"),
    [
        ("a {{#if login}}b {{login}}{{else}}c{{/if}} d", "x", "a b {{login_html}} d"),
        ("a {{#if login}}b {{login}}{{else}}c{{/if}} d", "", "a c d"),
        ("a\n{{#unless login}}\nb\n{{/unless}}\nc", "x", "a\nc"),
        ("a\n{{#unless login}}\nb\n{{/unless}}\nc", "", "a\nb\nc"),
        ("a {{~login~}} b{{! no }}{{{ login }}}{{&login}}", "x", "a{{login_html}}b" + 2 * "{{login_html}}"),
    ],
)
def test_conditions_and_blanks_are_evaluated_here(source: str, login: str, expected: str) -> None:
    one = message(1, INVITATION)._replace(username=login)
    assert expected == same_as_rendered(template(source), one).html


def test_mails_share_the_content_unless_a_condition_differs() -> None:
    source = template("{{#if login}}{{login}}{{/if}}{{inviter}}{{secret}}")
    data = {"login": "a", "login_html": "a", "inviter": "b", "inviter_html": "b", "secret": "c"}
    first = content_of(source, data)
    assert first is content_of(source, data | {"inviter": "", "inviter_html": ""})
    assert first is content_of(source, data | {"login": "another", "login_html": "another"})
    assert "{{inviter_html}}{{secret}}" == content_of(source, data | {"login": ""}).html


def test_content_that_would_become_another_tag_is_refused() -> None:
    source = template("{ {{~login}} {{secret}}")
    assert () == check(source)
    with pytest.raises(TemplateError, match=r"invitation\.html: .*stands beside a brace"):
        content_of(source, fields(message(1, INVITATION), "en"))


@pytest.mark.parametrize(
    "part", ["{{#if login}}a{{/if}}", "{{~login}}", "{{! a }}", "{{{login}}}", "{{a.b}}"]
)
def test_the_inbox_takes_simple_fields_only(part: str) -> None:
    with pytest.raises(Refusal, match="unsupported operations"):
        inline_template(("{{login}}", "text", part))


SHOWN = ("login", "inviter", "expires_in", "secret")
text = st.text(st.sampled_from("ab <&\n\t.{}~"), max_size=4)
shown = st.builds(
    lambda name, form: form.format(name),
    st.sampled_from(SHOWN),
    st.sampled_from(
        ["{{{{{}}}}}", "{{{{ {} }}}}", "{{{{~{}}}}}", "{{{{{}~}}}}", "{{{{{{{}}}}}}}", "{{{{&{}}}}}"]
    ),
)
comment = st.sampled_from(["{{! a }}", "{{!-- {{b}} --}}", "{{~! a }}"])
block = st.sampled_from(["if", "unless"]), st.sampled_from(SHOWN), st.sampled_from(["", "\n", " "])


def blocks(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.builds(
        lambda kind, name, gap, yes, no: (
            f"{gap}{{{{#{kind} {name}}}}}{gap}{yes}{{{{else}}}}{gap}{no}{{{{/{kind}}}}}{gap}"
            if no
            else f"{gap}{{{{#{kind} {name}}}}}{gap}{yes}{gap}{{{{/{kind}}}}}{gap}"
        ),
        *block,
        inner,
        inner,
    )


sources = st.lists(
    st.recursive(text | shown | comment, lambda inner: blocks(st.lists(inner, max_size=3).map("".join))),
    max_size=6,
).map("".join)


@pytest.mark.slow
@settings(deadline=None, max_examples=500)
@given(sources, st.text(max_size=5), st.sampled_from(["", "Ada", "{{login}}", "<b>"]))
def test_any_checked_template_makes_the_same_mail(html: str, login: str, inviter: str) -> None:
    source = template(html + "{{secret}}")
    if check(source):
        return
    one = message(1, INVITATION)._replace(username=login, data={"inviter": inviter} if inviter else {})
    with contextlib.suppress(TemplateError):
        same_as_rendered(source, one)
