"""Sends mails to Django's users and consumes their tokens, in the transaction of Django's ORM.

``consume`` commits nothing of the caller's: if the block of ``atomic``, or the request under
``ATOMIC_REQUESTS``, is rolled back, the token was not consumed. A wrong code is counted all the same, since
it is committed first, on a second connection. So an exception that rolls the request back gives nobody a
further try. In an asynchronous view, call both through ``asgiref.sync.sync_to_async``, as the ORM.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

from django.contrib.auth import get_user_model
from django.db import connections

from mailroom.actions import Action
from mailroom.consumption import LIMIT_WAIT, Consumed, answer, refuse_wrong_code, token_request
from mailroom.contrib.django.configuration import keys, users_database

SEND: Final = "SELECT mailroom.send(%s, user_id => %s, user_table => %s::regclass)"
SEND_AGAIN: Final = """
    SELECT mailroom.send(%s, user_id => %s, user_table => %s::regclass,
                         key => concat_ws(' ', 'again', %s::text,
                                          floor(extract(epoch FROM statement_timestamp()) / %s)::bigint))
"""
SAME: Final = "SELECT %s::regclass = %s::regclass"
LAST: Final = "SELECT mailroom.last_tokens(p_user_id => %s, p_user_table => %s::regclass, p_limit => %s)"


def send(action: str, user: Any) -> int:
    """Request a mail to a user, in the current transaction.

    Args:
        action: the action's name.
        user: an instance of the user model.

    Returns:
        The id of the mail's token.

    Raises:
        django.db.Error: the database refuses it, as for an action that it does not have.
    """
    (token,) = _rows(SEND, [action, *_key_and_table(user)])
    return token


def send_again(action: str, user: Any, interval: timedelta) -> int:
    """Request a mail to a user as ``send`` does, but one in each interval at most.

    Intervals are counted from 1970 by the database's clock. The limit is an idempotency key, so that it holds
    for requests at the same time too.

    Returns:
        The id of the token of the interval's mail, whether this call requested it or an earlier one.
    """
    key, table = _key_and_table(user)
    person = hashlib.sha256(f"{table} {key}".encode()).hexdigest()
    (token,) = _rows(SEND_AGAIN, [action, key, table, person, interval.total_seconds()])
    return token


def last_tokens(user: Any, most: int) -> list[int]:
    """The ids of the tokens of a user's last mails, newest first."""
    return _rows(LAST, [*_key_and_table(user), most])


def is_of_the_user_model(used: Consumed) -> bool:
    """Whether a consumed token was for a user of the user model. Other tables may be adopted too."""
    table = get_user_model()._meta.concrete_model._meta.db_table
    name = connections[users_database()].ops.quote_name(table)
    return bool(used.user_table) and _rows(SAME, [used.user_table, name]) == [True]


def consume(token: str, action: Action | str, *, code: str | None = None) -> Consumed:
    """Consume a token in the current transaction. A wrong code is counted even if it is rolled back.

    Args:
        token: what the link carried.
        action: an action, or the name of one in the catalogue.
        code: what the user typed, for an action that needs it.

    Returns:
        The consumed token. Its ``subject`` is the primary key of the user, as text. An instance of the user
        that was loaded before keeps its old values until ``refresh_from_db``.

    Raises:
        TokenError: as ``mailroom.consume`` does.
        SettingsError: the keys are missing or not valid.
        django.db.Error: the database fails.
    """
    connection = connections[users_database()]
    request = token_request(token, action, keys(), code)
    if request.counting and not connection.get_autocommit():
        with _second(connection) as other:
            row = _row(other, request.counting, request.parameters)
        refuse_wrong_code(request, row)
    return answer(request, _row(connection, request.query, request.parameters))


def _key_and_table(user: Any) -> tuple[str, str]:
    table = user._meta.concrete_model._meta.db_table
    return str(user.pk), connections[users_database()].ops.quote_name(table)


def _rows(query: str, parameters: Sequence[object]) -> list[Any]:
    with connections[users_database()].cursor() as cursor:
        cursor.execute(query, parameters)
        return [value for (value,) in cursor.fetchall()]


def _row(connection: Any, query: str, parameters: Mapping[str, object]) -> tuple[Any, ...] | None:
    with connection.cursor() as cursor:
        cursor.execute(query, parameters)
        return cursor.fetchone()


@contextmanager
def _second(connection: Any) -> Iterator[Any]:
    """Another connection to the same database, whose transaction is committed at the end.

    It is not the pool's. Requests that hold one of its connections each might wait for a second one for ever.
    """
    other = connection.copy()
    other.settings_dict["OPTIONS"].pop("pool", None)
    try:
        other.set_autocommit(False)
        with other.cursor() as cursor:
            cursor.execute(LIMIT_WAIT)
        yield other
        other.commit()
    finally:
        other.close()
