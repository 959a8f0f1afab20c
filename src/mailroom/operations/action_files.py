"""Copies an action of the catalogue into a folder.

Promises: ``copy`` overwrites no file and no table. It may be repeated, also after an interruption: the table
is written last.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from mailroom.action_text import table, whole_file
from mailroom.actions import BUILT_IN, FILE_NAME, Action, load_catalogue
from mailroom.errors import ActionsError
from mailroom.templates.listing import LAYOUT
from mailroom.templates.sources import built_in_files


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
