"""Removes secrets from a provider's words, and shortens them for logs and the ledger."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

MAX_DETAIL: Final = 300
REDACTED: Final = "[redacted]"
# Anything shorter occurs in words that are not secret.
MIN_SECRET: Final = 6
# How far a code may be from the word "code".
NEAR: Final = 40

# A code, which a space, a hyphen or a line break may divide.
_FIVE_DIGITS: Final = re.compile(r"(?<![0-9])[0-9]{2}(?:-|=?\s{0,3})[0-9]{3}(?![0-9])")


def redacted(text: str, secrets: Iterable[str | None]) -> str:
    """A text with every secret replaced, and every five digits near the word "code", before or after it.

    A secret that consists of digits is replaced where it is a whole word, not inside a longer number. Any
    other secret needs at least ``MIN_SECRET`` characters; a shorter one would replace parts of words.
    """
    for secret in filter(None, secrets):
        if secret.isdigit():
            text = re.sub(rf"\b{secret}\b", REDACTED, text)
        elif len(secret) >= MIN_SECRET:
            text = text.replace(secret, REDACTED)
    return _FIVE_DIGITS.sub(_without_code, text)


def _without_code(digits: re.Match[str]) -> str:
    around = digits.string[max(0, digits.start() - NEAR) : digits.end() + NEAR]
    return REDACTED if "code" in around.lower() else digits[0]


def shortened(text: str, secrets: Iterable[str]) -> str:
    """A provider's words on one line of limited length, with every secret replaced."""
    # Secrets are replaced before the text is cut, so that no half of a secret remains.
    text = " ".join(redacted(text[: 100 * MAX_DETAIL], secrets).split())
    return text if len(text) <= MAX_DETAIL else text[: MAX_DETAIL - 1] + "…"
