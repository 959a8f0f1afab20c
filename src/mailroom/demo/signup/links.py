"""Does what the links in the mails are for: each consumes a token and acts in the same transaction.

All methods raise what ``mailroom.consume`` does.
"""

from __future__ import annotations

from typing import Final

import psycopg

import mailroom
from mailroom.demo.signup.accounts import ADD_ACCOUNT, ASK_FOR_LOGIN, STORE_HASH, Session, open_session
from mailroom.demo.signup.database import Database, value
from mailroom.demo.signup.mails import SEND_EMAIL_CHANGED, SEND_NOTICE

# Returns an account and the stamp of its sessions. An account that the example did not make has none yet.
FIND_STAMP: Final = """
INSERT INTO example.passwords (account) VALUES (%s)
ON CONFLICT (account) DO UPDATE SET account = excluded.account RETURNING account, stamp::text
"""
# Returns the old address; no row if the password was changed after the link was asked for: the one who
# asked may be a thief, whom the new password is to lock out.
CHANGE_EMAIL: Final = """
UPDATE accounts a SET email = %(new)s FROM accounts old, example.passwords p, tokens t
WHERE a.id = %(account)s AND old.id = a.id AND p.account = a.id
  AND t.id = %(token)s AND t.created_at > p.set_at
RETURNING old.email
"""


class AddressTaken(Exception):
    """Another account has the address; nothing was changed, and the token is not consumed."""


class Links:
    """The links.

    Args:
        database: the database.
        keys: ``MAILROOM_SECRET_KEY``.
    """

    def __init__(self, database: Database, keys: str) -> None:
        self._database = database
        self._keys = keys

    async def activate(self, token: str) -> None:
        """Consume the token, which activates the account."""
        async with self._database.transaction() as connection:
            await mailroom.consume(connection, token, "activation", keys=self._keys)

    async def recover(self, token: str, code: str, password_hash: str) -> None:
        """Consume the token and set the password."""
        async with self._database.transaction() as connection:
            try:
                used = await mailroom.consume(
                    connection, token, "password_recovery", keys=self._keys, code=code
                )
            except mailroom.TokenError as error:
                refusal = error  # raised after the commit, so that a wrong code stays counted
            else:
                await connection.execute(STORE_HASH, [used.account, password_hash])
                await connection.execute(SEND_NOTICE, ["password_changed", used.account])
                return
        raise refusal

    async def sign_in(self, token: str) -> Session:
        """Consume the token, and return a session of its account."""
        async with self._database.transaction() as connection:
            used = await mailroom.consume(connection, token, "magic_link", keys=self._keys)
            return await open_session(connection, FIND_STAMP, [used.account])

    async def change_email(self, token: str) -> None:
        """Consume the token, give the account the address that it was mailed to, and tell the old one.

        Raises:
            AddressTaken: another account got the address meanwhile.
        """
        try:
            async with self._database.transaction() as connection:
                used = await mailroom.consume(connection, token, "email_change", keys=self._keys)
                change = {"account": used.account, "new": used.email, "token": used.token}
                old = await value(connection, CHANGE_EMAIL, change)
                if old is None:
                    raise mailroom.AccountIneligible("the password was changed", hint="ask for a new link")
                await connection.execute(SEND_EMAIL_CHANGED, change | {"old": old})
        except psycopg.errors.UniqueViolation:
            raise AddressTaken from None

    async def accept_invitation(
        self, token: str, login: str, locale: str, password_hash: str
    ) -> Session | None:
        """Consume the token, and add an active account with the address that it was mailed to.

        Returns a session, or None if the login is taken.

        Raises:
            AddressTaken: the address has an account, which stays as it is.
        """
        async with self._database.transaction() as connection:
            if not await value(connection, ASK_FOR_LOGIN, {"login": login}):
                return None
            used = await mailroom.consume(connection, token, "invitation", keys=self._keys)
            account = await value(connection, ADD_ACCOUNT, [used.email, login, locale, "active"])
            if account is None:
                raise AddressTaken
            return await open_session(connection, STORE_HASH, [account, password_hash])
