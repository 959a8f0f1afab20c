"""Consumes a token, at most once, or raises an error that says why it cannot be consumed.

``consume`` checks the signature first, so a secret that was read from the database is useless without the
key. Then it calls ``mailroom.consume`` in the database, one conditional UPDATE under the recipient's lock:
of two concurrent requests one succeeds, and the other gets an error. ``consume_code`` is for actions whose
mails have a code and no link.

Each runs one statement on the connection, as ``connection.execute`` would, and commits nothing: in autocommit
mode the statement is a transaction of its own, otherwise it is part of the caller's. A refusal leaves that
transaction as it is; an error of the database aborts it, as that of any statement would.

A wrong code is counted, and the fifth one ends the token. The count is part of the transaction. Commit it
after a ``WrongCode`` too, or an attacker may try codes without limit. The integrations in
``mailroom.contrib`` count it in a transaction of its own, so that a rollback does not undo it.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, LiteralString, NamedTuple, overload
from uuid import UUID

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

# data as text, since drivers and frameworks differ in what they make of jsonb.
CONSUME: Final = (
    "SELECT outcome, account, codes_left, token, subject, email, data::text, user_table FROM "
    "mailroom.consume(%(secret)s, %(action)s, %(code)s)"
)
CONSUME_CODE: Final = (
    "SELECT outcome, account, codes_left, token, subject, email, data::text, user_table FROM "
    "mailroom.consume_code(%(action)s, %(code)s, %(account)s, %(email)s, %(subject)s, %(user_id)s,"
    " %(user_table)s)"
)
COUNT: Final = CONSUME[:-1] + ", p_count_only => true)"
COUNT_CODE: Final = CONSUME_CODE[:-1] + ", p_count_only => true)"
# Before Request.counting: the caller's own transaction may have locked the token.
LIMIT_WAIT: Final = "SET LOCAL lock_timeout = '10s'"


@dataclass(frozen=True, slots=True)
class Consumed:
    """The consumed token.

    Attributes:
        account: its account's id; None if it was not for an account.
        action: its action's name.
        token: its own id.
        subject: the application's key: what ``mailroom.send`` got, or an adopted user's; None without one.
        email: the address that the mail went to.
        data: the action's own fields.
        user_table: the adopted table that has the user, whose key is ``subject``; None for anybody else.
    """

    account: int | None
    action: str
    token: int
    subject: str | None
    email: str
    data: Mapping[str, Any]
    user_table: str | None = None


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

    It commits nothing, except that each statement in autocommit mode is a transaction of its own. Commit your
    transaction after ``WrongCode`` too: the count of the tries is part of it.

    Args:
        connection: psycopg's, synchronous or asynchronous.
        token: what the link carried.
        action: an action, or the name of one in the catalogue.
        keys: the value of ``MAILROOM_SECRET_KEY``, or keys as bytes.
        code: what the user typed, for an action that needs it.

    Raises:
        MalformedToken, ForgedToken, WrongAction: as ``verify`` does, without asking the database.
        WrongCode, CodesExhausted: the code is not the one that was mailed; the try was counted.
        UnknownToken, TokenUsed, TokenExpired, AccountSuspended, AccountIneligible: the database refused it.
        ValueError: the action or a key is not valid.
    """
    return _ask(connection, token_request(token, action, keys, code))


@overload
def consume_code(
    connection: Connection[Any],
    code: str,
    action: Action | str,
    *,
    account: int | None = None,
    email: str | None = None,
    subject: str | None = None,
    user_id: str | int | UUID | None = None,
    user_table: str | None = None,
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
    user_id: str | int | UUID | None = None,
    user_table: str | None = None,
) -> Awaitable[Consumed]: ...
def consume_code(
    connection: Connection[Any] | AsyncConnection[Any],
    code: str,
    action: Action | str,
    *,
    account: int | None = None,
    email: str | None = None,
    subject: str | None = None,
    user_id: str | int | UUID | None = None,
    user_table: str | None = None,
) -> Consumed | Awaitable[Consumed]:
    """Consume the newest token of an action without a link; with an asynchronous connection, ``await`` it.

    The recipient is an account, a user of an adopted table, or an address and the subject that was given to
    ``mailroom.send``. The caller has to know who it is, as from a session, since five digits alone prove
    nothing. It commits no more than ``consume`` does.

    Args:
        connection: psycopg's, synchronous or asynchronous.
        code: what the user typed.
        action: an action, or the name of one in the catalogue.
        account: the account's id.
        email: the address, for a recipient without an account.
        subject: the application's key, for a recipient without an account.
        user_id: the key of a user of an adopted table.
        user_table: that table's name, if several are adopted.

    Raises:
        MalformedToken: the code is not five digits.
        WrongCode, CodesExhausted: the code is not the one that was mailed; the try was counted.
        UnknownToken, TokenUsed, TokenExpired, AccountSuspended, AccountIneligible: the database refused it.
        ValueError: the action has a link or no code, or not one of account, email and user_id is given.
    """
    return _ask(connection, code_request(code, action, account, email, subject, user_id, user_table))


