"""Finds and changes accounts: Mailroom's table ``accounts`` and the example's own tables."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import psycopg
from psycopg.rows import class_row

from mailroom.demo.signup.database import Connection, Database, value
from mailroom.demo.signup.mails import SEND_NOTICE, mail_again

Row = TypeVar("Row")
Parameters: TypeAlias = "list[Any] | dict[str, Any]"

# Returns no row if the login belongs to an account, or was asked for before.
ASK_FOR_LOGIN: Final = """
INSERT INTO example.logins (login)
SELECT %(login)s::text WHERE NOT EXISTS (SELECT FROM accounts WHERE login = %(login)s)
ON CONFLICT DO NOTHING RETURNING login
"""
# Returns no row if the address is known. The commit of a provisioned account sends the activation mail.
ADD_ACCOUNT: Final = """
INSERT INTO accounts (email, login, locale, status) VALUES (%s, %s, nullif(%s, ''), %s::account_status)
ON CONFLICT (lower(email)) DO NOTHING RETURNING id
"""
KEEP_SIGN_UP: Final = """
WITH old AS (DELETE FROM example.sign_ups WHERE at < statement_timestamp() - interval '1 day')
INSERT INTO example.sign_ups (login, email, locale, hash)
VALUES (%(login)s, %(email)s, %(locale)s, %(hash)s) RETURNING id::text
"""
# Mailroom suppresses an address after a permanent bounce, and after a complaint, which is not told.
FIND_BOUNCED: Final = """
SELECT login, email, locale, hash FROM example.sign_ups
WHERE id = %(id)s AND mailroom.suppressed(email) = 'bounced'
"""
# Of several at once, one finds the address that bounced: for each bounce goes out one mail.
CORRECT_SIGN_UP: Final = """
UPDATE example.sign_ups SET email = %(new)s
WHERE id = %(id)s AND mailroom.suppressed(email) = 'bounced' RETURNING login, email, locale, hash
"""
# The changed address gets a new activation mail, and the old link ends.
CORRECT_ACCOUNT: Final = """
UPDATE accounts SET email = %(new)s WHERE login = %(login)s AND status = 'provisioned'
  AND NOT EXISTS (SELECT FROM accounts WHERE lower(email) = lower(%(new)s)) RETURNING id
"""
STORE_HASH: Final = """
INSERT INTO example.passwords (account, hash) VALUES (%s, %s)
ON CONFLICT (account) DO UPDATE SET hash = excluded.hash, stamp = excluded.stamp, set_at = excluded.set_at
RETURNING account, stamp::text
"""
SET_LANGUAGE: Final = "UPDATE accounts SET locale = %s WHERE id = %s"
FIND: Final = """
SELECT a.id, a.email, a.login, a.locale, a.status::text, a.activated_at IS NOT NULL AS was_active,
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
    locale: str | None
    status: str
    was_active: bool
    hash: str | None
    stamp: str | None


class Session(NamedTuple):
    """What a session's cookie holds: an account's id, and the stamp that the account had."""

    account: int
    stamp: str


class SignUp(NamedTuple):
    """What somebody signed up with."""

    login: str
    email: str
    locale: str
    hash: str


class Accounts:
    """The accounts in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def sign_up(self, new: SignUp) -> str | None:
        """Add an account, or mail a known address again; returns an id, or None for a taken login."""
        async with self._database.transaction() as connection:
            if not await value(connection, ASK_FOR_LOGIN, {"login": new.login}):
                return None
            await _add_account(connection, new)
            sign_up: str = await value(connection, KEEP_SIGN_UP, new._asdict())
        return sign_up

    async def bounced(self, sign_up: str) -> SignUp | None:
        """Return a sign-up whose address bounced, or None."""
        return await self._found(SignUp, FIND_BOUNCED, {"id": sign_up})

    async def correct(self, sign_up: str, email: str) -> None:
        """Give a sign-up whose address bounced another one. Nothing happens to any other."""
        with suppress(psycopg.errors.UniqueViolation):  # somebody else got the address meanwhile
            async with self._database.transaction() as connection:
                change = {"id": sign_up, "new": email}
                corrected = await _row(connection, SignUp, CORRECT_SIGN_UP, change)
                if corrected is None:
                    return
                if await value(connection, CORRECT_ACCOUNT, change | {"login": corrected.login}) is None:
                    await _add_account(connection, corrected)

    async def change_password(self, account: int, password_hash: str) -> Session:
        """Store a new password, which ends all sessions, send a notice, and return a new session."""
        async with self._database.transaction() as connection:
            await connection.execute(SEND_NOTICE, ["password_changed", account])
            return await open_session(connection, STORE_HASH, [account, password_hash])

    async def set_language(self, account: int, locale: str) -> None:
        """Store the language of the account's mails."""
        async with self._database.transaction() as connection:
            await connection.execute(SET_LANGUAGE, [locale, account])

    async def find(self, email: str) -> Account | None:
        """Return the account of an address, with any status."""
        return await self._found(Account, BY_EMAIL, [email])

    async def of_session(self, session: Session) -> Account | None:
        """Return the account of a session, unless it was suspended or its password changed."""
        return await self._found(Account, BY_SESSION, list(session))

    async def end_sessions(self, account: int) -> None:
        """Sign out everywhere."""
        async with self._database.transaction() as connection:
            await connection.execute(END_SESSIONS, [account])

    async def _found(self, kind: type[Row], query: str, parameters: Parameters) -> Row | None:
        async with self._database.transaction() as connection:
            return await _row(connection, kind, query, parameters)


async def _row(connection: Connection, kind: type[Row], query: str, parameters: Parameters) -> Row | None:
    async with connection.cursor(row_factory=class_row(kind)) as cursor:
        await cursor.execute(query.encode(), parameters)
        return await cursor.fetchone()


async def _add_account(connection: Connection, new: SignUp) -> None:
    """Add an account, unless the login has one, or mail a known address again."""
    account = await value(connection, ADD_ACCOUNT, [new.email, new.login, new.locale, "provisioned"])
    if account is not None:
        await connection.execute(STORE_HASH, [account, new.hash])
    else:  # the first password stays
        await mail_again(connection, new.email)


async def open_session(connection: Connection, query: str, parameters: list[Any]) -> Session:
    """Return the session that a query returns: an account and its stamp."""
    row = await (await connection.execute(query.encode(), parameters)).fetchone()
    return Session(*row or ())
