"""Counts the calls since the start, and keeps the last calls and their requests within bounds."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Final, NamedTuple

MAX_CALLS: Final = 100_000
MAX_ADDRESSES: Final = 100_000
# To forget many addresses at once costs no more than to forget one.
FORGOTTEN_AT_ONCE: Final = 1000
MAX_REQUEST_BYTES: Final = 64_000_000


class CallRecord(NamedTuple):
    """What is remembered of a call.

    Attributes:
        number: counts calls from 1.
        at_s: seconds on the monotonic clock: when the rate was charged, or the call was refused.
        verdict: if the answer was lost, the fault's kind; otherwise the error's code, the status that
            all destinations share, or ``mixed``.
    """

    number: int
    at_s: float
    time: datetime
    recipients: int
    accepted: int
    verdict: str


class RecipientCounts(dict[str, int]):
    """How often each address was accepted; above ``MAX_ADDRESSES`` the oldest addresses are forgotten.

    Attributes:
        forgotten: the number of addresses that were forgotten.
    """

    def __init__(self) -> None:
        super().__init__()
        self.forgotten = 0

    def note(self, address: str) -> None:
        """Count an address once more."""
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
        accepted: with the status Success, whether or not the answer was lost.
        refused: with another status, and all recipients of a refused call.
        unanswered: of calls whose answer was lost, accepted or not.
        throttled: calls that were refused because of the rate.
        dropped: accepted, but nothing was sent because the mail could not be rendered. A failure that
            only rendering shows is counted once the mail is viewed.
        by_recipient: how often each address was accepted.
    """

    calls: int = 0
    recipients: int = 0
    accepted: int = 0
    refused: int = 0
    unanswered: int = 0
    throttled: int = 0
    dropped: int = 0
    by_recipient: RecipientCounts = field(default_factory=RecipientCounts, repr=False)

    @property
    def duplicates(self) -> int:
        """How many mails were accepted beyond the first to their address."""
        return self.accepted - len(self.by_recipient) - self.by_recipient.forgotten


class RawRequests:
    """The last requests, by numbers from 1.

    Args:
        max_bytes: how much is kept; the last request is kept even if it is larger.
    """

    def __init__(self, max_bytes: int = MAX_REQUEST_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._bytes = 0
        self._last = 0

    def add(self, content: bytes) -> int:
        """Keep a request, and return its number; 0 if it is empty."""
        if not content:
            return 0
        self._last += 1
        self._kept[self._last] = content
        self._bytes += len(content)
        while self._bytes > self._max_bytes and len(self._kept) > 1:
            self._bytes -= len(self._kept.popitem(last=False)[1])
        return self._last

    def get(self, number: int) -> bytes | None:
        """Return a request, or None if it is not kept."""
        return self._kept.get(number)

    def clear(self) -> None:
        """Forget all requests."""
        self._kept.clear()
        self._bytes = 0
