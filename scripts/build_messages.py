"""Compiles the catalogues of translations (.po) for Django, whenever hatchling builds or installs Mailroom.

gettext reads .mo files only, which are not kept in the repository.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Messages(BuildHookInterface[Any]):
    """The hook."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatchling's
        """Write a .mo beside each .po."""
        for path in Path(self.root, "src").rglob("*.po"):
            with path.open("rb") as source, path.with_suffix(".mo").open("wb") as compiled:
                write_mo(compiled, read_po(source, locale=path.parts[-3], abort_invalid=True))
