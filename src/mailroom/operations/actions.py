"""Compares the actions of a folder with those of the database, and writes them there.

Promises: ``apply`` writes all rows in one transaction or none. It may be repeated, also after an
interruption: the values of the enum are committed first, since PostgreSQL lets no transaction use a value
that it added, and the next ``apply`` adds the rows. What would break links that were mailed is refused. No
action is removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql

from mailroom.action_text import described
from mailroom.actions import Action, clashes
from mailroom.database.connection import reason
from mailroom.database.sync import translated
from mailroom.errors import ActionsError, DatabaseError
from mailroom.queue.known_actions import KNOWN_ACTIONS, read_action

# The type, in whichever schema the first migration created it.
TYPE: Final = """
SELECT n.nspname::pg_catalog.text, t.typname::pg_catalog.text FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) a.atttypid
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) t.typnamespace
WHERE a.attrelid OPERATOR(pg_catalog.=) 'mailroom.actions'::pg_catalog.regclass
      AND a.attname OPERATOR(pg_catalog.=) 'action'
"""
LABELS: Final = """
SELECT e.enumlabel FROM pg_catalog.pg_enum e
JOIN pg_catalog.pg_attribute a ON a.atttypid OPERATOR(pg_catalog.=) e.enumtypid
WHERE a.attrelid OPERATOR(pg_catalog.=) 'mailroom.actions'::pg_catalog.regclass
      AND a.attname OPERATOR(pg_catalog.=) 'action'
ORDER BY e.enumsortorder
"""
ADD_LABEL: Final = "ALTER TYPE {} ADD VALUE IF NOT EXISTS {}"
# Readers go on; of two that write, one waits.
LOCK: Final = "LOCK TABLE mailroom.actions IN SHARE ROW EXCLUSIVE MODE"
# Only one action may activate accounts, so the one that no longer does is written first.
CLEAR_ACTIVATES: Final = (
    "UPDATE mailroom.actions SET activates = false"
    " WHERE activates AND action::pg_catalog.text OPERATOR(pg_catalog.=) ANY (%s)"
)
WRITE: Final = """
INSERT INTO mailroom.actions (action, number, prefix, account_status, has_link, needs_code, lifetime, fields,
                              lane, limit_mails, limit_within, renews, activates)
VALUES (%(name)s, %(number)s, %(prefix)s, %(account)s,
        %(has_link)s, %(needs_code)s, pg_catalog.make_interval(secs => %(lifetime_s)s),
        %(fields)s::pg_catalog.text[], %(lane)s::mailroom.lane, %(mails)s::pg_catalog.int4,
        pg_catalog.make_interval(secs => %(within_s)s::pg_catalog.float8), %(renews)s, %(activates)s)
ON CONFLICT (action) DO UPDATE SET account_status = excluded.account_status, has_link = excluded.has_link,
    lifetime = excluded.lifetime, fields = excluded.fields, lane = excluded.lane,
    limit_mails = excluded.limit_mails, limit_within = excluded.limit_within, renews = excluded.renews,
    activates = excluded.activates
