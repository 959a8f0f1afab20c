"""Splits a lease into the lines to write, and tracks which tokens the written lines settle."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate

from mailroom.actions import Action
from mailroom.logs import EventLogger
from mailroom.queue.lease import Lease, sign_claimed
from mailroom.wire import join_line

log = EventLogger("collector")


class Outgoing:
    """The lines of a lease, each of at most ``batch_limit`` messages.

    Attributes:
        lease: the lease.
        lines: the lines to write.
        is_settling: whether PostgreSQL was asked to settle it.
    """

    def __init__(
        self, lease: Lease, *, keys: Sequence[bytes], actions: Mapping[str, Action], batch_limit: int
    ) -> None:
        self.lease = lease
        self.is_settling = False
        signed = sign_claimed(lease.claimed, keys, actions, log)
        self._ids, self._refused = list(signed.ids), list(signed.refused)
        texts = signed.encoded
        self.lines = [join_line(texts[at : at + batch_limit]) for at in range(0, len(texts), batch_limit)]
        self._batch_limit = batch_limit
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
        return None if len(done) == len(self.lease.claimed) else done
