"""Hashes passwords with scrypt, in a thread because that is slow on purpose."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import unicodedata
from typing import Final

COST: Final = 2**14
"""scrypt's N, with r = 8 and p = 5 as OWASP recommends: 16 MiB, about 0.2 s."""


async def hashed(password: str, cost: int) -> str:
    """Return what the database stores: the cost, the salt and the hash."""
    salt = secrets.token_bytes(16)
    derived = await asyncio.to_thread(_derive, password, salt, cost)
    return f"{cost}${salt.hex()}${derived.hex()}"


async def matches(password: str, stored: str | None, cost: int) -> bool:
    """Whether the password is right. Without a stored hash the answer takes as long."""
    kept_cost, salt, derived = (stored or f"{cost}${'00' * 16}$").split("$")
    given = await asyncio.to_thread(_derive, password, bytes.fromhex(salt), int(kept_cost))
    return hmac.compare_digest(given, bytes.fromhex(derived))


def _derive(password: str, salt: bytes, cost: int) -> bytes:
    # A keyboard may enter one character as several code points.
    text = unicodedata.normalize("NFKC", password).encode()
    return hashlib.scrypt(text, salt=salt, n=cost, r=8, p=5, maxmem=2**28)
