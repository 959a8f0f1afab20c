"""Reads and renders the part of Handlebars that SES and the library used here treat alike.

Fields are single values, so templates need only ``{{field}}``, ``{{#if field}}``, ``{{#unless field}}``,
``{{else}}`` and comments. Every other tag has the kind OTHER. ``check`` refuses it, because what it does is
known only when it runs.

Rendering escapes nothing, as SES does not; the data holds the escaped values (see ``mails``).
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
# More would take long to check, and no mail needs them.
MAX_TAGS: Final = 1000
MAX_ELEMENTS: Final = 10_000
_HELPERS: Final = ("if", "unless", "each", "with", "lookup", "log", "inline")
_WORDS: Final = frozenset([*_HELPERS, "else", "as", "this", "true", "false", "null", "undefined"])


class Kind(enum.Enum):
    """What a tag does: FIELD and RAW show a field, TEST tests whether it has a value."""

    COMMENT = r"\{\{~?!.*\}\}"
    FIELD = rf"\{{\{{~?\s*{_NAME}\s*~?\}}\}}"
    RAW = rf"\{{\{{~?(?:\{{\s*{_NAME}\s*\}}|&\s*{_NAME.replace('name', 'also')}\s*)~?\}}\}}"
    TEST = rf"\{{\{{~?(?:#\s*|\s*else )(?:if|unless) \s*{_NAME}\s*~?\}}\}}"
    ELSE = r"\{\{~?\s*else\s*~?\}\}"
    END = r"\{\{~?/[^{}]*\}\}"
    OTHER = ".*"


_KINDS: Final = [(kind, re.compile(kind.value, re.DOTALL)) for kind in Kind]


class Tag(NamedTuple):
    """One tag of a source, and the field that it names; empty if none is known."""

    kind: Kind
    name: str
    source: str
    start: int
    end: int

    @property
    def shows(self) -> str:
        """The field that the tag shows; empty if it shows none."""
        return self.name if self.kind in (Kind.FIELD, Kind.RAW) else ""


def tags(source: str) -> Iterator[Tag]:
    """Yield the tags of a source, in order."""
    for found in _TAG.finditer(source):
        kind, name = _classify(found[0])
        before = source[max(found.start() - 1, 0) : found.start()]
        after = source[found.end() : found.end() + 1]
        # A backslash before a tag makes it text, and one more brace makes it another tag.
        if kind is not Kind.COMMENT and (before in ("{", "\\") or after == "}"):
            kind = Kind.OTHER
        yield Tag(kind, name, found[0], found.start(), found.end())


def replace_tags(source: str, replacement: Callable[[Tag], str]) -> str:
    """Return the source with each tag replaced."""
    pieces, at = [], 0
    for tag in tags(source):
        pieces += [source[at : tag.start], replacement(tag)]
        at = tag.end
    return "".join([*pieces, source[at:]])


def placeholders(source: str) -> set[str]:
    """Return the names that a template reads from its data: for ``{{user.name}}``, ``user``.

    Tags inside ``{{#each}}``, ``{{#with}}`` and the like read other data, and are left out.
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
    """Return why a source is not valid Handlebars, or too long to check; empty if it is valid."""
    for what, most in (("{{", MAX_TAGS), ("<", MAX_ELEMENTS)):
        if source.count(what) > most:
            return f"more than {most} {what}"
    try:
        _compiled(source)
    except (ValueError, IndexError) as error:
        return f"not Handlebars: {error}"
    return ""


def render_source(source: str, data: Mapping[str, object]) -> str:
    """Return one part, rendered as SES does: nothing is escaped, and a missing field is an error.

    Raises:
        TemplateError: the source is not Handlebars, or shows a field that the data does not have.
    """
    from dotpromptz_handlebars import StrictModeError

    try:
        return _compiled(source)(dict(data))
    except StrictModeError as error:
        raise TemplateError(f"the data has no {error.path!r}") from None
    except (ValueError, IndexError) as error:
        raise TemplateError(f"not Handlebars: {error}") from None


@lru_cache(maxsize=1024)
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
    """Return the names that a tag of the kind OTHER reads, as far as its words show."""
    if inner.startswith(("/", ">", "!", "#>", "#*")):
        return set()
    inner = re.sub(r'"[^"]*"|\'[^\']*\'|\bas\s*\|[^|]*\||[^\s=()]+=', " ", inner.lstrip("#^&"))
    words = re.findall(r"[^\s()]+", inner)
    heads = {re.sub(r"^(?:@root|this|\.)[./]", "", word).strip("[]").split(".")[0] for word in words}
    return {
        head for head in heads if head and head not in _WORDS and not re.match(r"-?[0-9]+$|[@./\\]", head)
    }
