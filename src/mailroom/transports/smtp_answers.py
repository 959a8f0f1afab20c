"""Classifies the replies of an SMTP server by their codes, their words, and the step that they answer.

Servers often report a fault of the sender or of the account only after RCPT or after the mail. Such a reply
pauses; it rejects no recipient.
"""

from __future__ import annotations

import re
from typing import Final

from mailroom.answers import Result, Scope
from mailroom.transports.refusals import about_recipient, about_sender

Class = tuple[Result, Scope]

PAUSED: Final = (Result.PAUSED, Scope.ACCOUNT)
THROTTLED: Final = (Result.THROTTLED, Scope.ACCOUNT)
AWAY: Final = (Result.TRANSIENT, Scope.ACCOUNT)
LATER: Final = (Result.TRANSIENT, Scope.RECIPIENT)
REJECTED: Final = (Result.REJECTED, Scope.RECIPIENT)

# Authentication or encryption required, credentials invalid, access refused (RFC 4954; 525 is Brevo's).
ACCESS_REFUSED: Final = (525, 530, 534, 535, 538)
# The server closes the session, or lacks storage or resources for another mail in it.
SESSION_ENDS: Final = (421, 452)

# SES: "454 Throttling failure: Maximum sending rate exceeded"; elsewhere 4.7.28 is a limit on the rate.
_RATE: Final = re.compile(r"throttl|\brate\b|\btoo fast|too much mail|\b4\.7\.28\b", re.IGNORECASE)
_MANY: Final = re.compile(r"\btoo many\b", re.IGNORECASE)
_SESSION: Final = re.compile(r"\b(this|per|a|one) (smtp )?(session|connection)\b", re.IGNORECASE)


def of_opening(code: int, words: str, *, is_login: bool) -> Class:
    """The class of a refusal before any mail: of the connection, the greeting or the login."""
    if about_sender(words) or (is_login and code >= 500):
        return PAUSED
    return _temporary(words)


def of_sender(code: int, words: str) -> Class:
    """The class of a refusal of MAIL."""
    if about_sender(words):
        return PAUSED
    return PAUSED if code >= 500 and not _RATE.search(words) else _temporary(words)


def of_mail(code: int, words: str) -> Class:
    """The class of a refusal of RCPT, of DATA or of the mail."""
    if code in ACCESS_REFUSED or about_sender(words):
        return PAUSED
    if about_recipient(words):
        return REJECTED if code >= 500 else LATER
    if code >= 500:
        return THROTTLED if _RATE.search(words) else REJECTED
    found = _temporary(words)
    return LATER if found == AWAY and code >= 400 and code != 421 else found


def ends_session(code: int, words: str, *, is_sender: bool) -> bool:
    """Whether the server may accept in a new session what it refuses in this one.

    Args:
        code: the reply's code.
        words: the reply, without addresses.
        is_sender: whether it refuses MAIL, before it knows the recipient.
    """
    if about_sender(words) or about_recipient(words) or _RATE.search(words):
        return False
    return code in SESSION_ENDS or (is_sender and 400 <= code < 500) or bool(_SESSION.search(words))


def _temporary(words: str) -> Class:
    return THROTTLED if _RATE.search(words) or _MANY.search(words) else AWAY
