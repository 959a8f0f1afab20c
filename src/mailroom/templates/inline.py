"""Makes what a call to SES carries in place of a template's name.

In a template of its own SES understands Handlebars. In content that comes with a call it only replaces
``{{field}}``: see ``TemplateContent`` in its API reference. So conditions, comments and removed blanks are
evaluated here. Which fields are empty decides the conditions, and so there is one content for each choice of
empty fields that the template tests; mails with the same choice share it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from mailroom.errors import TemplateError
from mailroom.templates.checks import REMEDY
from mailroom.templates.mails import SES_PARTS, field_names, for_ses
from mailroom.templates.sources import Template
from mailroom.templates.tags import Kind, render_source, tags


class InlineContent(NamedTuple):
    """A template's parts with ``{{field}}`` as their only tags."""

    subject: str
    text: str
    html: str


def inline_content(template: Template, data: Mapping[str, str]) -> InlineContent:
    """Return the content that SES makes a mail from, with this data.

    Args:
        template: a checked template.
        data: the mail's fields, as ``mails.fields`` returns them.

    Raises:
        TemplateError: a part would not be the same when SES makes it from such content.
    """
    return _content(template, frozenset(name for name in _tested(template) if not data.get(name)))


@lru_cache(maxsize=1024)
def _tested(template: Template) -> tuple[str, ...]:
    parts = template.parts().values()
    return tuple(dict.fromkeys(tag.name for part in parts for tag in tags(part) if tag.kind is Kind.TEST))


@lru_cache(maxsize=1024)
def _content(template: Template, empty: frozenset[str]) -> InlineContent:
    sources = for_ses(template, "")
    data = {name: "" if name in empty else f"{{{{{name}}}}}" for name in field_names(template.action)}
    parts = {part: render_source(sources[name], data) for part, name in SES_PARTS.items()}
    for part, content in parts.items():
        if other := next((tag.source for tag in tags(content) if tag.kind is not Kind.FIELD), ""):
            raise TemplateError(f"{template.file(part)}: {other} stands beside a brace", hint=REMEDY)
    return InlineContent(**parts)
