"""Checks templates before they are used.

SES accepts a mail whose data lacks a field that its template shows, and silently sends nothing. So a field
that the action does not have is a fault. A user's text must not become part of the page, so showing it where
escaping cannot prevent that is a fault too. A field may be empty, so all of this is checked with each choice
of empty fields that changes what the template shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import product
from typing import Final, NamedTuple

from mailroom.actions import FILE_NAME, Action
from mailroom.errors import TemplateError
from mailroom.templates.languages import canonical
from mailroom.templates.listing import LAYOUT, file_name
from mailroom.templates.mails import SAFE_FIELDS, SES_PARTS, field_names, user_fields
from mailroom.templates.places import ProbeFinder
from mailroom.templates.sources import CONSTANTS, Template, TemplateFolder
from mailroom.templates.tags import Kind, Tag, placeholders, render_source, syntax_fault, tags

# The limit in SES's documentation, for all parts together.
MAX_BYTES: Final = 500_000
# With more fields that a template tests, the choices of empty ones take long to check.
MAX_TESTED: Final = 6
REMEDY: Final = "correct it and run `mailroom templates check`"

_UNDERSTOOD: Final = "{{field}}, {{#if field}}, {{#unless field}}, {{else}} and {{! comments}}"
_OF_LAYOUT: Final = ("body", "lang", "dir")


class Findings(NamedTuple):
    """Findings about a template in SES: a fault loses mails, a warning means that mails may be unsafe."""

    faults: list[str]
    warnings: list[str]


def usable(folder: TemplateFolder, action: Action, locale: str) -> Template:
    """Return the template of a mail in the language for a locale.

    Raises:
        TemplateError: it cannot be used; the text names file, field and remedy. The folder is then read again
            for the next mail.
    """
    template = folder.template(action, folder.language_for(action, locale))
    if faults := check(template):
        folder.look_again()
        raise TemplateError(f"{action.name} has no usable template: {'; '.join(faults)}", hint=REMEDY)
    return template


def is_usable(folder: TemplateFolder, action: Action) -> bool:
    """Whether an action's mails can be sent from its plain template."""
    try:
        usable(folder, action, "")
    except TemplateError:
        return False
    return True


def check_action(folder: TemplateFolder, action: Action) -> list[str]:
    """Return the faults of an action's templates, and of the files that are not used."""
    plain = canonical(folder.language)
    unused = [
        f"{name}: missing, so mails in {tag} are sent in {plain}"
        for tag, names in folder.incomplete(action).items()
        for name in names
    ]
    if plain in folder.languages(action):
        name = file_name(action.name, plain, "html")
        unused.append(f"{name}: not used, since {FILE_NAME} says that the plain templates are in {plain}")
    return unused + faults_of(folder, action)


def faults_of(folder: TemplateFolder, action: Action) -> list[str]:
    """Return why an action's mails cannot be sent, in any of its languages; empty if they can."""
    faults: list[str] = []
    for tag in ["", *folder.languages(action)]:
        try:
            faults += check(folder.template(action, tag))
        except TemplateError as error:
            faults.append(str(error))
    return list(dict.fromkeys(faults))


def check_folder(folder: TemplateFolder, actions: Mapping[str, Action], report: Callable[..., None]) -> None:
    """Report each action that has a template which cannot be used, with ``action`` and ``reason``.

    Raises:
        TemplateError: no action has one that can be used.
    """
    faults: list[str] = []
    for name, action in actions.items():
        if found := faults_of(folder, action):
            report(action=name, reason="; ".join(found))
            faults += found
    if faults and not any(is_usable(folder, action) for action in actions.values()):
        raise TemplateError(f"no template can be used: {faults[0]}", hint=REMEDY)


@lru_cache(maxsize=1024)
def check(template: Template) -> tuple[str, ...]:
    """Return the faults of a template from files, a sentence each; empty if it may be used."""
    action, parts = template.action, template.parts()
    if sum(len(source.encode()) for source in parts.values()) > MAX_BYTES:
        return (f"{template.file('html')}: larger than {MAX_BYTES} bytes with its text, the limit of SES",)
    faults: list[str] = []
    if template.has_layout:
        faults += [f"{LAYOUT}: {fault}" for fault in _layout_faults(template.layout)]
    for part, source in {**parts, "html": template.html}.items():
        file = template.file(part)
        if not source.strip():
            faults.append(f"{file}: empty")
        elif fault := syntax_fault(source):
            faults.append(f"{file}: {fault}")
        else:
            faults += [f"{file}: {fault}" for fault in _tag_faults(part, source, action)]
    if len(template.subject.splitlines()) > 1:
        faults.append(f"{template.file('subject')}: more than one line")
    if not faults:
        for part, source in parts.items():
            faults += [f"{template.file(part)}: {fault}" for fault in _part_faults(part, source, action)]
    return tuple(dict.fromkeys(faults))


def check_fetched(parts: Mapping[str, str], action: Action) -> Findings:
    """Return the findings about a template in SES, which other programs may have put there.

    Args:
        parts: the template by SES's names: SubjectPart, TextPart, HtmlPart. A missing part is no fault, as
            long as there is a text or HTML part.
        action: the action that it is for.
    """
    findings = Findings([], [])
    known = set(field_names(action))
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
            findings.faults.extend(f"{part}: {fault}" for fault in _missing(source, action))
    if any(syntax_fault(source) for source in sources.values()):
        return findings
    shown = {tag.shows for tag in tags(sources["html"])}
    findings.warnings.extend(
        f"html: {{{{{name}}}}} shows a user's text without escaping; write {{{{{name}_html}}}}"
        for name in user_fields(action)
        if name in shown
    )
    unsafe = _unsafe_places(sources["html"], action, escaped=True)
    findings.warnings.extend(f"html: {fault}" for fault in unsafe)
    return findings


