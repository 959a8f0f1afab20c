"""What was asked for on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Size = TypeVar("Size")


@dataclass(frozen=True, slots=True)
class Options:
    """How much to measure.

    Attributes:
        quick: small sizes, to see that it works.
        largest: the most tokens in a table.
        reference: a command that speaks the reference's contract.
        reference_schema: the SQL that prepares its database; Mailroom's migrations for None.
    """

    quick: bool = False
    largest: int = 5_000_000
    reference: str = ""
    reference_schema: Path | None = None

    def sized(self, full: Size, quick: Size) -> Size:
        """One of the two."""
        return quick if self.quick else full
