"""Consuming on each kind of psycopg's connections: no transaction is committed but the statement's own."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg.pq import TransactionStatus

import mailroom
from database.test_consumption import Mail, activation, recovery, status, wrong
from mailroom import errors
from support.processes import KEY

Db = psycopg.Connection[Any]
KINDS = [psycopg.Connection, psycopg.AsyncConnection]
STATES = ["idle", "begun", "block", "pipeline"]


async def settled(value: Any) -> Any:
    """What a connection of either kind returns."""
    return await value if inspect.isawaitable(value) else value


async def entered(stack: AsyncExitStack, block: Any) -> Any:
    if hasattr(block, "__aenter__"):
        return await stack.enter_async_context(block)
    return stack.enter_context(block)


@asynccontextmanager
async def connected(kind: Any, url: str, **options: Any) -> AsyncIterator[Any]:
    """A connection that is closed without a commit."""
    connection = await settled(kind.connect(url, **options))
    try:
        yield connection
    finally:
        await settled(connection.close())


@asynccontextmanager
async def in_state(connection: Any, state: str) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        if state == "begun":
            await settled(connection.execute("BEGIN" if connection.autocommit else "SELECT 1"))
        elif state == "block":
            await entered(stack, connection.transaction())
        elif state == "pipeline":
            await entered(stack, connection.pipeline())
        yield


async def use_both(connection: Any, first: Mail, second: Mail) -> None:
    """Consume a token, and give a wrong code for another."""
    used = await settled(mailroom.consume(connection, first.token, "activation", keys=KEY))
    assert first.account == used.account
    with pytest.raises(errors.WrongCode):
        await settled(
            mailroom.consume(connection, second.token, "password_recovery", keys=KEY, code=wrong(second.code))
        )


def written(db: Db, first: Mail, second: Mail) -> bool:
    """Whether both are committed; one alone never is."""
    rows = db.execute("SELECT wrong_codes FROM tokens WHERE id = %s", [second.id]).fetchall()
    found = {"active": True, "provisioned": False}[status(db, first.account)]
    assert [(int(found),)] == rows
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("committed", [True, False])
def test_only_a_statement_in_autocommit_mode_commits_itself(
    database: str, db: Db, kind: Any, state: str, autocommit: bool, committed: bool
) -> None:
    own = autocommit and state in {"idle", "pipeline"}
    first, second = activation(db), recovery(db, "b")

    async def run() -> None:
        async with connected(kind, database, autocommit=autocommit) as connection:
            with suppress(ZeroDivisionError):
                async with in_state(connection, state):
                    await use_both(connection, first, second)
                    if state != "pipeline":
                        assert own == written(db, first, second)
                    if state == "block" and not committed:
                        raise ZeroDivisionError
            if state != "block":
                assert own == written(db, first, second)
                assert own == (connection.info.transaction_status == TransactionStatus.IDLE)
                await settled(connection.commit() if committed else connection.rollback())
            assert connection.info.transaction_status == TransactionStatus.IDLE

    asyncio.run(run())
    assert (committed or own) == written(db, first, second)


@pytest.mark.parametrize("kind", KINDS)
def test_five_wrong_codes_that_are_committed_end_the_token(database: str, db: Db, kind: Any) -> None:
    sent = recovery(db)

    async def attempt(connection: Any, code: str) -> None:
        await settled(mailroom.consume(connection, sent.token, "password_recovery", keys=KEY, code=code))

    async def run() -> None:
        async with connected(kind, database) as connection:
            for left in (4, 3, 2, 1):
                with pytest.raises(errors.WrongCode) as refused:
                    await attempt(connection, wrong(sent.code))
                assert left == refused.value.codes_left
                await settled(connection.commit())
            for code in (wrong(sent.code), sent.code):
                with pytest.raises(errors.CodesExhausted):
                    await attempt(connection, code)
                await settled(connection.commit())

    asyncio.run(run())


@pytest.mark.parametrize("kind", KINDS)
def test_a_refusal_leaves_the_transaction_usable(database: str, db: Db, kind: Any) -> None:
    sent = activation(db)

    async def run() -> None:
        async with connected(kind, database) as connection:
            await settled(connection.execute("UPDATE tokens SET expires_at = clock_timestamp()"))
            with pytest.raises(errors.TokenExpired):
                await settled(mailroom.consume(connection, sent.token, "activation", keys=KEY))
            await settled(connection.execute("UPDATE accounts SET login = 'z'"))
            await settled(connection.commit())

    asyncio.run(run())
    assert [("z",)] == db.execute("SELECT login FROM accounts").fetchall()


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_of_the_database_aborts_only_the_block_around_it(database: str, db: Db, kind: Any) -> None:
    sent = activation(db)
    db.execute("ALTER TABLE accounts ADD CHECK (status <> 'active')")

    async def attempt(connection: Any) -> None:
        with pytest.raises(psycopg.errors.CheckViolation):
            await settled(mailroom.consume(connection, sent.token, "activation", keys=KEY))

    async def run() -> None:
        async with connected(kind, database) as connection:
            await settled(connection.execute("UPDATE accounts SET login = 'z'"))
            with pytest.raises(psycopg.errors.CheckViolation):
                async with in_state(connection, "block"):
                    await settled(mailroom.consume(connection, sent.token, "activation", keys=KEY))
            await settled(connection.commit())
            await attempt(connection)
            assert connection.info.transaction_status == TransactionStatus.INERROR

    asyncio.run(run())
    assert [("z",)] == db.execute("SELECT login FROM accounts").fetchall()


@pytest.mark.parametrize("kind", KINDS)
def test_a_code_without_a_link_is_part_of_the_transaction_too(database: str, db: Db, kind: Any) -> None:
    with_code = mailroom.Action("confirm", 31, b"/confirm", has_link=False, needs_code=True)
    db.execute("ALTER TYPE token_action ADD VALUE 'confirm'")
    db.execute(
        "INSERT INTO mailroom.actions (action, number, prefix, has_link, needs_code)"
        " VALUES ('confirm', 31, '/confirm', false, true)"
    )
    db.execute("SELECT mailroom.send('confirm', recipient => 'bob@example.org')")
    ((code,),) = db.execute("SELECT code FROM tokens").fetchall()

    async def run() -> None:
        async with connected(kind, database) as connection:
            used = mailroom.consume_code(connection, code, with_code, email="bob@example.org")
            assert "bob@example.org" == (await settled(used)).email
            await settled(connection.rollback())
            used = mailroom.consume_code(connection, code, with_code, email="bob@example.org")
            assert "bob@example.org" == (await settled(used)).email

    asyncio.run(run())
    assert [(None,)] == db.execute("SELECT consumed_at FROM tokens").fetchall()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "factory", [psycopg.rows.dict_row, psycopg.rows.namedtuple_row, psycopg.rows.scalar_row]
)
def test_any_row_factory_will_do(database: str, db: Db, kind: Any, factory: Any) -> None:
    sent = activation(db)

    async def run() -> None:
        async with connected(kind, database, row_factory=factory, autocommit=True) as connection:
            used = await settled(mailroom.consume(connection, sent.token, "activation", keys=KEY))
            assert (sent.account, {}) == (used.account, used.data)

    asyncio.run(run())


@pytest.mark.parametrize("names", [("ClientCursor", "AsyncClientCursor"), ("RawCursor", "AsyncRawCursor")])
@pytest.mark.parametrize("kind", KINDS)
def test_any_cursor_factory_will_do(database: str, db: Db, kind: Any, names: tuple[str, str]) -> None:
    sent = activation(db)
    factory = getattr(psycopg, names[KINDS.index(kind)])

    async def run() -> None:
        async with connected(kind, database, cursor_factory=factory, autocommit=True) as connection:
            used = await settled(mailroom.consume(connection, sent.token, "activation", keys=KEY))
            assert sent.account == used.account

    asyncio.run(run())


@pytest.mark.parametrize("kind", [psycopg_pool.ConnectionPool, psycopg_pool.AsyncConnectionPool])
@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("committed", [True, False])
def test_a_connection_of_a_pool_commits_at_the_end_of_its_block(
    database: str, db: Db, kind: Any, autocommit: bool, committed: bool
) -> None:
    first, second = activation(db), recovery(db, "b")

    async def run() -> None:
        async with AsyncExitStack() as stack:
            options = {"min_size": 1, "open": False, "kwargs": {"autocommit": autocommit}}
            pool = await entered(stack, kind(database, **options))
            with suppress(ZeroDivisionError):
                async with AsyncExitStack() as block:
                    await use_both(await entered(block, pool.connection()), first, second)
                    assert autocommit == written(db, first, second)
                    if not committed:
                        raise ZeroDivisionError

    asyncio.run(run())
    assert (committed or autocommit) == written(db, first, second)
