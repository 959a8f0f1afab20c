"""What the schema promises an application that only ever writes INSERT and UPDATE."""

from __future__ import annotations

import re
from datetime import timedelta

import psycopg
import pytest

Db = psycopg.Connection


def sign_up(db: Db, login: str = "login", status: str = "provisioned") -> int:
    row = db.execute(
        "INSERT INTO accounts (email, login, status) VALUES (%s, %s, %s) RETURNING id",
        [f"{login}@example.com", login, status],
    ).fetchone()
    assert row
    return int(row[0])


def ask_recovery(db: Db, account: int) -> int:
    row = db.execute(
        "INSERT INTO tokens (action, account) VALUES ('password_recovery', %s) RETURNING id", [account]
    ).fetchone()
    assert row
    return int(row[0])


def value(db: Db, query: str, *parameters: object) -> object:
    row = db.execute(query.encode(), parameters).fetchone()
    assert row is not None
    return row[0]


def test_two_columns_are_all_an_application_must_write(db: Db) -> None:
    db.execute("INSERT INTO accounts (email, login) VALUES ('a@example.com', 'a')")
    row = db.execute(
        "SELECT t.action::text, a.login, octet_length(t.secret), t.code, t.expires_at - t.created_at,"
        " t.consumed_at FROM tokens t JOIN accounts a ON a.id = t.account"
    ).fetchall()
    ((action, login, secret_bytes, code, life, consumed_at),) = row
    assert ("activation", "a", 32, timedelta(minutes=15), None) == (
        action,
        login,
        secret_bytes,
        life,
        consumed_at,
    )
    assert re.fullmatch("[0-9]{5}", code)


def test_token_is_committed_and_rolled_back_with_its_account(db: Db) -> None:
    with db.transaction(force_rollback=True):
        sign_up(db)
        assert 1 == value(db, "SELECT count(*) FROM tokens")
    assert 0 == value(db, "SELECT count(*) FROM tokens")


def test_only_provisioned_accounts_get_an_activation_token(db: Db) -> None:
    sign_up(db, "a", "active")
    sign_up(db, "s", "suspended")
    assert 0 == value(db, "SELECT count(*) FROM tokens")


def test_a_token_lives_as_long_as_its_row_says(db: Db) -> None:
    account = sign_up(db, status="active")
    db.execute(
        "INSERT INTO tokens (action, account, expires_at) VALUES ('password_recovery', %s, now() + '1 day')",
        [account],
    )
    assert value(db, "SELECT expires_at > now() + '23 hours' FROM tokens")


@pytest.mark.parametrize(
    ("email", "login", "constraint"),
    [
        ("a" * 243 + "@example.com", "a", "accounts_email_length"),
        ("a@example.com", "b" * 255, "accounts_login_length"),
        ("a@example.com", "", "accounts_login_length"),
        ("a\x01@example.com", "a", "accounts_email_printable"),
        ("a@example.com", "a\nb", "accounts_login_printable"),
        ("a@example.com", "a\x7fb", "accounts_login_printable"),
        ("a@example.com", "a\x85b", "accounts_login_printable"),
        ("a@example.com", "a\x9fb", "accounts_login_printable"),
        ("nobody", "a", "accounts_email_one_at"),
        ("@example.com", "a", "accounts_email_one_at"),
        ("a@", "a", "accounts_email_one_at"),
        ("a@b@example.com", "a", "accounts_email_one_at"),
    ],
)
def test_unusable_addresses_and_logins_are_refused(db: Db, email: str, login: str, constraint: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match=constraint):
        db.execute("INSERT INTO accounts (email, login) VALUES (%s, %s)", [email, login])


@pytest.mark.parametrize("login", ["b" * 254, 'a,"b"', "zoë", "\u2028", "日本", " "])
def test_odd_logins_are_welcome(db: Db, login: str) -> None:
    db.execute("INSERT INTO accounts (email, login) VALUES (%s, %s)", ["a" * 242 + "@example.com", login])


def test_an_email_is_unique_without_regard_to_case(db: Db) -> None:
    db.execute("INSERT INTO accounts (email, login) VALUES ('A@example.com', 'a')")
    with pytest.raises(psycopg.errors.UniqueViolation, match="accounts_email_key"):
        db.execute("INSERT INTO accounts (email, login) VALUES ('a@EXAMPLE.com', 'b')")
    with pytest.raises(psycopg.errors.UniqueViolation, match="accounts_login_key"):
        db.execute("INSERT INTO accounts (email, login) VALUES ('b@example.com', 'a')")


