"""Defines the errors that Mailroom raises: what happened, what to do about it, and the exit code.

Only the command line prints them (``Error:``, then ``Try:``) and turns them into exit codes, which follow
sysexits.h: 64 usage, 65 data, 69 unavailable, 75 try again, 78 configuration. No message contains a key, a
password, a token or a code.
"""

from __future__ import annotations

from collections.abc import Sequence


class MailroomError(Exception):
    """The base class: ``str(error)`` says what happened, ``error.hint`` what to do."""

    exit_code = 70

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        if hint:
            self.add_note(f"Try: {hint}")  # for a traceback in an application


class SettingsError(MailroomError):
    """The environment is not valid; ``faults`` lists every fault, in one sentence each."""

    exit_code = 78

    def __init__(self, faults: Sequence[str]) -> None:
        hint = "correct it and start again; the command's --help lists every setting"
        if any(fault.startswith("MAILROOM_SECRET_KEY: ") for fault in faults):
            hint += ", and `mailroom key new` makes a key"
        super().__init__("\n  ".join(["the environment is not usable:", *faults]), hint=hint)
        self.faults = tuple(faults)


class DatabaseError(MailroomError):
    """PostgreSQL cannot be used, and retrying cannot fix it."""

    exit_code = 78


class DatabaseUnavailable(MailroomError):
    """PostgreSQL does not answer now; it may answer later."""

    exit_code = 75


class MigrationError(MailroomError):
    """The migrations cannot be applied to this schema."""

    exit_code = 78


class OutputClosed(MailroomError):
    """The reader of standard output is gone, or the output cannot be written."""

    exit_code = 69


class InputClosed(MailroomError):
    """There is no standard input to read from."""

    exit_code = 64


class SetAsideError(MailroomError):
    """The mails that were not sent cannot be saved now."""

    exit_code = 75


class ReplayError(MailroomError):
    """A file cannot be replayed."""

    exit_code = 65


class WireError(MailroomError):
    """A message cannot be encoded as part of a line, or a line cannot be decoded."""

    exit_code = 65


class UnknownAction(WireError):
    """A line has a number that is not an action's."""


class TokenError(MailroomError):
    """A token is not accepted; the subclass and ``reason`` say why."""

    exit_code = 65
    reason = "refused"


class MalformedToken(TokenError):
    """It is not a well-formed token, or the code is not five digits."""

    reason = "malformed"


class ForgedToken(TokenError):
    """None of the keys signed it, or the code is not the one that was signed."""

    reason = "forged"


class WrongAction(TokenError):
    """It was issued for another action."""

    reason = "wrong action"


class UnknownToken(TokenError):
    """The database has no such token."""

    reason = "unknown"


class TokenUsed(TokenError):
    """It was consumed before."""

    reason = "used"


class TokenExpired(TokenError):
    """It has expired, or was ended: a sibling was consumed, or the address changed."""

    reason = "expired"


class AccountSuspended(TokenError):
    """Its account is suspended."""

    reason = "suspended"


class AccountIneligible(TokenError):
    """Its account's status does not allow the action, such as a recovery before the activation."""

    reason = "ineligible"


class WrongCode(TokenError):
    """The code is wrong; ``codes_left`` more tries are allowed."""

    reason = "wrong code"

    def __init__(self, message: str, *, hint: str = "", codes_left: int) -> None:
        super().__init__(message, hint=hint)
        self.codes_left = codes_left


class CodesExhausted(TokenError):
    """Five wrong codes were given, which ended the token."""

    reason = "exhausted"


class ActionsError(MailroomError):
    """The actions of a folder cannot be used."""

    exit_code = 78


class AdoptionError(MailroomError):
    """A table of users cannot be adopted."""

    exit_code = 78


class TemplateError(MailroomError):
    """A template is missing, or does not match its action."""

    exit_code = 78


class TransportError(MailroomError):
    """The transport's configuration cannot be used."""

    exit_code = 78