"""
# What live links and lines depend on, by the key in actions.toml.
FIXED: Final = ("number", "prefix", "code")


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs between a folder's action and the database's.

    Attributes:
        action: the folder's.
        keys: by the key in ``actions.toml``, the database's value and the folder's; empty for a new action.
        refusals: why it cannot be applied.
        is_new: whether the database has no row of this action.
    """

    action: Action
    keys: dict[str, tuple[str, str]]
    refusals: list[str]
    is_new: bool

    def text(self) -> str:
        """It in a few lines, for people."""
        if self.is_new:
            head = f"+ {self.action.name}"
            lines = [f"    {key} = {value}" for key, value in described(self.action).items() if value]
        else:
            head = f"~ {self.action.name}"
            lines = [
                f"    {key}: {there or 'none'} -> {here or 'none'}"
                for key, (there, here) in self.keys.items()
            ]
        return "\n".join([head, *lines, *(f"    refused: {why}" for why in self.refusals)])

    def as_dict(self) -> dict[str, Any]:
        """It as JSON."""
        return {
            "action": self.action.name,
            "state": "missing" if self.is_new else "different",
            "keys": {key: {"database": there, "folder": here} for key, (there, here) in self.keys.items()},
            "refused": self.refusals,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """A folder's actions beside the database's.

    Attributes:
        differences: the folder's actions that are missing or different in the database.
        only_there: the names of actions that only the database has.
        without_row: values of the enum without a row, and not in the folder. Their tokens are rejected.
    """

    differences: list[Difference]
    only_there: list[str]
    without_row: list[str]

    @property
    def refusals(self) -> list[str]:
        """Why it cannot be applied, a line each."""
        return [f"{one.action.name}: {why}" for one in self.differences for why in one.refusals]


def in_database(connection: psycopg.Connection) -> dict[str, Action]:
    """The database's actions by name, without those that no worker can use.

    Raises:
        DatabaseError, DatabaseUnavailable: as ``translated`` does.
    """
    with translated(connection):
        rows = connection.execute(KNOWN_ACTIONS).fetchall()
    actions = {}
    for row in rows:
        try:
            actions[row[0]] = read_action(row)
        except (ValueError, OverflowError):
            continue
    return actions


def compare(connection: psycopg.Connection, wanted: Mapping[str, Action]) -> Comparison:
    """Compare a folder's actions with the database's. Raises what ``in_database`` raises."""
    there = in_database(connection)
    with translated(connection):
        labels = [label for (label,) in connection.execute(LABELS)]
    after = {**there, **wanted}
    differences = [
        _difference(action, there.get(action.name), after.values())
        for action in wanted.values()
        if action != there.get(action.name)
    ]
    return Comparison(
        differences,
        [name for name in there if name not in wanted],
        [label for label in labels if label not in there and label not in wanted],
    )


def apply(connection: psycopg.Connection, wanted: Mapping[str, Action]) -> None:
    """Write a folder's actions into the database.

    Args:
        connection: in autocommit mode, as the owner of the schema.
        wanted: the folder's actions that are to be written.

    Raises:
        ActionsError: links that were mailed would break, or two actions could not be told apart. Nothing was
            written.
        DatabaseError, DatabaseUnavailable: as ``translated`` does.
    """
    check_applicable(planned := compare(connection, wanted))
    with translated(connection), _as_owner():
        (type_name,) = connection.execute(TYPE).fetchall()
        for one in planned.differences:
            if one.is_new:
                label = sql.Literal(one.action.name)
                connection.execute(sql.SQL(ADD_LABEL).format(sql.Identifier(*type_name), label))
        with connection.transaction():
            connection.execute(LOCK)
            check_applicable(planned := compare(connection, wanted))  # another may have written meanwhile
            connection.execute(CLEAR_ACTIVATES, [[one.action.name for one in planned.differences]])
            for one in planned.differences:
                connection.execute(WRITE, _parameters(one.action))


@contextmanager
def _as_owner() -> Iterator[None]:
    """Turns a missing privilege into an error that says who has it."""
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        raise DatabaseError(
            f"the user may not add actions: {reason(error)}",
            hint="connect as the owner of Mailroom's schema, who ran `mailroom migrate up`",
        ) from error


def check_applicable(comparison: Comparison) -> None:
    """Check that nothing is refused.

    Raises:
        ActionsError: something is.
    """
    if comparison.refusals:
        raise ActionsError(
            "\n  ".join(
                ["the database cannot take these actions, and was not changed:", *comparison.refusals]
            ),
            hint="correct actions.toml; to change what a link depends on, add an action with another name",
        )


def _difference(action: Action, present: Action | None, every: Iterable[Action]) -> Difference:
    refusals = [why for other in every if other.name != action.name for why in clashes(action, other)]
    if present is None:
        return Difference(action, {}, refusals, is_new=True)
    here, there = described(action), described(present)
    keys = {key: (there[key], here[key]) for key in here if here[key] != there[key]}
    refusals += [
        f"{key} would change from {there[key]} to {here[key]}, and links that were mailed depend on it"
        for key in FIXED
        if key in keys
    ]
    return Difference(action, keys, refusals, is_new=False)


def _parameters(action: Action) -> dict[str, Any]:
    limit = action.limit
    return {
        "name": action.name,
        "number": action.number,
        "prefix": action.prefix.decode("ascii"),
        "account": action.account,
        "has_link": action.has_link,
        "needs_code": action.needs_code,
        "lifetime_s": action.lifetime_s,
        "fields": list(action.fields),
        "lane": action.lane,
        "mails": limit.mails if limit else None,
        "within_s": limit.within_s if limit else None,
        "renews": action.renews,
        "activates": action.activates,
    }
