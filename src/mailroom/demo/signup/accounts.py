"""Holds all access to the database: two tables of the example, two of Mailroom, and ``consume``.

It opens a connection for each request, which is easy to read; a real application keeps a pool.
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

# Returns no row if the login belongs to an account, or was asked for before.
ASK_FOR_LOGIN: Final = """
INSERT INTO example.logins (login)
SELECT %(login)s::text WHERE NOT EXISTS (SELECT FROM accounts WHERE login = %(login)s)
ON CONFLICT DO NOTHING RETURNING login
"""
# Returns no row if the address is known. Otherwise the commit sends the activation mail.
ADD_ACCOUNT: Final = """
INSERT INTO accounts (email, login) VALUES (%s, %s) ON CONFLICT (lower(email)) DO NOTHING RETURNING id
"""
STORE_HASH: Final = """
INSERT INTO example.passwords (account, hash) VALUES (%s, %s)
ON CONFLICT (account) DO UPDATE SET hash = excluded.hash, stamp = excluded.stamp
"""
# A statement of its own, so that ADD_MAIL sees what was committed while this one waited for the lock.
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
    """An account, with its password's hash and the stamp of its sessions."""

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
        mail_limit: how many mails of one kind an account gets in ``mail_minutes``.
        mail_minutes: as long as links live, so that a user who reached the limit has a link that works.
    """

    def __init__(self, url: str, keys: str, mail_limit: int, mail_minutes: int) -> None:
        self._url = url
        self._keys = keys
        self._limit = {"limit": mail_limit, "minutes": mail_minutes}

    async def prepare(self) -> None:
        """Create the example's own tables, unless they exist."""
        async with self._transaction() as connection:
            await connection.execute((Path(__file__).parent / "schema.sql").read_bytes())

    async def sign_up(self, email: str, login: str, password_hash: str) -> bool:
        """Add an account, or mail a known address again. Returns only whether the login was free."""
        async with self._transaction() as connection:
            if not await _value(connection, ASK_FOR_LOGIN, {"login": login}):
                return False
            account = await _value(connection, ADD_ACCOUNT, [email, login])
            if account is not None:
                await connection.execute(STORE_HASH, [account, password_hash])
            else:  # the first password stays
                await self._mail(connection, email, "activation")
        return True

    async def mail(self, email: str, action: str) -> None:
        """Send a mail to an address if its account's status and the limit allow it."""
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
        """Return the account of an address, with any status."""
        return await self._account(BY_EMAIL, [email])

    async def of_session(self, account: int, stamp: str) -> Account | None:
        """Return the account of a session, unless it was suspended or its password changed."""
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
