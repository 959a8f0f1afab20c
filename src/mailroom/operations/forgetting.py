"""Erases an address from Mailroom's tables."""

from __future__ import annotations

from typing import Final

import psycopg

from mailroom.database.sync import translated
from mailroom.errors import MailroomError
from mailroom.operations.mail_state import mask

FORGET: Final = "SELECT place, erased FROM mailroom.forget(%s)"


class CannotForget(MailroomError):
    """An account has the address, or it is no address."""

    exit_code = 65


def forget(connection: psycopg.Connection, address: str) -> dict[str, int]:
    """Erase an address, in all its spellings; returns how many rows of each table changed.

    Args:
        connection: in autocommit mode.
        address: the address.

    Raises:
        CannotForget: an account has the address, or it is no address.
        DatabaseError: the schema or a privilege is missing, or an application's table refers to a token.
        DatabaseUnavailable: the connection was lost.
    """
    with translated(connection):
        try:
            return dict(connection.execute(FORGET, [address]).fetchall())
        except psycopg.errors.ObjectInUse as error:
            words, hint = error.diag.message_primary or "", error.diag.message_hint or ""
            raise CannotForget(words.removeprefix("mailroom: "), hint=hint) from error
        except psycopg.errors.InvalidParameterValue as error:
            raise CannotForget(
                f"{mask(address)!r} is not an address", hint="give the whole address"
            ) from error