class Request(NamedTuple):
    """One question to the database.

    Attributes:
        action: the action's name.
        query: the statement, with ``%(name)s`` for its parameters. It returns one row, for ``answer``.
        parameters: the values.
        counting: a statement with the same parameters that only counts a wrong code, to be committed before
            ``query`` is run; None if the code is certainly right, or the action has none.
    """

    action: str
    query: LiteralString
    parameters: Mapping[str, object]
    counting: LiteralString | None


def token_request(token: str, action: Action | str, keys: Keys, code: str | None) -> Request:
    """Verify a token, and return what to ask the database; raises what ``verify`` does.

    The signature covers the code. If it does not verify, one of the two is wrong. Only the database knows
    which, so the request has no code, and the database counts the try.
    """
    action = action if isinstance(action, Action) else action_named(action)
    try:
        secret = verify(token, action, keys=keys, code=code)
        known = code if action.needs_code else None
        counting = None
    except ForgedToken:
        if not action.needs_code:
            raise
        secret, known, counting = split(token)[0], None, COUNT
    return Request(action.name, CONSUME, {"secret": secret, "action": action.name, "code": known}, counting)


def code_request(
    code: str,
    action: Action | str,
    account: int | None = None,
    email: str | None = None,
    subject: str | None = None,
    user_id: str | int | UUID | None = None,
    user_table: str | None = None,
) -> Request:
    """Check the arguments of ``consume_code``, and return what to ask the database."""
    action = action if isinstance(action, Action) else action_named(action)
    if action.has_link or not action.needs_code:
        raise ValueError(f"{action.name} is not an action with a code and no link; consume its token")
    if (account, email, user_id).count(None) != 2:
        raise ValueError("give one of account, email and user_id")
    check_code(code)
    parameters = {
        "action": action.name,
        "code": code,
        "account": account,
        "email": email,
        "subject": subject,
        "user_id": None if user_id is None else str(user_id),
        "user_table": user_table,
    }
    return Request(action.name, CONSUME_CODE, parameters, COUNT_CODE)


def refuse_wrong_code(request: Request, row: Sequence[Any] | None) -> None:
    """Raise WrongCode or CodesExhausted if that is the answer to ``request.counting``."""
    if row and row[0] in {"wrong_code", "exhausted"}:
        answer(request, row)


def answer(request: Request, row: Sequence[Any] | None) -> Consumed:
    """What the row of ``request.query`` says: the consumed token, or an error."""
    outcome, account, codes_left, token, subject, email, data, user_table = row or ("unknown", *[None] * 7)
    match outcome:
        case "consumed":
            fields = json.loads(data or "{}")
            return Consumed(account, request.action, token, subject, email, fields, user_table)
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
            f"the account's status does not fit {request.action}",
            hint="look at the account's status: it may be active already, or not yet",
        ),
    }
    raise refusals[outcome]


def _ask(
    connection: Connection[Any] | AsyncConnection[Any], request: Request
) -> Consumed | Awaitable[Consumed]:
    import psycopg

    if isinstance(connection, psycopg.AsyncConnection):
        return _ask_async(connection, request)
    # The connection's own kind of cursor may want other placeholders.
    with psycopg.Cursor(connection, row_factory=psycopg.rows.tuple_row) as cursor:
        row = cursor.execute(request.query, request.parameters).fetchone()
    return answer(request, row)


async def _ask_async(connection: AsyncConnection[Any], request: Request) -> Consumed:
    import psycopg

    async with psycopg.AsyncCursor(connection, row_factory=psycopg.rows.tuple_row) as cursor:
        row = await (await cursor.execute(request.query, request.parameters)).fetchone()
    return answer(request, row)
