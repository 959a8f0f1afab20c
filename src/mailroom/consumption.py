"""Consumes a token, at most once, or raises an error that says why it cannot be consumed.

``consume`` checks the signature first, so a secret that was read from the database is useless without the
key. Then it calls ``mailroom.consume`` in the database, one conditional UPDATE under the recipient's lock:
of two concurrent requests one succeeds, and the other gets an error. ``consume_code`` is for actions whose
mails have a code and no link.

A wrong code is counted, and the fifth one ends the token. The count is part of your transaction. If one is
open, commit it after a ``WrongCode`` too, or an attacker may try codes without limit. On a connection
without an open transaction ``consume`` commits by itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, LiteralString, NamedTuple, overload

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
from mailroom.tokens import Keys, check_code, split, verify
from mailroom.wording import counted

if TYPE_CHECKING:
    from psycopg import AsyncConnection, Connection

CONSUME: Final = (
    "SELECT outcome, account, codes_left, token, subject, email, data FROM mailroom.consume(%s, %s, %s)"
)
CONSUME_CODE: Final = (
    "SELECT outcome, account, codes_left, token, subject, email, data"
    " FROM mailroom.consume_code(%s, %s, %s, %s, %s)"
)


class Consumed(NamedTuple):
    """The consumed token.

    Attributes:
        account: its account's id; None if it was not for an account.
        action: its action's name.
        token: its own id.
        subject: the application's key, as it was given to ``mailroom.send``; None if none was.
        email: the address that the mail went to.
        data: the action's own fields.
    """

    account: int | None
    action: str
    token: int
    subject: str | None
    email: str
    data: Mapping[str, Any]


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
    action = action if isinstance(action, Action) else action_named(action)
    secret, code = _checked(token, action, keys, code)
    return _consume(connection, action, CONSUME, [secret, action.name, code])


@overload
def consume_code(
    connection: Connection[Any],
    code: str,
    action: Action | str,
    *,
    account: int | None = None,
    email: str | None = None,
    subject: str | None = None,
) -> Consumed: ...
@overload
def consume_code(
    connection: AsyncConnection[Any],
    code: str,
    action: Action | str,
    *,
    account: int | None = None,
    email: str | None = None,
    subject: str | None = None,
) -> Awaitable[Consumed]: ...
def consume_code(
    connection: Connection[Any] | AsyncConnection[Any],
    code: str,
    action: Action | str,
    *,
    account: int | None = None,
    email: str | None = None,
    subject: str | None = None,
) -> Consumed | Awaitable[Consumed]:
    """Consume the newest token of an action without a link; with an asynchronous connection, ``await`` it.

    The recipient is an account, or an address and the subject that was given to ``mailroom.send``. The caller
    has to know who it is, as from a session, since five digits alone prove nothing.

    Args:
        connection: psycopg's, synchronous or asynchronous.
        code: what the user typed.
        action: an action, or the name of one in the catalogue.
        account: the account's id.
        email: the address, for a recipient without an account.
        subject: the application's key, for a recipient without an account.

    Raises:
        MalformedToken: the code is not five digits.
        WrongCode, CodesExhausted: the code is not the one that was mailed; the try was counted.
        UnknownToken, TokenUsed, TokenExpired, AccountSuspended, AccountIneligible: the database refused it.
        ValueError: the action has a link or no code, or not one of account and email is given.
    """
    action = action if isinstance(action, Action) else action_named(action)
    if action.has_link or not action.needs_code:
        raise ValueError(f"{action.name} is not an action with a code and no link; consume its token")
    if (account is None) == (email is None):
        raise ValueError("give the account, or the email of a recipient without an account")
    check_code(code)
    return _consume(connection, action, CONSUME_CODE, [action.name, code, account, email, subject])


def _consume(
    connection: Connection[Any] | AsyncConnection[Any],
    action: Action,
    query: LiteralString,
    parameters: Sequence[object],
) -> Consumed | Awaitable[Consumed]:
    import psycopg

    if isinstance(connection, psycopg.AsyncConnection):
        return _consume_async(connection, action, query, parameters)
    with connection.transaction(), connection.cursor(row_factory=psycopg.rows.tuple_row) as cursor:
        row = cursor.execute(query, parameters).fetchone()
    return _answer(action, row)


async def _consume_async(
    connection: AsyncConnection[Any], action: Action, query: LiteralString, parameters: Sequence[object]
) -> Consumed:
    import psycopg

    async with (
        connection.transaction(),
        connection.cursor(row_factory=psycopg.rows.tuple_row) as cursor,
    ):
        row = await (await cursor.execute(query, parameters)).fetchone()
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
    outcome, account, codes_left, token, subject, email, data = row or ("unknown", *[None] * 6)
    match outcome:
        case "consumed":
            return Consumed(account, action.name, token, subject, email, data or {})
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
