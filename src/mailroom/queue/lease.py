"""Leases: the tokens that a claim returns, read from its rows, signed, and turned into messages.

A token of an action that this worker does not know is left out. A token that cannot be signed, or that no
line can hold, is refused. Both are logged with the token's id, and do not affect the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any, Final, Generic, NamedTuple, TypeVar
from uuid import UUID

from mailroom.actions import Action
from mailroom.errors import WireError
from mailroom.logs import EventLogger
from mailroom.tokens import sign_all
from mailroom.wire import NO_DATA, Columns

LEASE_MS: Final = 15_000

Encoded = TypeVar("Encoded")


class Claimed(NamedTuple):
    """One token as a claim returns it, not signed yet."""

    token: int
    action: str
    email: str
    login: str
    secret: bytes
    code: str
    locale: str = ""
    data: str | None = None  # JSON
    expires_in_s: int | None = None

    @property
    def fits_csv(self) -> bool:
        """Whether five fields of a line can hold it."""
        return bool(self.login) and not self.locale and self.data is None

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


def read_leases(rows: Iterable[tuple[Any, ...]], valid_until: float) -> list[Lease]:
    """The leases that a claim returned.

    Args:
        rows: lease, key as bytes, generation, lane, and for each field of ``Claimed`` its values.
        valid_until: of ``time.monotonic``, for all of them.
    """
    as_claimed = partial(tuple.__new__, Claimed)  # a third of the time of _make
    return [
        Lease(
            lease,
            UUID(bytes=key),
            generation,
            list(map(as_claimed, zip(*columns, strict=True))),
            valid_until,
            lane,
        )
        for lease, key, generation, lane, *columns in rows
    ]


def messages_in(leases: Iterable[Lease]) -> int:
    """How many messages the leases have."""
    return sum(len(lease.claimed) for lease in leases)


class Signed(NamedTuple, Generic[Encoded]):
    """Claimed tokens as messages.

    Attributes:
        ids: of the tokens that can be mailed.
        encoded: their messages, as ``encode`` returned them.
        refused: by its id, why a token cannot be mailed.
    """

    ids: Sequence[int]
    encoded: Sequence[Encoded]
    refused: dict[int, str]


def sign_claimed(
    claimed: Sequence[Claimed],
    keys: Sequence[bytes],
    actions: Mapping[str, Action],
    log: EventLogger,
    encode: Callable[[Columns], list[Encoded]],
) -> Signed[Encoded]:
    """The claimed tokens as messages.

    Args:
        claimed: the tokens.
        keys: the first signs.
        actions: by name.
        log: the caller's.
        encode: what to make of messages, given as columns; raises WireError if one is not valid.
    """
    try:
        return _sign_all(claimed, keys, actions, encode)
    except Exception:  # noqa: BLE001 - one by one, the row at fault is found
        good: list[Claimed] = []
        refused: dict[int, str] = {}
    for one in claimed:
        if one.action not in actions:
            log.warning("unknown_action", token=one.token, action=one.action)
            continue
        try:
            _sign_all([one], keys, actions, encode)
        except Exception as error:  # noqa: BLE001 - a row's content must not end the worker
            # Only these texts are certain to hold no value.
            known = isinstance(error, WireError | ValueError)
            why = str(error) if known else f"it cannot be signed: {type(error).__name__}"
            log.warning("rejected", token=one.token, reason=why)
            refused[one.token] = why
        else:
            good.append(one)
    signed = _sign_all(good, keys, actions, encode) if good else Signed((), (), {})
    return signed._replace(refused=refused)


def _sign_all(
    claimed: Sequence[Claimed],
    keys: Sequence[bytes],
    actions: Mapping[str, Action],
    encode: Callable[[Columns], list[Encoded]],
) -> Signed[Encoded]:
    ids, names, emails, logins, secrets, codes, locales, data, lifetimes = zip(*claimed, strict=True)
    known = [actions[name] for name in names]
    tokens = sign_all(secrets, known, codes, keys=keys)
    fields = [NO_DATA if one is None else _texts(one) for one in data]
    columns = (known, emails, logins, tokens, codes, locales, fields, lifetimes)
    return Signed(ids, encode(columns), {})


def _texts(data: str) -> Mapping[str, str]:
    """The fields in a token's data. Numbers are texts as PostgreSQL writes them."""
    fields = json.loads(data, parse_int=str, parse_float=str)
    if not isinstance(fields, dict) or not all(isinstance(value, str) for value in fields.values()):
        raise WireError("data: not an object of texts and numbers")
    return fields
