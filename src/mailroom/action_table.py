"""Reads one table of ``actions.toml``, and collects its faults."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

LANES: Final = ("urgent", "normal", "bulk")
ACCOUNTS: Final = ("provisioned", "active")
FIRST_OWN_NUMBER: Final = 30
LAST_NUMBER: Final = 99
MAX_LIFETIME_S: Final = 3650 * 86_400
# What every mail has beside its action's own fields, and the names that mean something else in a template.
RESERVED: Final = (
    *("login", "secret", "code", "expires_in", "app_name", "app_url", "body", "lang", "dir"),
    *("if", "unless", "each", "with", "lookup", "log", "inline", "else", "as", "this"),
    *("true", "false", "null", "undefined"),
)

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
_PREFIX: Final = re.compile(r"/[!-~]{1,62}")
_DURATION: Final = re.compile(r"([1-9][0-9]{0,6})([smhd])", re.ASCII)
_LIMIT: Final = re.compile(r"([1-9][0-9]{0,5}) in (\w+)", re.ASCII)
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def is_name(name: str) -> bool:
    """Whether an action may have this name, which is a part of the names of files."""
    return _NAME.fullmatch(name) is not None


def field_fault(name: str) -> str:
    """Why a field may not have this name, as the end of a sentence; empty if it may."""
    if not _NAME.fullmatch(name):
        return "has other characters than a-z, 0-9 and _, or more than 63"
    if name in RESERVED or name.endswith("_html"):
        return "has a meaning of its own in templates; choose another name"
    return ""


def duration_text(seconds: int) -> str:
    """A duration as ``actions.toml`` writes it, such as 15m."""
    unit = next(unit for unit in "dhms" if seconds % _SECONDS[unit] == 0)
    return f"{seconds // _SECONDS[unit]}{unit}"


class TableReader:
    """The keys of one table that were not read yet.

    Attributes:
        faults: what is wrong, in one sentence each.
    """

    def __init__(self, name: str, table: Mapping[str, Any]) -> None:
        self._name = name
        self._left = dict(table)
        self.faults: list[str] = []

    def fault(self, text: str) -> None:
        """Note a fault."""
        self.faults.append(f"[{self._name}] {text}")

    def number(self) -> int:
        """The number; 0 if it is at fault."""
        value = self._left.pop("number", None)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LAST_NUMBER:
            what = "it is missing" if value is None else f"{value!r} is not a number"
            self.fault(f"number: {what}; write one from {FIRST_OWN_NUMBER} to {LAST_NUMBER}")
            return 0
        return value

    def prefix(self) -> bytes:
        """The prefix; empty if it is at fault."""
        value = self._left.pop("prefix", None)
        if not isinstance(value, str) or not _PREFIX.fullmatch(value):
            what = "it is missing" if value is None else f"{value!r} is not a prefix"
            self.fault(f"prefix: {what}; write / and up to 62 ASCII characters without blanks, such as /join")
            return b""
        return value.encode()

    def boolean(self, key: str, *, default: bool) -> bool:
        """The value of a key that is true or false."""
        value = self._left.pop(key, default)
        if not isinstance(value, bool):
            self.fault(f"{key}: {value!r} is neither true nor false")
            return default
        return value

    def word(self, key: str, words: tuple[str, ...], default: str) -> str:
        """The value of a key that is one of a few words."""
        value = self._left.pop(key, default)
        if value not in words:
            self.fault(f"{key}: {value!r} is not one of {', '.join(words)}")
            return default
        return str(value)

    def lifetime(self) -> int:
        """The lifetime in seconds; 0 if it is at fault."""
        value = self._left.pop("lifetime", "15m")
        seconds = _seconds(value)
        if not seconds:
            self.fault(f"lifetime: {value!r} is not a duration up to 3650d; write one such as 15m, 24h or 7d")
        return seconds

    def limit(self) -> tuple[int, int] | None:
        """The number of mails and the seconds of the limit; None for no limit."""
        value = self._left.pop("limit", None)
        if value is None:
            return None
        found = _LIMIT.fullmatch(value) if isinstance(value, str) else None
        within_s = _seconds(found[2]) if found else 0
        if not found or not within_s:
            self.fault(f'limit: {value!r} is not a limit; write one such as "5 in 15m"')
            return None
        return int(found[1]), within_s

    def fields(self) -> tuple[str, ...]:
        """The names of the action's own fields."""
        value = self._left.pop("fields", [])
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            self.fault(f'fields: {value!r} is not a list of names; write one such as ["inviter"]')
            return ()
        for one in value:
            if why := field_fault(one):
                self.fault(f"fields: {one!r} {why}")
        if len(set(value)) != len(value):
            self.fault("fields: a name is repeated; remove one of the two")
        return tuple(value)

    def refuse_others(self) -> None:
        """Note the keys that were not read as faults."""
        known = (
            "number, prefix, account, link, code, lifetime, fields, lane, limit, when_expired and activates"
        )
        for key in self._left:
            self.fault(f"{key}: unknown; the keys are {known}")


def _seconds(value: object) -> int:
    """The seconds of a duration such as 15m; 0 if it is none."""
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    seconds = int(found[1]) * _SECONDS[found[2]] if found else 0
    return seconds if seconds <= MAX_LIFETIME_S else 0
