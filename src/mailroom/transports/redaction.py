"""Removes secrets from a provider's words, and shortens them for logs and the ledger."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

MAX_DETAIL: Final = 300
REDACTED: Final = "[redacted]"
# Anything shorter occurs in words that are not secret.
MIN_SECRET: Final = 6


def redacted(text: str, secrets: Iterable[str | None]) -> str:
    """A text with every secret replaced, and every five digits that follow the word "code".

    A secret that consists of digits is replaced where it is a whole word, not inside a longer number. Any
    other secret needs at least ``MIN_SECRET`` characters; a shorter one would replace parts of words.
    """
    for secret in filter(None, secrets):
        if secret.isdigit():
            text = re.sub(rf"\b{secret}\b", REDACTED, text)
        elif len(secret) >= MIN_SECRET:
            text = text.replace(secret, REDACTED)
    return re.sub(r"(code\W{1,12})[0-9]{5}\b", rf"\1{REDACTED}", text)


def shortened(text: str, secrets: Iterable[str]) -> str:
    """A provider's words on one line of limited length, with every secret replaced."""
    # Secrets are replaced before the text is cut, so that no half of a secret remains.
    text = " ".join(redacted(text[: 100 * MAX_DETAIL], secrets).split())
    return text if len(text) <= MAX_DETAIL else text[: MAX_DETAIL - 1] + "…"
