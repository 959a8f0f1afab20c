"""What became of one recipient in one attempt: the classes that the sending policy knows.

A transport translates its provider's answers into these; the sender decides what to do with each.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

# A recipient that fails for no stated reason, or whose answer is lost, is tried this many times.
RETRY_LIMIT: Final = 10


class Result(enum.Enum):
    """The classes of answers.

    SENT is accepted by the provider, REJECTED refused for good. TRANSIENT, THROTTLED and UNKNOWN are
    tried again as long as the mail is of use; an UNKNOWN one may have been accepted, since its
    answer was lost. FAILED is tried again a few times. PAUSED is no recipient's fault: a person must
    act, and until then nothing can be sent.
    """

    SENT = "sent"
    REJECTED = "rejected"
    TRANSIENT = "transient"
    THROTTLED = "throttled"
    UNKNOWN = "unknown"
    FAILED = "failed"
    PAUSED = "paused"


class Scope(enum.Enum):
    """Whom an answer is about, and so who would get the same one.

    RECIPIENT: this one alone. CALL: somebody in the call, and the provider does not say who; the
    others are not to blame. ACTION: every mail of this action, such as for a missing template.
    ACCOUNT: every mail.
    """

    RECIPIENT = "recipient"
    CALL = "call"
    ACTION = "action"
    ACCOUNT = "account"


@dataclass(frozen=True, slots=True)
class Answer:
    """One recipient's answer.

    Attributes:
        result: its class.
        detail: why, in the provider's words; never a secret.
        message_id: the provider's name for the mail, once it is sent.
        scope: whom it is about.
        is_ours: whether it was found out here, so that it says nothing of the provider.
    """

    result: Result
    detail: str = ""
    message_id: str = ""
    scope: Scope = Scope.RECIPIENT
    is_ours: bool = False
