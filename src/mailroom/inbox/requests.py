"""The last requests that brought mail, as clients made them: up to so many bytes, the oldest go first."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

MOST_BYTES: Final = 64_000_000
# What an AWS client signs with is its account's and no part of a mail.
KEPT_HEADERS: Final = ("host", "content-type", "content-length", "user-agent", "x-amz-date")


class Requests:
    """The requests by numbers, from 1.

    Args:
        most_bytes: how much is kept, and one request at least.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
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
