"""The line's decoder: it raises nothing but WireError, and what it reads is written as the same bytes."""

from __future__ import annotations

from typing import Final

from mailroom.errors import WireError
from mailroom.wire import Message, encode
from support.messages import ACTIVATION, PASSWORD_RECOVERY, decoded

TOKEN: Final = "Ab-_" * 21 + "Ab"
SEEDS: Final = (
    encode([Message(ACTIVATION, "ada@acme.example", "ada", TOKEN, "12345")]),
    encode([Message(PASSWORD_RECOVERY, "zoë@acme.example", 'a,"b', TOKEN, "00000")] * 2),
    b'1,"a""b",c\n',
)
WORDS: Final = (
    b",",
    b'"',
    b'""',
    b"\n",
    b"\r",
    b"\x00",
    b"\xff",
    "\u2028".encode(),
    TOKEN.encode(),
    b"12345",
)


def check(content: bytes) -> None:
    """Decode it."""
    try:
        batch = decoded(content)
    except WireError:
        return
    if encode(batch) != content:
        raise AssertionError("what was decoded is not what the encoder writes")
