"""Leases: the tokens that a claim returns, read from its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple

LEASE_MS: Final = 15_000


class Claimed(NamedTuple):
    """One token as a claim returns it, not signed yet."""

    token: int
    action: str
    email: str
    login: str
    secret: bytes
    code: str

    def __repr__(self) -> str:
        return f"Claimed(token={self.token}, action={self.action!r}, …)"


@dataclass(slots=True)
class Lease:
    """Tokens that this worker holds until ``valid_until`` (of ``time.monotonic``), unless it renews them."""

    id: int
    generation: int
    claimed: list[Claimed]
    valid_until: float


def read_leases(rows: Sequence[tuple[Any, ...]], valid_until: float) -> list[Lease]:
    """The leases in the rows of a claim.

    Args:
        rows: lease, generation, and the fields of ``Claimed``; sorted by lease.
        valid_until: of ``time.monotonic``, for all of them.
    """
    as_claimed = partial(tuple.__new__, Claimed)  # a third of the time of _make
    return [
        Lease(lease, generation, [as_claimed(row[2:]) for row in group], valid_until)
        for (lease, generation), group in groupby(rows, itemgetter(0, 1))
    ]
