"""Makes what a call to SES carries in place of a template's name.

In a template of its own SES understands Handlebars. In content that comes with a call it only replaces
``{{field}}``: see ``TemplateContent`` in its API reference. So conditions, comments and removed blanks are
evaluated here. Which fields are empty decides the conditions, and so there is one content for each choice of
empty fields that the template tests; mails with the same choice share it.
"""

from __future__ import annotations

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


@lru_cache(maxsize=1024)
def fields_tested(template: Template) -> tuple[str, ...]:
    """Return the fields that a template tests, whose emptiness decides its content."""
    parts = template.parts().values()
    return tuple(dict.fromkeys(tag.name for part in parts for tag in tags(part) if tag.kind is Kind.TEST))


@lru_cache(maxsize=1024)
def inline_content(template: Template, empty: tuple[str, ...]) -> InlineContent:
    """Return the content of a checked template for mails in which these of its tested fields are empty.

    Raises:
        TemplateError: SES would make another mail from such content.
    """
    sources = for_ses(template, "")
    data = {name: "" if name in empty else f"{{{{{name}}}}}" for name in field_names(template.action)}
    parts = {part: render_source(sources[name], data) for part, name in SES_PARTS.items()}
    for part, content in parts.items():
        if other := next((tag.source for tag in tags(content) if tag.kind is not Kind.FIELD), ""):
            raise TemplateError(f"{template.file(part)}: {other} stands beside a brace", hint=REMEDY)
    return InlineContent(**parts)
