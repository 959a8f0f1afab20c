"""Chooses the language of a mail, and writes durations in it.

Languages are tags such as ``de``, ``pt-BR`` or ``zh-Hant``. What is known about them comes from babel, which
is imported when it is first needed.
"""

from __future__ import annotations

import re
from collections.abc import Container
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from babel import Locale

TAG: Final = re.compile(r"[A-Za-z]{2,8}(?:[-_][A-Za-z0-9]{1,8})*")
FALLBACK: Final = "en"

_UNITS_S: Final[tuple[tuple[Literal["day", "hour", "minute", "second"], int], ...]] = (
    ("day", 86_400),
    ("hour", 3600),
    ("minute", 60),
    ("second", 1),
)


def canonical(tag: str) -> str:
    """Return a tag in the usual case and with hyphens: ``pt-BR`` for ``pt_br``."""
    first, *others = tag.replace("_", "-").split("-")
    return "-".join([first.lower(), *map(_cased, others)])


def choose(locale: str, languages: Container[str], plain: str) -> str:
    """Return the language of a mail: ``de-AT``, else ``de``, else empty for the plain templates.

    Args:
        locale: the recipient's; empty if it is not known.
        languages: the canonical tags of the translations.
        plain: the language of the plain templates.
    """
    for tag in _wider(locale):
        if tag == canonical(plain):
            return ""
        if tag in languages:
            return tag
    return ""


def direction(language: str) -> str:
    """Return the direction of a language's text: ``ltr`` or ``rtl``."""
    return _locale(language).text_direction


@lru_cache(maxsize=1024)
def duration(seconds: int, language: str) -> str:
    """Return a duration in words, in the largest unit that divides it: "15 minutes", "7 Tage"."""
    from datetime import timedelta

    from babel.dates import format_timedelta

    unit = next(unit for unit, length_s in _UNITS_S if seconds % length_s == 0)
    # No threshold is reached, so babel uses this unit and rounds nothing.
    return format_timedelta(
        timedelta(seconds=seconds), granularity=unit, threshold=float("inf"), locale=_locale(language)
    )


@lru_cache(maxsize=256)
def _locale(language: str) -> Locale:
    """What babel knows of a language, or of the wider one: of ``de`` for ``de-XY``."""
    from babel import Locale, UnknownLocaleError

    for tag in _wider(language):
        try:
            return Locale.parse(tag, sep="-")
        except (ValueError, UnknownLocaleError):
            continue
    return Locale.parse(FALLBACK)


def _wider(locale: str) -> list[str]:
    """A tag and its beginnings, the longest first; none for what is not a tag."""
    if not TAG.fullmatch(locale):
        return []
    parts = canonical(locale).split("-")
    return ["-".join(parts[:length]) for length in range(len(parts), 0, -1)]


def _cased(part: str) -> str:
    if len(part) == 4 and part.isalpha():
        return part.title()  # a script
    return part.upper() if len(part) == 2 else part.lower()
