"""What a call that sends is, what it is answered with, and what is counted and remembered of it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Final, NamedTuple

from mailroom.inbox.faults import Fault
from mailroom.inbox.ses_protocol import Refusal

MAX_ADDRESSES: Final = 100_000
# So many are forgotten together, which costs no more than one.
FORGOTTEN_AT_ONCE: Final = 1000


class Destination(NamedTuple):
    """One mail of a call: its addresses, and its data as JSON (empty for none)."""

    addresses: tuple[str, ...]
    data: str

    @property
    def recipients(self) -> int:
        """How many the rate is charged for."""
        return max(1, len(self.addresses))


class Request(NamedTuple):
    """A call; an empty ``config_set`` names none.

    Attributes:
        raw: all that the client sent.
        message: the mail itself, where it came over SMTP; there is no template then.
    """

    source: str
    template: str
    config_set: str
    default_data: str
    destinations: list[Destination]
    raw: bytes = b""
    message: bytes = b""

    @property
    def recipients(self) -> int:
        """How many the rate is charged for."""
        return sum(destination.recipients for destination in self.destinations)


class Status(NamedTuple):
    """A destination's answer: a message id after ``Success``, else an error."""

    status: str
    message_id: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call is answered with.

    Attributes:
        statuses: one a destination; none when the call was refused or not processed.
        refusal: the error that the call is answered with instead.
        fault: how the answer gets lost on its way.
    """

    statuses: list[Status] = field(default_factory=list)
    refusal: Refusal | None = None
    fault: Fault | None = None


class Call(NamedTuple):
    """One call as it is remembered.

    Attributes:
        number: counts calls from 1.
        at_s: on the monotonic clock, in seconds.
        verdict: a fault's kind where the answer was lost; else an error's code, the status that
            all destinations have, or ``mixed``.
    """

    number: int
    at_s: float
    time: datetime
    recipients: int
    accepted: int
    verdict: str


class Recipients(dict[str, int]):
    """How often each address was accepted, for so many addresses; those that came first are forgotten first.

    Attributes:
        forgotten: how many addresses were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.forgotten = 0

    def note(self, address: str) -> None:
        """An address was accepted once more."""
        self[address] = self.get(address, 0) + 1
        if len(self) > MAX_ADDRESSES:
            for oldest in list(islice(self, FORGOTTEN_AT_ONCE)):
                del self[oldest]
            self.forgotten += FORGOTTEN_AT_ONCE


@dataclass(slots=True)
class Counts:
    """What happened since the start; all but ``calls`` and ``throttled`` count recipients.

    Attributes:
        recipients: in all calls.
        accepted: those with Success, whether or not the answer was lost.
        refused: those with another status, and all of a call that was refused.
        unanswered: those of calls whose answer was lost, accepted or not.
        throttled: calls that were refused for the rate.
        dropped: accepted ones to whom nothing was sent, for a rendering failure, as far as is known.
        by_recipient: how often each address was accepted; see ``Recipients`` for its bound.
    """

    calls: int = 0
    recipients: int = 0
    accepted: int = 0
    refused: int = 0
    unanswered: int = 0
    throttled: int = 0
    dropped: int = 0
    by_recipient: Recipients = field(default_factory=Recipients, repr=False)

    @property
    def duplicates(self) -> int:
        """How many were accepted beyond the first to their address, as far as addresses are remembered."""
        return self.accepted - len(self.by_recipient) - self.by_recipient.forgotten


MAX_BYTES: Final = 64_000_000
# What an AWS client signs with is its account's and no part of a mail.
KEPT_HEADERS: Final = ("host", "content-type", "content-length", "user-agent", "x-amz-date")


class Requests:
    """The requests by numbers, from 1.

    Args:
        most_bytes: how much is kept, and one request at least.
    """

    def __init__(self, most_bytes: int = MAX_BYTES) -> None:
        self._most_bytes = most_bytes
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._bytes = 0
        self._last = 0

    def add(self, content: bytes) -> int:
        """Keep one; gives back its number, or 0 for an empty one."""
        if not content:
            return 0
        self._last += 1
        self._kept[self._last] = content
        self._bytes += len(content)
        while self._bytes > self._most_bytes and len(self._kept) > 1:
            self._bytes -= len(self._kept.popitem(last=False)[1])
        return self._last

    def get(self, number: int) -> bytes | None:
        """One; None when it was forgotten or is none."""
        return self._kept.get(number)

    def clear(self) -> None:
        """Forget them all."""
        self._kept.clear()
        self._bytes = 0
