"""Prepares templates and their data for SES, and renders mails for transports that do not render.

SES escapes nothing. So the HTML part goes to SES with ``{{login_html}}`` in place of ``{{login}}``, and the
data of every mail holds the login twice: unescaped for the subject and the text, and escaped for the HTML.
Rendering for SMTP does the same, so all mails are escaped in one way.
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

# The fields that hold a user's text. The others hold letters, digits, - and _ only.
ESCAPED_FIELDS: Final = ("login",)

SES_PARTS: Final = {"subject": "SubjectPart", "text": "TextPart", "html": "HtmlPart"}


class RenderedMail(NamedTuple):
    """A rendered mail."""

    subject: str
    text: str
    html: str


def fields(action: Action, message: Message) -> dict[str, str]:
    """Return the fields that the action's template may show, and the escaped ones."""
    every = {"login": message.username, "secret": message.token, "code": message.code}
    every |= {f"{name}_html": html.escape(every[name]) for name in ESCAPED_FIELDS}
    return {name: every[name] for name in (*shown(action), *escaped_names(action))}


def shown(action: Action) -> tuple[str, ...]:
    """Return the fields that the action's template may show."""
    return tuple(name for name in action.shown if name in ("login", "secret", "code"))


def escaped_names(action: Action) -> tuple[str, ...]:
    """Return the names of the fields of an action that are escaped for HTML."""
    return tuple(f"{name}_html" for name in ESCAPED_FIELDS if name in shown(action))


def ses_data(action: Action, message: Message) -> str:
    """Return one recipient's replacement data for SES."""
    return json.dumps(fields(action, message), ensure_ascii=False)


def for_ses(template: Template, name: str) -> dict[str, str]:
    """Return a template for SES's API."""
    return {
        "TemplateName": name,
        "SubjectPart": template.subject,
        "TextPart": template.text,
        "HtmlPart": _escaped(template.html),
    }


def render(template: Template, message: Message) -> RenderedMail:
    """Return the mail of one recipient, for transports that do not render.

    Raises:
        TemplateError: the template shows a field that the message does not have.
    """
    data = fields(template.action, message)
    return RenderedMail(
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
