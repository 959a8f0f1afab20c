"""The line's decoder: it raises nothing but WireError, and what it reads can be written again."""

from __future__ import annotations

from typing import Final

from mailroom.errors import WireError
from mailroom.wire import Message, encode
from support.messages import ACTIVATION, CATALOGUE, PASSWORD_RECOVERY, decoded

TOKEN: Final = "Ab-_" * 21 + "Ab"
INVITATION: Final = Message(
    CATALOGUE["invitation"], "bob@acme.example", "", TOKEN, "12345", "pt-BR", {"inviter": "Zoë"}, 3600
)
SEEDS: Final = (
    encode([Message(ACTIVATION, "ada@acme.example", "ada", TOKEN, "12345")]),
    encode([Message(PASSWORD_RECOVERY, "zoë@acme.example", 'a,"b', TOKEN, "00000")] * 2),
    b'1,"a""b",c\n',
    encode([INVITATION], "json"),
    encode([INVITATION, Message(ACTIVATION, "ada@acme.example", "ada", TOKEN, "12345")], "json"),
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
    b"{",
    b"}",
    b"[",
    b"]",
    b'"mails": ',
    b'"data": {"',
    b"\\ud800",
    b"\\u0000",
    b"1e999",
    b"null",
)


def check(content: bytes) -> None:
    """Decode it."""
    try:
        batch = decoded(content)
    except WireError:
        return
    if content.startswith(b"{"):
        if decoded(encode(batch, "json")) != batch:
            raise AssertionError("what was decoded is not what the encoder writes")
    elif encode(batch) != content:
        raise AssertionError("what was decoded is not what the encoder writes")
