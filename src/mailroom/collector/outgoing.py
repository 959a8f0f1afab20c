"""A lease on its way out: its tokens signed, encoded, and cut into lines.

A token that the line cannot hold is refused and logged by its id, and its neighbours go out. One
whose action this version does not know is left to a newer worker.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from mailroom.actions import BY_NAME
from mailroom.errors import WireError
from mailroom.logs import EventLogger
from mailroom.queue.lease import Claimed, Lease
from mailroom.tokens import sign, sign_all
from mailroom.wire import Message, encode_all, encode_message, join_line

log = EventLogger("collector")


class Outgoing:
    """The lines of a lease, each of at most ``batch_limit`` messages.

    Attributes:
        lease: the lease.
        lines: what is to be written.
        is_settling: whether PostgreSQL was asked to settle it.
    """

    def __init__(self, lease: Lease, *, keys: Sequence[bytes], batch_limit: int) -> None:
        self.lease = lease
        self.is_settling = False
        self._refused: list[int] = []
        self._tokens, encoded = self._encoded(lease.claimed, keys)
        self.lines = [join_line(encoded[at : at + batch_limit]) for at in range(0, len(encoded), batch_limit)]
        self._batch_limit = batch_limit
        self._ends: list[int] = []

    def begin(self, start: int) -> None:
        """Note where in the output, in bytes, the first line begins."""
        self._ends = list(accumulate(map(len, self.lines), initial=start))[1:]

    def whole_lines(self, offset: int) -> int:
        """How many lines end at this offset of the output or before."""
        return bisect_right(self._ends, offset)

    def count(self, offset: int) -> int:
        """How many messages those are."""
        return min(self.whole_lines(offset) * self._batch_limit, len(self._tokens))

    def done(self, offset: int) -> list[int] | None:
        """The tokens that are settled once the output is read so far; None for the whole lease."""
        done = self._tokens[: self.count(offset)] + self._refused
        return None if len(done) == len(self.lease.claimed) else done

    def _encoded(self, claimed: Sequence[Claimed], keys: Sequence[bytes]) -> tuple[list[int], list[str]]:
        tokens, names, emails, logins, secrets, codes = zip(*claimed, strict=True)
        try:
            actions = [BY_NAME[name] for name in names]
            signatures = sign_all(secrets, actions, codes, keys=keys)
            return list(tokens), encode_all(actions, emails, logins, signatures, codes)
        except (KeyError, WireError, ValueError):
            return self._encoded_one_by_one(claimed, keys)

    def _encoded_one_by_one(
        self, claimed: Sequence[Claimed], keys: Sequence[bytes]
    ) -> tuple[list[int], list[str]]:
        tokens, encoded = [], []
        for token, action, email, login, secret, code in claimed:
            if action not in BY_NAME:
                log.warning("unknown_action", token=token, action=action)
                continue
            try:
                signature = sign(secret, BY_NAME[action], keys=keys, code=code)
                encoded.append(encode_message(Message(action, email, login, signature, code)))
                tokens.append(token)
            except (WireError, ValueError) as error:
                log.warning("rejected", token=token, reason=error)
                self._refused.append(token)
        return tokens, encoded
