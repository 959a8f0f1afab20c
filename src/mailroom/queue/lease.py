"""Leases: the tokens that a claim returns, read from its rows, signed, and turned into messages.

A token of an action that this worker does not know is left out. A token that cannot be signed, or that no
line can hold, is refused. Both are logged with the token's id, and do not affect the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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


@dataclass
class Lease:
    """Tokens that this worker holds until ``valid_until`` (of ``time.monotonic``), unless it renews them.

    Attributes:
        id: where the database has it. After a failover another lease can have the same.
        key: random, and new with each claim.
        generation: how often it was claimed.
        columns: of its tokens, in the order of ``Claimed``.
        lane: in which its tokens were handed out.
    """

    id: int
    key: UUID
    generation: int
    columns: Columns
    valid_until: float
    lane: str = "normal"

    def __len__(self) -> int:
        """How many tokens it has."""
        return len(self.tokens)

    @property
    def tokens(self) -> Sequence[int]:
        """The ids of its tokens."""
        return self.columns[0]

    @property
    def actions(self) -> set[str]:
        """The actions of its tokens."""
        return set(self.columns[1])

    @property
    def fits_csv(self) -> bool:
        """Whether five fields of a line can hold each of them."""
        _, _, _, logins, _, _, locales, data, _ = self.columns
        return all(logins) and not any(locales) and not any(data)

    @cached_property
    def claimed(self) -> list[Claimed]:
        """Its tokens one by one. Columns are faster where they will do."""
        return list(map(Claimed, *self.columns))


def columns_of(claimed: Iterable[Claimed]) -> Columns:
    """Claimed tokens as the columns of a lease."""
    return list(zip(*claimed, strict=True)) or [()] * len(Claimed._fields)


def read_leases(rows: Iterable[tuple[Any, ...]], valid_until: float) -> list[Lease]:
    """The leases that a claim returned.

    Args:
        rows: lease, key as bytes, generation, lane, and for each field of ``Claimed`` its values, or None
            if no token has one.
        valid_until: of ``time.monotonic``, for all of them.
    """
    leases = []
    for lease, key, generation, lane, *always, locales, data, lifetimes in rows:
        count = len(always[0])
        columns = [*always, locales or [""] * count, data or [None] * count, lifetimes or [None] * count]
        leases.append(Lease(lease, UUID(bytes=key), generation, columns, valid_until, lane))
    return leases


def messages_in(leases: Iterable[Lease]) -> int:
    """How many messages the leases have."""
    return sum(map(len, leases))


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
    columns: Columns,
    keys: Sequence[bytes],
    actions: Mapping[str, Action],
    log: EventLogger,
    encode: Callable[[Columns], list[Encoded]],
) -> Signed[Encoded]:
    """The claimed tokens as messages.

    Args:
        columns: the tokens; see ``Lease``.
        keys: the first signs.
        actions: by name.
        log: the caller's.
        encode: what to make of messages, given as columns; raises WireError if one is not valid.
    """
    try:
        return _sign_all(columns, keys, actions, encode)
    except Exception:  # noqa: BLE001 - one by one, the row at fault is found
        good: list[Claimed] = []
        refused: dict[int, str] = {}
    for one in map(Claimed, *columns):
        if one.action not in actions:
            log.warning("unknown_action", token=one.token, action=one.action)
            continue
        try:
            _sign_all(columns_of([one]), keys, actions, encode)
        except Exception as error:  # noqa: BLE001 - a row's content must not end the worker
            # Only these texts are certain to hold no value.
            known = isinstance(error, WireError | ValueError)
            why = str(error) if known else f"it cannot be signed: {type(error).__name__}"
            log.warning("rejected", token=one.token, reason=why)
            refused[one.token] = why
        else:
            good.append(one)
    return _sign_all(columns_of(good), keys, actions, encode)._replace(refused=refused)


def _sign_all(
    columns: Columns,
    keys: Sequence[bytes],
    actions: Mapping[str, Action],
    encode: Callable[[Columns], list[Encoded]],
) -> Signed[Encoded]:
    ids, names, emails, logins, secrets, codes, locales, data, lifetimes = columns
    known = [actions[name] for name in names]
    tokens = sign_all(secrets, known, codes, keys=keys)
    fields = [NO_DATA if one is None else _texts(one) for one in data]
    return Signed(ids, encode((known, emails, logins, tokens, codes, locales, fields, lifetimes)), {})


def _texts(data: str) -> Mapping[str, str]:
    """The fields in a token's data. Numbers are texts as PostgreSQL writes them."""
    fields = json.loads(data, parse_int=str, parse_float=str)
    if not isinstance(fields, dict) or not all(isinstance(value, str) for value in fields.values()):
        raise WireError("data: not an object of texts and numbers")
    return fields
