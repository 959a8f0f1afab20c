"""What providers say, as far as it is told and as far as it decides."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mailroom.transports.saved_answers import redacted

MAX_DETAIL: Final = 300
# SES calls it a throttling, over its API and over SMTP, and it lasts for hours.
DAILY_QUOTA: Final = "daily message quota"


def as_told(text: str, secrets: Iterable[str]) -> str:
    """A provider's words on one line, of bounded length, with every secret in them blotted out."""
    # First whatever is secret goes, so that the cut cannot leave half of it.
    text = " ".join(redacted(text[: 100 * MAX_DETAIL], secrets).split())
    return text if len(text) <= MAX_DETAIL else text[: MAX_DETAIL - 1] + "…"
