"""Reading environment variables: one description a variable, and all faults found before any is told.

Each fault carries the variable's name and what would be right. Values of secrets are never part of
a message, and a secret may stand in a file that ``NAME_FILE`` names instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from mailroom.errors import SettingsError

Value = TypeVar("Value")

MAX_MS: Final = 24 * 60 * 60 * 1000


@dataclass(frozen=True, slots=True)
class Variable:
    """One documented variable: its name, its default (None: required) and what it is for.

    Attributes:
        bounds: the least and the most of a whole number; empty for what is none.
    """

    name: str
    default: str | None
    purpose: str
    secret: bool = False
    bounds: tuple[int, ...] = ()


class Reader:
    """Reads variables and gathers faults."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._faults: list[str] = []

    def read(self, variable: Variable, convert: Callable[[str], Value], otherwise: Value) -> Value:
        """The converted value; after a fault the last argument, which ``finish`` keeps from use."""
        try:
            return convert(self._text(variable))
        except ValueError as fault:
            self._faults.append(f"{variable.name}: {fault}")
            return otherwise

    def whole(self, variable: Variable) -> int:
        """The whole number within the variable's bounds."""
        return self.read(variable, whole(*variable.bounds), 0)

    def finish(self) -> None:
        """End the reading.

        Raises:
            SettingsError: with every fault there was.
        """
        if self._faults:
            raise SettingsError(self._faults)

    def _text(self, variable: Variable) -> str:
        text = self._environment.get(variable.name, "")
        path = self._environment.get(f"{variable.name}_FILE", "") if variable.secret else ""
        if path and text:
            raise ValueError(f"set it or {variable.name}_FILE, not both")
        if path:
            try:
                text = Path(path).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                why = error.strerror if isinstance(error, OSError) else "not UTF-8"
                raise ValueError(f"cannot read {path!r}, which {variable.name}_FILE names: {why}") from None
            if not text:
                raise ValueError(f"{path!r}, which {variable.name}_FILE names, is empty")
        text = text or variable.default or ""
        if not text and variable.default is None:
            raise ValueError(f"not set; it is {variable.purpose}")
        return text


def whole(least: int, most: int) -> Callable[[str], int]:
    """A converter to whole numbers from ``least`` to ``most``."""

    def convert(text: str) -> int:
        number = int(text) if text.isascii() and text.strip().isdigit() and len(text) < 20 else -1
        if not least <= number <= most:
            raise ValueError(f"{text!r} is not a whole number from {least} to {most}")
        return number

    return convert


def boolean(text: str) -> bool:
    """Convert true or false."""
    if text.lower() not in {"true", "false", "1", "0", "yes", "no", "on", "off"}:
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() in {"true", "1", "yes", "on"}
