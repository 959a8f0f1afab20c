"""Turns claimed tokens into messages: signs them and encodes them, many at a time.

A token whose action this version does not know is left out, for a newer worker. A token that no line
can hold is refused. Both are logged with the token's id, and do not affect the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mailroom.actions import BY_NAME
from mailroom.errors import WireError
from mailroom.logs import EventLogger
from mailroom.queue.lease import Claimed
from mailroom.tokens import sign_all
from mailroom.wire import Message, encode_all


class Signed(NamedTuple):
    """Claimed tokens as messages.

    Attributes:
        ids: of the tokens that can be mailed.
        columns: the fields of their messages, as columns.
        encoded: each message as text for a line.
        refused: by its id, why a token cannot be mailed.
    """

    ids: Sequence[int]
    columns: Sequence[Sequence[str]]
    encoded: Sequence[str]
    refused: dict[int, str]

    def messages(self) -> list[Message]:
        """One for each of ``ids``."""
        return list(map(Message, *self.columns))


def sign_claimed(claimed: Sequence[Claimed], keys: Sequence[bytes], log: EventLogger) -> Signed:
    """The claimed tokens as messages; ``log`` is the caller's."""
    try:
        return _sign_all(claimed, keys)
    except (KeyError, WireError, ValueError):
        good, refused = [], {}
    for one in claimed:
        if one.action not in BY_NAME:
            log.warning("unknown_action", token=one.token, action=one.action)
            continue
        try:
            _sign_all([one], keys)
        except (WireError, ValueError) as error:
            log.warning("rejected", token=one.token, reason=error)
            refused[one.token] = str(error)
        else:
            good.append(one)
    signed = _sign_all(good, keys) if good else Signed((), ((),) * 5, (), {})
    return signed._replace(refused=refused)


def _sign_all(claimed: Sequence[Claimed], keys: Sequence[bytes]) -> Signed:
    ids, names, emails, logins, secrets, codes = zip(*claimed, strict=True)
    tokens = sign_all(secrets, [BY_NAME[name] for name in names], codes, keys=keys)
    columns = (names, emails, logins, tokens, codes)
    return Signed(ids, columns, encode_all(*columns), {})
