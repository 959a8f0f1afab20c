"""Consuming tokens: once, with a clear refusal otherwise, whoever races."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

import mailroom
from mailroom import errors
from support.messages import PASSWORD_RECOVERY
from support.processes import KEY

Db = psycopg.Connection
OTHER_KEY = "00" * 32


@dataclass(frozen=True)
class Mail:
    """What a user holds."""

    id: int
    token: str
    code: str
    account: int


def mail(db: Db, action: str, *, status: str, login: str = "a", account: int | None = None) -> Mail:
    if account is None:
        row = db.execute(
            "INSERT INTO accounts (email, login, status) VALUES (%s, %s, %s) RETURNING id",
            [f"{login}@example.com", login, status],
        ).fetchone()
        assert row
        account = row[0]
    row = db.execute(
        "INSERT INTO tokens (action, account) VALUES (%s, %s) RETURNING id, secret, code", [action, account]
    ).fetchone()
    assert row
    token_id, secret, code = row
    return Mail(token_id, mailroom.sign(secret, action, keys=KEY, code=code), code, account or 0)


def activation(db: Db, login: str = "a") -> Mail:
    return mail(db, "activation", status="provisioned", login=login)


def recovery(db: Db, login: str = "a") -> Mail:
    return mail(db, "password_recovery", status="active", login=login)


def wrong(code: str) -> str:
    return f"{(int(code) + 1) % 100_000:05}"


def status(db: Db, account: int) -> str:
    row = db.execute("SELECT status::text FROM accounts WHERE id = %s", [account]).fetchone()
    assert row
    return str(row[0])


def test_a_wrong_code_locks_the_account(db: Db, database: str) -> None:
    """So two transactions that count and then update the account wait, and end in no deadlock."""
    sent = recovery(db)
    with psycopg.connect(database) as connection:
        with pytest.raises(errors.WrongCode):
            mailroom.consume(connection, sent.token, "password_recovery", keys=KEY, code=wrong(sent.code))
        with pytest.raises(psycopg.errors.LockNotAvailable):
            db.execute("SELECT FROM accounts FOR NO KEY UPDATE NOWAIT")


def test_an_activation_token_activates_once(db: Db) -> None:
    sent = activation(db)
    consumed = mailroom.consume(db, sent.token, "activation", keys=KEY)
    ((token,),) = db.execute("SELECT id FROM tokens WHERE consumed_at IS NOT NULL").fetchall()
    assert mailroom.Consumed(sent.account, "activation", token, None, "a@example.com", {}) == consumed
    assert "active" == status(db, sent.account)
    with pytest.raises(errors.TokenUsed):
        mailroom.consume(db, sent.token, "activation", keys=KEY)


def test_a_recovery_token_takes_its_code(db: Db) -> None:
    sent = recovery(db)
    consumed = mailroom.consume(db, sent.token, PASSWORD_RECOVERY, keys=KEY, code=sent.code)
    assert sent.account == consumed.account


def test_an_asynchronous_connection_consumes_as_well(database: str, db: Db) -> None:
    sent, late = activation(db), recovery(db, "b")

    async def consume_both() -> tuple[int | None, int | None]:
        async with await psycopg.AsyncConnection.connect(database) as connection:
            first = await mailroom.consume(connection, sent.token, "activation", keys=KEY)
            with pytest.raises(errors.WrongCode):
                await mailroom.consume(
                    connection, late.token, "password_recovery", keys=KEY, code=wrong(late.code)
                )
            second = await mailroom.consume(
                connection, late.token, "password_recovery", keys=KEY, code=late.code
            )
            return first.account, second.account

    assert (sent.account, late.account) == asyncio.run(consume_both())
    assert [(2,)] == db.execute("SELECT count(*) FROM tokens WHERE consumed_at IS NOT NULL").fetchall()


@pytest.fixture
def own(db: Db) -> dict[str, mailroom.Action]:
    """Two more actions in the database: an invitation to anybody, and a code without a link."""
    db.execute("ALTER TYPE token_action ADD VALUE 'join'")
    db.execute("ALTER TYPE token_action ADD VALUE 'confirm'")
    db.execute(
        "INSERT INTO mailroom.actions (action, number, prefix, has_link, needs_code, fields)"
        " VALUES ('join', 30, '/join', true, false, '{inviter}'),"
        " ('confirm', 31, '/confirm', false, true, '{}')"
    )
    return {
        "join": mailroom.Action("join", 30, b"/join", fields=("inviter",)),
        "confirm": mailroom.Action("confirm", 31, b"/confirm", has_link=False, needs_code=True),
    }


def test_consuming_an_action_of_ones_own_returns_what_was_sent(
    db: Db, own: dict[str, mailroom.Action]
) -> None:
    db.execute(
        "SELECT mailroom.send('join', recipient => 'bob@example.org', subject => 'team-7',"
        """ data => '{"inviter": "Anna"}')"""
    )
    ((token_id, secret),) = db.execute("SELECT id, secret FROM tokens").fetchall()
    token = mailroom.sign(secret, own["join"], keys=KEY)
    consumed = mailroom.consume(db, token, own["join"], keys=KEY)
    wanted = mailroom.Consumed(None, "join", token_id, "team-7", "bob@example.org", {"inviter": "Anna"})
    assert wanted == consumed


def test_a_code_without_a_link_is_consumed_once(
    db: Db, database: str, own: dict[str, mailroom.Action]
) -> None:
    db.execute("SELECT mailroom.send('confirm', recipient => 'Bob@example.org', subject => 'u7')")
    ((code,),) = db.execute("SELECT code FROM tokens").fetchall()
    recipient: dict[str, Any] = {"email": "bob@example.org", "subject": "u7"}
    with pytest.raises(errors.WrongCode) as refused:
        mailroom.consume_code(db, wrong(code), own["confirm"], **recipient)
    assert 4 == refused.value.codes_left

    async def consume() -> mailroom.Consumed:
        async with await psycopg.AsyncConnection.connect(database) as connection:
            consumed: mailroom.Consumed = await mailroom.consume_code(
                connection, code, own["confirm"], **recipient
            )
            return consumed

    found = asyncio.run(consume())
    assert (None, "u7", "Bob@example.org") == (found.account, found.subject, found.email)
    with pytest.raises(errors.TokenUsed):
        mailroom.consume_code(db, code, own["confirm"], **recipient)


def test_a_code_alone_needs_an_action_without_a_link_and_one_recipient(
    db: Db, own: dict[str, mailroom.Action]
) -> None:
    for action in (PASSWORD_RECOVERY, own["join"], "activation"):
        with pytest.raises(ValueError, match="is not an action with a code and no link"):
            mailroom.consume_code(db, "12345", action, account=1)
    recipients: list[dict[str, Any]] = [{}, {"account": 1, "email": "a@b"}, {"user_id": 7, "email": "a@b"}]
    for recipient in recipients:
        with pytest.raises(ValueError, match="give one of account, email and user_id"):
            mailroom.consume_code(db, "12345", own["confirm"], **recipient)
    with pytest.raises(errors.MalformedToken):
        mailroom.consume_code(db, "1234", own["confirm"], account=1)
    with pytest.raises(errors.UnknownToken):
        mailroom.consume_code(db, "12345", own["confirm"], account=1)


def test_five_wrong_codes_end_a_recovery_token(db: Db) -> None:
    sent = recovery(db)
    for left in (4, 3, 2, 1):
        with pytest.raises(errors.WrongCode) as refused:
            mailroom.consume(db, sent.token, "password_recovery", keys=KEY, code=wrong(sent.code))
        assert left == refused.value.codes_left
        assert f"the code is wrong; {left} more {'try' if left == 1 else 'tries'}" == str(refused.value)
    for code in (wrong(sent.code), sent.code):
        with pytest.raises(errors.CodesExhausted):
            mailroom.consume(db, sent.token, "password_recovery", keys=KEY, code=code)


def test_a_wrong_code_below_five_does_no_harm(db: Db) -> None:
    sent = recovery(db)
    for _ in range(4):
        with pytest.raises(errors.WrongCode):
            mailroom.consume(db, sent.token, "password_recovery", keys=KEY, code=wrong(sent.code))
    mailroom.consume(db, sent.token, "password_recovery", keys=KEY, code=sent.code)


def test_a_signature_of_another_key_is_refused_without_the_database(db: Db) -> None:
    sent = activation(db)
    secret = mailroom.verify(sent.token, "activation", keys=KEY)
    forged = mailroom.sign(secret, "activation", keys=OTHER_KEY)
    with pytest.raises(errors.ForgedToken):
        mailroom.consume(db, forged, "activation", keys=KEY)
    assert "provisioned" == status(db, sent.account)


def test_a_secret_read_from_the_database_opens_nothing(db: Db) -> None:
    sent = recovery(db)
    secret = mailroom.verify(sent.token, "password_recovery", keys=KEY, code=sent.code)
    forged = mailroom.sign(secret, "password_recovery", keys=OTHER_KEY, code=sent.code)
    with pytest.raises(errors.WrongCode):
        mailroom.consume(db, forged, "password_recovery", keys=KEY, code=sent.code)
    assert [(None,)] == db.execute("SELECT consumed_at FROM tokens").fetchall()


def test_a_code_that_is_none_is_malformed_and_not_counted(db: Db) -> None:
    sent = recovery(db)
    for code in (None, "", "1234", "123456", "１２３４５"):
        with pytest.raises(errors.MalformedToken):
            mailroom.consume(db, sent.token, "password_recovery", keys=KEY, code=code)
    assert [(0,)] == db.execute("SELECT wrong_codes FROM tokens").fetchall()


def test_a_token_of_another_action_is_told_so(db: Db) -> None:
    sent = activation(db)
    with pytest.raises(errors.WrongAction):
        mailroom.consume(db, sent.token, "password_recovery", keys=KEY, code=sent.code)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        ("UPDATE tokens SET expires_at = clock_timestamp()", errors.TokenExpired),
        ("UPDATE accounts SET status = 'suspended'", errors.AccountSuspended),
        ("UPDATE accounts SET status = 'provisioned'", errors.AccountIneligible),
        ("DELETE FROM tokens", errors.UnknownToken),
        ("UPDATE tokens SET consumed_at = now()", errors.TokenUsed),
    ],
)
def test_each_refusal_says_why(db: Db, spoil: str, error: type[errors.TokenError]) -> None:
    sent = recovery(db)
    db.execute(spoil.encode())
    with pytest.raises(error) as refused:
        mailroom.consume(db, sent.token, "password_recovery", keys=KEY, code=sent.code)
    assert refused.value.hint
    assert sent.token not in str(refused.value)


def test_a_consumed_token_ends_its_siblings(db: Db) -> None:
    first = recovery(db)
    second = mail(db, "password_recovery", status="", account=first.account)
    mailroom.consume(db, second.token, "password_recovery", keys=KEY, code=second.code)
    with pytest.raises(errors.TokenExpired):
        mailroom.consume(db, first.token, "password_recovery", keys=KEY, code=first.code)


def consuming(sent: Mail, action: str, code: str | None = None) -> Callable[[Db], object]:
    """An attempt to consume, for ``race``."""
    return lambda connection: mailroom.consume(connection, sent.token, action, keys=KEY, code=code)


def suspending(account: int) -> Callable[[Db], object]:
    """An attempt to suspend, for ``race``."""
    return lambda connection: connection.execute(
        "UPDATE accounts SET status = 'suspended' WHERE id = %s", [account]
    )


def race(database: str, attempts: list[Callable[[Db], object]]) -> list[BaseException | None]:
    """Let all attempts begin at once, each on a connection of its own."""
    outcomes: list[BaseException | None] = [None] * len(attempts)
    start = threading.Barrier(len(attempts))

    def run(number: int, attempt: Callable[[Db], object]) -> None:
        with psycopg.connect(database, autocommit=True) as connection:
            start.wait(30)
            try:
                attempt(connection)
            except (psycopg.Error, errors.MailroomError) as error:
                outcomes[number] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(attempts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_of_two_that_race_for_one_token_one_wins(database: str, db: Db) -> None:
    for number in range(20):
        outcomes = race(database, [consuming(activation(db, f"a{number}"), "activation")] * 4)
        assert 1 == outcomes.count(None)
        assert {errors.TokenUsed} == {type(error) for error in outcomes if error}


def test_of_siblings_that_race_one_wins_and_nothing_deadlocks(database: str, db: Db) -> None:
    for number in range(20):
        first = recovery(db, f"a{number}")
        mails = [first, *(mail(db, "password_recovery", status="", account=first.account) for _ in range(3))]
        outcomes = race(database, [consuming(sent, "password_recovery", sent.code) for sent in mails])
        assert 1 == outcomes.count(None)
        assert {errors.TokenExpired} == {type(error) for error in outcomes if error}


def test_wrong_codes_that_race_are_all_counted(database: str, db: Db) -> None:
    sent = recovery(db)
    outcomes = race(database, [consuming(sent, "password_recovery", wrong(sent.code))] * 8)
    assert 4 == sum(type(error) is errors.WrongCode for error in outcomes)
    assert 4 == sum(type(error) is errors.CodesExhausted for error in outcomes)


def test_a_suspension_that_races_is_seen_or_comes_after(database: str, db: Db) -> None:
    for number in range(20):
        sent = activation(db, f"a{number}")
        outcome, suspended = race(database, [consuming(sent, "activation"), suspending(sent.account)])
        assert suspended is None
        assert "suspended" == status(db, sent.account)
        activated = db.execute("SELECT activated_at IS NOT NULL FROM accounts WHERE id = %s", [sent.account])
        assert [(outcome is None,)] == activated.fetchall()
        assert outcome is None or isinstance(outcome, errors.AccountSuspended)
