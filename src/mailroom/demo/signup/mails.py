"""Asks for mails: each is one ``mailroom.send``, and goes out after the commit.

Mailroom itself limits how many mails of an action one address gets. Only activation has no limit there, since
each account must get its own.
"""

from __future__ import annotations

from typing import Final

from mailroom.demo.signup.database import Connection, Database, value

# The status that an account needs for a mail that anybody may ask for.
MAILED_WHEN: Final = {"activation": "provisioned", "password_recovery": "active", "magic_link": "active"}
SEND: Final = """
SELECT mailroom.send(%(action)s, account => id) FROM accounts
WHERE lower(email) = lower(%(email)s) AND status = %(status)s::account_status
"""
# A statement of its own, so that SEND_ACTIVATION sees what was committed while this one waited for the lock.
LOCK_ACCOUNT: Final = """
SELECT id FROM accounts WHERE lower(email) = lower(%s) AND status = 'provisioned' FOR NO KEY UPDATE
"""
SEND_ACTIVATION: Final = """
SELECT mailroom.send('activation', account => %(account)s) WHERE 3 > (
    SELECT count(*) FROM tokens WHERE account = %(account)s AND action = 'activation'
    AND created_at > statement_timestamp() - interval '15 minutes')
"""
SEND_NOTICE: Final = "SELECT mailroom.send(%s, account => %s)"
# Neither goes to an address that has an account.
SEND_EMAIL_CHANGE: Final = """
SELECT mailroom.send('email_change', account => %(account)s, recipient => %(email)s)
WHERE NOT EXISTS (SELECT FROM accounts WHERE lower(email) = lower(%(email)s))
"""
SEND_INVITATION: Final = """
SELECT mailroom.send('invitation', recipient => %(email)s, locale => %(locale)s,
                     data => jsonb_build_object('inviter', %(inviter)s::text))
WHERE NOT EXISTS (SELECT FROM accounts WHERE lower(email) = lower(%(email)s))
"""
SEND_EMAIL_CHANGED: Final = """
SELECT mailroom.send('email_changed', account => %(account)s, recipient => %(old)s,
                     data => jsonb_build_object('new_email', %(new)s::text))
"""


class Mails:
    """The mails that users ask for."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ask(self, email: str, action: str) -> None:
        """Send a mail to an address if it has an account with the right status."""
        async with self._database.transaction() as connection:
            if action == "activation":
                await mail_again(connection, email)
            else:
                fields = {"action": action, "email": email, "status": MAILED_WHEN[action]}
                await connection.execute(SEND, fields)

    async def ask_email_change(self, account: int, email: str) -> None:
        """Send a link to an account's new address, unless it has an account."""
        async with self._database.transaction() as connection:
            await connection.execute(SEND_EMAIL_CHANGE, {"account": account, "email": email})

    async def invite(self, email: str, inviter: str, locale: str | None) -> None:
        """Invite an address, unless it has an account."""
        async with self._database.transaction() as connection:
            await value(connection, SEND_INVITATION, {"email": email, "inviter": inviter, "locale": locale})


async def mail_again(connection: Connection, email: str) -> None:
    """Send another activation link if the address has an account to activate."""
    account = await value(connection, LOCK_ACCOUNT, [email])
    if account is not None:
        await connection.execute(SEND_ACTIVATION, {"account": account})
