"""Defines actions, the kinds of mail, and reads them from ``actions.toml``.

A folder of templates has one ``actions.toml`` with a table for each action. The folder that comes with
Mailroom is the catalogue. No code knows an action by its name.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any, Final, NamedTuple

from mailroom.errors import ActionsError

FILE_NAME: Final = "actions.toml"
BUILT_IN: Final = Path(__file__).parent / "templates" / "default"
SUFFIXES: Final = (".subject.txt", ".txt", ".html")
LANES: Final = ("urgent", "normal", "bulk")
ACCOUNTS: Final = ("provisioned", "active")
WHEN_EXPIRED: Final = ("drop", "renew")
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
_LANGUAGE: Final = re.compile(r"[A-Za-z]{2,8}([-_][A-Za-z0-9]{1,8})*")
_DURATION: Final = re.compile(r"([1-9][0-9]{0,6})([smhd])", re.ASCII)
_LIMIT: Final = re.compile(r"([1-9][0-9]{0,5}) in (\w+)", re.ASCII)
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True, slots=True)
class Limit:
    """At most ``mails`` mails to one recipient in ``within_s`` seconds."""

    mails: int
    within_s: int


@dataclass(frozen=True, slots=True)
class Action:
    """One kind of mail.

    Attributes:
        name: its label in the database's type ``token_action``.
        number: its field on the line; numbers from 30 on are the application's.
        prefix: the first bytes that the signature covers.
        account: the status that an account needs; None for anybody.
        has_link: whether the mail has a link with the signed token.
        needs_code: whether the signature covers the code, which the user has to type.
        lifetime_s: how long a token is valid.
        fields: its own fields, which the application writes into ``tokens.data``.
        lane: ``urgent``, ``normal`` or ``bulk``.
        limit: the most mails to one recipient, or None.
        renews: whether a token that expired before it could be sent gets a new life.
        activates: whether a new provisioned account gets one, and consuming it activates the account.
    """

    name: str
    number: int
    prefix: bytes
    account: str | None = None
    has_link: bool = True
    needs_code: bool = False
    lifetime_s: int = 900
    fields: tuple[str, ...] = ()
    lane: str = "normal"
    limit: Limit | None = None
    renews: bool = False
    activates: bool = False

    @property
    def template(self) -> str:
        """The name of its template in SES, unless the settings name another."""
        return f"{self.name.replace('_', '')}v1"

    @property
    def shown(self) -> tuple[str, ...]:
        """The fields that its template may show."""
        link, code = ("secret",) * self.has_link, ("code",) * self.needs_code
        return ("login", *link, *code, "expires_in", *self.fields)


class Catalogue(NamedTuple):
    """What a folder's ``actions.toml`` says.

    Attributes:
        actions: by name.
        language: the language of the templates without a language in their names.
        start: the actions of a new installation; all, unless the file says otherwise.
    """

    actions: dict[str, Action]
    language: str
    start: tuple[str, ...]


def load_actions(folder: Path | str | None = None) -> dict[str, Action]:
    """The actions of a folder by their names.

    Args:
        folder: a folder of templates; None for the catalogue that comes with Mailroom. A folder without
            ``actions.toml`` has the actions of the catalogue for which it has a file.

    Raises:
        ActionsError: the file cannot be read, or does not define valid actions. The text names the table
            and the key.
    """
    return load_catalogue(folder).actions


def load_catalogue(folder: Path | str | None = None) -> Catalogue:
    """The actions of a folder, and its language. Arguments and errors are those of ``load_actions``."""
    if folder is None:
        found = _built_in()
        return found._replace(actions=dict(found.actions))
    path = Path(folder) / FILE_NAME
    try:
        source = path.read_bytes()
    except FileNotFoundError:
        return _without_file(Path(folder))
    except OSError as error:
        raise ActionsError(
            f"cannot read {str(path)!r}: {error.strerror}",
            hint="make it readable, or name another folder in MAILROOM_TEMPLATES",
        ) from None
    return parse_catalogue(source, str(path), reserved=_built_in().actions)


def action_named(name: str) -> Action:
    """The action of the catalogue with this name.

    Raises:
        ValueError: there is none.
    """
    known = _built_in().actions
    try:
        return known[name]
    except KeyError:
        raise ValueError(
            f"{name!r} is not an action of the catalogue, which has {', '.join(known)};"
            " pass an action of your own as an Action (see mailroom.load_actions)"
        ) from None


def parse_catalogue(source: bytes, path: str, *, reserved: Mapping[str, Action] | None = None) -> Catalogue:
    """The actions that the text of an ``actions.toml`` defines.

    Args:
        source: the text, in UTF-8.
        path: what errors call it.
        reserved: the actions to which the numbers below ``FIRST_OWN_NUMBER`` belong; None: to any.

    Raises:
        ActionsError: with every fault.
    """
    try:
        tables = tomllib.loads(source.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ActionsError(f"{path!r} is not UTF-8", hint="save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ActionsError(
            f"{path!r} is not TOML: {error}", hint="correct this line, then run `mailroom actions check`"
        ) from None
    faults: list[str] = []
    language = tables.pop("language", "en")
    if not isinstance(language, str) or not _LANGUAGE.fullmatch(language):
        faults.append(f"language: {language!r} is not a language; write a tag such as en or pt-BR")
    start = tables.pop("start", None)
    actions = {}
    for name, table in tables.items():
        if not isinstance(table, dict):
            faults.append(f"{name}: it is not a table; write [{name}], and its keys below")
        elif found := _read(name, table, faults):
            actions[name] = found
    if start is None:
        start = list(tables)
    elif not isinstance(start, list) or not all(name in tables for name in start):
        faults.append(f"start: {start!r} is not a list of actions of this file")
    faults += _conflicts(actions.values())
    if reserved is not None:
        faults += _taken_numbers(actions.values(), reserved)
    if faults:
        raise ActionsError(
            "\n  ".join([f"{path!r} is not usable:", *faults]),
            hint="correct it, then run `mailroom actions check`",
        )
    return Catalogue(actions, str(language), tuple(start))


def is_name(name: str) -> bool:
    """Whether an action may have this name, which is a part of the names of files."""
    return _NAME.fullmatch(name) is not None


def duration_text(seconds: int) -> str:
    """A duration as ``actions.toml`` writes it, such as 15m."""
    unit = next(unit for unit in "dhms" if seconds % _SECONDS[unit] == 0)
    return f"{seconds // _SECONDS[unit]}{unit}"


@cache
def _built_in() -> Catalogue:
    path = BUILT_IN / FILE_NAME
    return parse_catalogue(path.read_bytes(), str(path))


def _without_file(folder: Path) -> Catalogue:
    catalogue = _built_in()
    found = {
        name: action
        for name, action in catalogue.actions.items()
        if any((folder / f"{name}{suffix}").exists() for suffix in SUFFIXES)
    }
    if not found:
        raise ActionsError(
            f"{str(folder)!r} has no {FILE_NAME}, and no template of an action of the catalogue",
            hint="name the right folder in MAILROOM_TEMPLATES, or write files to start from with"
            " `mailroom templates init FOLDER`",
        )
    return Catalogue(found, catalogue.language, tuple(found))


def _read(name: str, table: Mapping[str, Any], faults: list[str]) -> Action | None:
    """The action of a table; None if it has faults, which are added to ``faults``."""
    reader = _TableReader(name, table)
    if not is_name(name):
        reader.fault("the name has other characters than a-z, 0-9 and _, or more than 63; rename the table")
    renews = reader.word("when_expired", WHEN_EXPIRED, "drop") == "renew"
    account = reader.word("account", (*ACCOUNTS, "none"), "none")
    action = Action(
        name,
        reader.number(),
        reader.prefix(),
        account=None if account == "none" else account,
        has_link=reader.boolean("link", default=True),
        needs_code=reader.boolean("code", default=False),
        lifetime_s=reader.lifetime(),
        fields=reader.fields(),
        lane=reader.word("lane", LANES, "normal"),
        limit=reader.limit(),
        renews=renews,
        activates=reader.boolean("activates", default=False),
    )
    if action.activates and account != "provisioned":
        reader.fault('activates: only an action with account = "provisioned" activates accounts')
    if action.activates and action.fields:
        reader.fault("activates: such a token is made for each new account, which has no fields; remove them")
    reader.refuse_others()
    faults += reader.faults
    return None if reader.faults else action


class _TableReader:
    """Reads the keys of one table, and collects its faults."""

    def __init__(self, name: str, table: Mapping[str, Any]) -> None:
        self._name = name
        self._left = dict(table)
        self.faults: list[str] = []

    def fault(self, text: str) -> None:
        self.faults.append(f"[{self._name}] {text}")

    def number(self) -> int:
        value = self._left.pop("number", None)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LAST_NUMBER:
            what = "it is missing" if value is None else f"{value!r} is not a number"
            self.fault(f"number: {what}; write one from {FIRST_OWN_NUMBER} to {LAST_NUMBER}")
            return 0
        return value

    def prefix(self) -> bytes:
        value = self._left.pop("prefix", None)
        if not isinstance(value, str) or not _PREFIX.fullmatch(value):
            what = "it is missing" if value is None else f"{value!r} is not a prefix"
            self.fault(f"prefix: {what}; write / and up to 62 ASCII characters without blanks, such as /join")
            return b""
        return value.encode()

    def boolean(self, key: str, *, default: bool) -> bool:
        value = self._left.pop(key, default)
        if not isinstance(value, bool):
            self.fault(f"{key}: {value!r} is neither true nor false")
            return default
        return value

    def word(self, key: str, words: tuple[str, ...], default: str) -> str:
        value = self._left.pop(key, default)
        if value not in words:
            self.fault(f"{key}: {value!r} is not one of {', '.join(words)}")
            return default
        return str(value)

    def lifetime(self) -> int:
        value = self._left.pop("lifetime", "15m")
        seconds = _seconds(value)
        if not seconds:
            self.fault(f"lifetime: {value!r} is not a duration up to 3650d; write one such as 15m, 24h or 7d")
        return seconds

    def limit(self) -> Limit | None:
        value = self._left.pop("limit", None)
        if value is None:
            return None
        found = _LIMIT.fullmatch(value) if isinstance(value, str) else None
        within_s = _seconds(found[2]) if found else 0
        if not found or not within_s:
            self.fault(f'limit: {value!r} is not a limit; write one such as "5 in 15m"')
            return None
        return Limit(int(found[1]), within_s)

    def fields(self) -> tuple[str, ...]:
        value = self._left.pop("fields", [])
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            self.fault(f'fields: {value!r} is not a list of names; write one such as ["inviter"]')
            return ()
        for one in value:
            if not _NAME.fullmatch(one):
                self.fault(f"fields: {one!r} has other characters than a-z, 0-9 and _, or more than 63")
            elif one in RESERVED or one.endswith("_html"):
                self.fault(f"fields: {one!r} has a meaning of its own in templates; choose another name")
        if len(set(value)) != len(value):
            self.fault("fields: a name is repeated; remove one of the two")
        return tuple(value)

    def refuse_others(self) -> None:
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


def _conflicts(actions: Iterable[Action]) -> list[str]:
    """What two actions must not share: a signature or a line would be one of both."""
    faults = []
    for one, other in permutations(actions, 2):
        if one.number == other.number and one.name < other.name:
            faults.append(f"[{other.name}] number: {one.number} is also [{one.name}]'s; choose another")
        if other.prefix.startswith(one.prefix) and (one.prefix != other.prefix or one.name < other.name):
            faults.append(
                f"[{other.name}] prefix: {other.prefix.decode()} begins with [{one.name}]'s"
                f" {one.prefix.decode()}, so a token of one could pass for one of the other; choose another"
            )
        if one.activates and other.activates and one.name < other.name:
            faults.append(f"[{other.name}] activates: [{one.name}] does it already; only one action may")
    return faults


def _taken_numbers(actions: Iterable[Action], catalogue: Mapping[str, Action]) -> list[str]:
    owners = {action.number: action.name for action in catalogue.values()}
    return [
        f"[{action.name}] number: {action.number} is"
        f" {'reserved' if action.number not in owners else owners[action.number] + ' in the catalogue'};"
        f" write one from {FIRST_OWN_NUMBER} to {LAST_NUMBER}"
        for action in actions
        if action.number < FIRST_OWN_NUMBER and owners.get(action.number) != action.name
    ]
