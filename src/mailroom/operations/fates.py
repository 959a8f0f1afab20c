"""Counts what SES reported in the last day, and judges the rates of bounces and complaints as SES does."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import psycopg

from mailroom.database.sync import rows
from mailroom.wording import counted

COUNTED_FOR: Final = timedelta(days=1)
# The newest events, which are counted in milliseconds.
MAX_COUNTED: Final = 10_000
# Where SES puts an account under review.
BOUNCE_LIMIT: Final = 0.05
COMPLAINT_LIMIT: Final = 0.001
# Of fewer mails a rate says nothing. One complaint alone is above the limit of up to 1,000 mails.
MIN_MAILS: Final = 100
MIN_COMPLAINTS: Final = 2

EVENT_COUNTS: Final = (
    "SELECT delivered, bounced, bounced_for_good, complained, delayed, rejected, unrendered, unreadable, more"
    " FROM mailroom.event_counts(%s, %s)"
)


@dataclass(frozen=True, slots=True)
class Fates:
    """The numbers of events of the last day, by kind.

    Attributes:
        bounced_for_good: the permanent ones of ``bounced``.
        unreadable: messages of the queue of events that could not be read.
        more: whether there are older ones of the day, which were not counted.
    """

    delivered: int
    bounced: int
    bounced_for_good: int
    complained: int
    delayed: int
    rejected: int
    unrendered: int
    unreadable: int
    more: bool

    @property
    def any(self) -> bool:
        """Whether there is any."""
        return bool(
            self.delivered
            or self.bounced
            or self.complained
            or self.delayed
            or self.rejected
            or self.unrendered
            or self.unreadable
        )

    @property
    def bounce_rate(self) -> float | None:
        """The share of permanent bounces; None if nothing arrived or bounced."""
        ended = self.delivered + self.bounced_for_good
        return self.bounced_for_good / ended if ended else None

    @property
    def complaint_rate(self) -> float | None:
        """The share of complaints; None if nothing arrived."""
        return self.complained / self.delivered if self.delivered else None

    @property
    def alarms(self) -> list[str]:
        """What a person has to act on, in words."""
        found = []
        if self.delivered + self.bounced_for_good >= MIN_MAILS:
            if (rate := self.bounce_rate) is not None and rate >= BOUNCE_LIMIT:
                found.append(
                    f"{percent(rate)} of the mails bounced for good, and SES acts at {percent(BOUNCE_LIMIT)}:"
                    " check where the addresses come from"
                )
            rate = self.complaint_rate
            if rate is not None and rate >= COMPLAINT_LIMIT and self.complained >= MIN_COMPLAINTS:
                found.append(
                    f"{percent(rate)} of the mails were marked as spam, and SES acts at"
                    f" {percent(COMPLAINT_LIMIT)}: check who asked for them"
                )
        if self.unreadable:
            messages = counted(self.unreadable, "message")
            found.append(
                f"{messages} of the queue of events could not be read: see mailroom.unreadable_events"
            )
        return found

    def lines(self) -> list[str]:
        """The numbers as lines of text; none if there are none."""
        if not self.any:
            return []
        more = "+" if self.more else ""
        bounced = f"bounced    {self.bounced}{more}, {self.bounced_for_good} of them for good"
        complained = f"complained {self.complained}{more}"
        if (rate := self.bounce_rate) is not None:
            bounced += f": {percent(rate)}; SES acts at {percent(BOUNCE_LIMIT)}"
        if (rate := self.complaint_rate) is not None:
            complained += f": {percent(rate)}; SES acts at {percent(COMPLAINT_LIMIT)}"
        return [
            f"delivered  {self.delivered}{more} in the last day",
            bounced,
            complained,
            *([f"delayed    {self.delayed}{more}"] if self.delayed else []),
            *(
                [f"infected   {self.rejected}{more}, which SES took and did not send"]
                if self.rejected
                else []
            ),
            *(
                [f"unrendered {self.unrendered}{more}, which SES took and could not render"]
                if self.unrendered
                else []
            ),
            *(f"alarm      {alarm}" for alarm in self.alarms),
        ]


def percent(share: float) -> str:
    """A share in per cent, with two digits that matter."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def fates(connection: psycopg.Connection) -> Fates:
    """What SES reported in the last day.

    Raises:
        DatabaseError: the schema or a privilege is missing.
        DatabaseUnavailable: the connection was lost.
    """
    (found,) = rows(connection, Fates, EVENT_COUNTS, [COUNTED_FOR, MAX_COUNTED])
    return found