def _layout_faults(source: str) -> list[str]:
    if fault := syntax_fault(source):
        return [fault]
    faults = []
    for tag in tags(source):
        if tag.name in CONSTANTS:
            faults.append(_constant_fault(tag))
        elif tag.kind is not Kind.COMMENT and (tag.shows not in _OF_LAYOUT or "~" in tag.source):
            faults.append(
                f"{tag.source} is refused: a layout may have {{{{body}}}}, {{{{lang}}}}, {{{{dir}}}},"
                " {{app_name}}, {{app_url}} and comments"
            )
    if (count := sum(tag.shows == "body" for tag in tags(source))) != 1:
        faults.append("{{body}} is missing" if not count else "{{body}} is there more than once")
    return faults


def _tag_faults(part: str, source: str, action: Action) -> list[str]:
    faults = []
    for tag in tags(source):
        if tag.kind is Kind.COMMENT:
            continue
        if tag.kind is Kind.OTHER:
            faults.append(
                f"{tag.source} is refused: a template may have {_UNDERSTOOD},"
                " with no other brace and no backslash beside them"
            )
        elif tag.name in CONSTANTS:
            faults.append(_constant_fault(tag))
        elif tag.name and tag.name not in action.shown:
            faults.append(_unknown(tag.name, action))
        elif part == "html" and tag.kind is Kind.RAW and tag.name not in SAFE_FIELDS:
            faults.append(f"{tag.source} shows a user's text without escaping; write {{{{{tag.name}}}}}")
    return faults


def _constant_fault(tag: Tag) -> str:
    if tag.kind is Kind.TEST or "~" in tag.source:
        return f"{tag.source} is refused: for a constant, write {{{{{tag.name}}}}}"
    return f"{{{{{tag.name}}}}} needs {CONSTANTS[tag.name]}, which is not set; set it in the environment"


def _unknown(name: str, action: Action) -> str:
    if name in field_names(action):
        return f"{{{{{name}}}}} is made for SES; write {{{{{name.removesuffix('_html')}}}}}"
    return (
        f"{{{{{name}}}}} is not a field of {action.name}: SES would accept the mail and drop it;"
        f" remove it, or add it to fields in {FILE_NAME}"
    )


def _part_faults(part: str, source: str, action: Action) -> list[str]:
    tested = _tested(source, action)
    if len(tested) > MAX_TESTED:
        return [f"tests {len(tested)} fields ({', '.join(tested)}); test at most {MAX_TESTED}"]
    faults = [] if part == "subject" else _missing(source, action)
    return faults + (_unsafe_places(source, action) if part == "html" else [])


def _tested(source: str, action: Action) -> list[str]:
    """The fields that may be empty and decide what a source shows."""
    names = {tag.name.removesuffix("_html") for tag in tags(source) if tag.kind is Kind.TEST}
    return sorted(names & set(user_fields(action)))


def _choices(source: str, action: Action) -> Iterator[list[str]]:
    """Each choice of fields that are empty, with which the source may show something else."""
    tested = _tested(source, action)[:MAX_TESTED]
    for empty in product((False, True), repeat=len(tested)):
        yield [name for name, is_empty in zip(tested, empty, strict=True) if is_empty]


def _missing(source: str, action: Action) -> list[str]:
    """Return the required fields that are not shown: missing, or in a branch that is not always taken."""
    marks: dict[str, str] = {name: f"\0{name}\0" for name in SAFE_FIELDS if name in action.shown}
    faults: list[str] = []
    for empty in _choices(source, action):
        data = {name: "" if name.removesuffix("_html") in empty else name for name in field_names(action)}
        try:
            rendered = render_source(source, data | marks)
        except TemplateError as error:
            return [str(error)]
        when = f" when {' and '.join(empty)} {'are' if empty[1:] else 'is'} empty" if empty else ""
        faults += [
            f"{{{{{name}}}}} is missing{when}"
            for name, mark in marks.items()
            if mark not in rendered and not any(f"{{{{{name}}}}} is" in fault for fault in faults)
        ]
    return faults


def _unsafe_places(source: str, action: Action, *, escaped: bool = False) -> list[str]:
    """Return where escaping does not help: unquoted attributes, addresses, style and script.

    Args:
        source: the HTML part.
        action: its action.
        escaped: whether its tags have the names of the escaped fields.
    """
    names = {f"{name}_html" if escaped else name: name for name in user_fields(action)}
    faults = []
    for empty in _choices(source, action):
        page = ProbeFinder([shown for shown, name in names.items() if name not in empty])
        data = dict.fromkeys(placeholders(source), "x") | dict.fromkeys(empty, "")
        data |= {name: "" for name in names if names[name] in empty}
        try:
            page.feed(render_source(source, data | page.probes))
        except TemplateError:
            return []  # reported as a fault of its own
        page.close()
        faults += [
            f"{{{{{name}}}}} is {place}, where escaping does not make it safe; show it as text"
            for name, place in page.unsafe
        ]
    return list(dict.fromkeys(faults))
