"""Template files: three an action in a folder, and the constants that are put in on the way.

Constants are settings (``{{app_name}}``, ``{{app_url}}``). Those that are not set stay as they stand, for
``check`` to name.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mailroom.actions import ACTIONS, Action
from mailroom.errors import TemplateError
from mailroom.templates.tags import Tag, replace_tags

PARTS: Final = {"subject": ".subject.txt", "text": ".txt", "html": ".html"}
CONSTANTS: Final = {"app_name": "MAILROOM_APP_NAME", "app_url": "MAILROOM_APP_URL"}

_BUILT_IN: Final = Path(__file__).parent / "default"


@dataclass(frozen=True, slots=True)
class Template:
    """The sources of one action's mail."""

    action: Action
    subject: str
    text: str
    html: str

    def parts(self) -> dict[str, str]:
        """The sources by the names of their parts."""
        return {"subject": self.subject, "text": self.text, "html": self.html}


def load(folder: Path | None, constants: Mapping[str, str]) -> dict[str, Template]:
    """The templates of a folder (those that come with Mailroom, for None) by their actions' names.

    Args:
        folder: where the files are.
        constants: what ``{{app_name}}`` and the like stand for.

    Raises:
        TemplateError: a file is missing or is not UTF-8, or a constant cannot be put in.
    """
    for name, value in constants.items():
        # Handlebars has no way to write a brace in a text.
        if set(value) & set("{}\\") or not value.isprintable() or not value.strip():
            raise TemplateError(
                f"{CONSTANTS.get(name, name)}: {value!r} cannot be part of a template",
                hint="write it without { } \\ and control characters",
            )
    templates = {}
    for action in ACTIONS:
        sources = {
            part: _put_in(_read(_path(folder or _BUILT_IN, action, part)), constants, escape=part == "html")
            for part in PARTS
        }
        templates[action.name] = Template(
            action, sources["subject"].strip(), sources["text"], sources["html"]
        )
    return templates


def write_built_in(folder: Path) -> list[Path]:
    """Write the files that come with Mailroom into a folder, which is made if need be.

    Raises:
        TemplateError: one of them is there already, or cannot be written; then none is overwritten.
    """
    written = {
        _path(folder, action, part): _path(_BUILT_IN, action, part) for action in ACTIONS for part in PARTS
    }
    try:
        present = [path for path in written if path.exists()]
    except OSError as error:
        raise TemplateError(f"{error.filename}: {error.strerror}", hint="name another folder") from None
    if present:
        raise TemplateError(f"{present[0]} is there already", hint="name another folder, or move it away")
    path = folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, built_in in written.items():
            with path.open("xb") as file:
                file.write(built_in.read_bytes())
    except OSError as error:
        # A full disk's error names no file.
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
            " `mailroom templates init FOLDER` writes the ones to start from",
        ) from None
    except UnicodeDecodeError:
        raise TemplateError(f"{path}: not UTF-8", hint="save it as UTF-8") from None


def _put_in(source: str, constants: Mapping[str, str], *, escape: bool) -> str:
    def value(tag: Tag) -> str:
        # With ~ it would have to take blanks away as well; check says so.
        if tag.shows not in constants or "~" in tag.source:
            return tag.source
        text = constants[tag.shows]
        return html.escape(text) if escape else text

    return replace_tags(source, value)
