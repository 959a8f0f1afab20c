"""Defines the actions: activation and password recovery.

A line holds an action's number, and the signature covers its prefix. The collector and the sender use only
this data; they do not mention an action by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Action:
    """One kind of mail.

    Attributes:
        name: its label in the database's type ``token_action``.
        number: its field on the line.
        prefix: the first bytes that the signature covers.
        needs_code: whether the signature covers the code, which the user has to type.
        template: the name of its template in SES, unless the settings name another.
        fields: the fields that its template must use; it may use no others.
    """

    name: str
    number: int
    prefix: bytes
    needs_code: bool
    template: str
    fields: tuple[str, ...]


ACTIVATION: Final = Action(
    "activation",
    1,
    b"/activate",
    needs_code=False,
    template="activationv1",
    fields=("login", "secret"),
)
PASSWORD_RECOVERY: Final = Action(
    "password_recovery",
    2,
    b"/recover",
    needs_code=True,
    template="passwordrecoveryv1",
    fields=("login", "secret", "code"),
)

ACTIONS: Final = (ACTIVATION, PASSWORD_RECOVERY)
BY_NAME: Final = {action.name: action for action in ACTIONS}
BY_NUMBER: Final = {action.number: action for action in ACTIONS}


def action_named(name: str) -> Action:
    """The action with this name.

    Raises:
        ValueError: there is none.
    """
    try:
        return BY_NAME[name]
    except KeyError:
        known = " or ".join(BY_NAME)
        raise ValueError(f"unknown action {name!r}; an action is {known}") from None
