"""Adopting a table that is full and in use: short locks, no mail unasked, and no trace when taken back."""

from __future__ import annotations

import json
import random
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from mailroom.demo.postgres import embedded_binaries
from mailroom.errors import AdoptionError
from mailroom.operations import adoption
from mailroom.operations.adoption import Wish
from support import postgres
from support.adopting import (
    BY_PRESET,
    FRAMEWORKS,
    Db,
    Framework,
    adopt_preset,
    consume,
    ended,
    live,
    run,
    sign_up,
)
from support.runs import Start

MANY = 100_000


def from_before(db: Db, preset: str, users: int) -> Framework:
    one = BY_PRESET[preset]
    db.execute(one.ddl.encode())
    run(db, f"INSERT INTO {one.table} (email) SELECT n || '@example.com' FROM generate_series(1, {users}) n")
    return one


def adopt_as_it_is(db: Db, preset: str) -> None:
    table, wish = adoption.PRESETS[preset]
    adoption.apply(db, adoption.plan(db, table, wish))


@pytest.mark.slow
def test_a_hundred_thousand_from_before_get_no_mail_and_one_when_it_is_asked_for(db: Db) -> None:
    one = from_before(db, "devise", MANY)
    run(db, f"UPDATE {one.table} SET {one.confirmed} WHERE id % 2 = 0")
    adopt_as_it_is(db, "devise")
    assert [(0,)] == run(db, "SELECT count(*) FROM tokens")
    new = sign_up(db, one.table, "new@example.com")

    class Interrupted(Exception):
        pass

    def interrupt(mailed: int) -> None:
        if mailed >= 10_000:
            raise Interrupted

    with pytest.raises(Interrupted):
        adoption.mail_existing(db, one.table, interrupt)
    assert MANY // 2 - 10_000 == adoption.mail_existing(db, one.table, lambda _: None)
    assert 0 == adoption.mail_existing(db, one.table, lambda _: None)
    assert [(MANY // 2 + 1, MANY // 2 + 1)] == run(db, "SELECT count(*), count(DISTINCT subject) FROM tokens")
    assert [("bulk", MANY // 2), ("normal", 1)] == run(
        db, "SELECT lane::text, count(*) FROM tokens GROUP BY 1 ORDER BY 1"
    )
    assert ["new@example.com"] == live(db, new)


def test_a_user_who_is_being_changed_is_mailed_last_and_rightly(db: Db, database: str) -> None:
    one = from_before(db, "devise", 3)
    adopt_as_it_is(db, "devise")
    with psycopg.connect(database) as other, ThreadPoolExecutor() as pool:
        run(other, f"UPDATE {one.table} SET email = 'changed@example.com' WHERE id = 1")
        run(other, f"UPDATE {one.table} SET {one.confirmed} WHERE id = 2")
        progress = threading.Event()
        mailing = pool.submit(adoption.mail_existing, db, one.table, lambda _: progress.set())
        assert progress.wait(20)
        other.commit()
        assert 2 == mailing.result(20)
    assert [["changed@example.com"], [], ["3@example.com"]] == [live(db, key) for key in "123"]


def test_adopting_waits_a_second_at_a_time_and_changes_nothing_if_it_must_not(
    db: Db, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adoption, "LOCK_TIMEOUT", "50ms")
    monkeypatch.setattr(adoption, "LOCK_PAUSE_S", 0.01)
    one = from_before(db, "devise", 1)
    with psycopg.connect(database) as other:
        run(other, f"UPDATE {one.table} SET email = 'x@example.com'")
        with pytest.raises(AdoptionError, match="users is in use"):
            adopt_as_it_is(db, "devise")
    assert [] == adoption.adopted(db)
    adopt_as_it_is(db, "devise")


def schema_of(url: str) -> str:
    """What pg_dump says of the tables, without the lines that differ from run to run."""
    program = (postgres.bindir() or embedded_binaries()) / "pg_dump"
    dump = subprocess.run([program, "--schema-only", url], check=True, capture_output=True, text=True).stdout
    return "\n".join(
        line for line in dump.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))
    )


@pytest.mark.parametrize("preset", [one.preset for one in FRAMEWORKS])
def test_taking_it_back_leaves_the_database_as_it_was(db: Db, database: str, preset: str) -> None:
    postgres.needs("pg_dump")
    one = from_before(db, preset, 2)
    before = schema_of(database)
    adopt_as_it_is(db, preset)
    assert before != schema_of(database)
    key = sign_up(db, one.table, "a@example.com")
    adoption.drop(db, one.table)
    assert before == schema_of(database)
    assert ["not adopted any more"] == ended(db, key)
    assert ("unknown", None) == consume(db, key)
    assert [] == adoption.adopted(db)
    adopt_as_it_is(db, preset)
    planned = adoption.plan(db, one.table, Wish())
    run(db, ";".join(planned.reverse))
    assert before == schema_of(database)


def most_rows(plan: dict[str, Any]) -> int:
    """The most rows that a node of a plan looked at, in all its loops."""
    removed = sum(count for name, count in plan.items() if name.startswith("Rows Removed"))
    below = (most_rows(one) for one in plan.get("Plans", []))
    return max(int((plan["Actual Rows"] + removed) * plan["Actual Loops"]), *below, 0)


@pytest.mark.parametrize(
    "statement",
    ["UPDATE {table} SET email = 'new' || email", "UPDATE {table} SET {confirmed}", "DELETE FROM {table}"],
)
def test_a_change_of_all_users_looks_at_each_once_with_plans_made_for_one(db: Db, statement: str) -> None:
    """PostgreSQL has no statistics of tokens, and the session has its plans from when the table was empty."""
    try:
        db.execute("LOAD 'auto_explain'")
    except psycopg.errors.InsufficientPrivilege:
        pytest.skip("the server's user may not LOAD auto_explain, which shows the plans inside a function")
    one = adopt_preset(db, "devise")
    run(db, "ALTER TABLE tokens SET (autovacuum_enabled = off)")
    change = statement.format(table=one.table, confirmed=one.confirmed)
    for _ in range(7):
        sign_up(db, one.table, "first@example.com")
        run(db, change)
        run(db, f"DELETE FROM {one.table}")
    users = 2_000
    run(db, f"INSERT INTO {one.table} (email) SELECT n || '@example.com' FROM generate_series(1, {users}) n")
    logged: list[str] = []
    db.add_notice_handler(lambda notice: logged.append(notice.message_primary or ""))
    run(
        db,
        "SET auto_explain.log_min_duration = 0; SET auto_explain.log_nested_statements = on;"
        " SET auto_explain.log_analyze = on; SET auto_explain.log_format = json;"
        " SET client_min_messages = log",
    )
    run(db, change)
    run(db, "RESET client_min_messages")
    plans = [json.loads(text[text.index("{") :]) for text in logged if "plan:" in text]
    found = {plan["Query Text"]: most_rows(plan["Plan"]) for plan in plans}
    assert any("public.tokens" in text for text in found)
    assert {} == {text: rows for text, rows in found.items() if rows > 3 * users}
    ((ended_tokens,),) = run(db, "SELECT count(*) FROM tokens WHERE ended_at IS NOT NULL")
    assert isinstance(ended_tokens, int)
    assert ended_tokens >= users


@pytest.mark.slow
def test_a_change_of_more_users_than_one_part_has(db: Db) -> None:
    one = adopt_preset(db, "devise")
    users = 10_001
    run(db, f"INSERT INTO {one.table} (email) SELECT n || '@example.com' FROM generate_series(1, {users}) n")
    run(db, f"UPDATE {one.table} SET email = 'new' || email")
    assert [("address changed", users), (None, users)] == run(
        db, "SELECT ended_as, count(DISTINCT subject) FROM tokens GROUP BY 1 ORDER BY 1"
    )
    assert [(0,)] == run(
        db, "SELECT count(*) FROM tokens WHERE (ended_at IS NULL) <> (email ~ '^new') OR lane <> 'bulk'"
    )


WRITERS = 32
ROUNDS = 25


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_concurrent_writers_and_a_worker(db: Db, database: str, start: Start) -> None:
    one = adopt_preset(db, "django")
    worker = start(SEND_RATE=10_000)

    def write(number: int) -> None:
        chance = random.Random(number)
        with psycopg.connect(database, autocommit=True) as own:
            for _ in range(ROUNDS):
                sign_up(own, one.table, f"{number}.{chance.random()}@example.com")
                ids = [chance.randrange(1, WRITERS * ROUNDS) for _ in range(3)]
                assignments = chance.choice(
                    [f"email = '{number}.{chance.random()}@example.com'", one.confirmed]
                )
                with own.transaction():
                    run(own, f"UPDATE {one.table} SET {assignments} WHERE id = %s", ids[0])
                with own.transaction():
                    for _, secret in run(
                        own,
                        "SELECT id, secret FROM tokens WHERE action = 'activation' AND consumed_at IS NULL"
                        " AND subject = %s ORDER BY id DESC LIMIT 1",
                        str(ids[1]),
                    ):
                        run(own, "SELECT * FROM mailroom.consume(%s, 'activation')", secret)

    with ThreadPoolExecutor(WRITERS) as pool:
        assert [None] * WRITERS == list(pool.map(write, range(WRITERS)))
    wrong = run(
        db,
        f"""SELECT u.id, u.email, u.is_active, array_agg(t.email) FROM {one.table} u
            LEFT JOIN tokens t ON t.subject = u.id::text AND t.action = 'activation'
                AND t.ended_at IS NULL AND t.consumed_at IS NULL AND t.expires_at > clock_timestamp()
            GROUP BY u.id
            HAVING CASE WHEN u.is_active THEN count(t.id) <> 0
                        ELSE count(t.id) <> 1 OR min(t.email) <> u.email END""",
    )
    assert [] == wrong
    assert [(WRITERS * ROUNDS,)] == run(db, f"SELECT count(*) FROM {one.table}")
    assert worker.process.poll() is None
