"""What is wrong with a template, told before the first mail and not by the mails that never come.

SES accepts a mail whose data lacks a name that its template shows, and silently sends nothing. A
template of ours must also keep what a user typed from becoming part of the page, so it is refused
where escaping cannot promise that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from typing import Final, NamedTuple

from mailroom.actions import Action
from mailroom.errors import TemplateError
from mailroom.templates.mails import ESCAPED_FIELDS, SES_PARTS, escaped_names
from mailroom.templates.sources import CONSTANTS, Template
from mailroom.templates.tags import Kind, Tag, placeholders, render_source, syntax_fault, tags

# What SES's documentation allows, text and HTML together.
LARGEST_BYTES: Final = 500_000

_UNDERSTOOD: Final = "{{field}}, {{#if field}}, {{#unless field}}, {{else}} and {{! comments}}"
# Attributes that are shown and never run, fetched or taken for style.
_HARMLESS_ATTRIBUTES: Final = ("alt", "aria-label", "title")
_PROBE: Final = "mailroom-probe"
# Without quotes around it, an attribute ends at the blank.
_PROBE_VALUE: Final = f"{_PROBE} x={_PROBE}"


class Findings(NamedTuple):
    """About a template in SES: faults mean that mails would not arrive, warnings that they might harm."""

    faults: list[str]
    warnings: list[str]


def check(template: Template) -> list[str]:
    """What is wrong with a template of ours, one sentence each; empty when it may be used."""
    faults: list[str] = []
    action = template.action
    if sum(len(source.encode()) for source in template.parts().values()) > LARGEST_BYTES:
        return [f"larger than the {LARGEST_BYTES} bytes that SES takes"]
    for part, source in template.parts().items():
        if not source.strip():
            faults.append(f"{part}: empty")
        elif fault := syntax_fault(source):
            faults.append(f"{part}: {fault}")
        elif told := _tag_faults(part, source, action):
            faults += told
        elif part != "subject":
            faults += _missing(part, source, [name for name in action.fields if name not in ESCAPED_FIELDS])
    if len(template.subject.splitlines()) > 1:
        faults.append("subject: more than one line")
    if any(syntax_fault(source) for source in template.parts().values()):
        return faults
    faults += [f"html: {fault}" for fault in _unsafe_places(template.html, ESCAPED_FIELDS)]
    shown = set().union(*map(placeholders, template.parts().values()))
    faults += [f"{{{{{name}}}}} is missing" for name in ESCAPED_FIELDS if name in {*action.fields} - shown]
    return list(dict.fromkeys(faults))


def check_fetched(parts: Mapping[str, str], action: Action) -> Findings:
    """What is wrong with a template that is in SES, whoever put it there.

    Args:
        parts: the template by SES's names: SubjectPart, TextPart, HtmlPart; a missing one is not looked for,
            as long as there is a text or HTML to read.
        action: whose mails it is for.
    """
    findings = Findings([], [])
    known = {*action.fields, *escaped_names(action)}
    sources = {part: parts.get(name) or "" for part, name in SES_PARTS.items()}
    if sum(len(source.encode()) for source in sources.values()) > LARGEST_BYTES:
        findings.faults.append(f"larger than the {LARGEST_BYTES} bytes that SES takes")
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
        findings.warnings.extend(f"{part}: what {tag} shows is not checked" for tag in others)
        if part != "subject" and not unknown:
            required = [name for name in action.fields if name not in ESCAPED_FIELDS]
            findings.faults.extend(_missing(part, source, required))
    if any(syntax_fault(source) for source in sources.values()):
        return findings
    shown = set().union(*map(placeholders, sources.values()))
    for name in ESCAPED_FIELDS:
        if name in action.fields and not {name, f"{name}_html"} & shown:
            findings.warnings.append(f"{{{{{name}}}}} is missing")
        if any(tag.shows == name for tag in tags(sources["html"])):
            findings.warnings.append(
                f"html: {{{{{name}}}}} puts what a user typed into the page as it is;"
                f" write {{{{{name}_html}}}}"
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
        elif tag.name and tag.name not in action.fields:
            faults.append(f"{part}: {_unknown(tag.name, action)}")
        elif part == "html" and tag.kind is Kind.RAW and tag.name in ESCAPED_FIELDS:
            faults.append(
                f"html: {tag.source} asks for what a user typed as it is; write {{{{{tag.name}}}}},"
                " which is escaped"
            )
    return faults


def _constant_fault(tag: Tag) -> str:
    if tag.kind is Kind.TEST or "~" in tag.source:
        return f"{tag.source} is refused: a constant is put in beforehand; write {{{{{tag.name}}}}}"
    return f"{{{{{tag.name}}}}} is shown and {CONSTANTS[tag.name]} is not set; set it in the environment"


def _unknown(name: str, action: Action) -> str:
    if name in {f"{field}_html" for field in ESCAPED_FIELDS}:
        return f"{{{{{name}}}}} is put in on the way to SES; write {{{{{name.removesuffix('_html')}}}}}"
    return f"{{{{{name}}}}} is no field of {action.name}: SES would accept the mail and drop it"


def _missing(part: str, source: str, required: list[str]) -> list[str]:
    """The fields that do not come out, whether they are not written or in a branch that is never taken."""
    marks = {name: f"\0{name}\0" for name in required}
    escaped = {name: name for field in ESCAPED_FIELDS for name in (field, f"{field}_html")}
    try:
        rendered = render_source(source, marks | escaped)
    except TemplateError as error:
        return [f"{part}: {error}"]
    return [f"{part}: {{{{{name}}}}} is missing" for name, mark in marks.items() if mark not in rendered]


def _unsafe_places(source: str, names: Sequence[str]) -> list[str]:
    """Where escaping keeps no promise: unquoted attributes, addresses, style, script.

    No field is ever empty, so that the branches taken here are those that every mail takes.
    """
    faults = []
    for name in names:
        page = _Page()
        try:
            page.feed(render_source(source, dict.fromkeys(placeholders(source), "x") | {name: _PROBE_VALUE}))
        except TemplateError:
            return []  # which is a fault by itself
        page.close()
        faults += [
            f"{{{{{name}}}}} stands {place}, where escaping does not make it safe; show it as text"
            for place in dict.fromkeys(page.unsafe)
        ]
    return faults


class _Page(HTMLParser):
    """Looks where the probe stands."""

    def __init__(self) -> None:
        super().__init__()
        self.unsafe: list[str] = []
        self._element = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A tag may hold it whole, in quotes, in an attribute that is merely shown."""
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
        """Back to plain text."""
        self._element = ""

    def handle_data(self, data: str) -> None:
        """Text is where it belongs, unless it is a script's or a style's."""
        if _PROBE in data and self._element:
            self.unsafe.append(f"in <{self._element}>")
