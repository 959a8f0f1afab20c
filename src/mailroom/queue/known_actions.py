"""Holds the actions that the database has, for a worker that signs their tokens.

They are read at the start, at intervals, and when a claimed token has an action that is not among them. So a
worker that runs learns of a new action without a restart. A row that cannot be used is logged and left out,
and affects no other.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from mailroom.action_table import field_fault, is_name
from mailroom.actions import Action, Limit
from mailroom.logs import EventLogger
from mailroom.queue.client import Queue

INTERVAL_S: Final = 5.0
KNOWN_ACTIONS: Final = (
    "SELECT action, number, prefix, account, has_link, needs_code, lifetime_s, fields, lane, limit_mails,"
    " limit_within_s, renews, activates FROM mailroom.known_actions()"
)

log = EventLogger("actions")


class KnownActions:
    """The actions of ``queue``'s database, by name; empty until they are first read."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._actions: Mapping[str, Action] = {}
        self._unusable: set[str] = set()
        self._read_at = float("-inf")

    async def refresh(self, *, older_than_s: float = 0.0) -> None:
        """Read them anew, unless that was done within the last ``older_than_s`` seconds.

        Raises:
            DatabaseError: the function is missing or not granted.
        """
        if time.monotonic() < self._read_at + older_than_s:
            return
        rows = await self._queue.ask(KNOWN_ACTIONS, [])
        actions: dict[str, Action] = {}
        unusable: dict[str, str] = {}
        for row in rows:
            try:
                actions[row[0]] = read_action(row)
            except (ValueError, OverflowError) as error:
                unusable[row[0]] = str(error)
        for name in unusable.keys() - self._unusable:
            log.error("unusable", action=name, reason=unusable[name])
        if self._actions and (new := ", ".join(name for name in actions if name not in self._actions)):
            log.info("learnt", actions=new)
        self._actions, self._unusable = actions, set(unusable)
        self._read_at = time.monotonic()

    async def covering(self, names: Iterable[str]) -> Mapping[str, Action]:
        """The actions, read anew if one of these names is not among them. Raises what ``refresh`` does."""
        if not self._actions.keys() | self._unusable >= set(names):
            await self.refresh()
        return self._actions


def read_action(row: tuple[Any, ...]) -> Action:
    """The action of a row of ``KNOWN_ACTIONS``.

    Raises:
        ValueError, OverflowError: the row cannot be used.
    """
    name, number, prefix, account, has_link, needs_code, lifetime_s, fields, lane, mails, within_s = row[:-2]
    if not is_name(name):
        raise ValueError("its name has other characters than a-z, 0-9 and _")
    for field in fields:
        if why := field_fault(field):
            raise ValueError(f"its field {field!r} {why}")
    return Action(
        name,
        number,
        prefix.encode("ascii"),
        account=account,
        has_link=has_link,
        needs_code=needs_code,
        lifetime_s=round(lifetime_s),
        fields=tuple(fields),
        lane=lane,
        limit=None if mails is None else Limit(mails, round(within_s)),
        renews=row[-2],
        activates=row[-1],
    )
