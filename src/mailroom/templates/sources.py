"""Reads templates from a folder.

A folder has three files for each action: ``activation.subject.txt``, ``activation.txt`` and
``activation.html`` are the parts of one mail, in Handlebars as SES reads it (see ``tags``). Three more,
``activation.de.subject.txt`` and so on, are its German translation. ``layout.html``, if there is one, is the
page around every HTML part. All of them may show two constants, ``{{app_name}}`` and ``{{app_url}}``.
Constants are settings, and reading replaces them; one that is not set stays in the source, and ``check``
reports it.
"""

from __future__ import annotations

import html
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from mailroom.actions import BUILT_IN, Action, load_catalogue
from mailroom.errors import ActionsError, TemplateError
from mailroom.logs import EventLogger
from mailroom.templates.languages import canonical, choose, direction
from mailroom.templates.listing import LAYOUT, PARTS, Listing, file_name, list_files
from mailroom.templates.tags import Tag, replace_tags

CONSTANTS: Final = {"app_name": "MAILROOM_APP_NAME", "app_url": "MAILROOM_APP_URL"}
# How often a folder is looked at for changes.
LOOK_INTERVAL_S: Final = 1.0

_WHOLE_PAGE: Final = re.compile(
    r"\s*+(?:(?><!--.*?-->)\s*+)*+<(?:!doctype|html)\b", re.IGNORECASE | re.DOTALL
)

log = EventLogger("templates")


@dataclass(frozen=True, slots=True)
class Template:
    """The sources of one action's mail in one language.

    Attributes:
        html: the HTML part without the layout.
        language: the language of its words.
        tag: the language in its name; empty for a plain template.
        layout: the page around the HTML part; empty for none.
    """

    action: Action
    subject: str
    text: str
    html: str
    language: str = "en"
    tag: str = ""
    layout: str = ""

    @property
    def name(self) -> str:
        """The beginning of its files' names."""
        return f"{self.action.name}.{self.tag}" if self.tag else self.action.name

    @property
    def has_layout(self) -> bool:
        """Whether there is a layout around the HTML part."""
        return bool(self.layout) and not _WHOLE_PAGE.match(self.html)

    @property
    def page(self) -> str:
        """The HTML part in its layout; a part that is a whole page stays as it is."""
        return _page(self.html, self.layout, self.language) if self.has_layout else self.html

    def parts(self) -> dict[str, str]:
        """Return the sources by the names of their parts."""
        return {"subject": self.subject, "text": self.text, "html": self.page}

    def file(self, part: str) -> str:
        """Return the name of a part's file."""
        return self.name + PARTS[part]


@lru_cache(maxsize=1024)
def _page(body: str, layout: str, language: str) -> str:
    values = {"body": body, "lang": language, "dir": direction(language)}
    return replace_tags(layout, lambda tag: values.get(tag.shows, tag.source))


