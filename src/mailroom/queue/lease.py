"""Leases: the tokens that a claim returns, read from its rows, signed, and turned into messages.

A token whose action this version does not know is left out, for a newer worker. A token that
cannot be signed, or that no line can hold, is refused. Both are logged with the token's id, and do not
affect the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple
from uuid import UUID

from mailroom.actions import Action
from mailroom.errors import WireError
from mailroom.logs import EventLogger
from mailroom.tokens import sign_all
from mailroom.wire import Message, encode_all

LEASE_MS: Final = 15_000


class Claimed(NamedTuple):
    """One token as a claim returns it, not signed yet."""

    token: int
    action: str
    email: str
    login: str
    secret: bytes
    code: str

    @property
    def fingerprint(self) -> bytes:
        """What names the token with its id, which a failover can give to another token."""
        return sha256(self.secret).digest()[:8]

    def __repr__(self) -> str:
        return f"Claimed(token={self.token}, action={self.action!r}, …)"


@dataclass(slots=True)
class Lease:
    """Tokens that this worker holds until ``valid_until`` (of ``time.monotonic``), unless it renews them.

    Attributes:
        id: where the database has it. After a failover another lease can have the same.
        key: random, and new with each claim.
        generation: how often it was claimed.
        lane: in which its tokens were handed out.
    """

    id: int
    key: UUID
    generation: int
    claimed: list[Claimed]
    valid_until: float
    lane: str = "normal"


def read_leases(rows: Sequence[tuple[Any, ...]], valid_until: float) -> list[Lease]:
    """The leases in the rows of a claim.

    Args:
        rows: lease, key as bytes, generation, and the fields of ``Claimed``; sorted by lease.
        valid_until: of ``time.monotonic``, for all of them.
    """
    as_claimed = partial(tuple.__new__, Claimed)  # a third of the time of _make
    return [
        Lease(lease, UUID(bytes=key), generation, [as_claimed(row[3:]) for row in group], valid_until)
        for (lease, key, generation), group in groupby(rows, itemgetter(0, 1, 2))
    ]


class Signed(NamedTuple):
    """Claimed tokens as messages.

    Attributes:
        ids: of the tokens that can be mailed.
        columns: the fields of their messages, as columns.
        encoded: each message as text for a line.
        refused: by its id, why a token cannot be mailed.
    """

    ids: Sequence[int]
    columns: Sequence[Sequence[Any]]
    encoded: Sequence[str]
    refused: dict[int, str]

    def messages(self) -> list[Message]:
        """The messages, one for each of ``ids``."""
        return list(map(Message, *self.columns))


def sign_claimed(
    claimed: Sequence[Claimed], keys: Sequence[bytes], actions: Mapping[str, Action], log: EventLogger
) -> Signed:
    """The claimed tokens as messages, of these actions by name; ``log`` is the caller's."""
    try:
        return _sign_all(claimed, keys, actions)
    except Exception:  # noqa: BLE001 - one by one, the row at fault is found
        good, refused = [], {}
    for one in claimed:
        if one.action not in actions:
            log.warning("unknown_action", token=one.token, action=one.action)
            continue
        try:
            _sign_all([one], keys, actions)
        except Exception as error:  # noqa: BLE001 - a row's content must not end the worker
            # Only these texts are certain to hold no value.
            known = isinstance(error, WireError | ValueError)
            why = str(error) if known else f"it cannot be signed: {type(error).__name__}"
            log.warning("rejected", token=one.token, reason=why)
            refused[one.token] = why
        else:
            good.append(one)
    signed = _sign_all(good, keys, actions) if good else Signed((), ((),) * 5, (), {})
    return signed._replace(refused=refused)


def _sign_all(claimed: Sequence[Claimed], keys: Sequence[bytes], actions: Mapping[str, Action]) -> Signed:
    ids, names, emails, logins, secrets, codes = zip(*claimed, strict=True)
    known = [actions[name] for name in names]
    tokens = sign_all(secrets, known, codes, keys=keys)
    columns = (known, emails, logins, tokens, codes)
    return Signed(ids, columns, encode_all(*columns), {})
