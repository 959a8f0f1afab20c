"""Erases an address from the files that hold what was not mailed, and the provider's answers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from mailroom.addresses import spellings
from mailroom.errors import SetAsideError
from mailroom.sender.rejected import FILE_NAME, remove_lines

ANSWERS: Final = "*.http"


def forget_in_files(folder: Path, address: str) -> dict[str, int]:
    """Remove rows of ``rejected.csv``, and saved answers, that name an address; returns how many of each.

    Args:
        folder: the folder of the files; nothing happens if it does not exist.
        address: the address, which is searched for in all its spellings.

    Raises:
        SetAsideError: a file cannot be read or written.
    """
    any_of = "|".join(re.escape(each.lower()) for each in spellings(address))
    searched = re.compile(rf"(?<![\w.%+-])({any_of})(?![\w-]|\.\w)")
    removed = {"rows of rejected.csv": 0, "saved answers": 0}
    try:
        if (path := folder / FILE_NAME).exists():
            removed["rows of rejected.csv"] = remove_lines(path, lambda line: _names(line, searched))
        for path in folder.glob(ANSWERS):
            if _names(path.read_text("latin-1"), searched) or _names(
                path.read_text("utf-8", "replace"), searched
            ):
                path.unlink(missing_ok=True)
                removed["saved answers"] += 1
    except OSError as error:
        raise SetAsideError(
            f"cannot erase the address from the files in {str(folder)!r}: {error.strerror}",
            hint="run it as the user that runs the sender",
        ) from error
    return removed


def _names(text: str, searched: re.Pattern[str]) -> bool:
    return bool(searched.search(text.lower()))
