"""Every error that Mailroom raises: what happened, what to do about it, and the exit code it means.

Only the command line prints them (``Error:``, then ``Try:``) and turns them into exit codes, which
are those of sysexits.h: 64 usage, 65 data, 69 unavailable, 75 try again, 78 configuration.
No message holds a key, a password, a token or a code.
"""

from __future__ import annotations

from collections.abc import Sequence


class MailroomError(Exception):
    """The root: ``str(error)`` says what happened, ``error.hint`` what to do."""

    exit_code = 70

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class SettingsError(MailroomError):
    """The environment is wrong; ``faults`` lists everything that is, one sentence each."""

    exit_code = 78

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n  ".join(["the environment is not usable:", *faults]))
        self.hint = "set them right and start again; the command's --help lists every setting"
        if any(fault.startswith("MAILROOM_SECRET_KEY: ") for fault in faults):
            self.hint += ", and `mailroom key new` makes a key"
        self.faults = tuple(faults)


class DatabaseError(MailroomError):
    """PostgreSQL cannot be used, and waiting will not mend it."""

    exit_code = 78


class DatabaseUnavailable(MailroomError):
    """PostgreSQL does not answer now, and may later."""

    exit_code = 75


class MigrationError(MailroomError):
    """The schema is not one that a migration can start from."""

    exit_code = 78


class OutputClosed(MailroomError):
    """Whoever read our standard output is gone, or takes no more."""

    exit_code = 69


class InputClosed(MailroomError):
    """There is no standard input to read from."""

    exit_code = 64


class SetAsideError(MailroomError):
    """What was not mailed cannot be set aside now."""

    exit_code = 75


class ReplayError(MailroomError):
    """A file to be replayed cannot be read as one."""

    exit_code = 65


class WireError(MailroomError):
    """A message cannot be written as part of a line, or a line cannot be read as messages."""

    exit_code = 65


class TokenError(MailroomError):
    """A token is not to be honoured; the subclass and ``reason`` say why."""

    exit_code = 65
    reason = "refused"


class MalformedToken(TokenError):
    """It has not the shape of a token (or its code not that of a code)."""

    reason = "malformed"


class ForgedToken(TokenError):
    """No key of ours signed it, or it was signed over another code."""

    reason = "forged"


class WrongAction(TokenError):
    """A genuine token, of another action."""

    reason = "wrong action"


class UnknownToken(TokenError):
    """The database has no such token."""

    reason = "unknown"


class TokenUsed(TokenError):
    """It was consumed before."""

    reason = "used"


class TokenExpired(TokenError):
    """Its time is over, or a sibling was consumed."""

    reason = "expired"


class AccountSuspended(TokenError):
    """Its account is suspended."""

    reason = "suspended"


class AccountIneligible(TokenError):
    """Its account's status does not fit the action, such as a recovery before the activation."""

    reason = "ineligible"


class WrongCode(TokenError):
    """The code is wrong; ``codes_left`` more tries are allowed."""

    reason = "wrong code"

    def __init__(self, message: str, *, hint: str = "", codes_left: int) -> None:
        super().__init__(message, hint=hint)
        self.codes_left = codes_left


class CodesExhausted(TokenError):
    """Five wrong codes were given: the token is dead."""

    reason = "exhausted"


class TemplateError(MailroomError):
    """A template is missing, or does not fit its action."""

    exit_code = 78


class TransportError(MailroomError):
    """The transport cannot be used as it is set up."""

    exit_code = 78