class TemplateFolder:
    """A folder of templates, which is read again when a file has changed. Several threads may use it.

    Args:
        path: the folder; None for the one that comes with Mailroom.
        constants: the values of ``{{app_name}}`` and ``{{app_url}}``, as the settings allow them.

    Raises:
        ActionsError: its ``actions.toml`` cannot be used.
    """

    def __init__(self, path: Path | None, constants: Mapping[str, str]) -> None:
        self.path = path or BUILT_IN
        self._constants = constants
        self._lock = threading.Lock()
        self._language = load_catalogue(path).language
        self._listing: Listing | None = None
        self._read: dict[tuple[Action, str], Template] = {}
        self._look_at = 0.0

    @property
    def language(self) -> str:
        """The language of the plain templates."""
        self._look()
        return self._language

    def languages(self, action: Action) -> list[str]:
        """Return the languages into which an action's mail is translated, as canonical tags, sorted."""
        return self._look().languages(action.name)

    def language_for(self, action: Action, locale: str) -> str:
        """Return the language of a mail; empty for that of the plain template."""
        return choose(locale, self.languages(action), self._language)

    def template(self, action: Action, tag: str = "") -> Template:
        """Return a template; an empty tag is the plain one.

        Raises:
            TemplateError: a file is missing, cannot be read or is not UTF-8. The folder is then read again
                for the next template.
        """
        listing = self._look()
        with self._lock:
            if found := self._read.get((action, tag)):
                return found
        try:
            template = self._load(listing, action, tag)
        except TemplateError:
            self.look_again()
            raise
        with self._lock:
            if listing is self._listing:
                self._read[action, tag] = template
        return template

    def templates(self, action: Action) -> Iterator[Template]:
        """Yield an action's plain template and its translations. Raises what ``template`` raises."""
        for tag in ["", *self.languages(action)]:
            yield self.template(action, tag)

    def incomplete(self, action: Action) -> dict[str, list[str]]:
        """Return the names of the files that translations lack, by language. They are not used."""
        found = self._look().files.get(action.name, {})
        return {
            tag: [file_name(action.name, tag, part) for part in PARTS if part not in files]
            for tag, files in sorted(found.items())
            if tag and len(files) < len(PARTS)
        }

    def look_again(self) -> None:
        """Read the folder again for the next template."""
        with self._lock:
            self._listing, self._read, self._look_at = None, {}, 0.0

    def _look(self) -> Listing:
        """The folder's files, at most ``LOOK_INTERVAL_S`` old."""
        with self._lock:
            if self._listing and time.monotonic() < self._look_at:
                return self._listing
            listing = list_files(self.path)
            if self._listing is None or listing.stamps != self._listing.stamps:
                self._language = self._read_language()
                self._listing, self._read = listing, {}
            self._look_at = time.monotonic() + LOOK_INTERVAL_S
            return self._listing

    def _read_language(self) -> str:
        try:
            return load_catalogue(None if self.path == BUILT_IN else self.path).language
        except ActionsError as error:
            log.warning("actions_unusable", reason=str(error), language=self._language)
            return self._language

    def _load(self, listing: Listing, action: Action, tag: str) -> Template:
        files = listing.files.get(action.name, {}).get(tag, {})
        sources = {
            part: self._source(files.get(part, file_name(action.name, tag, part)), is_html=part == "html")
            for part in PARTS
        }
        has_layout = any(name == LAYOUT for name, *_ in listing.stamps)
        return Template(
            action,
            sources["subject"].strip(),
            sources["text"],
            sources["html"],
            tag or canonical(self._language),
            tag,
            self._source(LAYOUT, is_html=True) if has_layout else "",
        )

    def _source(self, name: str, *, is_html: bool) -> str:
        return _put_in(_read(self.path / name), self._constants, escape=is_html)


def load(folder: Path | None, constants: Mapping[str, str]) -> dict[str, Template]:
    """Return the templates of a folder by their names: ``activation``, ``activation.de``.

    An action without a file is left out.

    Args:
        folder: the folder; None for the one that comes with Mailroom.
        constants: the values of ``{{app_name}}`` and ``{{app_url}}``, as the settings allow them.

    Raises:
        ActionsError: its actions cannot be used.
        TemplateError: a file is missing or not UTF-8.
    """
    found = TemplateFolder(folder, constants)
    names = list_files(found.path).files
    actions = [action for action in load_catalogue(folder).actions.values() if action.name in names]
    templates = (template for action in actions for template in found.templates(action))
    return {template.name: template for template in templates}


def built_in_files(action: str) -> list[str]:
    """Return the names of the files that Mailroom has for an action of its catalogue."""
    languages = list_files(BUILT_IN).files.get(action, {})
    return [name for _, files in sorted(languages.items()) for _, name in sorted(files.items())]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise TemplateError(
            f"{path}: {error.strerror}",
            hint=f"each action has {', '.join('ACTION' + suffix for suffix in PARTS.values())};"
            " `mailroom init` writes files to start from",
        ) from None
    except UnicodeDecodeError:
        raise TemplateError(f"{path}: not UTF-8", hint="save it as UTF-8") from None


def _put_in(source: str, constants: Mapping[str, str], *, escape: bool) -> str:
    def value(tag: Tag) -> str:
        # A ~ also removes blanks, which this does not do; check reports it.
        if tag.shows not in constants or "~" in tag.source:
            return tag.source
        text = constants[tag.shows]
        return html.escape(text) if escape else text

    return replace_tags(source, value)
