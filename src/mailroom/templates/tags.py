"""Handlebars, as far as templates may use it: what SES and the library that renders here read alike.

Fields are single values, so that templates need no more than ``{{field}}``, ``{{#if field}}``,
``{{#unless field}}``, ``{{else}}`` and comments. Whatever else Handlebars has is one kind of tag
here, OTHER, for ``check`` to refuse: what it would show cannot be told without running it.

Nothing is escaped: what goes into HTML is escaped in the data, over SES as over SMTP.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from mailroom.errors import TemplateError

# Handlebars's own rule for a name.
_NAME: Final = r"""(?P<name>[^\s!"#%-,./;->@\[-^`{-~]+)"""
_TAG: Final = re.compile(
    r"\{\{~?!--.*?--~?\}\}"  # may hold braces
    r"|\{\{~?!.*?\}\}"
    r"|\{\{~?\{.*?\}~?\}\}"
    r"|\{\{.*?\}\}",
    re.DOTALL,
)
# More would take long to look at, and no mail has them.
MAX_TAGS: Final = 1000
MAX_ELEMENTS: Final = 10_000
_HELPERS: Final = ("if", "unless", "each", "with", "lookup", "log", "inline")
_WORDS: Final = frozenset([*_HELPERS, "else", "as", "this", "true", "false", "null", "undefined"])


class Kind(enum.Enum):
    """What a tag does: RAW shows a field as FIELD does, and TEST asks whether there is one."""

    COMMENT = r"\{\{~?!.*\}\}"
    FIELD = rf"\{{\{{~?\s*{_NAME}\s*~?\}}\}}"
    RAW = rf"\{{\{{~?(?:\{{\s*{_NAME}\s*\}}|&\s*{_NAME.replace('name', 'also')}\s*)~?\}}\}}"
    TEST = rf"\{{\{{~?(?:#\s*|\s*else )(?:if|unless) \s*{_NAME}\s*~?\}}\}}"
    ELSE = r"\{\{~?\s*else\s*~?\}\}"
    END = r"\{\{~?/[^{}]*\}\}"
    OTHER = ".*"


_KINDS: Final = [(kind, re.compile(kind.value, re.DOTALL)) for kind in Kind]


class Tag(NamedTuple):
    """One tag of a source, and the field it speaks of, if that can be told."""

    kind: Kind
    name: str
    source: str
    start: int
    end: int

    @property
    def shows(self) -> str:
        """The field that comes out in its place, if one does."""
        return self.name if self.kind in (Kind.FIELD, Kind.RAW) else ""


def tags(source: str) -> Iterator[Tag]:
    """The tags of a source, in order."""
    for found in _TAG.finditer(source):
        kind, name = _classify(found[0])
        before = source[max(found.start() - 1, 0) : found.start()]
        after = source[found.end() : found.end() + 1]
        # A backslash takes a tag's meaning away, and one brace more gives it another.
        if kind is not Kind.COMMENT and (before in ("{", "\\") or after == "}"):
            kind = Kind.OTHER
        yield Tag(kind, name, found[0], found.start(), found.end())


def replace_tags(source: str, replacement: Callable[[Tag], str]) -> str:
    """The source with another text for each tag."""
    pieces, at = [], 0
    for tag in tags(source):
        pieces += [source[at : tag.start], replacement(tag)]
        at = tag.end
    return "".join([*pieces, source[at:]])


def placeholders(source: str) -> set[str]:
    """The names that a template reads from its data: for ``{{user.name}}`` it is ``user``.

    What stands inside of ``{{#each}}``, ``{{#with}}`` and the like is read from elsewhere and left out.
    """
    names: set[str] = set()
    blocks: list[bool] = []
    for tag in tags(source):
        inside = any(blocks)
        inner = tag.source.strip("{}~ \t\r\n")
        if inner.startswith("/"):
            blocks = blocks[:-1]
        elif inner.startswith("#"):
            blocks.append(not re.match(r"#\s*(?:if|unless)\b|#\s*\*", inner))
        if not inside and tag.kind is not Kind.COMMENT:
            names |= {tag.name} if tag.name else _names(inner)
    return names


def syntax_fault(source: str) -> str:
    """Why a source is no Handlebars, or not to be looked at; empty when it may be."""
    for what, most in (("{{", MAX_TAGS), ("<", MAX_ELEMENTS)):
        if source.count(what) > most:
            return f"more than {most} {what}"
    try:
        _compiled(source)
    except (ValueError, IndexError) as error:
        return f"not Handlebars: {error}"
    return ""


def render_source(source: str, data: Mapping[str, object]) -> str:
    """One part, rendered as SES does it: nothing is escaped, and what is missing is an error.

    Raises:
        TemplateError: it is no Handlebars, or shows what the data does not have.
    """
    from dotpromptz_handlebars import StrictModeError

    try:
        return _compiled(source)(dict(data))
    except StrictModeError as error:
        raise TemplateError(f"the data has no {error.path!r}") from None
    except (ValueError, IndexError) as error:
        raise TemplateError(f"not Handlebars: {error}") from None


@lru_cache(maxsize=64)
def _compiled(source: str) -> Callable[[dict[str, object]], str]:
    from dotpromptz_handlebars import Handlebars

    engine = Handlebars(escape_html=False, strict=True)
    engine.unregister_helper("log")  # it prints to standard output
    return engine.compile(source)


def _classify(source: str) -> tuple[Kind, str]:
    for kind, pattern in _KINDS:
        if found := pattern.fullmatch(source):
            groups = found.groupdict()
            name = groups.get("name") or groups.get("also") or ""
            if name not in _WORDS and not name.isdigit():
                return kind, name
    return Kind.OTHER, ""


def _names(inner: str) -> set[str]:
    """What a tag beyond our part of Handlebars reads, as well as its words tell."""
    if inner.startswith(("/", ">", "!", "#>", "#*")):
        return set()
    inner = re.sub(r'"[^"]*"|\'[^\']*\'|\bas\s*\|[^|]*\||[^\s=()]+=', " ", inner.lstrip("#^&"))
    words = re.findall(r"[^\s()]+", inner)
    heads = {re.sub(r"^(?:@root|this|\.)[./]", "", word).strip("[]").split(".")[0] for word in words}
    return {
        head for head in heads if head and head not in _WORDS and not re.match(r"-?[0-9]+$|[@./\\]", head)
    }
