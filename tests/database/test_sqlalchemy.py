"""``mailroom.contrib.sqlalchemy``: consuming in the transaction of each kind of session, with each driver."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any

import psycopg
import pytest
import sqlalchemy
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Engine, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import mailroom
from database.test_consumption import Mail, activation, recovery, status, wrong
from mailroom import errors
from mailroom.contrib.sqlalchemy import consume, consume_code
from mailroom.operations import adoption
from support.adopting import DEVISE
from support.processes import KEY

Db = psycopg.Connection[Any]
CONFIRM = mailroom.Action("confirm", 31, b"/confirm", has_link=False, needs_code=True)
KINDS = ["Session", "Connection", "AsyncSession", "AsyncConnection", "AsyncSession on asyncpg"]


def address(database: str, driver: str) -> sqlalchemy.URL:
    given = {name: str(value) for name, value in conninfo_to_dict(database).items()}
    return sqlalchemy.URL.create(
        f"postgresql+{driver}",
        username=given["user"],
        password=given.get("password"),
        database=given["dbname"],
        query={"host": given["host"], "port": given["port"]},
    )


@contextmanager
def engine(database: str, **options: Any) -> Iterator[Engine]:
    made = sqlalchemy.create_engine(address(database, "psycopg"), **options)
    try:
        yield made
    finally:
        made.dispose()


@asynccontextmanager
async def opened(database: str, kind: str, **options: Any) -> AsyncIterator[Any]:
    """A session or a connection of this kind, which is closed without a commit."""
    async with AsyncExitStack() as stack:
        if not kind.startswith("Async"):
            made = stack.enter_context(engine(database, **options))
            yield stack.enter_context(Session(made) if kind == "Session" else made.connect())
            return
        driver = "asyncpg" if kind.endswith("asyncpg") else "psycopg"
        asynchronous = create_async_engine(address(database, driver), **options)
        stack.push_async_callback(asynchronous.dispose)
        session: AsyncSession | AsyncConnection = (
            asynchronous.connect() if kind == "AsyncConnection" else AsyncSession(asynchronous)
        )
        yield await stack.enter_async_context(session)


async def settled(value: Any) -> Any:
    """What a session of either kind returns."""
    return await value if inspect.isawaitable(value) else value


async def recover(session: Any, sent: Mail, code: str) -> mailroom.Consumed:
    used: mailroom.Consumed = await settled(
        consume(session, sent.token, "password_recovery", keys=KEY, code=code)
    )
    return used


def wrong_codes(db: Db, sent: Mail) -> int:
    ((count,),) = db.execute("SELECT wrong_codes FROM tokens WHERE id = %s", [sent.id]).fetchall()
    return int(count)


@pytest.fixture
def code(db: Db) -> str:
    """A code that was mailed to bob@example.org without a link."""
    db.execute("ALTER TYPE token_action ADD VALUE 'confirm'")
    db.execute(
        "INSERT INTO mailroom.actions (action, number, prefix, has_link, needs_code, fields)"
        " VALUES ('confirm', 31, '/confirm', false, true, '{place}')"
    )
    db.execute(
        "SELECT mailroom.send('confirm', recipient => 'bob@example.org', subject => 'u7',"
        """ data => '{"place": "Rome: 50%"}')"""
    )
    ((code,),) = db.execute("SELECT code FROM tokens").fetchall()
    return str(code)


BOB: dict[str, Any] = {"email": "bob@example.org", "subject": "u7"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("committed", [True, False])
def test_a_token_is_consumed_in_the_transaction_of_the_session(
    database: str, db: Db, kind: str, first: bool, committed: bool
) -> None:
    sent, late = activation(db), recovery(db, "b")

    async def run() -> None:
        async with opened(database, kind) as session:
            if not first:
                await settled(session.execute(text("UPDATE accounts SET login = login || 'z'")))
            used = await settled(consume(session, sent.token, "activation", keys=KEY))
            assert mailroom.Consumed(sent.account, "activation", sent.id, None, "a@example.com", {}) == used
            assert late.account == (await recover(session, late, late.code)).account
            assert "provisioned" == status(db, sent.account)
            await settled(session.commit() if committed else session.rollback())

    asyncio.run(run())
    assert ("active" if committed else "provisioned") == status(db, sent.account)
    consumed = db.execute("SELECT count(*) FROM tokens WHERE consumed_at IS NOT NULL").fetchall()
    assert [(2 if committed else 0,)] == consumed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [True, False])
def test_of_twelve_wrong_codes_whose_transactions_roll_back_five_are_tries(
    database: str, db: Db, kind: str, first: bool
) -> None:
    sent = recovery(db)
    answers: list[type[Exception]] = []

    async def run() -> None:
        async with opened(database, kind) as session:
            for _ in range(12):
                if not first:  # holds the account's lock
                    await settled(session.execute(text("UPDATE accounts SET login = login || 'z'")))
                with pytest.raises(errors.TokenError) as refused:
                    await recover(session, sent, wrong(sent.code))
                answers.append(refused.type)
                await settled(session.rollback())
            with pytest.raises(errors.CodesExhausted):
                await recover(session, sent, sent.code)

    asyncio.run(run())
    assert [errors.WrongCode] * 4 + [errors.CodesExhausted] * 8 == answers
    assert 5 == wrong_codes(db, sent)
    assert [("a",)] == db.execute("SELECT login FROM accounts").fetchall()


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_code_leaves_the_transaction_usable(database: str, db: Db, kind: str) -> None:
    sent = recovery(db)

    async def run() -> None:
        async with opened(database, kind) as session:
            await settled(session.execute(text("UPDATE accounts SET login = 'z'")))
            with pytest.raises(errors.WrongCode):
                await recover(session, sent, wrong(sent.code))
            await recover(session, sent, sent.code)
            await settled(session.commit())

    asyncio.run(run())
    assert [("z",)] == db.execute("SELECT login FROM accounts").fetchall()
    assert 1 == wrong_codes(db, sent)


@pytest.mark.parametrize("kind", KINDS)
def test_a_code_without_a_link_has_five_tries_although_each_is_rolled_back(
    database: str, db: Db, code: str, kind: str
) -> None:
    async def run() -> None:
        async with opened(database, kind) as session:
            used = await settled(consume_code(session, code, CONFIRM, **BOB))
            assert ("u7", "bob@example.org", {"place": "Rome: 50%"}) == (used.subject, used.email, used.data)
            await settled(session.rollback())
            for left in (4, 3, 2, 1):
                with pytest.raises(errors.WrongCode) as refused:
                    await settled(consume_code(session, wrong(code), CONFIRM, **BOB))
                assert left == refused.value.codes_left
                await settled(session.rollback())
            for given in (wrong(code), code):
                with pytest.raises(errors.CodesExhausted):
                    await settled(consume_code(session, given, CONFIRM, **BOB))
                await settled(session.rollback())

    asyncio.run(run())
    assert [(None, 5)] == db.execute("SELECT consumed_at, wrong_codes FROM tokens").fetchall()


def test_the_codes_of_several_tokens_count_together(database: str, db: Db, code: str) -> None:
    with engine(database) as made, Session(made) as session:
        for _ in range(3):
            with pytest.raises(errors.WrongCode):
                consume_code(session, wrong(code), CONFIRM, **BOB)
        db.execute(
            "SELECT mailroom.send('confirm', recipient => 'bob@example.org', subject => 'u7',"
            """ data => '{"place": "Oslo"}')"""
        )
        ((newest,),) = db.execute("SELECT code FROM tokens ORDER BY id DESC LIMIT 1").fetchall()
        with pytest.raises(errors.WrongCode) as refused:
            consume_code(session, wrong(newest), CONFIRM, **BOB)
        assert 1 == refused.value.codes_left
        assert {"place": "Oslo"} == consume_code(session, newest, CONFIRM, **BOB).data


def race(attempts: int, attempt: Callable[[], object]) -> list[type[BaseException] | None]:
    outcomes: list[type[BaseException] | None] = []
    start = threading.Barrier(attempts)

    def run() -> None:
        start.wait(30)
        try:
            attempt()
            outcomes.append(None)
        except errors.TokenError as error:
            outcomes.append(type(error))

    threads = [threading.Thread(target=run) for _ in range(attempts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_wrong_codes_that_race_are_five_tries(database: str, db: Db, code: str) -> None:
    sent = recovery(db)
    with engine(database, pool_size=24) as made:
        sessions = sessionmaker(made)

        def with_link() -> None:
            with sessions.begin() as session:
                consume(session, sent.token, "password_recovery", keys=KEY, code=wrong(sent.code))

        def without() -> None:
            with sessions.begin() as session:
                consume_code(session, wrong(code), CONFIRM, **BOB)

        for attempt in (with_link, without):
            outcomes = race(12, attempt)
            assert 4 == outcomes.count(errors.WrongCode)
            assert 8 == outcomes.count(errors.CodesExhausted)


def test_of_right_codes_that_race_one_is_consumed(database: str, db: Db, code: str) -> None:
    with engine(database, pool_size=8) as made:

        def attempt() -> None:
            with Session(made) as session, session.begin():
                consume_code(session, code, CONFIRM, **BOB)

        outcomes = race(4, attempt)
    assert 1 == outcomes.count(None)
    assert 3 == outcomes.count(errors.TokenUsed)


def test_as_the_first_statement_it_holds_one_connection_at_a_time(database: str, db: Db, code: str) -> None:
    sent = recovery(db)
    one = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 1}
    with engine(database, **one) as made:
        for _ in range(2):
            with Session(made) as session, pytest.raises(errors.WrongCode):
                consume(session, sent.token, "password_recovery", keys=KEY, code=wrong(sent.code))
        with Session(made) as session:
            assert "u7" == consume_code(session, code, CONFIRM, **BOB).subject
        with Session(made) as session:  # without a second connection there is no try
            session.execute(text("SELECT 1"))
            with pytest.raises(sqlalchemy.exc.TimeoutError):
                consume(session, sent.token, "password_recovery", keys=KEY, code=wrong(sent.code))
    assert 2 == wrong_codes(db, sent)


def test_a_connection_in_autocommit_mode_commits_by_itself(database: str, db: Db) -> None:
    sent, late = activation(db), recovery(db, "b")
    with engine(database, isolation_level="AUTOCOMMIT") as made, made.connect() as connection:
        consume(connection, sent.token, "activation", keys=KEY)
        with pytest.raises(errors.WrongCode):
            consume(connection, late.token, "password_recovery", keys=KEY, code=wrong(late.code))
    assert "active" == status(db, sent.account)
    assert 1 == wrong_codes(db, late)


def test_a_scoped_session_and_a_savepoint_will_do(database: str, db: Db) -> None:
    sent, late = activation(db), recovery(db, "b")
    with engine(database) as made:
        session = scoped_session(sessionmaker(made))
        with suppress(ZeroDivisionError), session.begin_nested():
            consume(session, sent.token, "activation", keys=KEY)
            raise ZeroDivisionError
        with pytest.raises(errors.WrongCode), session.begin_nested():
            consume(session, late.token, "password_recovery", keys=KEY, code=wrong(late.code))
        consume(session, late.token, "password_recovery", keys=KEY, code=late.code)
        session.commit()
        session.remove()
    assert "provisioned" == status(db, sent.account)
    assert 1 == wrong_codes(db, late)


def test_tests_that_roll_everything_back_see_their_own_tokens(database: str, db: Db) -> None:
    """SQLAlchemy's recipe for test suites: a session inside an outer transaction, which is rolled back."""
    with engine(database) as made, made.connect() as connection:
        outer = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            account = session.scalar(
                text(
                    "INSERT INTO accounts (email, login, status) VALUES ('a@example.com', 'a', 'active')"
                    " RETURNING id"
                )
            )
            secret, code = session.execute(
                text(
                    "INSERT INTO tokens (action, account) VALUES ('password_recovery', :account)"
                    " RETURNING secret, code"
                ),
                {"account": account},
            ).one()
            token = mailroom.sign(bytes(secret), "password_recovery", keys=KEY, code=code)
            with pytest.raises(errors.WrongCode):
                consume(session, token, "password_recovery", keys=KEY, code=wrong(code))
            assert account == consume(session, token, "password_recovery", keys=KEY, code=code).account
            session.commit()
        outer.rollback()
    assert [(0,)] == db.execute("SELECT count(*) FROM tokens").fetchall()