@pytest.mark.slow
def test_codes_are_always_five_digits_and_secrets_never_repeat(db: Db) -> None:
    rows = db.execute(
        "SELECT mailroom.random_code(), mailroom.random_secret() FROM generate_series(1, 300000)"
    ).fetchall()
    codes = [row[0] for row in rows]
    assert [] == [code for code in codes if not re.fullmatch("[0-9]{5}", code)]
    # All 100,000 codes are as likely: 300,000 draws leave out about 4,979 of them.
    assert 94_000 < len(set(codes)) < 96_100
    assert any(code.startswith("00") for code in codes)
    assert 300_000 == len({row[1] for row in rows})
    ones = sum(int.from_bytes(row[1]).bit_count() for row in rows[:10_000])
    assert 0.499 < ones / (10_000 * 256) < 0.501


def test_no_extension_is_needed(db: Db) -> None:
    assert 1 == value(db, "SELECT count(*) FROM pg_extension")  # plpgsql


def test_a_status_change_keeps_its_times(db: Db) -> None:
    account = sign_up(db)
    times = "SELECT status::text, status_changed_at, activated_at, suspended_at, unsuspended_at FROM accounts"
    assert [("provisioned", None, None, None, None)] == db.execute(times).fetchall()
    db.execute("UPDATE accounts SET status = 'active' WHERE id = %s", [account])
    ((_, first_change, activated, *_rest),) = db.execute(times).fetchall()
    assert first_change == activated is not None
    db.execute("UPDATE accounts SET status = 'suspended'")
    ((_, changed, activated_still, suspended, unsuspended),) = db.execute(times).fetchall()
    assert (activated, None) == (activated_still, unsuspended)
    assert changed == suspended > first_change
    db.execute("UPDATE accounts SET status = 'active'")
    ((status, changed, _, suspended_still, unsuspended),) = db.execute(times).fetchall()
    assert ("active", None) == (status, suspended_still)
    assert changed == unsuspended > suspended
    db.execute("UPDATE accounts SET status = 'suspended'")
    ((_, changed, _, suspended_again, unsuspended),) = db.execute(times).fetchall()
    assert (changed, None) == (suspended_again, unsuspended)


@pytest.mark.parametrize("wanted", ["active", "provisioned"])
@pytest.mark.parametrize(("before", "after"), [("provisioned", "provisioned"), ("active", "active")])
def test_unsuspending_gives_back_what_the_account_was(db: Db, wanted: str, before: str, after: str) -> None:
    account = sign_up(db, status=before)
    db.execute("UPDATE accounts SET status = 'suspended' WHERE id = %s", [account])
    db.execute("UPDATE accounts SET status = %s WHERE id = %s", [wanted, account])
    assert after == value(db, "SELECT status::text FROM accounts")


def test_consuming_an_activation_token_activates_its_account(db: Db) -> None:
    sign_up(db)
    db.execute("UPDATE tokens SET consumed_at = now()")
    assert "active" == value(db, "SELECT status::text FROM accounts")


def test_consuming_a_token_ends_its_siblings_of_the_same_action_only(db: Db) -> None:
    account, other = sign_up(db, "a", "active"), sign_up(db, "b", "active")
    first, second, third = (ask_recovery(db, account) for _ in range(3))
    foreign = ask_recovery(db, other)
    db.execute("INSERT INTO tokens (action, account) VALUES ('activation', %s)", [account])
    db.execute("UPDATE tokens SET consumed_at = now() WHERE id = %s", [second])
    live = db.execute(
        "SELECT id, action::text FROM tokens WHERE consumed_at IS NULL AND expires_at > clock_timestamp()"
    ).fetchall()
    assert {(foreign, "password_recovery"), (foreign + 1, "activation")} == set(live)
    assert {first, third} == {
        row[0] for row in db.execute("SELECT id FROM tokens WHERE expires_at < clock_timestamp()").fetchall()
    }


def hints(database: str, *statements: str) -> list[str]:
    """The payloads that a listener hears when the statements run in one transaction."""
    with (
        psycopg.connect(database, autocommit=True) as listener,
        psycopg.connect(database) as writer,
    ):
        listener.execute("LISTEN token_insert")
        listener.execute("SELECT pg_advisory_lock(mailroom.sleep_lock('token_insert'))")  # it sleeps
        for statement in statements:
            writer.execute(statement.encode())
        writer.commit()
        writer.execute("NOTIFY token_insert, 'end'")
        writer.commit()
        heard: list[str] = []
        for notification in listener.notifies(timeout=30):
            if notification.payload == "end":
                return heard
            heard.append(notification.payload)
    raise AssertionError("the end was not heard")


SERIES = "INSERT INTO accounts (email, login) SELECT g || '@b', g FROM generate_series({}, {}) g"


def test_inserting_rings_the_channel_with_the_number_inserted(database: str) -> None:
    assert ["42", "3"] == hints(database, SERIES.format(1, 42), SERIES.format(101, 103))


