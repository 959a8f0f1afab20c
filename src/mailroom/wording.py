"""Words numbers in messages for people."""

from __future__ import annotations


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number with its noun, in the singular or the plural, which is ``noun`` with an s by default."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"
