"""A change of an account's address ends what was mailed to the old one, by whatever route it changes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import psycopg
import pytest

import mailroom
from database.test_consumption import Mail, activation, mail, recovery, status
from database.test_roles import APP, as_, with_roles
from mailroom import errors
from mailroom.operations.reports import stories
from support.processes import KEY
from support.queue_sql import Db, claim, expire_leases, record
from support.runs import ledger, wait_until

__all__ = ["with_roles"]  # a fixture

NEW = "victim@example.com"
ROUTES = {
    "update": "UPDATE accounts SET email = 'victim@example.com'",
    "upsert": "INSERT INTO accounts (email, login) VALUES ('victim@example.com', 'a')"
    " ON CONFLICT (login) DO UPDATE SET email = excluded.email",
    "merge": "MERGE INTO accounts a USING (VALUES ('victim@example.com')) v (email) ON true"
    " WHEN MATCHED THEN UPDATE SET email = v.email",
    "view": "CREATE VIEW people AS SELECT id, email FROM accounts;"
    "UPDATE people SET email = 'victim@example.com'",
    "trigger": "CREATE FUNCTION change() RETURNS trigger LANGUAGE plpgsql AS"
    " 'BEGIN NEW.email := ''victim@example.com''; RETURN NEW; END';"
    "CREATE TRIGGER change BEFORE UPDATE OF login ON accounts FOR EACH ROW EXECUTE FUNCTION change();"
    "UPDATE accounts SET login = 'other'",
    "case": "UPDATE accounts SET email = 'A@example.com'",
}


def consume(db: Db, held: Mail, action: str = "activation") -> mailroom.Consumed:
    code = held.code if action == "password_recovery" else None
    return mailroom.consume(db, held.token, action, keys=KEY, code=code)


def open_tokens(db: Db) -> list[tuple[int, str, str]]:
    return db.execute(
        "SELECT t.id, t.action::text, a.email FROM tokens t JOIN accounts a ON a.id = t.account"
        " WHERE t.consumed_at IS NULL AND t.expires_at > clock_timestamp() ORDER BY t.id"
    ).fetchall()


def told(db: Db, token: int) -> str:
    (story,) = [story for story in stories(db, str(token)) if story.mail.token == token]
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", "T", story.text())


@pytest.mark.parametrize("route", ROUTES)
def test_a_link_to_the_old_address_is_dead(db: Db, route: str) -> None:
    if route == "merge" and db.info.server_version < 150000:
        pytest.skip("MERGE came with PostgreSQL 15")
    db.execute("INSERT INTO accounts (email, login) VALUES ('a@example.com', 'a')")
    held = mail(db, "activation", status="", account=1)
    claim(db)
    for statement in filter(None, ROUTES[route].split(";") if route == "view" else [ROUTES[route]]):
        db.execute(statement.encode())
    with pytest.raises(errors.TokenExpired):
        consume(db, held)
    assert "provisioned" == status(db, held.account)
    address = "A@example.com" if route == "case" else NEW
    assert [(3, "activation", address)] == open_tokens(db)
    assert [(3,)] == [lease.tokens for lease in claim(db)]
    assert "address changed" in told(db, held.id)


def test_an_active_account_gets_no_new_token(db: Db) -> None:
    held = recovery(db)
    db.execute("UPDATE accounts SET email = %s", [NEW])
    assert [] == open_tokens(db)
    with pytest.raises(errors.TokenExpired):
        consume(db, held, "password_recovery")


def test_an_update_that_leaves_the_address_ends_nothing(db: Db) -> None:
    held = activation(db)
    before = open_tokens(db)
    db.execute("UPDATE accounts SET email = email, login = 'other'")
    assert before == open_tokens(db)
    consume(db, held)


def test_an_activation_that_was_not_pending_is_not_begun_anew(db: Db) -> None:
    activation(db)
    db.execute("UPDATE tokens SET expires_at = clock_timestamp()")
    db.execute("UPDATE accounts SET email = %s", [NEW])
    assert [] == open_tokens(db)


def test_many_accounts_change_in_one_statement(db: Db) -> None:
    db.execute(
        "INSERT INTO accounts (email, login) SELECT g || '@old.example', g FROM generate_series(1, 50) g"
    )
    db.execute("UPDATE accounts SET email = login || '@new.example'")
    found = open_tokens(db)
    assert 50 == len(found)
    assert all(email.endswith("@new.example") for _, _, email in found)
    assert [50] == [len(lease.tokens) for lease in claim(db)]


def test_a_mail_that_waits_for_its_retry_is_not_sent(db: Db) -> None:
    held = activation(db)
    (lease,) = claim(db)
    record(db, lease, dict.fromkeys(lease.tokens, "transient"))
    db.execute("UPDATE accounts SET email = %s", [NEW])
    expire_leases(db)
    claimed = [token for each in claim(db) for token in each.tokens]
    assert held.id not in claimed
    assert (held.id, 2, "skipped") in ledger(db)
    first, *rest = told(db, held.id).splitlines()
    assert "not sent: the account's address changed at T, which ended the token" == first
    assert any("ended: the account's address changed" in line for line in rest)


def test_a_role_of_the_application_changes_it(with_roles: str, db: Db) -> None:
    held = activation(db)
    with psycopg.connect(as_(with_roles, APP), autocommit=True) as app:
        app.execute("UPDATE accounts SET email = %s WHERE login = 'a'", [NEW])
        with pytest.raises(errors.TokenExpired):
            consume(app, held)
    assert [("activation", NEW)] == [row[1:] for row in open_tokens(db)]


def test_changing_it_by_a_confirmed_token(db: Db) -> None:
    """As the guide does: consume, then change, in one transaction."""
    held, other = recovery(db), mail(db, "password_recovery", status="", account=1)
    with db.transaction():
        consume(db, held, "password_recovery")
        db.execute("UPDATE accounts SET email = %s", [NEW])
    assert [] == open_tokens(db)
    with pytest.raises(errors.TokenExpired):
        consume(db, other, "password_recovery")


# Races. The second one waits for the first, which is proven before the first commits.


@pytest.fixture
def behind(database: str, db: Db) -> Iterator[Callable[..., Future[object]]]:
    """Does something in another session, and returns once it waits for a lock."""
    with ThreadPoolExecutor(1) as threads, psycopg.connect(database, autocommit=True) as other:

        def begin(work: Callable[[Db], object]) -> Future[object]:
            done = threads.submit(work, other)
            waits = f"SELECT cardinality(pg_blocking_pids({other.info.backend_pid})) > 0"
            wait_until(db, waits, True)
            return done

        yield begin


@pytest.fixture
def first(database: str) -> Iterator[Db]:
    with psycopg.connect(database) as connection:
        yield connection


Behind = Callable[[Callable[[Db], object]], "Future[object]"]


def change(db: Db) -> object:
    return db.execute("UPDATE accounts SET email = %s", [NEW])


def test_consuming_waits_for_the_change(db: Db, first: Db, behind: Behind) -> None:
    held = activation(db)
    change(first)
    consuming = behind(lambda other: consume(other, held))
    first.commit()
    with pytest.raises(errors.TokenExpired):
        consuming.result(30)
    assert "provisioned" == status(db, held.account)


def test_the_change_waits_for_consuming(db: Db, first: Db, behind: Behind) -> None:
    held = activation(db)
    with first.transaction():
        consume(first, held)
        changing = behind(change)
    changing.result(30)
    assert "active" == status(db, held.account)
    assert [] == open_tokens(db)


def test_the_change_ends_a_token_that_was_not_committed_yet(db: Db, first: Db, behind: Behind) -> None:
    held = activation(db)
    row = first.execute(
        "INSERT INTO tokens (action, account) VALUES ('activation', 1) RETURNING id"
    ).fetchone()
    assert row
    changing = behind(change)
    first.commit()
    changing.result(30)
    assert [NEW] == [email for _, _, email in open_tokens(db)]
    assert not {held.id, *row} & {token for token, _, _ in open_tokens(db)}


def test_a_token_asked_for_during_the_change_goes_to_the_new_address(
    db: Db, first: Db, behind: Behind
) -> None:
    activation(db)
    change(first)
    ask = "INSERT INTO tokens (action, account) VALUES ('activation', 1)"
    asking = behind(lambda other: other.execute(ask.encode()))
    first.commit()
    asking.result(30)
    assert [NEW, NEW] == [email for _, _, email in open_tokens(db)]


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_consuming_in_a_stricter_transaction_fails(database: str, db: Db, first: Db, level: str) -> None:
    held = activation(db)
    with psycopg.connect(database) as strict:
        strict.execute(f"SET TRANSACTION ISOLATION LEVEL {level}".encode())
        strict.execute("SELECT count(*) FROM jobs")
        change(first)
        first.commit()
        with pytest.raises(psycopg.errors.SerializationFailure):
            consume(strict, held)
    assert "provisioned" == status(db, held.account)


def test_an_activation_that_expired_unsent_goes_to_the_new_address_only(db: Db) -> None:
    db.execute("INSERT INTO accounts (email, login) VALUES ('a@example.com', 'a')")
    hour_ago = "created_at = created_at - interval '1 hour', expires_at = expires_at - interval '1 hour'"
    db.execute(f"UPDATE tokens SET {hour_ago}".encode())
    db.execute("UPDATE accounts SET email = %s", [NEW])
    assert [(2,)] == [lease.tokens for lease in claim(db)]
    assert [(2, "activation", NEW)] == open_tokens(db)


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_transaction_that_sees_the_old_address_mails_nothing_there(
    db: Db, database: str, level: str
) -> None:
    db.execute("INSERT INTO accounts (email, login, status) VALUES ('a@example.com', 'a', 'active')")
    with psycopg.connect(database) as old:
        old.execute(f"SET TRANSACTION ISOLATION LEVEL {level}".encode())
        old.execute("SELECT FROM accounts")
        db.execute("UPDATE accounts SET email = %s", [NEW])
        with pytest.raises(psycopg.errors.SerializationFailure):
            old.execute("SELECT mailroom.send('password_recovery', account => 1)")
        old.rollback()
        old.execute("SELECT mailroom.send('password_recovery', account => 1)")
    assert [NEW] == [email for _, _, email in open_tokens(db)]


def test_a_dead_letter_is_not_renewed_for_the_old_address(db: Db) -> None:
    held = recovery(db)
    (lease,) = claim(db)
    record(db, lease, dict.fromkeys(lease.tokens, "rejected"))
    db.execute("UPDATE tokens SET expires_at = clock_timestamp()")
    db.execute("UPDATE accounts SET email = %s", [NEW])
    rows = db.execute(
        "SELECT outcome FROM mailroom.retry_dead('token_insert', ARRAY[%s]::bigint[], true, '', 'w')",
        [held.id],
    ).fetchall()
    assert [("address changed",)] == rows
    assert [] == open_tokens(db)


def test_a_token_that_is_being_inserted_lets_the_change_wait_and_is_ended(db: Db, database: str) -> None:
    """The address is read under the lock that the foreign key would take at the end of the statement only."""
    held = activation(db)
    with psycopg.connect(database) as inserting, psycopg.connect(database, autocommit=True) as changing:
        # The trigger has read the address of the row, and the statement goes on.
        inserting.execute("SELECT mailroom.send('activation', account => %s, login => 'x')", [held.account])
        with ThreadPoolExecutor() as pool:
            change = pool.submit(changing.execute, "UPDATE accounts SET email = %s", [NEW])
            wait_until(db, "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'", 1)
            inserting.commit()
            change.result()
    assert {NEW} == {email for _, _, email in open_tokens(db)}
