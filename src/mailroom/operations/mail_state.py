"""What the database knows about one mail: its token, its lease, and its rows of the ledger.

Promises: ``masked`` cuts every address to its first letter and its domain, in the provider's text too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from mailroom.operations.verdicts import ATTEMPTED

PROVIDERS: Final = {"ses": "SES", "sesv2": "SES", "smtp": "the SMTP server", "debug": "the debug transport"}
# The result in a row of the ledger that `mailroom dead` wrote.
BY_HAND: Final = "by hand"
# The results in rows that were written because of an event, and not of an attempt.
KNOWN: Final = "known"
UNRENDERED: Final = "unrendered"
NO_REASON: Final = "no reason was given"
# The remedy for an action whose mails wait, because SES could not render one.
RESUME_ACTION: Final = "correct the template, then `mailroom resume` and `mailroom dead retry`"


@dataclass(frozen=True, slots=True)
class Pause:
    """Since when the queue is paused, and why; None twice if it is not paused."""

    paused_at: datetime | None
    pause_reason: str | None

    @property
    def what(self) -> str:
        """What is paused."""
        return "the queue"

    @property
    def reason(self) -> str:
        """The pause in words, without a remedy; empty if there is none."""
        if self.paused_at is None:
            return ""
        why = plain(mask(self.pause_reason or NO_REASON))
        return f"paused since {utc(self.paused_at)}: {why}"

    def text(self) -> str:
        """The pause in words; empty if there is none."""
        return self.reason


@dataclass(frozen=True, slots=True)
class PausedAction(Pause):
    """An action whose mails wait until a person resumes it."""

    action: str

    @property
    def what(self) -> str:
        """What is paused."""
        return f"the action {self.action}"

    def text(self) -> str:
        """The pause in words, with the remedy."""
        return f"{self.reason}; {RESUME_ACTION}"


@dataclass(frozen=True, slots=True)
class TokenDelivery:
    """A row of the ledger, of one token."""

    token: int
    attempt: int
    outcome: str
    result: str
    provider: str
    message_id: str
    detail: str
    worker: str
    at: datetime
    recipient: str = ""
    template: str = ""
    language: str = ""

    @property
    def by(self) -> str:
        """The name of the provider that answered."""
        return PROVIDERS.get(self.provider, plain(self.provider) or "the transport")

    @property
    def why(self) -> str:
        """The provider's text, or the result if there is none."""
        return self.detail or self.result or NO_REASON

    @property
    def by_hand(self) -> bool:
        """Whether somebody wrote it with `mailroom dead`."""
        return self.result == BY_HAND

    @property
    def is_attempt(self) -> bool:
        """Whether it is the result of an attempt to send."""
        if self.result in {BY_HAND, KNOWN, UNRENDERED}:
            return False
        return self.outcome in ATTEMPTED and bool(self.attempt or self.worker)


@dataclass(frozen=True, slots=True)
class MailEvent:
    """What SES reported about a mail."""

    token: int
    kind: str
    message_id: str
    recipient: str
    at: datetime
    type: str
    subtype: str
    status: str
    diagnostic: str
    received_at: datetime

    @property
    def said(self) -> str:
        """The closer words, of the recipient's server or of SES."""
        return ", ".join(filter(None, (self.subtype, self.status, self.diagnostic)))


@dataclass(frozen=True, slots=True)
class MailState:
    """What the database knows about a token's mail; ``action`` is None if the token was deleted."""

    token: int | None
    action: str | None
    email: str | None
    login: str | None
    status: str | None
    status_changed_at: datetime | None
    needed_status: str | None
    created_at: datetime | None
    expires_at: datetime | None
    consumed_at: datetime | None
    why_not_mailable: str | None
    lane: str | None
    send_at: datetime | None
    waits: bool
    lease_worker: str | None
    lease_generation: int | None
    lease_due_at: datetime | None
    lease_is_due: bool | None
    subject: str | None = None
    user_table: str | None = None
    ended_at: datetime | None = None
    ended_as: str | None = None
    deliveries: tuple[TokenDelivery, ...] = ()
    events: tuple[MailEvent, ...] = ()

    @property
    def whose(self) -> str:
        """Whose mail it is, beside the address."""
        if self.user_table:
            return f"user {self.subject} of {self.user_table}"
        return f"whose account is {self.status}" if self.status else "without an account"

    @property
    def changed_since(self) -> bool:
        """Whether the account's status changed after the token was made."""
        return bool(self.status_changed_at and self.created_at and self.status_changed_at > self.created_at)

    @property
    def attempts(self) -> int:
        """The number of attempts in the ledger. A lease's generation counts claims without one too."""
        return sum(one.is_attempt for one in self.deliveries)

    @property
    def held_back(self) -> bool:
        """Whether the last holder of the lease made no attempt, or none yet."""
        by_hand = [place for place, one in enumerate(self.deliveries) if one.by_hand]
        since = self.deliveries[by_hand[-1] if by_hand else 0 :]  # its generations restart there
        return all(one.attempt != self.lease_generation for one in since)

    @property
    def attempt_in_hand(self) -> int:
        """The number of the current attempt. The ledger is read after the lease and may have it."""
        return self.attempts + self.held_back


def utc(at: datetime) -> str:
    """A time in UTC, to the second."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def span(seconds: float) -> str:
    """A duration in the largest unit of which it has at least two."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def plain(text: str) -> str:
    """A text on one line, without control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()


def mask(text: str, address: str = "") -> str:
    """A text in which every address is cut to its first letter and its domain."""
    if address:
        local, _, domain = address.partition("@")
        text = re.sub(re.escape(address), lambda _: f"{local[:1]}…@{domain}", text, flags=re.IGNORECASE)
    return re.sub(r"""([^\s@<>"'(),:;])[^\s@<>"'(),:;]*@(?=[^\s@])""", r"\1…@", text)


def name_beside(email: str | None, login: str | None, subject: str | None) -> str:
    """What tells a person from others with the same masked address: the login, else the subject; or empty."""
    return next((name for name in (login, subject) if name and name != email), "")


def masked(mail: MailState, written: Sequence[TokenDelivery], told: Sequence[MailEvent] = ()) -> MailState:
    """A mail with its rows of the ledger and its events, addresses masked, without control characters."""
    address = mail.email or ""
    return replace(
        mail,
        email=mail.email and plain(mask(mail.email, address)),
        subject=mail.subject and plain(mask(mail.subject, address)),
        login=mail.login and plain(mask(mail.login, address)),
        deliveries=tuple(
            replace(
                one,
                detail=plain(mask(one.detail, one.recipient or address)),
                message_id=plain(one.message_id),
                recipient=plain(mask(one.recipient, one.recipient)),
                template=plain(one.template),
            )
            for one in written
            if one.token == mail.token
        ),
        events=tuple(
            replace(
                one,
                recipient=plain(mask(one.recipient, one.recipient)),
                message_id=plain(one.message_id),
                type=plain(one.type),
                subtype=plain(mask(one.subtype, one.recipient)),
                status=plain(one.status),
                diagnostic=plain(mask(one.diagnostic, one.recipient or address)),
            )
            for one in told
            if one.token == mail.token
        ),
    )
