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


class StoryVerdict(enum.StrEnum):
    """The verdicts of stories."""

    SENT = "sent"
    IN_FLIGHT = "in flight"
    WAITING = "waiting"
    SCHEDULED = "scheduled"
    RETRYING = "retrying"
    UNSETTLED = "unsettled"
    HANDED_OUT = "handed out"
    NOT_HANDED_OUT = "not handed out"
    REJECTED = "rejected"
    NOT_SENT = "not sent"
    SUPPRESSED = "suppressed"
    RENEWED = "renewed"
    DROPPED = "dropped"
