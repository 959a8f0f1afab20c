"""Finds where a page shows a user's text, and whether escaping makes it safe there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html.parser import HTMLParser
from typing import Final

# Attributes that are only shown: never run, fetched or used as style.
HARMLESS_ATTRIBUTES: Final = ("alt", "aria-label", "title")

_PROBE: Final = re.compile(r"mailroom-probe-\d+-")
# Mail programs of Microsoft show what is in such a comment.
_CONDITIONAL: Final = re.compile(r"\[if\b[^\]]*\]>(.*)<!\[endif\]", re.DOTALL)


class ProbeFinder(HTMLParser):
    """Reads a page that shows ``probes``, and notes those in unsafe places.

    Attributes:
        probes: the text to show for each field.
        unsafe: the fields and where they are, without repetition.
    """

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self._names = {f"mailroom-probe-{number}-": name for number, name in enumerate(names)}
        # An attribute without quotes ends at the blank.
        self.probes = {name: f"{probe} x={probe}" for probe, name in self._names.items()}
        self.unsafe: list[tuple[str, str]] = []
        self._element = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Report a probe in a tag, unless it is whole, quoted, and in an attribute that is only shown."""
        self._element = tag if tag in ("script", "style") else ""
        if _PROBE.search(tag):
            self._report(tag, "in the name of an element")
            return
        for name, value in attrs:
            if _PROBE.search(name):
                self._report(name, "in a tag and not in quotes")
            for probe in _PROBE.findall(value or ""):
                whole = self.probes[self._names[probe]] in (value or "")
                if name not in HARMLESS_ATTRIBUTES or not whole:
                    self._report(probe, f"in the attribute {name}" if whole else "in a tag and not in quotes")

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002 - the base class's name
        """Note that the element has ended."""
        self._element = ""

    def handle_data(self, data: str) -> None:
        """Report a probe in the text of a script or a style."""
        if self._element:
            self._report(data, f"in <{self._element}>")

    def handle_comment(self, data: str) -> None:
        """Read what a conditional comment holds as part of the page."""
        if found := _CONDITIONAL.match(data):
            inner = ProbeFinder(self._names.values())
            inner.feed(found[1])
            inner.close()
            self.unsafe += [one for one in inner.unsafe if one not in self.unsafe]

    def handle_decl(self, decl: str) -> None:
        """Report a probe in a declaration."""
        self._report(decl, "in a declaration")

    def handle_pi(self, data: str) -> None:
        """Report a probe in an instruction, which browsers read as a comment."""
        self._report(data, "in a declaration")

    def unknown_decl(self, data: str) -> None:
        """Report a probe in a section that is not HTML."""
        self._report(data, "in a declaration")

    def _report(self, source: str, place: str) -> None:
        for probe in _PROBE.findall(source):
            if (found := (self._names[probe], place)) not in self.unsafe:
                self.unsafe.append(found)
