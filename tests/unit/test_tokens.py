"""Signing and verifying: the reference's tokens byte for byte, and nothing else passes."""

from __future__ import annotations

import base64
import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailroom import sign, verify
from mailroom.actions import Action
from mailroom.errors import ForgedToken, MalformedToken, WrongAction
from mailroom.tokens import new_key, parse_keys, sign_all, split
from support.messages import ACTIVATION, PASSWORD_RECOVERY

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "reference.json").read_text())
ROWS: list[dict[str, str]] = VECTORS["rows"]
KEY: str = VECTORS["secret_key"]
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

secrets_ = st.binary(min_size=32, max_size=32)
codes = st.from_regex("[0-9]{5}", fullmatch=True).filter(str.isascii)
keys = st.binary(min_size=32, max_size=64)
actions = st.sampled_from([ACTIVATION, PASSWORD_RECOVERY])


def genuine(token: str, row: dict[str, str]) -> bool:
    try:
        verify(token, row["action"], keys=KEY, code=row["code"])
    except (ForgedToken, MalformedToken):
        return False
    return True


def test_there_are_fifteen_rows_of_both_actions() -> None:
    assert (15, {"activation", "password_recovery"}) == (len(ROWS), {row["action"] for row in ROWS})


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row["id"]))
def test_the_references_tokens_come_out_byte_for_byte_and_verify(row: dict[str, str]) -> None:
    secret = bytes.fromhex(row["secret_hex"])
    assert row["token"] == sign(secret, row["action"], keys=KEY, code=row["code"])
    assert secret == verify(row["token"], row["action"], keys=KEY, code=row["code"])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row["id"]))
def test_one_flipped_bit_anywhere_is_not_genuine(row: dict[str, str]) -> None:
    raw = base64.urlsafe_b64decode(row["token"] + "==")
    for bit in range(64 * 8):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        assert not genuine(base64.urlsafe_b64encode(flipped).decode().rstrip("="), row)


def test_one_flipped_bit_of_the_code_is_not_genuine() -> None:
    row = next(row for row in ROWS if row["action"] == "password_recovery")
    for place in range(5):
        for bit in range(8):
            code = bytearray(row["code"].encode())
            code[place] ^= 1 << bit
            assert not genuine(row["token"], row | {"code": code.decode("latin-1")})


@pytest.mark.parametrize("row", [ROWS[0], ROWS[6]], ids=["activation", "password_recovery"])
def test_one_changed_character_anywhere_is_not_genuine(row: dict[str, str]) -> None:
    token = row["token"]
    for place, old in enumerate(token):
        # All of the alphabet, so that the last character's four unused bits are among it.
        for new in ALPHABET + "+/=. é\n":
            if new != old:
                assert not genuine(token[:place] + new + token[place + 1 :], row)


@pytest.mark.parametrize(
    "token",
    ["", "A", "A" * 85, "A" * 87, "A" * 86 + "==", " " + "A" * 85, "A" * 86 + "\n", "é" * 86, "١" * 86],
)
def test_what_has_not_the_shape_of_a_token_is_malformed(token: str) -> None:
    with pytest.raises(MalformedToken) as refused:
        verify(token, ACTIVATION, keys=KEY)
    assert len(token) < 80 or token not in str(refused.value)
    assert refused.value.hint


def test_an_activation_token_is_no_recovery_token_and_says_so() -> None:
    token = sign(bytes(32), ACTIVATION, keys=KEY)
    with pytest.raises(WrongAction, match="is for activation, not for password_recovery"):
        verify(token, PASSWORD_RECOVERY, keys=KEY, code="12345")


def test_a_recovery_token_is_no_activation_token_and_with_its_code_says_so() -> None:
    token = sign(bytes(32), PASSWORD_RECOVERY, keys=KEY, code="12345")
    with pytest.raises(WrongAction, match="is for password_recovery, not for activation"):
        verify(token, ACTIVATION, keys=KEY, code="12345")
    with pytest.raises(ForgedToken):
        verify(token, ACTIVATION, keys=KEY)


