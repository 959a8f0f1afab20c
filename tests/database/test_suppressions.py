"""Suppressed addresses: one form for all spellings, and nothing is claimed for them."""

from __future__ import annotations

import hmac

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.queue_sql import Db, claim, claimed_tokens, expire_leases, record, record_all, sign_up

SPELLINGS = (
    "zoe@bücher.example",
    "Zoe@BÜCHER.Example",
    "ZOE@xn--bcher-kva.example",
    "zoe@XN--BCHER-KVA.EXAMPLE.",
    "ｚoe@ｂücher.example",
    "zoe@bu\u0308cher。example",
)


def normal(db: Db, address: str | None) -> str | None:
    ((found,),) = db.execute("SELECT mailroom.normal_address(%s)", [address]).fetchall()
    return None if found is None else str(found)


def suppress(db: Db, address: str, reason: str = "by phone") -> bool:
    ((done,),) = db.execute("SELECT mailroom.suppress(%s, %s)", [address, reason]).fetchall()
    return bool(done)


def outcomes(db: Db) -> list[tuple[str, str, str]]:
    found = db.execute("SELECT outcome, detail, recipient FROM mailroom.deliveries ORDER BY id").fetchall()
    return [(outcome, detail, recipient) for outcome, detail, recipient in found]


def request(db: Db, address: str) -> int:
    """Sign a person up; returns the token."""
    db.execute("INSERT INTO accounts (email, login) VALUES (%s, gen_random_uuid()::text)", [address])
    ((token,),) = db.execute("SELECT max(id) FROM tokens").fetchall()
    return int(token)


def test_all_spellings_have_one_form(db: Db) -> None:
    assert {"zoe@bücher.example"} == {normal(db, each) for each in SPELLINGS}


@pytest.mark.parametrize(
    ("address", "form"),
    [
        ("a@XN--80AKHBYKNJ4F.xn--p1ai", "a@испытание.рф"),
        ("a@ИСПЫТАНИЕ.РФ", "a@испытание.рф"),
        ("a@ΠΑΡΆΔΕΙΓΜΑ.δοκιμή", "a@παράδειγμα.δοκιμή"),
        ("Ø.ŁŸ@ŽŠ.example", "ø.łÿ@žš.example"),
        ("a@xn--bcher-kva.xn--bcher-kva", "a@bücher.bücher"),
        # Labels that no Unicode name has.
        ("a@xn--.example", "a@xn--.example"),
        ("a@xn--a.example", "a@xn--a.example"),
        ("a@xn--abc-.example", "a@xn--abc-.example"),
        ("a@xn--99999999.example", "a@xn--99999999.example"),
        ("a@xn--a_b-kva.example", "a@xn--a_b-kva.example"),
        ("xn--bcher-kva@b.example", "xn--bcher-kva@b.example"),
        ("straße@straße.example", "straße@straße.example"),
        ("a@b.", "a@b"),
        ("a@b..", "a@b"),
        ("", ""),
        ("@", "@"),
        (".", "."),
        ("nobody", "nobody"),
        (None, None),
    ],
)
def test_the_form_of(db: Db, address: str | None, form: str | None) -> None:
    assert form == normal(db, address)


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
ENCODED = st.from_regex(r"\A[xX][nN]--[a-zA-Z0-9-]{0,20}\Z")
LABELS = st.text("abcxyz019àößÿαωςжя", min_size=1, max_size=20).filter(lambda label: not label.isascii())
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_any_text_has_a_form_that_is_its_own(db: Db) -> None:
    domains = st.lists(TEXTS | ENCODED, max_size=3).map(".".join)

    @UNTIMED
    @given(TEXTS | st.builds("{}@{}".format, TEXTS, domains))
    def has_one(text: str) -> None:
        form = normal(db, text)
        assert form is not None
        assert form == normal(db, form)

    has_one()


def test_labels_are_decoded_as_python_does(db: Db) -> None:
    @UNTIMED
    @given(LABELS)
    def reads(label: str) -> None:
        encoded = label.encode("punycode").decode()
        assert (
            f"a@{label}.example" == normal(db, f"a@{label}.example") == normal(db, f"a@xn--{encoded}.example")
        )

    reads()


