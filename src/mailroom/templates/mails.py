"""From a template and a message to a mail: the data for SES, the source for SES, and both put together.

There is one way to escape. The HTML part that renders has ``{{login_html}}`` where the file has
``{{login}}``, and the data of every mail holds both; SES renders it, or we do.
"""

from __future__ import annotations

import html
import json
from functools import lru_cache
from typing import Final, NamedTuple

from mailroom.actions import Action
from mailroom.templates.sources import Template
from mailroom.templates.tags import Tag, render_source, replace_tags
from mailroom.wire import Message

# What a user wrote. Everything else a field holds is letters, digits, - and _.
ESCAPED_FIELDS: Final = ("login",)

SES_PARTS: Final = {"subject": "SubjectPart", "text": "TextPart", "html": "HtmlPart"}


class Mail(NamedTuple):
    """A rendered mail."""

    subject: str
    text: str
    html: str


def fields(action: Action, message: Message) -> dict[str, str]:
    """The fields of a message that its action's template may show, and the escaped ones."""
    every = {"login": message.username, "secret": message.token, "code": message.code}
    every |= {f"{name}_html": html.escape(every[name]) for name in ESCAPED_FIELDS}
    return {name: every[name] for name in (*action.fields, *escaped_names(action))}


def escaped_names(action: Action) -> tuple[str, ...]:
    """The names under which an action's data holds what is escaped for HTML."""
    return tuple(f"{name}_html" for name in ESCAPED_FIELDS if name in action.fields)


def ses_data(action: Action, message: Message) -> str:
    """The replacement data of one recipient for SES."""
    return json.dumps(fields(action, message), ensure_ascii=False)


def for_ses(template: Template, name: str) -> dict[str, str]:
    """A template as SES's API takes it."""
    return {
        "TemplateName": name,
        "SubjectPart": template.subject,
        "TextPart": template.text,
        "HtmlPart": _escaped(template.html),
    }


def render(template: Template, message: Message) -> Mail:
    """The mail that a recipient gets, where SES does not render it.

    Raises:
        TemplateError: the template shows what the message does not have.
    """
    data = fields(template.action, message)
    return Mail(
        render_source(template.subject, data),
        render_source(template.text, data),
        render_source(_escaped(template.html), data),
    )


@lru_cache(maxsize=64)
def _escaped(source: str) -> str:
    def escaped(tag: Tag) -> str:
        user_text = tag.shows in ESCAPED_FIELDS
        return tag.source.replace(tag.name, f"{tag.name}_html") if user_text else tag.source

    return replace_tags(source, escaped)
