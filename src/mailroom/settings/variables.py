"""Reads settings: frozen dataclasses, each field of which declares its environment variable.

``read_settings`` reports every fault at once, each with the variable's name and what would be right. The
value of a secret is never part of a message. A secret may be in a file that ``NAME_FILE`` names instead.
Blanks around a value are removed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from mailroom.errors import SettingsError

Value = TypeVar("Value")
Settings = TypeVar("Settings")

MAX_MS: Final = 24 * 60 * 60 * 1000
SOURCE: Final = "source"
EACH_ACTION: Final = "<ACTION>"

_QUOTES: Final = ('""', "''", "``", "“”", "‘’", "„“", "«»")
# A # within quotes, as in a password of a connection string, begins no comment.
_COMMENT: Final = re.compile(r"\s#(\s[^'\"]*)?$")


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable, as ``--help`` and the documentation describe it.

    Attributes:
        default: the text where it is not set; None if it is required.
        convert: the value of a text; raises ValueError, which says what would be right.
        bounds: the minimum and the maximum of a whole number; empty for other values.

    A name that ends with ``<ACTION>`` stands for a variable for each action; the value is then a mapping of
    the names of actions to the values that are set.
    """

    name: str
    default: str | None
    purpose: str
    convert: Callable[[str], Any]
    secret: bool = False
    bounds: tuple[int, ...] = ()

    def of_action(self, name: str) -> str:
        """The action whose variable has this name, where there is one for each; empty for any other name."""
        prefix = self.name.removesuffix(EACH_ACTION)
        action = name.removeprefix(prefix) if self.name != prefix and name.startswith(prefix) else ""
        return action.lower() if re.fullmatch("[A-Z][A-Z0-9_]*", action) else ""

    def read(self, environment: Mapping[str, str]) -> Any:
        """The value in an environment.

        Raises:
            ValueError: the variable is missing or wrong.
        """
        text = environment.get(self.name, "").strip()
        path = environment.get(f"{self.name}_FILE", "").strip() if self.secret else ""
        if path and text:
            raise ValueError(f"set it or {self.name}_FILE, not both")
        if path:
            if fault := clerical_fault(path):
                raise ValueError(f"{path!r}, the value of {self.name}_FILE, {fault}")
            try:
                text = Path(path).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                why = error.strerror if isinstance(error, OSError) else "not UTF-8"
                raise ValueError(f"cannot read {path!r}, which {self.name}_FILE names: {why}") from None
            if not text:
                raise ValueError(f"{path!r}, which {self.name}_FILE names, is empty")
        text = text or self.default or ""
        if not text and self.default is None:
            raise ValueError(f"not set; it is {self.purpose}")
        if fault := clerical_fault(text):
            raise ValueError(f"{'the value' if self.secret else repr(text)} {fault}")
        return self.convert(text)


def variable(
    name: str, default: str | None, purpose: str, convert: Callable[[str], Value], *, secret: bool = False
) -> Value:
    """A field that is read from one variable."""
    value: Value = _field(Variable(name, default, purpose, convert, secret), shown=not secret)
    return value


def whole(name: str, default: int, purpose: str, least: int, most: int = MAX_MS) -> int:
    """A field that is a whole number; it is in milliseconds unless ``most`` is given."""
    convert = partial(_whole, least, most)
    number: int = _field(Variable(name, str(default), purpose, convert, bounds=(least, most)))
    return number


def group(source: type[Settings]) -> Settings:
    """A field that is a group of settings."""
    found: Settings = _field(source)
    return found


def by_action(name: str, default: str, purpose: str, convert: Callable[[str], Value]) -> Mapping[str, Value]:
    """A field that is read from a variable for each action; see ``Variable``."""
    found: Mapping[str, Value] = _field(Variable(name + EACH_ACTION, default, purpose, convert))
    return found


def read_settings(settings: type[Settings], environment: Mapping[str, str]) -> Settings:
    """The settings of this type in an environment.

    Raises:
        SettingsError: with every fault.
    """
    faults: list[str] = []
    found: Settings = _read(settings, environment, faults)
    if faults:
        raise SettingsError(faults)
    return found


def variables(source: Any) -> Iterator[Variable]:
    """Every variable that settings of this type are read from, in the order of the fields."""
    if isinstance(source, Variable):
        yield source
    else:
        for part in _parts(source).values():
            yield from variables(part)


def clerical_fault(text: str) -> str:
    """What a file of variables added to a value, as the end of a sentence; empty if nothing.

    Shells remove quotes and comments; container runtimes and systemd keep some of them.
    """
    if text[:1] + text[-1:] in _QUOTES:
        return "is in quotes, which would be a part of it; remove the quotes"
    if _COMMENT.search(text):
        return "ends with a comment, which would be a part of it; put the comment on its own line"
    for place, character in enumerate(text, start=1):
        if not is_printable(character) and character not in "\t\r\n":
            return f"has the invisible character U+{ord(character):04X} at position {place}; type it again"
    return ""


def is_printable(text: str) -> bool:
    """Whether a text is one line of visible characters and blanks, which include the ideographic space."""
    return text.replace("\u3000", " ").isprintable()


def boolean(text: str) -> bool:
    """The value of true or false."""
    if text.lower() not in {"true", "false", "1", "0", "yes", "no", "on", "off"}:
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() in {"true", "1", "yes", "on"}


def _whole(least: int, most: int, text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1
    if not least <= number <= most:
        unit = " of milliseconds, without a unit" if most == MAX_MS else ""
        raise ValueError(f"{text!r} is not a whole number{unit}, from {least} to {most}")
    return number


def _field(source: Any, *, shown: bool = True) -> Any:
    return field(repr=shown, metadata={SOURCE: source})


def _parts(source: Any) -> Mapping[str, Any]:
    return {one.name: one.metadata[SOURCE] for one in fields(source)}


def _read(source: Any, environment: Mapping[str, str], faults: list[str]) -> Any:
    if not isinstance(source, Variable):
        return source(**{name: _read(part, environment, faults) for name, part in _parts(source).items()})
    if source.name.endswith(EACH_ACTION):
        found = {action: name for name in sorted(environment) if (action := source.of_action(name))}
        each = {action: replace(source, name=name) for action, name in found.items()}
        values = {action: _read(one, environment, faults) for action, one in each.items()}
        return {action: value for action, value in values.items() if value is not None}
    try:
        return source.read(environment)
    except ValueError as fault:
        faults.append(f"{source.name}: {fault}")
        return None
