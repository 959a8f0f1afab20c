"""What a claim hands out: tokens under leases, read out of its answer when somebody needs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple

LEASE_MS: Final = 15_000


class Claimed(NamedTuple):
    """One token as the database hands it out, unsigned."""

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
    """Tokens that are ours until ``valid_until`` (of ``time.monotonic``), unless renewed."""

    id: int
    generation: int
    claimed: list[Claimed]
    valid_until: float


def read_leases(rows: Sequence[tuple[Any, ...]], valid_until: float) -> list[Lease]:
    """The leases in a claim's answer.

    Args:
        rows: lease, generation, and the fields of ``Claimed``; one lease's after the other's.
        valid_until: of ``time.monotonic``, for all of them.
    """
    as_claimed = partial(tuple.__new__, Claimed)  # in a third of _make's time
    return [
        Lease(lease, generation, [as_claimed(row[2:]) for row in group], valid_until)
        for (lease, generation), group in groupby(rows, itemgetter(0, 1))
    ]
