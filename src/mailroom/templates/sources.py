"""Loads templates from files.

A folder has three files for each action: ``activation.subject.txt``, ``activation.txt`` and
``activation.html`` are the parts of one mail, in Handlebars as SES reads it (see ``tags``). They show the
fields of their action (``{{login}}``, ``{{secret}}``, ``{{code}}``) and two constants, ``{{app_name}}`` and
``{{app_url}}``. Constants are settings, and loading replaces them; one that is not set stays in the source,
and ``check`` reports it.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mailroom.actions import BUILT_IN, Action, load_actions
from mailroom.errors import TemplateError
from mailroom.templates.tags import Tag, replace_tags

PARTS: Final = {"subject": ".subject.txt", "text": ".txt", "html": ".html"}
CONSTANTS: Final = {"app_name": "MAILROOM_APP_NAME", "app_url": "MAILROOM_APP_URL"}


@dataclass(frozen=True, slots=True)
class Template:
    """The sources of one action's mail."""

    action: Action
    subject: str
    text: str
    html: str

    def parts(self) -> dict[str, str]:
        """Return the sources by the names of their parts."""
        return {"subject": self.subject, "text": self.text, "html": self.html}


def load(folder: Path | None, constants: Mapping[str, str]) -> dict[str, Template]:
    """Return the templates of a folder by the names of their actions.

    Args:
        folder: the folder; None for the templates that come with Mailroom.
        constants: the values of ``{{app_name}}`` and ``{{app_url}}``, as the settings allow them.

    Raises:
        TemplateError: a file is missing or not UTF-8.
    """
    templates = {}
    for action in actions_of(folder):
        sources = {
            part: _put_in(_read(_path(folder or BUILT_IN, action, part)), constants, escape=part == "html")
            for part in PARTS
        }
        templates[action.name] = Template(
            action, sources["subject"].strip(), sources["text"], sources["html"]
        )
    return templates


def actions_of(folder: Path | None) -> list[Action]:
    """Return the actions of a folder for which it has a file; None is the folder that comes with Mailroom.

    Raises:
        ActionsError: the folder's actions cannot be used.
    """
    return [
        action
        for action in load_actions(folder).values()
        if any(_path(folder or BUILT_IN, action, part).exists() for part in PARTS)
    ]


def write_built_in(folder: Path) -> list[Path]:
    """Write the files that come with Mailroom into a folder, and return their paths.

    The folder is created if it does not exist.

    Raises:
        TemplateError: a file exists already or cannot be written. No file is overwritten.
    """
    written = {
        _path(folder, action, part): _path(BUILT_IN, action, part)
        for action in actions_of(None)
        for part in PARTS
    }
    try:
        present = [path for path in written if path.exists()]
    except OSError as error:
        raise TemplateError(f"{error.filename}: {error.strerror}", hint="name another folder") from None
    if present:
        raise TemplateError(f"{present[0]} exists already", hint="name another folder, or move the file away")
    path = folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, built_in in written.items():
            with path.open("xb") as file:
                file.write(built_in.read_bytes())
    except OSError as error:
        # The error of a full disk names no file.
        raise TemplateError(
            f"{error.filename or path}: {error.strerror}", hint="name another folder"
        ) from None
    return list(written)


def _path(folder: Path, action: Action, part: str) -> Path:
    return folder / f"{action.name}{PARTS[part]}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise TemplateError(
            f"{path}: {error.strerror}",
            hint=f"each action has {', '.join('ACTION' + suffix for suffix in PARTS.values())};"
            " `mailroom templates init FOLDER` writes files to start from",
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