def test_the_hash_is_hmac_with_a_key_that_no_role_reads(db: Db) -> None:
    ((inner, digest),) = db.execute(
        "SELECT inner_block, mailroom.address_hash('Zoe@Example.com') FROM mailroom.hash_key"
    ).fetchall()
    key = bytes(byte ^ 0x36 for byte in inner)
    assert bytes(32) == key[32:]
    assert hmac.digest(key[:32], b"zoe@example.com", "sha256") == digest


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_nothing_is_claimed_for_a_suppressed_address(db: Db, spelling: str) -> None:
    assert suppress(db, SPELLINGS[0])
    request(db, spelling)
    other = request(db, "max@example.com")
    assert [other] == claimed_tokens(db)
    assert [("suppressed", "by phone", spelling)] == outcomes(db)
    assert [(0,)] == db.execute("SELECT dead FROM mailroom.dead_count(NULL, NULL, 100)").fetchall()


def test_a_mail_that_waits_for_its_retry_is_suppressed(db: Db) -> None:
    token = request(db, "zoe@example.com")
    (lease,) = claim(db)
    record(db, lease, {token: "transient"})
    suppress(db, "ZOE@example.com", "complained")
    expire_leases(db)
    assert [] == claim(db)
    assert ["retried", "suppressed"] == [outcome for outcome, _, _ in outcomes(db)]
    assert [(0,)] == db.execute("SELECT count(*) FROM mailroom.leases").fetchall()


def test_mail_goes_to_an_address_that_a_person_lifted(db: Db) -> None:
    suppress(db, "zoe@example.com")
    request(db, "zoe@example.com")
    assert [] == claim(db)
    assert [(True,)] == db.execute("SELECT mailroom.unsuppress('Zoe@example.com')").fetchall()
    assert [(False,)] == db.execute("SELECT mailroom.unsuppress('zoe@example.com')").fetchall()
    db.execute("UPDATE accounts SET status = 'active'")
    db.execute("INSERT INTO tokens (action, account) SELECT 'password_recovery', id FROM accounts")
    assert 1 == len(claimed_tokens(db))


def test_the_application_asks_why(db: Db) -> None:
    suppress(db, "zoe@example.com", "by phone")
    assert not suppress(db, "ZOE@EXAMPLE.COM", "again")
    found = db.execute(
        "SELECT mailroom.suppressed('Zoe@example.com'), mailroom.suppressed('max@example.com')"
    ).fetchall()
    assert [("by phone", None)] == found


NO_ADDRESSES = (
    *("", "zoe", "a@b@c", "a\n@b", f"{'a' * 250}@b.de", None),
    *(" zoe@b.de", "zoe@b.de ", "zoe@b. de", "zoe@b.de\u00a0", "Zoe <zoe@b.de>", "<zoe@b.de>"),
    *("zoe@b.de,", ";zoe@b.de", '"Zoe" zoe@b.de'),
)


@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_only_an_address_can_be_suppressed(db: Db, address: str | None) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        db.execute("SELECT mailroom.suppress(%s, 'x')", [address])


@pytest.mark.parametrize(
    "address", ["o'zoe+a.b@b.de", '"zoe, a <b>"@b.de', "zoe@[192.0.2.1]", "zoë@büro.example"]
)
def test_any_address_can_be_suppressed(db: Db, address: str) -> None:
    assert suppress(db, address)


def test_no_person_suppresses_as_ses(db: Db) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        db.execute("SELECT mailroom.suppress('a@b.example', 'x', 'SES')")


@pytest.mark.parametrize("reason", ["", "  ", None])
def test_a_suppression_needs_a_reason(db: Db, reason: str | None) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        db.execute("SELECT mailroom.suppress('a@b.example', %s)", [reason])


def test_a_dead_letter_to_a_suppressed_address_is_not_retried(db: Db) -> None:
    token = sign_up(db, "zoe")
    record_all(db, "rejected")
    suppress(db, "zoe@example.com")
    found = db.execute(
        "SELECT outcome FROM mailroom.retry_dead('c', %s, false, '', 'me')", [[token]]
    ).fetchall()
    assert [("suppressed",)] == found
