"""Recognises what a mail is: its action, its language and its code.

All of it is read from the mail and from the actions that the inbox knows. A mail of an unknown action is kept
and shown like any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from mailroom.actions import Action
from mailroom.inbox.links import Link
from mailroom.templates.languages import TAG
from mailroom.templates.mails import RenderedMail

MAX_PART: Final = 200_000

_CODE: Final = re.compile("[0-9]{5}", re.ASCII)
_CODE_LINE: Final = re.compile("^[0-9]{5}$", re.ASCII | re.MULTILINE)
_LANGUAGE: Final = re.compile(
    r"""<html(?:\s[^<>]{0,2000}?)?\slang\s{0,20}=\s{0,20}["']?([A-Za-z0-9_-]{2,35})(?=["'\s>])""",
    re.IGNORECASE,
)


class Kinds:
    """The actions that an inbox knows."""

    def __init__(self, actions: Iterable[Action]) -> None:
        self._actions = tuple(actions)
        self.names = tuple(action.name for action in self._actions)

    def action(self, template: str, links: Iterable[Link], tag: str = "") -> str | None:
        """Return the name of a mail's action: by its template, its tag, or the path of a link."""
        for action in self._actions:
            if is_template(template, action.template):
                return action.name
        if tag in self.names:
            return tag
        for link in links:
            for action in self._actions:
                if link.token and action.has_link and link.path.endswith(action.prefix.decode()):
                    return action.name
        return None


def is_template(template: str, name: str) -> bool:
    """Whether a template in SES is the one of a name, in any language."""
    tag = template.removeprefix(f"{name}-")
    return template == name or (tag != template and TAG.fullmatch(tag) is not None)


def usual_template(action: str) -> str:
    """Return the name in SES that the template of an action has, unless the settings name another."""
    return Action(action, 0, b"").template


def language_of(rendered: RenderedMail | None) -> str | None:
    """Return the language that a mail's HTML declares."""
    found = _LANGUAGE.search(rendered.html[:MAX_PART]) if rendered else None
    return found[1] if found else None


def code_of(data: Mapping[str, Any], rendered: RenderedMail | None) -> str | None:
    """Return the code that a mail shows: its data's, or without data the only line of five digits."""
    if rendered is None:
        return None
    code = data.get("code")
    if isinstance(code, str) and _CODE.fullmatch(code):
        return code if code in rendered.text + rendered.html else None
    lines = set() if data else set(_CODE_LINE.findall(rendered.text[:MAX_PART]))
    return lines.pop() if len(lines) == 1 else None
