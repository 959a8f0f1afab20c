"""Defines a provider's answer for one recipient in one attempt, and the classes of answers.

A transport translates its provider's replies into these; the sender decides what to do with each.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final

# A recipient that fails for no stated reason is tried this many times; the pipe counts lost answers too.
RETRY_LIMIT: Final = 10


class Result(enum.Enum):
    """The classes of answers.

    SENT: the provider accepted the mail. REJECTED: it refused it for good. TRANSIENT, THROTTLED: retried
    as long as the mail is useful. UNKNOWN: the answer was lost, so the mail may have been accepted;
    retried a few times. FAILED: no stated reason; retried a few times. PAUSED: not the recipient's fault;
    nothing can be sent until a person acts.
    """

    SENT = "sent"
    REJECTED = "rejected"
    TRANSIENT = "transient"
    THROTTLED = "throttled"
    UNKNOWN = "unknown"
    FAILED = "failed"
    PAUSED = "paused"


class Scope(enum.Enum):
    """Which mails would get the same answer.

    RECIPIENT: this one only. CALL: one of the call's recipients, and the provider does not say which.
    ACTION: every mail of this action, for instance because its template is missing. ACCOUNT: every mail.
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
        detail: the reason in the provider's words, without secrets.
        message_id: the provider's id for a mail that was sent.
        scope: which mails would get the same answer.
        is_ours: whether Mailroom gave it without asking the provider, so it says nothing about the provider.
        template: the name of the template that the mail was made from, for the ledger.
        language: the language of that template; empty for the templates' own.
        transport: which of two transports was called; empty where there is one.
    """

    result: Result
    detail: str = ""
    message_id: str = ""
    scope: Scope = Scope.RECIPIENT
    is_ours: bool = False
    template: str = field(default="", compare=False)
    language: str = field(default="", compare=False)
    transport: str = field(default="", compare=False)

    def of_template(self, template: str, language: str) -> Answer:
        """The same answer, about a mail from this template."""
        return Answer(self.result, self.detail, self.message_id, self.scope, self.is_ours, template, language)
