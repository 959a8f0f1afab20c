"""All that the example asks of the database: two tables of its own, two of Mailroom's, and ``consume``.

A connection a request is easy to read and fast enough here; a real application keeps a pool.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import psycopg
from psycopg.rows import class_row

import mailroom

Connection = psycopg.AsyncConnection[Any]

# No row when the login is taken: by an account, or asked for before.
ASK_FOR_LOGIN: Final = """
INSERT INTO example.logins (login)
SELECT %(login)s::text WHERE NOT EXISTS (SELECT FROM accounts WHERE login = %(login)s)
ON CONFLICT DO NOTHING RETURNING login
"""
# No row when the address is known. Otherwise the activation mail is on its way with the commit.
ADD_ACCOUNT: Final = """
INSERT INTO accounts (email, login) VALUES (%s, %s) ON CONFLICT (lower(email)) DO NOTHING RETURNING id
"""
STORE_HASH: Final = """
INSERT INTO example.passwords (account, hash) VALUES (%s, %s)
ON CONFLICT (account) DO UPDATE SET hash = excluded.hash, stamp = excluded.stamp
"""
# Two statements: the second one must see what was committed while the first waited for the lock.
LOCK_ACCOUNT: Final = """
SELECT id FROM accounts WHERE lower(email) = lower(%s) AND status = %s::account_status FOR NO KEY UPDATE
"""
ADD_MAIL: Final = """
INSERT INTO tokens (action, account) SELECT %(action)s::token_action, %(account)s WHERE %(limit)s > (
    SELECT count(*) FROM tokens WHERE account = %(account)s AND action = %(action)s::token_action
    AND created_at > statement_timestamp() - make_interval(mins => %(minutes)s))
"""
MAILED_WHEN: Final = {"activation": "provisioned", "password_recovery": "active"}
FIND: Final = """
SELECT a.id, a.email, a.login, a.status::text, a.activated_at IS NOT NULL AS was_active,
       p.hash, p.stamp::text
FROM accounts a LEFT JOIN example.passwords p ON p.account = a.id
"""
BY_EMAIL: Final = FIND + "WHERE lower(a.email) = lower(%s)"
BY_SESSION: Final = FIND + "WHERE a.id = %s AND p.stamp::text = %s AND a.status = 'active'"
END_SESSIONS: Final = "UPDATE example.passwords SET stamp = gen_random_uuid() WHERE account = %s"


class Account(NamedTuple):
    """An account, and what shows that somebody is its owner."""

    id: int
    email: str
    login: str
    status: str
    was_active: bool
    hash: str | None
    stamp: str | None


class Accounts:
    """The accounts in a database.

    Args:
        url: the database's address.
        keys: ``MAILROOM_SECRET_KEY``.
        mail_limit: how many mails of one kind an account gets, in so many
        mail_minutes: minutes. As long as links live: whoever has used up the limit has a link that works.
    """

    def __init__(self, url: str, keys: str, mail_limit: int, mail_minutes: int) -> None:
        self._url = url
        self._keys = keys
        self._limit = {"limit": mail_limit, "minutes": mail_minutes}

    async def prepare(self) -> None:
        """Make the example's own tables, unless they are there."""
        async with self._transaction() as connection:
            await connection.execute((Path(__file__).parent / "schema.sql").read_bytes())

    async def sign_up(self, email: str, login: str, password_hash: str) -> bool:
        """Add an account, or mail a known address again. Says whether the login was free, and no more."""
        async with self._transaction() as connection:
            if not await _value(connection, ASK_FOR_LOGIN, {"login": login}):
                return False
            account = await _value(connection, ADD_ACCOUNT, [email, login])
            if account is not None:
                await connection.execute(STORE_HASH, [account, password_hash])
            else:  # the first password stands
                await self._mail(connection, email, "activation")
        return True

    async def mail(self, email: str, action: str) -> None:
        """Have an address mailed, where it has an account in the state for it and the limit allows."""
        async with self._transaction() as connection:
            await self._mail(connection, email, action)

    async def activate(self, token: str) -> None:
        """Consume a link's token. Raises what ``mailroom.consume`` does."""
        async with self._transaction() as connection:
            await mailroom.consume(connection, token, "activation", keys=self._keys)

    async def recover(self, token: str, code: str, password_hash: str) -> None:
        """Consume a link's token and set the password. Raises what ``mailroom.consume`` does."""
        async with self._transaction() as connection:
            try:
                used = await mailroom.consume(
                    connection, token, "password_recovery", keys=self._keys, code=code
                )
            except mailroom.TokenError as error:
                refusal = error  # raised after the commit, so that a wrong code stays counted
            else:
                await connection.execute(STORE_HASH, [used.account, password_hash])
                return
        raise refusal

    async def find(self, email: str) -> Account | None:
        """The account of an address, in any state."""
        return await self._account(BY_EMAIL, [email])

    async def of_session(self, account: int, stamp: str) -> Account | None:
        """The account of a session, unless it was suspended or its password changed."""
        return await self._account(BY_SESSION, [account, stamp])

    async def end_sessions(self, account: int) -> None:
        """Sign out everywhere."""
        async with self._transaction() as connection:
            await connection.execute(END_SESSIONS, [account])

    async def _account(self, query: str, parameters: list[Any]) -> Account | None:
        async with (
            self._transaction() as connection,
            connection.cursor(row_factory=class_row(Account)) as cursor,
        ):
            await cursor.execute(query.encode(), parameters)
            return await cursor.fetchone()

    async def _mail(self, connection: Connection, email: str, action: str) -> None:
        account = await _value(connection, LOCK_ACCOUNT, [email, MAILED_WHEN[action]])
        if account is not None:
            await connection.execute(ADD_MAIL, {"action": action, "account": account} | self._limit)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Connection]:
        async with await psycopg.AsyncConnection.connect(self._url) as connection, connection.transaction():
            yield connection


async def _value(connection: Connection, query: str, parameters: Any) -> Any:
    row = await (await connection.execute(query.encode(), parameters)).fetchone()
    return row[0] if row else None
