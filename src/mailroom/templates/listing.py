"""Lists the files of a folder of templates."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, NamedTuple

from mailroom.actions import FILE_NAME
from mailroom.templates.languages import TAG, canonical

PARTS: Final = {"subject": ".subject.txt", "text": ".txt", "html": ".html"}
LAYOUT: Final = "layout.html"

_FILE: Final = re.compile(
    r"(?P<action>[a-z][a-z0-9_]*)"
    rf"(?:\.(?!subject\.txt$)(?P<tag>{TAG.pattern}))?(?P<part>\.subject\.txt|\.txt|\.html)"
)


class Listing(NamedTuple):
    """The files of a folder.

    Attributes:
        stamps: what changes with a file: name, time, size and number.
        files: the templates' names, by action, language and part.
    """

    stamps: frozenset[tuple[str, int, int, int]]
    files: dict[str, dict[str, dict[str, str]]]

    def languages(self, action: str) -> list[str]:
        """Return the languages in which an action has all three parts, as canonical tags, sorted."""
        found = self.files.get(action, {})
        return sorted(tag for tag, files in found.items() if tag and len(files) == len(PARTS))


def list_files(path: Path) -> Listing:
    """Return the files of a folder; none if it cannot be read."""
    stamps = set()
    files: dict[str, dict[str, dict[str, str]]] = {}
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                found = _FILE.fullmatch(entry.name)
                if found is None and entry.name not in (LAYOUT, FILE_NAME):
                    continue
                try:
                    stat = entry.stat()
                except OSError:  # a link to nothing
                    continue
                stamps.add((entry.name, stat.st_mtime_ns, stat.st_size, stat.st_ino))
                if found and entry.name != LAYOUT:
                    part = next(part for part, suffix in PARTS.items() if suffix == found["part"])
                    tag = canonical(found["tag"]) if found["tag"] else ""
                    files.setdefault(found["action"], {}).setdefault(tag, {})[part] = entry.name
    except OSError:
        pass  # its files are missing, which reading one reports
    return Listing(frozenset(stamps), files)


def file_name(action: str, tag: str, part: str) -> str:
    """Return the name of the file of a part, in a language or (with an empty tag) plain."""
    return f"{action}{'.' if tag else ''}{tag}{PARTS[part]}"
