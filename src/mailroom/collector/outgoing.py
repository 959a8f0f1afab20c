"""Splits a lease into the lines to write, and tracks which tokens the written lines settle.

What the line's format cannot carry stays in the lease, and so in the queue.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Final

from mailroom.actions import Action
from mailroom.logs import EventLogger
from mailroom.queue.lease import Claimed, Lease, columns_of, sign_claimed
from mailroom.wire import Columns, LineFormat, encode_all, encode_all_as_json, join_line

REMINDER_S: Final = 60.0
# An object of JSON may have 16 KB of data, and the sender reads lines of up to 64 MB.
MAX_JSON_MESSAGES: Final = 1000

ENCODERS: Final[Mapping[LineFormat, Callable[[Columns], list[str]]]] = {
    "csv": lambda columns: encode_all(*columns[:5]),
    "json": encode_all_as_json,
}

log = EventLogger("collector")


class Outgoing:
    """The lines of a lease, each of at most ``batch_limit`` messages.

    Attributes:
        lease: the lease.
        lines: the lines to write.
        left: the tokens that this format cannot carry.
        is_settling: whether PostgreSQL was asked to settle it.
    """

    def __init__(
        self,
        lease: Lease,
        *,
        keys: Sequence[bytes],
        actions: Mapping[str, Action],
        batch_limit: int,
        line_format: LineFormat,
    ) -> None:
        self.lease = lease
        self.is_settling = False
        self.left: list[Claimed] = []
        carried = lease.columns
        if line_format == "csv" and not lease.fits_csv:
            self.left = [one for one in lease.claimed if not one.fits_csv]
            carried = columns_of(one for one in lease.claimed if one.fits_csv)
        signed = sign_claimed(carried, keys, actions, log, ENCODERS[line_format])
        self._ids, self._refused = list(signed.ids), list(signed.refused)
        size = min(batch_limit, MAX_JSON_MESSAGES) if line_format == "json" else batch_limit
        self._batch_limit = size
        texts = signed.encoded
        self.lines = [
            join_line(texts[first : first + size], line_format) for first in range(0, len(texts), size)
        ]
        self._ends: list[int] = []

    def begin(self, start: int) -> None:
        """Note where in the output, in bytes, the first line begins."""
        self._ends = list(accumulate(map(len, self.lines), initial=start))[1:]

    def whole_lines(self, offset: int) -> int:
        """How many lines end at this offset of the output or before it."""
        return bisect_right(self._ends, offset)

    def count(self, offset: int) -> int:
        """How many messages are in those lines."""
        return min(self.whole_lines(offset) * self._batch_limit, len(self._ids))

    def done(self, offset: int) -> list[int] | None:
        """The tokens that are settled once the output is read up to here; None for the whole lease."""
        done = self._ids[: self.count(offset)] + self._refused
        return None if len(done) == len(self.lease) else done


class LeftBehind:
    """Warns of tokens that CSV cannot carry: at once, then once a minute."""

    def __init__(self) -> None:
        self._actions: dict[int, str] = {}  # by token: each is claimed several times a minute
        self._warned_at = float("-inf")

    def add(self, tokens: Iterable[Claimed]) -> None:
        """Count them, and warn if it is time to."""
        self._actions |= {one.token: one.action for one in tokens}
        if self._actions and time.monotonic() >= self._warned_at + REMINDER_S:
            self._warned_at = time.monotonic()
            counts = Counter(self._actions.values())
            log.warning(
                "not_carried",
                count=counts.total(),
                actions=", ".join(f"{action} {count}" for action, count in sorted(counts.items())),
                reason="they have a language, data or no login, which five fields do not hold",
                remedy="set MAILROOM_LINE_FORMAT=json for the collector",
            )
            self._actions.clear()
