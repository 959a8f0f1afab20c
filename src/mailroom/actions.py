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
from itertools import combinations
from pathlib import Path
from typing import Any, Final, NamedTuple

from mailroom.action_table import (
    ACCOUNTS,
    FIRST_OWN_NUMBER,
    LANES,
    LAST_NUMBER,
    TableReader,
    is_name,
)
from mailroom.errors import ActionsError

FILE_NAME: Final = "actions.toml"
BUILT_IN: Final = Path(__file__).parent / "templates" / "default"
SUFFIXES: Final = (".subject.txt", ".txt", ".html")
WHEN_EXPIRED: Final = ("drop", "renew")

_LANGUAGE: Final = re.compile(r"[A-Za-z]{2,8}([-_][A-Za-z0-9]{1,8})*")


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


def clashes(action: Action, other: Action) -> list[str]:
    """Why an action cannot be used beside another one, a sentence each; empty if it can."""
    found = []
    mine, theirs = action.prefix.decode("ascii"), other.prefix.decode("ascii")
    if action.number == other.number:
        found.append(f"number: {action.number} is also {other.name}'s; choose another")
    if mine.startswith(theirs) or theirs.startswith(mine):
        found.append(
            f"prefix: one of {mine} and {other.name}'s {theirs} begins with the other, so a token of one"
            " could pass for a token of the other; choose another"
        )
    if action.template == other.template:
        found.append(
            f"name: its template in SES would be {action.template}, as {other.name}'s; choose another"
        )
    if action.activates and other.activates:
        found.append(f"activates: {other.name} does it already, and only one action may")
    return found


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
    elif not isinstance(start, list) or not all(isinstance(name, str) and name in tables for name in start):
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
            " `mailroom init`",
        )
    return Catalogue(found, catalogue.language, tuple(found))


def _read(name: str, table: Mapping[str, Any], faults: list[str]) -> Action | None:
    """The action of a table; None if it has faults, which are added to ``faults``."""
    reader = TableReader(name, table)
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
        limit=Limit(*limit) if (limit := reader.limit()) else None,
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


def _conflicts(actions: Iterable[Action]) -> list[str]:
    pairs = combinations(actions, 2)
    return [f"[{other.name}] {why}" for one, other in pairs for why in clashes(other, one)]


def _taken_numbers(actions: Iterable[Action], catalogue: Mapping[str, Action]) -> list[str]:
    owners = {action.number: action.name for action in catalogue.values()}
    return [
        f"[{action.name}] number: {action.number} is"
        f" {'reserved' if action.number not in owners else owners[action.number] + ' in the catalogue'};"
        f" write one from {FIRST_OWN_NUMBER} to {LAST_NUMBER}"
        for action in actions
        if action.number < FIRST_OWN_NUMBER and owners.get(action.number) != action.name
    ]
