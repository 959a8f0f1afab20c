"""Shows actions as ``actions.toml`` writes them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

from mailroom.action_table import duration_text
from mailroom.actions import Action

HEAD: Final = """\
# The actions of this folder. `mailroom actions apply` writes them into the database; `mailroom actions show`
# prints all keys of one. A number and a prefix never change: links that were mailed depend on them.
"""
DEFAULTS: Final = {
    "account": '"none"',
    "link": "true",
    "code": "false",
    "lifetime": '"15m"',
    "fields": "[]",
    "lane": '"normal"',
    "limit": "",
    "when_expired": '"drop"',
    "activates": "false",
}


def described(action: Action) -> dict[str, str]:
    """The keys of an action's table with their values as TOML; empty for no limit."""
    limit = action.limit
    return {
        "number": str(action.number),
        "prefix": json.dumps(action.prefix.decode("ascii")),
        "account": json.dumps(action.account or "none"),
        "link": json.dumps(action.has_link),
        "code": json.dumps(action.needs_code),
        "lifetime": json.dumps(duration_text(action.lifetime_s)),
        "fields": json.dumps(list(action.fields)),
        "lane": json.dumps(action.lane),
        "limit": json.dumps(f"{limit.mails} in {duration_text(limit.within_s)}") if limit else "",
        "when_expired": json.dumps("renew" if action.renews else "drop"),
        "activates": json.dumps(action.activates),
    }


def table(action: Action) -> str:
    """An action's table, without the keys that have their defaults."""
    lines = [
        f"{key} = {value}" for key, value in described(action).items() if value != DEFAULTS.get(key, None)
    ]
    return "\n".join([f"[{action.name}]", *lines, ""])


def whole_file(language: str, actions: Iterable[Action]) -> str:
    """An ``actions.toml`` with these actions."""
    return "\n".join([HEAD, f"language = {json.dumps(language)}\n", *map(table, actions)])
