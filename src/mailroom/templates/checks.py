"""Checks templates before the first mail is sent.

SES accepts a mail whose data lacks a field that its template shows, and silently sends nothing. So a field
that the action does not have is a fault. A user's text must not become part of the page, so showing it where
escaping cannot prevent that is a fault too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from typing import Final, NamedTuple

from mailroom.actions import Action
from mailroom.errors import TemplateError
from mailroom.templates.mails import ESCAPED_FIELDS, SES_PARTS, escaped_names, shown
from mailroom.templates.sources import CONSTANTS, Template
from mailroom.templates.tags import Kind, Tag, placeholders, render_source, syntax_fault, tags

# The limit in SES's documentation, for all parts together.
MAX_BYTES: Final = 500_000

_UNDERSTOOD: Final = "{{field}}, {{#if field}}, {{#unless field}}, {{else}} and {{! comments}}"
# Attributes that are only shown: never run, fetched or used as style.
_HARMLESS_ATTRIBUTES: Final = ("alt", "aria-label", "title")
_PROBE: Final = "mailroom-probe"
# An attribute without quotes ends at the blank.
_PROBE_VALUE: Final = f"{_PROBE} x={_PROBE}"


class Findings(NamedTuple):
    """Findings about a template in SES: a fault loses mails, a warning means that mails may be unsafe."""

    faults: list[str]
    warnings: list[str]


def check(template: Template) -> list[str]:
    """Return the faults of a template from files, a sentence each; empty if it may be used."""
    faults: list[str] = []
    action = template.action
    if sum(len(source.encode()) for source in template.parts().values()) > MAX_BYTES:
        return [f"larger than {MAX_BYTES} bytes, the limit of SES"]
    for part, source in template.parts().items():
        if not source.strip():
            faults.append(f"{part}: empty")
        elif fault := syntax_fault(source):
            faults.append(f"{part}: {fault}")
        elif tag_faults := _tag_faults(part, source, action):
            faults += tag_faults
        elif part != "subject":
            faults += _missing(part, source, [name for name in shown(action) if name not in ESCAPED_FIELDS])
    if len(template.subject.splitlines()) > 1:
        faults.append("subject: more than one line")
    if any(syntax_fault(source) for source in template.parts().values()):
        return faults
    faults += [f"html: {fault}" for fault in _unsafe_places(template.html, ESCAPED_FIELDS)]
    found = set().union(*map(placeholders, template.parts().values()))
    faults += [f"{{{{{name}}}}} is missing" for name in ESCAPED_FIELDS if name in {*shown(action)} - found]
    return list(dict.fromkeys(faults))


def check_fetched(parts: Mapping[str, str], action: Action) -> Findings:
    """Return the findings about a template in SES, which other programs may have put there.

    Args:
        parts: the template by SES's names: SubjectPart, TextPart, HtmlPart. A missing part is no fault, as
            long as there is a text or HTML part.
        action: the action that it is for.
    """
    findings = Findings([], [])
    known = {*shown(action), *escaped_names(action)}
    sources = {part: parts.get(name) or "" for part, name in SES_PARTS.items()}
    if sum(len(source.encode()) for source in sources.values()) > MAX_BYTES:
        findings.faults.append(f"larger than {MAX_BYTES} bytes, the limit of SES")
        return findings
    if not (sources["text"].strip() or sources["html"].strip()):
        findings.faults.append("neither a text nor an HTML part")
    for part, source in sources.items():
        if not source.strip():
            continue
        if fault := syntax_fault(source):
            findings.faults.append(f"{part}: {fault}")
            continue
        unknown = sorted(placeholders(source) - known)
        findings.faults.extend(f"{part}: {_unknown(name, action)}" for name in unknown)
        others = [tag.source for tag in tags(source) if tag.kind is Kind.OTHER]
        findings.warnings.extend(f"{part}: {tag} is not checked" for tag in others)
        if part != "subject" and not unknown:
            required = [name for name in shown(action) if name not in ESCAPED_FIELDS]
            findings.faults.extend(_missing(part, source, required))
    if any(syntax_fault(source) for source in sources.values()):
        return findings
    found = set().union(*map(placeholders, sources.values()))
    for name in ESCAPED_FIELDS:
        if name in shown(action) and not {name, f"{name}_html"} & found:
            findings.warnings.append(f"{{{{{name}}}}} is missing")
        if any(tag.shows == name for tag in tags(sources["html"])):
            findings.warnings.append(
                f"html: {{{{{name}}}}} shows a user's text without escaping; write {{{{{name}_html}}}}"
            )
    unsafe = _unsafe_places(sources["html"], escaped_names(action))
    findings.warnings.extend(f"html: {fault}" for fault in unsafe)
    return findings


def _tag_faults(part: str, source: str, action: Action) -> list[str]:
    faults = []
    for tag in tags(source):
        if tag.kind is Kind.COMMENT:
            continue
        if tag.kind is Kind.OTHER:
            faults.append(
                f"{part}: {tag.source} is refused: a template may have {_UNDERSTOOD},"
                " with no other brace and no backslash beside them"
            )
        elif tag.name in CONSTANTS:
            faults.append(_constant_fault(tag))
        elif tag.name and tag.name not in shown(action):
            faults.append(f"{part}: {_unknown(tag.name, action)}")
        elif part == "html" and tag.kind is Kind.RAW and tag.name in ESCAPED_FIELDS:
            faults.append(
                f"html: {tag.source} shows a user's text without escaping; write {{{{{tag.name}}}}}"
            )
    return faults


def _constant_fault(tag: Tag) -> str:
    if tag.kind is Kind.TEST or "~" in tag.source:
        return f"{tag.source} is refused: for a constant, write {{{{{tag.name}}}}}"
    return f"{{{{{tag.name}}}}} needs {CONSTANTS[tag.name]}, which is not set; set it in the environment"


def _unknown(name: str, action: Action) -> str:
    if name in {f"{field}_html" for field in ESCAPED_FIELDS}:
        return f"{{{{{name}}}}} is made for SES; write {{{{{name.removesuffix('_html')}}}}}"
    return f"{{{{{name}}}}} is not a field of {action.name}: SES would accept the mail and drop it"


def _missing(part: str, source: str, required: list[str]) -> list[str]:
    """Return the fields that are not shown: missing in the source, or in a branch that is never taken."""
    marks = {name: f"\0{name}\0" for name in required}
    escaped = {name: name for field in ESCAPED_FIELDS for name in (field, f"{field}_html")}
    try:
        rendered = render_source(source, marks | escaped)
    except TemplateError as error:
        return [f"{part}: {error}"]
    return [f"{part}: {{{{{name}}}}} is missing" for name, mark in marks.items() if mark not in rendered]


def _unsafe_places(source: str, names: Sequence[str]) -> list[str]:
    """Return where escaping does not help: unquoted attributes, addresses, style and script.

    No field is ever empty, so every mail takes the branches that are taken here.
    """
    faults = []
    for name in names:
        page = _ProbeFinder()
        try:
            page.feed(render_source(source, dict.fromkeys(placeholders(source), "x") | {name: _PROBE_VALUE}))
        except TemplateError:
            return []  # reported as a fault of its own
        page.close()
        faults += [
            f"{{{{{name}}}}} is {place}, where escaping does not make it safe; show it as text"
            for place in dict.fromkeys(page.unsafe)
        ]
    return faults


class _ProbeFinder(HTMLParser):
    """Finds the places of the probe."""

    def __init__(self) -> None:
        super().__init__()
        self.unsafe: list[str] = []
        self._element = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Report the probe in a tag, unless it is whole, quoted, and in an attribute that is only shown."""
        self._element = tag if tag in ("script", "style") else ""
        if _PROBE in tag:
            self.unsafe.append("in the name of an element")
            return
        for name, value in attrs:
            if _PROBE in name or _PROBE in (value or ""):
                whole = _PROBE_VALUE in (value or "")
                if name not in _HARMLESS_ATTRIBUTES or not whole:
                    self.unsafe.append(f"in the attribute {name}" if whole else "in a tag and not in quotes")

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002 - the base class's name
        """Note that the element has ended."""
        self._element = ""

    def handle_data(self, data: str) -> None:
        """Report the probe in the text of a script or a style."""
        if _PROBE in data and self._element:
            self.unsafe.append(f"in <{self._element}>")
