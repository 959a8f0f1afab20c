"""Mailroom: user-lifecycle mail for applications whose users live in PostgreSQL.

``verify`` checks a token without a database, and ``consume`` consumes it. ``consume_code`` consumes a code
that was mailed without a link. ``worker`` sends the mails from within an application. ``load_actions`` reads
the application's own actions, and ``sign`` makes a token of a secret of yours.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mailroom.actions import Action, Limit, load_actions
    from mailroom.consumption import Consumed, consume, consume_code
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
    from mailroom.runner.embedded import Worker, worker
    from mailroom.tokens import Keys, sign, verify
else:
    _MODULES = {
        "actions": ("Action", "Limit", "load_actions"),
        "consumption": ("Consumed", "consume", "consume_code"),
        "runner.embedded": ("Worker", "worker"),
        "tokens": ("Keys", "sign", "verify"),
    }

    def __getattr__(name):
        """Import a name's module when the name is first used: a command needs few of them."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = (module for module, names in _MODULES.items() if name in names)
        value = getattr(import_module(f"{__name__}.{next(found, 'errors')}"), name)
        globals()[name] = value
        return value


__version__ = "1.0.0"

__all__ = [
    "AccountIneligible",
    "AccountSuspended",
    "Action",
    "ActionsError",
    "CodesExhausted",
    "Consumed",
    "ForgedToken",
    "Keys",
    "Limit",
    "MailroomError",
    "MalformedToken",
    "TokenError",
    "TokenExpired",
    "TokenUsed",
    "UnknownToken",
    "Worker",
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
