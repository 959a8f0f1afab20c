"""Mailroom: user-lifecycle mail for applications whose users live in PostgreSQL.

An application needs three functions: ``verify`` checks a token without a database, ``consume`` consumes
it, and ``sign`` makes one, for tests.
"""

from mailroom.actions import ACTIVATION, PASSWORD_RECOVERY, Action
from mailroom.consumption import Consumed, consume
from mailroom.errors import (
    AccountIneligible,
    AccountSuspended,
    CodesExhausted,
    ForgedToken,
    MailroomError,
    MalformedToken,
    TokenError,
    TokenExpired,
    TokenUsed,
    UnknownToken,
    WrongAction,
    WrongCode,
)
from mailroom.tokens import sign, verify

__version__ = "0.1.0"

__all__ = [
    "ACTIVATION",
    "PASSWORD_RECOVERY",
    "AccountIneligible",
    "AccountSuspended",
    "Action",
    "CodesExhausted",
    "Consumed",
    "ForgedToken",
    "MailroomError",
    "MalformedToken",
    "TokenError",
    "TokenExpired",
    "TokenUsed",
    "UnknownToken",
    "WrongAction",
    "WrongCode",
    "__version__",
    "consume",
    "sign",
    "verify",
]
