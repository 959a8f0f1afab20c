"""Prepares templates and their data for SES, and renders mails for transports that do not render.

SES escapes nothing. So the HTML part goes to SES with ``{{login_html}}`` in place of ``{{login}}``, and the
data of every mail holds each text of a user twice: unescaped for the subject and the text, and escaped for
the HTML. Rendering for SMTP does the same, so all mails are escaped in one way.
"""

from __future__ import annotations

import html
import json
import re
from functools import lru_cache
from typing import Final, NamedTuple

from mailroom.actions import Action
from mailroom.templates.languages import duration
from mailroom.templates.sources import Template
from mailroom.templates.tags import Tag, render_source, replace_tags
from mailroom.wire import Message

# The fields that hold letters, digits, - and _ only. Every other field may hold any text.
SAFE_FIELDS: Final = ("secret", "code")

PDF, PDI = "\u202c", "\u2069"
# What begins an embedding, an override or an isolate, with what ends it.
_ENDS: Final = dict.fromkeys("\u202a\u202b\u202d\u202e", PDF) | dict.fromkeys("\u2066\u2067\u2068", PDI)
_OPENING: Final = re.compile(f"[{''.join(_ENDS)}]")

SES_PARTS: Final = {"subject": "SubjectPart", "text": "TextPart", "html": "HtmlPart"}


as_json: Final = json.JSONEncoder(ensure_ascii=False).encode


class RenderedMail(NamedTuple):
    """A rendered mail."""

    subject: str
    text: str
    html: str


def fields(message: Message, language: str) -> dict[str, str]:
    """Return the fields that the message's template may show, and the escaped ones.

    Args:
        message: the message; a field that its data does not have is empty.
        language: the template's, for the lifetime.
    """
    action = message.action
    lifetime_s = action.lifetime_s if message.expires_in_s is None else message.expires_in_s
    every = {
        **message.data,
        "login": message.username,
        "secret": message.token,
        "code": message.code,
        "expires_in": duration(lifetime_s, language),
    }
    shown = {name: closed(every.get(name, "")) for name in action.shown}
    return shown | {f"{name}_html": html.escape(shown[name]) for name in user_fields(action)}


def closed(text: str) -> str:
    """Return a user's text with the characters that end each change of direction which it begins.

    Otherwise a text with U+202E and no U+202C would reorder the words behind it.
    """
    if not _OPENING.search(text):
        return text
    ends: list[str] = []
    for character in text:
        if character in _ENDS:
            ends.append(_ENDS[character])
        elif [character] == ends[-1:] or (character == PDI and PDI in ends):
            while ends.pop() != character:
                pass  # the end of an isolate ends what was begun in it
    return text + "".join(reversed(ends))


def user_fields(action: Action) -> tuple[str, ...]:
    """Return the fields of an action that may hold any text, and so are escaped for HTML."""
    return tuple(name for name in action.shown if name not in SAFE_FIELDS)


def field_names(action: Action) -> tuple[str, ...]:
    """Return the names that ``fields`` has for each message of an action."""
    return (*action.shown, *(f"{name}_html" for name in user_fields(action)))


def ses_data(message: Message, language: str) -> str:
    """Return one recipient's replacement data for SES; arguments as for ``fields``."""
    return as_json(fields(message, language))


def ses_name(name: str, tag: str) -> str:
    """Return the name in SES of a template in a language, or of the plain one for an empty tag."""
    return f"{name}-{tag}" if tag else name


def for_ses(template: Template, name: str) -> dict[str, str]:
    """Return a template for SES's API, under a name that has its language already."""
    return {
        "TemplateName": name,
        "SubjectPart": template.subject,
        "TextPart": template.text,
        "HtmlPart": _escaped(template.page, user_fields(template.action)),
    }


def render(template: Template, message: Message) -> RenderedMail:
    """Return the mail of one recipient, for transports that do not render.

    Raises:
        TemplateError: the template shows a field that the message does not have.
    """
    data = fields(message, template.language)
    return RenderedMail(
        render_source(template.subject, data),
        render_source(template.text, data),
        render_source(_escaped(template.page, user_fields(template.action)), data),
    )


@lru_cache(maxsize=1024)
def _escaped(source: str, names: tuple[str, ...]) -> str:
    def escaped(tag: Tag) -> str:
        return tag.source.replace(tag.name, f"{tag.name}_html") if tag.shows in names else tag.source

    return replace_tags(source, escaped)
