"""Reads the ledger for the page: the newest rows, and the number of rows in each few seconds.

Both read a bounded number of rows. Rows of the ledger never change, so ``Traffic`` keeps its counts and only
counts what is new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

import psycopg

from mailroom.database.sync import one, rows
from mailroom.operations.mail_state import PROVIDERS, mask, name_beside, plain

PAGE: Final = 50
# The number of rows in which an outcome is searched for at a time.
LOOK: Final = 20_000
NEWEST: Final = 2**63 - 1

STEP_S: Final = 5
KEPT: Final = 3600 // STEP_S
MINUTE: Final = 60 // STEP_S
MAX_COUNTED: Final = 100_000
# A row is visible only some time after the time in it, so its interval may have been counted without it.
LATE_S: Final = 10.0

TRAFFIC: Final = "SELECT at, sent, retried, unknown, rejected, dropped FROM mailroom.traffic(%s, %s, %s)"
LEDGER_ENDS: Final = "SELECT first, last FROM mailroom.ledger_ends()"
RECENT: Final = (
    "SELECT id, token, action, email, login, subject, attempt, outcome, result, provider, message_id, detail,"
    " worker, at FROM mailroom.recent_deliveries(%s, %s, %s, %s)"
)


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """A row of the ledger, with its account; ``action`` is None if the token was deleted."""

    id: int
    token: int
    action: str | None
    email: str | None
    login: str | None
    subject: str | None
    attempt: int
    outcome: str
    result: str
    provider: str
    message_id: str
    detail: str
    worker: str
    at: datetime

    @property
    def whose(self) -> str:
        """Whose mail it was, beside the address."""
        return name_beside(self.email, self.login, self.subject)

    @property
    def by(self) -> str:
        """The name of the provider that answered; empty if none was called."""
        return PROVIDERS.get(self.provider, plain(self.provider))

    @property
    def why(self) -> str:
        """The provider's text, or the result; empty if it is the same as the outcome."""
        said = self.detail or self.result
        return "" if said == self.outcome else said

    def shown(self, *, addresses: bool) -> LedgerRow:
        """The row as it may be shown: without control characters, and masked unless ``addresses``."""
        whole = self.email or ""
        email, login, subject, detail = whole, self.login or "", self.subject or "", self.detail
        if not addresses:
            email, login, subject, detail = (mask(each, whole) for each in (email, login, subject, detail))
        return replace(
            self,
            email=plain(email),
            login=plain(login),
            subject=plain(subject),
            detail=plain(detail),
            message_id=plain(self.message_id),
        )


@dataclass(frozen=True, slots=True)
class Recent:
    """A page of the ledger; ``older`` is the row before which the next page begins, None at the end."""

    rows: tuple[LedgerRow, ...]
    older: int | None


def recent(connection: psycopg.Connection, outcome: str | None, before: int | None) -> Recent:
    """The newest rows of the ledger, newest first, not masked.

    Args:
        connection: in autocommit mode.
        outcome: only rows with this outcome.
        before: only rows before this one; None for the newest.

    Raises:
        DatabaseError, DatabaseUnavailable: as ``sync.rows`` does.
    """
    first, last = one(connection, LEDGER_ENDS, [])
    if last is None:
        return Recent((), None)
    start = min(before or NEWEST, last + 1)
    look = LOOK if outcome else NEWEST
    found = rows(connection, LedgerRow, RECENT, [outcome, start, look, PAGE + 1])
    if len(found) > PAGE:
        return Recent(tuple(found[:PAGE]), found[PAGE - 1].id)
    left = start - LOOK
    return Recent(tuple(found), left if outcome and left > first else None)


@dataclass(frozen=True, slots=True)
class Interval:
    """The results of the attempts in the ``STEP_S`` seconds from ``at`` on."""

    at: datetime
    sent: int = 0
    retried: int = 0
    unknown: int = 0
    rejected: int = 0
    dropped: int = 0

    @property
    def total(self) -> int:
        """The number of attempts."""
        return self.sent + self.retried + self.unknown + self.rejected + self.dropped

    def most(self, other: Interval) -> Interval:
        """The larger counts of two countings of the same interval: rows are only added."""
        return Interval(
            self.at,
            max(self.sent, other.sent),
            max(self.retried, other.retried),
            max(self.unknown, other.unknown),
            max(self.rejected, other.rejected),
            max(self.dropped, other.dropped),
        )


def summed(intervals: Sequence[Interval]) -> Interval:
    """The sum of intervals."""
    return Interval(
        intervals[0].at if intervals else datetime.min.replace(tzinfo=UTC),
        sum(each.sent for each in intervals),
        sum(each.retried for each in intervals),
        sum(each.unknown for each in intervals),
        sum(each.rejected for each in intervals),
        sum(each.dropped for each in intervals),
    )


class Traffic:
    """The intervals of the last hour that are known."""

    def __init__(self) -> None:
        self._known: dict[datetime, Interval] = {}
        self._asked_at = float("-inf")
        self._now = datetime.min.replace(tzinfo=UTC)

    def look(self, connection: psycopg.Connection, now_s: float) -> None:
        """Count the new rows.

        Args:
            connection: in autocommit mode.
            now_s: the time on a monotonic clock.

        Raises:
            DatabaseError, DatabaseUnavailable: as ``sync.rows`` does.
        """
        span_s = min(now_s - self._asked_at + STEP_S + LATE_S, float(KEPT * STEP_S))
        counted = rows(connection, Interval, TRAFFIC, [timedelta(seconds=span_s), STEP_S, MAX_COUNTED])
        self._asked_at = now_s
        self.learn(counted)

    def learn(self, counted: Sequence[Interval]) -> None:
        """Add the counts of the newest intervals."""
        whole = summed(counted).total < MAX_COUNTED
        for interval in counted:
            known = self._known.get(interval.at)
            if whole or known:
                self._known[interval.at] = interval.most(known) if known else interval
            if interval.total:
                whole = True  # it may be incomplete, and is only taken if it was counted before
        self._now = counted[-1].at
        oldest = self._now - timedelta(seconds=STEP_S * (KEPT - 1))
        self._known = {at: interval for at, interval in self._known.items() if oldest <= at <= self._now}

    def last(self, count: int) -> tuple[Interval | None, ...]:
        """The last intervals, the current one at the end; None is not known."""
        steps = (self._now - timedelta(seconds=STEP_S * back) for back in range(count - 1, -1, -1))
        return tuple(self._known.get(at) for at in steps)
