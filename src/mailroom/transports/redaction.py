"""Prepares a provider's words for logs and the ledger: one short line, without secrets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mailroom.transports.saved_answers import redacted

MAX_DETAIL: Final = 300
# SES reports an exhausted quota as a throttle, over its API and over SMTP; it lasts for hours.
DAILY_QUOTA: Final = "daily message quota"


def shortened(text: str, secrets: Iterable[str]) -> str:
    """A provider's words on one line of limited length, with every secret replaced."""
    # Secrets are replaced before the text is cut, so that no half of a secret remains.
    text = " ".join(redacted(text[: 100 * MAX_DETAIL], secrets).split())
    return text if len(text) <= MAX_DETAIL else text[: MAX_DETAIL - 1] + "…"
