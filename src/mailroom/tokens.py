"""Signs secrets and verifies tokens, without a database.

A token is ``base64url(secret ‖ HMAC-SHA256(key, prefix ‖ secret [‖ code]))`` without padding:
32 + 32 bytes, 86 characters (RFC 4648 section 5, RFC 2104). The prefix binds it to its action. Where
the action needs a code, the signature covers the code too. So a token proves by itself that a holder of
the key issued it. Only the database knows whether it has expired or was consumed: see
``mailroom.consume``.

Comparison takes constant time, and every key is tried.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from typing import Final

from mailroom.actions import Action, action_named, load_actions
from mailroom.errors import ForgedToken, MalformedToken, WrongAction

SECRET_BYTES: Final = 32
TOKEN_CHARACTERS: Final = 86
MIN_KEY_BYTES: Final = 32
BLOCK_BYTES: Final = 64  # of SHA-256

_TO_URL: Final = bytes.maketrans(b"+/", b"-_")
_FROM_URL: Final = bytes.maketrans(b"-_", b"+/")
_TOKEN: Final = re.compile(rf"[A-Za-z0-9_-]{{{TOKEN_CHARACTERS}}}", re.ASCII)
_CODE: Final = re.compile(r"[0-9]{5}", re.ASCII)

Keys = str | bytes | Sequence[bytes]
"""Keys as ``MAILROOM_SECRET_KEY`` holds them (hexadecimal, separated by commas), or as bytes."""


def new_key() -> str:
    """A new random key of 32 bytes from the operating system, in hexadecimal."""
    return secrets.token_hex(MIN_KEY_BYTES)


def parse_keys(text: str) -> tuple[bytes, ...]:
    """The keys in ``MAILROOM_SECRET_KEY``: hexadecimal, at least 32 bytes each, separated by commas.

    Raises:
        ValueError: a key is not valid; the text gives its position and never shows it.
    """
    keys = []
    for place, part in enumerate(text.split(","), start=1):
        which = f"key {place}" if "," in text else "the key"
        digits = part.strip()
        if not re.fullmatch("(?:[0-9a-fA-F]{2})*", digits):
            raise ValueError(f"{which} is not hexadecimal (pairs of 0-9 and a-f)")
        if len(digits) < 2 * MIN_KEY_BYTES:
            raise ValueError(
                f"{which} has {len(digits)} hexadecimal digits, and needs at least {2 * MIN_KEY_BYTES}"
            )
        keys.append(bytes.fromhex(digits))
    return tuple(keys)


def sign(secret: bytes, action: Action | str, *, keys: Keys, code: str | None = None) -> str:
    """The token of a secret, signed with the first key.

    Args:
        secret: 32 bytes.
        action: an action, or the name of one in the catalogue.
        keys: the value of ``MAILROOM_SECRET_KEY``, or keys as bytes.
        code: the five digits, for an action that needs them; ignored for the others.

    Raises:
        ValueError: the secret, the code, the action or a key is not valid.
    """
    action = action if isinstance(action, Action) else action_named(action)
    return sign_all([secret], [action], [code], keys=keys)[0]


def sign_all(
    secrets: Sequence[bytes], actions: Sequence[Action], codes: Sequence[str | None], *, keys: Keys
) -> list[str]:
    """The token of each secret with its action and its code, signed with the first key.

    Raises:
        ValueError: as for ``sign``, for any of them.
    """
    # HMAC by its definition (RFC 2104), with both keyed hashes computed once: copying an hmac object
    # takes twice as long.
    key = _key_list(keys)[0]
    key = (hashlib.sha256(key).digest() if len(key) > BLOCK_BYTES else key).ljust(BLOCK_BYTES, b"\0")
    inner, outer = (hashlib.sha256(bytes(byte ^ pad for byte in key)) for pad in (0x36, 0x5C))
    padded: list[bytes] = []
    for secret, action, code in zip(secrets, actions, codes, strict=True):
        if len(secret) != SECRET_BYTES:
            raise ValueError(f"a secret has {SECRET_BYTES} bytes, not {len(secret)}")
        signed = action.prefix + secret
        if action.needs_code:
            if code is None or not _CODE.fullmatch(code):
                raise ValueError(f"signing {action.name} takes a code of five digits")
            signed += code.encode("ascii")
        message, signature = inner.copy(), outer.copy()
        message.update(signed)
        signature.update(message.digest())
        padded += secret, signature.digest(), b"\0\0"
    # 64 bytes and two zeros are 88 characters, of which the last two encode zeros only.
    encoded = binascii.b2a_base64(b"".join(padded), newline=False).translate(_TO_URL).decode("ascii")
    return [encoded[at : at + TOKEN_CHARACTERS] for at in range(0, len(encoded), TOKEN_CHARACTERS + 2)]


def verify(token: str, action: Action | str, *, keys: Keys, code: str | None = None) -> bytes:
    """The secret of a token, after checking that it was issued for this action (and this code).

    Args:
        token: what the link carried.
        action: an action, or the name of one in the catalogue.
        keys: the value of ``MAILROOM_SECRET_KEY``, or keys as bytes; a token that any of them signed is
            accepted.
        code: what the user typed, for an action that needs it; ignored for the others.

    Raises:
        MalformedToken: it is not a well-formed token, or the code is not five digits.
        WrongAction: it was issued for another action of the catalogue.
        ForgedToken: none of the keys signed it for this action, or the code is not the one that was mailed.
        ValueError: the action or a key is not valid.
    """
    action = action if isinstance(action, Action) else action_named(action)
    key_list = _key_list(keys)
    secret, signature = split(token)
    if action.needs_code:
        check_code(code)
    if _signed_by_any(key_list, action, secret, signature, code):
        return secret
    for other in load_actions().values():
        if other == action or (other.needs_code and (code is None or not _CODE.fullmatch(code))):
            continue
        if _signed_by_any(key_list, other, secret, signature, code):
            raise WrongAction(
                f"the token is for {other.name}, not for {action.name}",
                hint="check that the link leads to the page for its action",
            )
    raise ForgedToken(
        "none of the keys signed it" + (", or the code is wrong" if action.needs_code else ""),
        hint="check that the link leads to the page for its action; after a rotation, keep the old key in"
        " MAILROOM_SECRET_KEY after the new one",
    )


def check_code(code: str | None) -> None:
    """Check that a code is five digits.

    Raises:
        MalformedToken: it is not.
    """
    if code is None or not _CODE.fullmatch(code):
        raise MalformedToken("the code is not five digits", hint="type the code from the same mail")


def split(token: str) -> tuple[bytes, bytes]:
    """A token's secret and signature, without checking the signature.

    Raises:
        MalformedToken: it is not a well-formed token.
    """
    if not _TOKEN.fullmatch(token):
        raise MalformedToken(
            f"a token has {TOKEN_CHARACTERS} characters of A-Z a-z 0-9 - _",
            hint="the link may have been cut off or changed in transit",
        )
    raw = binascii.a2b_base64(token.encode("ascii").translate(_FROM_URL) + b"==")
    # 86 characters carry 516 bits, 4 more than 64 bytes: these must be zero, or several texts would be
    # the same token.
    canonical = binascii.b2a_base64(raw, newline=False)[:TOKEN_CHARACTERS].translate(_TO_URL)
    if canonical.decode("ascii") != token:
        raise MalformedToken(
            "the token's last character is not one that the encoding produces",
            hint="the link may have been changed in transit",
        )
    return raw[:SECRET_BYTES], raw[SECRET_BYTES:]


def _key_list(keys: Keys) -> Sequence[bytes]:
    if isinstance(keys, str):
        return parse_keys(keys)
    if isinstance(keys, bytes):
        keys = (keys,)
    if not keys or any(len(key) < MIN_KEY_BYTES for key in keys):
        raise ValueError(f"at least one key is needed, and each has at least {MIN_KEY_BYTES} bytes")
    return keys


def _signature(key: bytes, action: Action, secret: bytes, code: str | None) -> bytes:
    message = action.prefix + secret
    if action.needs_code and code is not None:
        message += code.encode("ascii")
    return hmac.digest(key, message, "sha256")


def _signed_by_any(
    keys: Sequence[bytes], action: Action, secret: bytes, signature: bytes, code: str | None
) -> bool:
    genuine = False
    for key in keys:
        genuine |= hmac.compare_digest(_signature(key, action, secret, code), signature)
    return genuine