def test_any_key_verifies_and_the_first_signs() -> None:
    old, new = new_key(), new_key()
    by_old, by_new = sign(bytes(32), ACTIVATION, keys=old), sign(bytes(32), ACTIVATION, keys=new)
    assert by_new == sign(bytes(32), ACTIVATION, keys=f"{new},{old}")
    for token in (by_old, by_new):
        assert bytes(32) == verify(token, ACTIVATION, keys=f"{new}, {old}")
    with pytest.raises(ForgedToken):
        verify(by_old, ACTIVATION, keys=new)


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def counting(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    three = [bytes([number]) * 32 for number in range(3)]
    token = sign(bytes(32), ACTIVATION, keys=three[:1])
    assert bytes(32) == verify(token, ACTIVATION, keys=three)
    assert [split(token)[1]] * 3 == [signature for _, signature in compared]


@settings(deadline=None)
@given(secrets_, actions, codes, keys, keys)
def test_what_one_key_signs_no_other_verifies(
    secret: bytes, action: Any, code: str, key: bytes, other: bytes
) -> None:
    token = sign(secret, action, keys=key, code=code)
    assert (86, set()) == (len(token), set(token) - set(ALPHABET))
    assert secret == verify(token, action, keys=[key], code=code)
    if key.ljust(64, b"\0") != other.ljust(64, b"\0"):  # HMAC pads its keys with zeros
        with pytest.raises(ForgedToken):
            verify(token, action, keys=other, code=code)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "0 hexadecimal digits"),
        ("ab" * 31, "62 hexadecimal digits"),
        ("ab" * 31 + "a", "not hexadecimal"),
        ("xy" * 32, "not hexadecimal"),
        (f"{'ab' * 32},", "key 2"),
        (f"{'ab' * 32},{'cd' * 8}", "key 2 has 16"),
        ("１" * 64, "not hexadecimal"),
    ],
)
def test_a_bad_key_is_refused_and_not_shown(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as refused:
        parse_keys(text)
    for part in filter(None, text.split(",")):
        assert part not in str(refused.value)


@pytest.mark.parametrize("keys_", [[], [b"short"], b"short"])
def test_keys_as_bytes_have_a_least_length_too(keys_: Any) -> None:
    with pytest.raises(ValueError, match="at least 32 bytes"):
        sign(bytes(32), ACTIVATION, keys=keys_)


def test_what_cannot_be_signed_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        sign(bytes(31), ACTIVATION, keys=KEY)
    for code in (None, "1234", "12345\n", "１２３４５"):
        with pytest.raises(ValueError, match="five digits"):
            sign(bytes(32), PASSWORD_RECOVERY, keys=KEY, code=code)
    with pytest.raises(ValueError, match="'party' is not an action of the catalogue, which has activation, "):
        sign(bytes(32), "party", keys=KEY)


@given(st.lists(st.tuples(secrets_, actions, codes), max_size=20), keys)
def test_many_are_signed_as_rfc_2104_says(rows: list[tuple[bytes, Action, str]], key: bytes) -> None:
    def token(secret: bytes, action: Action, code: str) -> str:
        message = action.prefix + secret + (code.encode() if action.needs_code else b"")
        return base64.urlsafe_b64encode(secret + hmac.digest(key, message, "sha256")).decode().rstrip("=")

    together = sign_all([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows], keys=key)
    assert [token(*row) for row in rows] == together


@pytest.mark.parametrize(
    ("secret", "code"), [(b"x" * 31, "12345"), (b"x" * 32, "1234"), (b"x" * 32, "١٢٣٤٥")]
)
def test_one_that_is_not_valid_is_refused_among_many(secret: bytes, code: str) -> None:
    with pytest.raises(ValueError, match=r"secret has 32 bytes|code of five digits"):
        sign_all([b"y" * 32, secret], [PASSWORD_RECOVERY] * 2, ["12345", code], keys=b"k" * 32)
