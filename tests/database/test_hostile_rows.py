"""Rows that a stranger can bring about: none ends a worker, and none is mailed to whom it should not be."""

from __future__ import annotations

import unicodedata

import pytest

from mailroom.addresses import wire_address
from support.queue_sql import Db, ask_recovery, claim, claimed_tokens, record, sign_up


def long_when_normal() -> str:
    """An address that passes every check, and whose normal form is too long for an index, also compressed.

    PostgreSQL gives up to compress what repeats no four bytes in its first kilobyte.
    """
    longer = []
    for letter in map(chr, [*range(0x80, 0xD800), *range(0xE000, 0x110000)]):
        normal = unicodedata.normalize("NFKC", letter).lower()
        if len(normal.encode()) >= 4 and normal.isprintable() and "@" not in normal:
            longer.append((letter, normal.encode()))
    longer.sort(key=lambda pair: len(pair[1]), reverse=True)
    chosen, normal_form, seen = "", b"", set[bytes]()
    while len(normal_form) < 1024:
        for (
            letter,
            encoded,
        ) in longer:  # after a short one a long one may repeat nothing
            text = normal_form[-3:] + encoded
            fours = {text[at : at + 4] for at in range(len(text) - 3)}
            if letter not in chosen and len(fours) == len(text) - 3 and not seen & fours:
                seen |= fours
                chosen, normal_form = chosen + letter, normal_form + encoded
                if len(encoded) < 8 or len(normal_form) >= 1024:
                    break
        else:
            break
    assert len(normal_form) >= 1024
    domain = "@a.de"
    return chosen + "\ufdfa" * (254 - len(chosen + domain)) + domain


def test_an_address_that_is_longer_in_its_normal_form_stops_no_claim_and_no_record(db: Db) -> None:
    address = long_when_normal()
    assert 3000 < len(unicodedata.normalize("NFKC", address).encode())
    db.execute("INSERT INTO accounts (email, login, status) VALUES (%s, 'evil', 'active')", [address])
    token = ask_recovery(db, "evil")  # an action with a limit, so that its address is counted
    (handed,) = claim(db)
    assert (token,) == handed.tokens
    record(db, handed, {token: "rejected"}, recipient=address)
    assert [(token, "rejected")] == db.execute("SELECT token, outcome FROM mailroom.deliveries").fetchall()
    assert [sign_up(db, "zoe")] == claimed_tokens(db)


def test_accounts_with_ids_of_any_size_are_handed_out(db: Db) -> None:
    ids = [-9_000_000_000_000_000_000, 9_000_000_000_000_000_000, *range(60)]
    for number in ids:
        db.execute(
            "INSERT INTO accounts (id, email, login) OVERRIDING SYSTEM VALUE VALUES (%s, %s, %s)",
            [number, f"u{number}@example.com", f"u{number}"],
        )
    assert len(ids) == sum(len(lease.tokens) for lease in claim(db, 200, lease_tokens=200))


@pytest.mark.parametrize("invisible", ["\u00ad", "\u200b", "\u2060", "\u034f", "\ufe0f", "\U000e0100"])
def test_no_invisible_letter_makes_another_spelling_of_an_address(invisible: str) -> None:
    with pytest.raises(ValueError, match="not a valid DNS name"):
        wire_address(f"zoe@exam{invisible}ple.com")


def test_a_letter_makes_no_other_spelling_of_an_address_in_ascii(db: Db) -> None:
    """Each letter of Unicode in a domain: what it is mailed to is what suppressions and limits know."""
    pairs = []
    for letter in map(chr, [*range(0x80, 0xD800), *range(0xE000, 0x20000), *range(0xE0000, 0xE0200)]):
        try:
            local, domain = wire_address(f"zoe@ex{letter}ample.com")
        except ValueError:
            continue
        if "xn--" not in domain:
            pairs.append((f"zoe@ex{letter}ample.com", f"{local}@{domain}"))
    assert pairs
    other = (
        "SELECT s, w FROM unnest(%s::text[], %s::text[]) AS u (s, w) WHERE mailroom.normal_address(s) <> w"
    )
    assert [] == db.execute(other, [[one for one, _ in pairs], [wire for _, wire in pairs]]).fetchall()


@pytest.mark.parametrize("local", ["=?utf-8?q?a=0D=0ABcc=3A_v?=", "=?utf-8?q?victim=40bank.example=2C_x?="])
def test_an_encoded_word_is_no_address(local: str) -> None:
    with pytest.raises(ValueError, match="not a plain name"):
        wire_address(f"{local}@evil.example")
