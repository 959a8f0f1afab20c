"""The options of the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Size = TypeVar("Size")


@dataclass(frozen=True, slots=True)
class Options:
    """How much to measure.

    Attributes:
        quick: small sizes, as a smoke test.
        largest: the number of tokens in the largest table.
        reference: a command that follows the reference's contract.
        reference_sender: the command that reads the reference's lines and calls SES.
        reference_schema: the SQL for its database; None for Mailroom's migrations.
    """

    quick: bool = False
    largest: int = 5_000_000
    reference: str = ""
    reference_sender: str = ""
    reference_schema: Path | None = None

    def sized(self, full: Size, quick: Size) -> Size:
        """``quick`` if the options ask for small sizes, else ``full``."""
        return quick if self.quick else full