def test_a_try_that_cannot_be_counted_is_an_error_of_the_database(
    database: str, db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailroom.contrib.sqlalchemy.LIMIT_WAIT", "SET LOCAL lock_timeout = '50ms'")
    sent = recovery(db)
    with engine(database) as made, Session(made) as session:
        session.execute(text("UPDATE tokens SET data = NULL"))
        with pytest.raises(sqlalchemy.exc.OperationalError, match="lock timeout"):
            consume(session, sent.token, "password_recovery", keys=KEY, code=wrong(sent.code))
        consume(session, sent.token, "password_recovery", keys=KEY, code=sent.code)
        session.commit()
    assert 0 == wrong_codes(db, sent)


@pytest.mark.parametrize("kind", KINDS)
def test_a_user_of_an_adopted_table_has_five_tries_while_the_session_locks_the_row(
    database: str, db: Db, code: str, kind: str
) -> None:
    db.execute(DEVISE.encode())
    adoption.apply(db, adoption.plan(db, "users", adoption.PRESETS["devise"][1]))
    db.execute("INSERT INTO users (email, confirmed_at) VALUES ('a@example.com', now())")
    db.execute("SELECT mailroom.send('password_recovery', user_id => '1')")
    db.execute("""SELECT mailroom.send('confirm', user_id => '1', data => '{"place": "Rome"}')""")
    rows = db.execute(
        "SELECT id, secret, code FROM tokens WHERE user_table IS NOT NULL ORDER BY id"
    ).fetchall()
    (linked, secret, linked_code), (plain, _, plain_code) = rows
    token = mailroom.sign(secret, "password_recovery", keys=KEY, code=linked_code)
    sent = Mail(linked, token, linked_code, 0)

    async def attempt(session: Any, given: str, given_plain: str) -> list[str | None]:
        await settled(session.execute(text("UPDATE users SET updated_at = now()")))
        subjects = [(await recover(session, sent, given)).subject]
        used = await settled(consume_code(session, given_plain, CONFIRM, user_id=1, user_table="users"))
        return [*subjects, used.subject]

    async def run() -> None:
        async with opened(database, kind) as session:
            assert ["1", "1"] == await attempt(session, linked_code, plain_code)
            await settled(session.rollback())
            for _ in range(4):
                with pytest.raises(errors.WrongCode):
                    await attempt(session, wrong(linked_code), plain_code)
                with pytest.raises(errors.WrongCode):
                    await attempt(session, linked_code, wrong(plain_code))
                await settled(session.rollback())
            with pytest.raises(errors.CodesExhausted):
                await attempt(session, linked_code, wrong(plain_code))
            await settled(session.rollback())
            # What would not be counted is not consumed either.
            with pytest.raises(errors.UnknownToken):
                await settled(consume_code(session, plain_code, CONFIRM, user_id="01", user_table="users"))

    asyncio.run(run())
    counts = db.execute("SELECT id, wrong_codes FROM tokens WHERE user_table IS NOT NULL ORDER BY id")
    assert [(linked, 4), (plain, 5)] == counts.fetchall()