def test_a_statement_that_inserts_no_token_stays_silent(database: str) -> None:
    assert [] == hints(
        database,
        "INSERT INTO accounts (email, login, status) VALUES ('a@b', 'a', 'active')",
        "INSERT INTO tokens (action, account) SELECT 'activation', 1 WHERE false",
        "UPDATE tokens SET expires_at = now()",
    )


def test_a_row_with_a_txid_from_elsewhere_gets_this_transactions(db: Db) -> None:
    account = sign_up(db, status="active")
    db.execute(
        "INSERT INTO tokens (action, account, txid) VALUES ('password_recovery', %s, '3'),"
        " ('password_recovery', %s, '999999999')",
        [account, account],
    )
    assert 1 == value(db, "SELECT count(DISTINCT txid) FROM tokens WHERE txid::text = xmin::text")


UNSOUND: dict[str, dict[str, object]] = {
    "secret_length": {"secret": b"x" * 31},
    "code_digits": {"code": "1234"},
    "subject_length": {"subject": "s" * 256},
    "subject_printable": {"subject": "a\x1bb"},
    "send_at_range": {"send_at": "infinity"},
    "created_at_range": {"created_at": "-infinity"},
    "expires_at_range": {"expires_at": "20000-01-01"},
    "email_length": {"email": "a" * 243 + "@example.com"},
    "email_printable": {"email": "a\r@example.com"},
    "email_one_at": {"email": "a@b@example.com"},
    "login_length": {"login": ""},
    "login_printable": {"login": "a\x9fb"},
    "locale_tag": {"locale": "../de"},
    "locale_length": {"locale": "de" + "-abcdefgh" * 4},
    "key_length": {"key": ""},
    "wrong_codes": {"wrong_codes": 6},
    "user": {"user_table": "accounts"},
    "ended": {"ended_as": "address changed"},
}


def insert_token(db: Db, account: int | None, **columns: object) -> None:
    """Insert a row that lacks nothing, so that no trigger completes or refuses it."""
    row = {
        "action": "activation",
        "account": account,
        "email": "a@b.example",
        "login": "a",
        "lane": "normal",
        "expires_at": "infinity",
    } | columns
    db.execute(
        f"INSERT INTO tokens ({', '.join(row)}) VALUES ({', '.join(['%s'] * len(row))})".encode(),
        list(row.values()),
    )


@pytest.mark.parametrize("constraint", UNSOUND)
def test_an_unsound_token_is_refused_whatever_the_search_path(db: Db, constraint: str) -> None:
    account = sign_up(db, status="active")
    insert_token(db, account)
    db.execute("CREATE SCHEMA evil; SET search_path = evil, public")
    for kind, operators in {"text": "~ !~ =", "int": "> < <>", "bool": "<>"}.items():
        db.execute(
            f"CREATE FUNCTION evil.no({kind}, {kind}) RETURNS bool LANGUAGE sql AS 'SELECT false'".encode()
        )
        for name in operators.split():
            db.execute(
                f"CREATE OPERATOR evil.{name} (FUNCTION = no, LEFTARG = {kind}, RIGHTARG = {kind})".encode()
            )
    db.execute("CREATE DOMAIN evil.text AS integer; SET search_path = evil, public, pg_catalog")
    with pytest.raises(psycopg.errors.CheckViolation, match=f"tokens_{constraint}") as error:
        insert_token(db, account, **UNSOUND[constraint])
    assert f"tokens_{constraint}" == error.value.diag.constraint_name


def test_a_token_for_nobody_is_refused_however_complete_its_row_is(db: Db) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="the token has no account"):
        insert_token(db, None)


def test_an_insert_of_a_token_reads_one_check(db: Db) -> None:
    """PostgreSQL plans each anew for each statement: sixteen took half of the time of an insert."""
    assert 1 == value(
        db, "SELECT count(*) FROM pg_constraint WHERE conrelid = 'tokens'::regclass AND contype = 'c'"
    )


def test_a_token_without_an_account_is_in_no_index_of_accounts(db: Db) -> None:
    assert "(account, id) WHERE (account IS NOT NULL)" in str(
        value(db, "SELECT pg_get_indexdef('tokens_account_id_idx'::regclass)")
    )
    db.execute("SET enable_seqscan = off")
    for query in (
        "SELECT FROM tokens WHERE account BETWEEN 1 AND 9 ORDER BY account LIMIT 9",
        "SELECT FROM tokens WHERE account = 1 AND id > 7 ORDER BY id",
    ):
        plan = str(db.execute(f"EXPLAIN (FORMAT JSON) {query}".encode()).fetchall())
        assert "tokens_account_id_idx" in plan
