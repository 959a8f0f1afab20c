"""Shows actions as ``actions.toml`` writes them, and copies one from the catalogue into a folder.

Promises: ``copy`` overwrites no file and no table. It may be repeated, also after an interruption: the table
is written last.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Final

from mailroom.action_table import duration_text
from mailroom.actions import BUILT_IN, FILE_NAME, Action, load_catalogue
from mailroom.errors import ActionsError

LAYOUT: Final = "layout.html"
DEFAULTS: Final = {
    "account": '"none"',
    "link": "true",
    "code": "false",
    "lifetime": '"15m"',
    "fields": "[]",
    "lane": '"normal"',
    "limit": "",
    "when_expired": '"drop"',
    "activates": "false",
}


def described(action: Action) -> dict[str, str]:
    """The keys of an action's table with their values as TOML; empty for no limit."""
    limit = action.limit
    return {
        "number": str(action.number),
        "prefix": json.dumps(action.prefix.decode("ascii")),
        "account": json.dumps(action.account or "none"),
        "link": json.dumps(action.has_link),
        "code": json.dumps(action.needs_code),
        "lifetime": json.dumps(duration_text(action.lifetime_s)),
        "fields": json.dumps(list(action.fields)),
        "lane": json.dumps(action.lane),
        "limit": json.dumps(f"{limit.mails} in {duration_text(limit.within_s)}") if limit else "",
        "when_expired": json.dumps("renew" if action.renews else "drop"),
        "activates": json.dumps(action.activates),
    }


def table(action: Action) -> str:
    """An action's table, without the keys that have their defaults."""
    lines = [
        f"{key} = {value}" for key, value in described(action).items() if value != DEFAULTS.get(key, None)
    ]
    return "\n".join([f"[{action.name}]", *lines, ""])


def files_of(name: str) -> list[Path]:
    """The files of an action of the catalogue, in all languages, and the layout."""
    return sorted([*BUILT_IN.glob(f"{name}.*"), *BUILT_IN.glob(LAYOUT)])


def copy(action: Action, folder: Path) -> list[Path]:
    """Copy an action of the catalogue and its files into a folder; returns what was written.

    A file that exists stays as it is. So does a table.

    Raises:
        ActionsError: the folder's actions cannot be used, or a file cannot be written.
    """
    written = []
    path = folder / FILE_NAME
    try:
        for source in files_of(action.name):
            with contextlib.suppress(FileExistsError), (folder / source.name).open("xb") as file:
                written.append(folder / source.name)
                file.write(source.read_bytes())
        # A folder without the file has the catalogue's actions for which it has templates.
        present = load_catalogue(folder)
        if path.exists() and action.name in present.actions:
            return written
        if path.exists():
            text = path.read_text(encoding="utf-8-sig").rstrip("\n") + f"\n\n{table(action)}"
        else:
            actions = present.actions | {action.name: action}
            text = "\n".join([f'language = "{present.language}"\n', *map(table, actions.values())])
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
