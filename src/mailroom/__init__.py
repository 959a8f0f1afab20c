"""Mailroom: user-lifecycle mail for applications whose users live in PostgreSQL.

``verify`` checks a token without a database, and ``consume`` consumes it. ``consume_code`` consumes a code
that was mailed without a link. ``worker`` sends the mails from within an application. ``load_actions`` reads
the application's own actions, and ``sign`` makes a token for tests.
"""

from typing import TYPE_CHECKING

from mailroom.actions import Action, load_actions
from mailroom.errors import (
    AccountIneligible,
    AccountSuspended,
    ActionsError,
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

if TYPE_CHECKING:
    from mailroom.consumption import Consumed, consume, consume_code
    from mailroom.runner.embedded import worker
else:

    def __getattr__(name):
        """Import what needs a database driver when it is first used."""
        if name in {"Consumed", "consume", "consume_code"}:
            from mailroom import consumption as module
        elif name == "worker":
            from mailroom.runner import embedded as module
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(module, name)


__version__ = "0.1.0"

__all__ = [
    "AccountIneligible",
    "AccountSuspended",
    "Action",
    "ActionsError",
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
    "consume_code",
    "load_actions",
    "sign",
    "verify",
    "worker",
]
