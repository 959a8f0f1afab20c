"""Consumes tokens in the transaction of a SQLAlchemy session, with any driver for PostgreSQL.

``consume`` and ``consume_code`` do not commit: if the session rolls back, the token is not consumed. A wrong
code is counted even then, because the count is committed first, on a second connection of the same engine.
The engine's pool must have one to spare, unless it is the session's first statement: the second connection
is returned before the session takes its own. A wrong code needs it, and each call of ``consume_code``.

An object that the session loaded before, such as the account, keeps its old status until it is refreshed.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable
from typing import Any, Final, overload
from uuid import UUID

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session, scoped_session

from mailroom.actions import Action
from mailroom.consumption import (
    LIMIT_WAIT,
    Consumed,
    Request,
    answer,
    code_request,
    refuse_wrong_code,
    token_request,
)
from mailroom.tokens import Keys

Synchronous = Session | scoped_session[Any] | Connection
Asynchronous = AsyncSession | AsyncConnection

PARAMETER: Final = re.compile(r"%\((\w+)\)s")


@overload
def consume(
    session: Synchronous, token: str, action: Action | str, *, keys: Keys, code: str | None = None
) -> Consumed: ...
@overload
def consume(
    session: Asynchronous, token: str, action: Action | str, *, keys: Keys, code: str | None = None
) -> Awaitable[Consumed]: ...
def consume(
    session: Synchronous | Asynchronous,
    token: str,
    action: Action | str,
    *,
    keys: Keys,
    code: str | None = None,
) -> Consumed | Awaitable[Consumed]:
    """Consume a token in the session's transaction; with an asynchronous session, ``await`` it.

    The session's transaction is not committed. A wrong code is counted even if it is rolled back.

    Args:
        session: a Session, a Connection, or one of their asynchronous kinds.
        token: what the link carried.
        action: an action, or the name of one in the catalogue.
        keys: the value of ``MAILROOM_SECRET_KEY``, or keys as bytes.
        code: what the user typed, for an action that needs it.

    Raises:
        TokenError: as ``mailroom.consume`` does.
        ValueError: the action or a key is not valid.
    """
    return _run(session, token_request(token, action, keys, code))


@overload
def consume_code(
    session: Synchronous,
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
    session: Asynchronous,
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
    session: Synchronous | Asynchronous,
    code: str,
    action: Action | str,
    *,
    account: int | None = None,
    email: str | None = None,
    subject: str | None = None,
    user_id: str | int | UUID | None = None,
    user_table: str | None = None,
) -> Consumed | Awaitable[Consumed]:
    """Consume the newest token of an action without a link; with an asynchronous session, ``await`` it.

    The session's transaction is not committed. A wrong code is counted even if it is rolled back.

    Args:
        session: a Session, a Connection, or one of their asynchronous kinds.
        code: what the user typed.
        action: an action, or the name of one in the catalogue.
        account: the account's id.
        email: the address, for a recipient without an account.
        subject: the application's key, for a recipient without an account.
        user_id: the key of a user of an adopted table.
        user_table: that table's name, if several are adopted.

    Raises:
        TokenError: as ``mailroom.consume_code`` does.
        ValueError: the action has a link or no code, or not one of account, email and user_id is given.
    """
    return _run(session, code_request(code, action, account, email, subject, user_id, user_table))


def _run(session: Synchronous | Asynchronous, request: Request) -> Consumed | Awaitable[Consumed]:
    if isinstance(session, AsyncSession | AsyncConnection):
        return session.run_sync(_answer, request)
    return _answer(session, request)


def _answer(session: Synchronous, request: Request) -> Consumed:
    if request.counting:
        bind = session if isinstance(session, Connection) else session.get_bind()
        with bind.engine.begin() as second:
            second.execute(text(LIMIT_WAIT))
            row = _row(second, request.counting, request)
        refuse_wrong_code(request, row)
    return answer(request, _row(session, request.query, request))


def _row(connection: Synchronous, query: str, request: Request) -> tuple[Any, ...]:
    return tuple(connection.execute(text(PARAMETER.sub(r":\1", query)), dict(request.parameters)).one())
