"""Passwords: scrypt with a salt, its cost beside it. Slow on purpose, and so never on the event loop."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import unicodedata
from typing import Final

COST: Final = 2**14
"""scrypt's N. With r = 8 and p = 5, as OWASP has it: 16 MiB, some 0.2 s."""


async def hashed(password: str, cost: int) -> str:
    """What the database keeps of a password."""
    salt = secrets.token_bytes(16)
    derived = await asyncio.to_thread(_derive, password, salt, cost)
    return f"{cost}${salt.hex()}${derived.hex()}"


async def matches(password: str, stored: str | None, cost: int) -> bool:
    """Whether it is the password. Where there is no account, the answer takes as long."""
    kept_cost, salt, derived = (stored or f"{cost}${'00' * 16}$").split("$")
    given = await asyncio.to_thread(_derive, password, bytes.fromhex(salt), int(kept_cost))
    return hmac.compare_digest(given, bytes.fromhex(derived))


def _derive(password: str, salt: bytes, cost: int) -> bytes:
    # One character may be typed as several code points, depending on the keyboard.
    text = unicodedata.normalize("NFKC", password).encode()
    return hashlib.scrypt(text, salt=salt, n=cost, r=8, p=5, maxmem=2**28)
