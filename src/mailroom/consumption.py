"""Consumes a token, at most once, or raises an error that says why it cannot be consumed.

``consume`` checks the signature first, so a secret that was read from the database is useless without the
key. Then it calls ``mailroom.consume`` in the database, one conditional UPDATE under the account's lock:
of two concurrent requests one succeeds, and the other gets an error.

A wrong code is counted, and the fifth one ends the token. The count is part of your transaction. If one is
open, commit it after a ``WrongCode`` too, or an attacker may try codes without limit. On a connection
without an open transaction ``consume`` commits by itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, overload

from mailroom.actions import Action, action_named
from mailroom.errors import (
    AccountIneligible,
    AccountSuspended,
    CodesExhausted,
    ForgedToken,
    TokenError,
    TokenExpired,
    TokenUsed,
    UnknownToken,
    WrongCode,
)
from mailroom.tokens import Keys, split, verify
from mailroom.wording import counted

if TYPE_CHECKING:
    from psycopg import AsyncConnection, Connection

CONSUME: Final = "SELECT outcome, account, codes_left, token FROM mailroom.consume(%s, %s, %s)"


class Consumed(NamedTuple):
    """The consumed token: its account's id, its action's name, and its own id."""

    account: int
    action: str
    token: int


@overload
def consume(
    connection: Connection[Any], token: str, action: Action | str, *, keys: Keys, code: str | None = None
) -> Consumed: ...
@overload
def consume(
    connection: AsyncConnection[Any], token: str, action: Action | str, *, keys: Keys, code: str | None = None
) -> Awaitable[Consumed]: ...
def consume(
    connection: Connection[Any] | AsyncConnection[Any],
    token: str,
    action: Action | str,
    *,
    keys: Keys,
    code: str | None = None,
) -> Consumed | Awaitable[Consumed]:
    """Consume a token; with an asynchronous connection, ``await`` it.

    Args:
        connection: psycopg's, synchronous or asynchronous.
        token: what the link carried.
        action: an action, or the name of one in the catalogue.
        keys: see ``mailroom.tokens.Keys``.
        code: what the user typed, for an action that needs it.

    Raises:
        MalformedToken, ForgedToken, WrongAction: as ``verify`` does, without asking the database.
        WrongCode, CodesExhausted: the code is not the one that was mailed; the try was counted.
        UnknownToken, TokenUsed, TokenExpired, AccountSuspended, AccountIneligible: the database refused it.
        ValueError: the action or a key is not valid.
    """
    import psycopg

    action = action if isinstance(action, Action) else action_named(action)
    secret, code = _checked(token, action, keys, code)
    parameters = [secret, action.name, code]
    if isinstance(connection, psycopg.AsyncConnection):
        return _consume_async(connection, action, parameters)
    with connection.transaction(), connection.cursor(row_factory=psycopg.rows.tuple_row) as cursor:
        row = cursor.execute(CONSUME, parameters).fetchone()
    return _answer(action, row)


async def _consume_async(
    connection: AsyncConnection[Any], action: Action, parameters: Sequence[object]
) -> Consumed:
    import psycopg

    async with (
        connection.transaction(),
        connection.cursor(row_factory=psycopg.rows.tuple_row) as cursor,
    ):
        row = await (await cursor.execute(CONSUME, parameters)).fetchone()
    return _answer(action, row)


def _checked(token: str, action: Action, keys: Keys, code: str | None) -> tuple[bytes, str | None]:
    """The token's secret and the verified code; None for a wrong code, which the database then counts."""
    try:
        return verify(token, action, keys=keys, code=code), code if action.needs_code else None
    except ForgedToken:
        if not action.needs_code:
            raise
        # The signature covers the code. One of them is wrong, and only the database knows which.
        return split(token)[0], None


def _answer(action: Action, row: tuple[Any, ...] | None) -> Consumed:
    outcome, account, codes_left, consumed = row or ("unknown", None, None, None)
    match outcome:
        case "consumed":
            return Consumed(account, action.name, consumed)
        case "wrong_code":
            raise WrongCode(
                f"the code is wrong; {counted(codes_left or 0, 'more try', 'more tries')}",
                hint="type the code again",
                codes_left=codes_left,
            )
    refusals: dict[str, TokenError] = {
        "unknown": UnknownToken("the database has no such token", hint="ask for a new mail"),
        "used": TokenUsed("the token was used before", hint="ask for a new mail if it was not you"),
        "expired": TokenExpired("the token has expired", hint="ask for a new mail"),
        "exhausted": CodesExhausted("five wrong codes ended the token", hint="ask for a new mail"),
        "suspended": AccountSuspended("the account is suspended", hint="ask the person who suspended it"),
        "ineligible": AccountIneligible(
            f"the account's status does not fit {action.name}", hint="activate the account first"
        ),
    }
    raise refusals[outcome]
