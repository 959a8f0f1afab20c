"""Names what can become of a mail: the outcomes of the ledger's rows, and the verdicts of stories."""

from __future__ import annotations

import enum
from typing import Final


class Outcome(enum.StrEnum):
    """The outcomes of the ledger's rows. The table mailroom.deliveries allows no others."""

    SENT = "sent"
    RETRIED = "retried"
    UNKNOWN = "unknown"
    REJECTED = "rejected"
    EXPIRED = "expired"
    SKIPPED = "skipped"
    SUPPRESSED = "suppressed"


ATTEMPTED: Final = frozenset({Outcome.SENT, Outcome.RETRIED, Outcome.UNKNOWN, Outcome.REJECTED})


class Kind(enum.StrEnum):
    """The kinds of events. The table mailroom.events allows no others."""

    SENT = "sent"
    DELIVERED = "delivered"
    BOUNCED = "bounced"
    COMPLAINED = "complained"
    DELAYED = "delayed"
    REJECTED = "rejected"
    RENDERING_FAILED = "rendering_failed"


class StoryVerdict(enum.StrEnum):
    """The verdicts of stories."""

    SENT = "sent"
    DELIVERED = "delivered"
    DELAYED = "delayed"
    BOUNCED = "bounced"
    COMPLAINED = "complained"
    IN_FLIGHT = "in flight"
    WAITING = "waiting"
    SCHEDULED = "scheduled"
    RETRYING = "retrying"
    UNSETTLED = "unsettled"
    HANDED_OUT = "handed out"
    REJECTED = "rejected"
    NOT_SENT = "not sent"
    SUPPRESSED = "suppressed"
    RENEWED = "renewed"
    DROPPED = "dropped"
