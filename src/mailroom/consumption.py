"""Consuming a token: once, by one statement, with a clear answer when not.

``consume`` checks the signature first, so that a secret read from the database alone opens nothing,
and then calls ``mailroom.consume`` in the database, which is one conditional UPDATE under the lock
of the account: of two requests that race, one wins and the other is told.

A wrong code is counted, and five end the token. The count is part of your transaction: where one is
open, commit it also after a ``WrongCode``, or an attacker has as many tries as he likes. On a
connection without an open transaction ``consume`` commits by itself.
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

if TYPE_CHECKING:
    from psycopg import AsyncConnection, Connection

CONSUME: Final = "SELECT outcome, account, codes_left, token FROM mailroom.consume(%s, %s, %s)"


class Consumed(NamedTuple):
    """Whose token it was: the account's id, the action's name, and the token's id."""

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
        action: an action or its name.
        keys: see ``mailroom.tokens.Keys``.
        code: what the user typed, for an action that needs it.

    Raises:
        MalformedToken, ForgedToken, WrongAction: as ``verify`` does, without asking the database.
        WrongCode, CodesExhausted: the code is not the one mailed; the try was counted.
        UnknownToken, TokenUsed, TokenExpired, AccountSuspended, AccountIneligible: as they say.
        ValueError: the action or a key has not its shape.
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
    """The token's secret and the proven code; no code, to be counted, when it is a wrong one."""
    try:
        return verify(token, action, keys=keys, code=code), code if action.needs_code else None
    except ForgedToken:
        if not action.needs_code:
            raise
        # The signature covers the code: either of them is wrong, and only the database knows which.
        return split(token)[0], None


def _answer(action: Action, row: tuple[Any, ...] | None) -> Consumed:
    outcome, account, codes_left, consumed = row or ("unknown", None, None, None)
    match outcome:
        case "consumed":
            return Consumed(account, action.name, consumed)
        case "wrong_code":
            raise WrongCode(
                f"the code is wrong; {codes_left} more tries",
                hint="type the code again",
                codes_left=codes_left,
            )
    refusals: dict[str, TokenError] = {
        "unknown": UnknownToken("the database has no such token", hint="ask for a new mail"),
        "used": TokenUsed("the token was used before", hint="ask for a new mail if it was not you"),
        "expired": TokenExpired("the token has expired", hint="ask for a new mail"),
        "exhausted": CodesExhausted("five wrong codes ended the token", hint="ask for a new mail"),
        "suspended": AccountSuspended("the account is suspended", hint="ask whoever suspended it"),
        "ineligible": AccountIneligible(
            f"the account's status does not fit {action.name}", hint="activate the account first"
        ),
    }
    raise refusals[outcome]
