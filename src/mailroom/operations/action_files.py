"""Writes the files to start from, and copies an action of the catalogue into a folder.

Promises: no file and no table is overwritten. ``copy`` may be repeated, also after an interruption: the table
is written last.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from mailroom.action_text import table, whole_file
from mailroom.actions import BUILT_IN, FILE_NAME, Action, load_catalogue
from mailroom.errors import ActionsError, TemplateError
from mailroom.templates.listing import LAYOUT
from mailroom.templates.sources import built_in_files
from mailroom.tokens import new_key

MAILS: Final = "mails"
SETTINGS: Final = Path(__file__).with_name("mailroom.env")


def write_start(folder: Path) -> list[Path]:
    """Write ``mails/``, as ``write_built_in`` does, and ``mailroom.env`` with a new key; return the paths.

    The folder is created if it does not exist. Only the owner may read ``mailroom.env``.

    Raises:
        TemplateError: a file exists already or cannot be written.
    """
    settings = folder / "mailroom.env"
    text = SETTINGS.read_text(encoding="utf-8").format(key=new_key())
    return _write_new(_built_in(folder / MAILS) | {settings: text.encode()}, private=settings)


def write_built_in(folder: Path) -> list[Path]:
    """Write what a new installation has: actions, their files, and the layout; return their paths.

    The folder is created if it does not exist.

    Raises:
        TemplateError: a file exists already or cannot be written.
    """
    return _write_new(_built_in(folder))


def copy(action: Action, folder: Path) -> list[Path]:
    """Copy an action of the catalogue and its files into a folder; returns what was written.

    A file that exists stays as it is. So does a table.

    Raises:
        ActionsError: the folder's actions cannot be used, or a file cannot be written.
    """
    written = []
    path = folder / FILE_NAME
    try:
        for name in [LAYOUT, *built_in_files(action.name)]:
            with contextlib.suppress(FileExistsError), (folder / name).open("xb") as file:
                written.append(folder / name)
                file.write((BUILT_IN / name).read_bytes())
        # A folder without the file has the catalogue's actions for which it has templates.
        present = load_catalogue(folder)
        if path.exists() and action.name in present.actions:
            return written
        if path.exists():
            text = path.read_text(encoding="utf-8-sig").rstrip("\n") + f"\n\n{table(action)}"
        else:
            actions = present.actions | {action.name: action}
            text = whole_file(present.language, actions.values())
        _replace(path, text)
    except OSError as error:
        raise ActionsError(
            f"cannot write {str(error.filename or path)!r}: {error.strerror}",
            hint="make the folder writable, or name another one in MAILROOM_TEMPLATES",
        ) from None
    load_catalogue(folder)  # the new table may clash with another
    return [*written, path]


def _built_in(folder: Path) -> dict[Path, bytes]:
    actions, language, start = load_catalogue()
    copied = [LAYOUT, *(name for action in start for name in built_in_files(action))]
    contents = {folder / FILE_NAME: whole_file(language, [actions[name] for name in start]).encode()}
    return contents | {folder / name: (BUILT_IN / name).read_bytes() for name in copied}


def _write_new(contents: Mapping[Path, bytes], private: Path | None = None) -> list[Path]:
    path = Path()
    try:
        present = [path for path in contents if path.exists()]
        for path, content in () if present else contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                if path == private:
                    os.fchmod(file.fileno(), 0o600)
                file.write(content)
    except OSError as error:
        # The error of a full disk names no file.
        raise TemplateError(
            f"{error.filename or path}: {error.strerror}", hint="name another folder"
        ) from None
    if present:
        raise TemplateError(f"{present[0]} exists already", hint="name another folder, or move the file away")
    return list(contents)


def _replace(path: Path, text: str) -> None:
    """Write a file whole, or leave it as it was."""
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
