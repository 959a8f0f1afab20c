"""Adopted tables of frameworks: whatever a statement does to the users, they get the mails that fit them."""

from __future__ import annotations

from dataclasses import replace

import psycopg
import pytest

import mailroom
from support.adopting import (
    FRAMEWORKS,
    Db,
    Framework,
    adopt_preset,
    consume,
    ended,
    live,
    run,
    sign_up,
    tokens,
)


@pytest.fixture(params=FRAMEWORKS, ids=lambda one: one.preset)
def framework(request: pytest.FixtureRequest, db: Db) -> Framework:
    one: Framework = request.param
    return adopt_preset(db, one.preset)


@pytest.fixture
def suspending(request: pytest.FixtureRequest, framework: Framework) -> Framework:
    if framework.suspended is None:
        pytest.skip("the framework's table has no column for a suspension")
    return framework


def recover(db: Db, key: str) -> None:
    run(db, "SELECT mailroom.send('password_recovery', user_id => %s)", key)


def change(db: Db, table: str, key: str, assignments: str | None) -> None:
    run(db, f"UPDATE {table} SET {assignments} WHERE id::text = %s", key)


def test_a_new_pending_user_gets_an_activation(db: Db, framework: Framework) -> None:
    key = sign_up(db, framework.table, "a@example.com")
    assert [("activation", key, "a@example.com", None)] == tokens(db)


def test_each_row_of_a_statement_gets_one(db: Db, framework: Framework) -> None:
    run(db, f"INSERT INTO {framework.table} (email) SELECT n || '@example.com' FROM generate_series(1, 50) n")
    assert [(50, 50, "normal")] == run(
        db, "SELECT count(*), count(DISTINCT subject), min(lane::text) FROM tokens"
    )


def test_a_bulk_load_gets_them_in_the_bulk_lane(db: Db, framework: Framework) -> None:
    with db.cursor().copy(f"COPY {framework.table} (email) FROM STDIN".encode()) as copy:
        for n in range(25_000):
            copy.write_row([f"{n}@example.com"])
    assert [(25_000, 25_000, "bulk", "bulk")] == run(
        db, "SELECT count(*), count(DISTINCT subject), min(lane::text), max(lane::text) FROM tokens"
    )


def test_a_user_who_is_active_at_once_gets_none(db: Db, framework: Framework) -> None:
    columns, values = zip(*(one.split(" = ") for one in framework.confirmed.split(", ")), strict=True)
    run(
        db,
        f"INSERT INTO {framework.table} (email, {', '.join(columns)})"
        f" VALUES ('b@example.com', {', '.join(values)})",
    )
    assert [] == tokens(db)


def test_an_upsert_mails_the_new_ones_only(db: Db, framework: Framework) -> None:
    key = sign_up(db, framework.table, "a@example.com")
    for action in ("NOTHING", "UPDATE SET email = excluded.email"):
        run(
            db,
            f"INSERT INTO {framework.table} (id, email) SELECT id, email FROM {framework.table}"
            f" ON CONFLICT (id) DO {action}",
        )
    assert [("activation", key, "a@example.com", None)] == tokens(db)
    run(
        db,
        f"INSERT INTO {framework.table} (id, email) SELECT id, 'b@example.com' FROM {framework.table}"
        " ON CONFLICT (id) DO UPDATE SET email = excluded.email",
    )
    assert (["b@example.com"], ["address changed", None]) == (live(db, key), ended(db, key))


def test_merge_does_what_its_parts_do(db: Db, framework: Framework) -> None:
    if db.info.server_version < 150000:
        pytest.skip("MERGE is from PostgreSQL 15")
    first, second = (sign_up(db, framework.table, f"{name}@example.com") for name in "ab")
    run(
        db,
        f"""MERGE INTO {framework.table} u
            USING (VALUES ('a@example.com', 'a2@example.com'), ('b@example.com', NULL),
                         ('c@example.com', NULL)) AS n (email, becomes) ON u.email = n.email
            WHEN MATCHED AND n.becomes IS NULL THEN DELETE
            WHEN MATCHED THEN UPDATE SET email = n.becomes
            WHEN NOT MATCHED THEN INSERT (email) VALUES (n.email)""",
    )
    ((third,),) = run(db, f"SELECT id::text FROM {framework.table} WHERE email = 'c@example.com'")
    assert ["a2@example.com"] == live(db, first)
    assert ["user deleted"] == ended(db, second)
    assert ["c@example.com"] == live(db, str(third))


def test_what_is_rolled_back_leaves_nothing(db: Db, framework: Framework) -> None:
    with db.transaction():
        kept = sign_up(db, framework.table, "kept@example.com")
        with db.transaction(force_rollback=True):
            sign_up(db, framework.table, "undone@example.com")
            change(db, framework.table, kept, "email = 'other@example.com'")
        assert ["kept@example.com"] == live(db, kept)
    with db.transaction(force_rollback=True):
        sign_up(db, framework.table, "undone@example.com")
    assert [("activation", kept, "kept@example.com", None)] == tokens(db)


def test_a_pending_user_whose_address_changes_gets_a_new_mail(db: Db, framework: Framework) -> None:
    key = sign_up(db, framework.table, "old@example.com")
    ((old,),) = run(db, "SELECT secret FROM tokens")
    change(db, framework.table, key, "email = 'new@example.com'")
    assert ["new@example.com"] == live(db, key)
    assert [("expired",)] == run(db, "SELECT outcome FROM mailroom.consume(%s, 'activation')", old)
    assert ("consumed", key) == consume(db, key)


def test_an_active_users_new_address_ends_the_recovery_and_no_notice(db: Db, framework: Framework) -> None:
    run(db, "ALTER TYPE token_action ADD VALUE 'password_changed'")
    run(
        db,
        "INSERT INTO mailroom.actions (action, number, prefix, account_status, has_link)"
        " VALUES ('password_changed', 9, '/changed', 'active', false)",
    )
    key = sign_up(db, framework.table, "old@example.com")
    assert ("consumed", key) == consume(db, key)
    recover(db, key)
    run(db, "SELECT mailroom.send('password_changed', user_id => %s)", key)
    change(db, framework.table, key, "email = 'new@example.com'")
    assert [
        ("activation", key, "old@example.com", None),
        ("password_recovery", key, "old@example.com", "address changed"),
        ("password_changed", key, "old@example.com", None),
    ] == tokens(db)


def test_a_confirmation_by_other_means_ends_the_activation(db: Db, framework: Framework) -> None:
    key = sign_up(db, framework.table, "a@example.com")
    change(db, framework.table, key, framework.confirmed)
    assert ["activated"] == ended(db, key)
    assert ("expired", None) == consume(db, key)


def test_a_suspension_ends_what_is_open_and_the_return_renews_it(db: Db, suspending: Framework) -> None:
    key = sign_up(db, suspending.table, "a@example.com")
    change(db, suspending.table, key, suspending.suspended)
    assert ["suspended"] == ended(db, key)
    assert ("expired", None) == consume(db, key)
    change(db, suspending.table, key, "email = 'b@example.com'")
    assert [] == live(db, key)
    change(db, suspending.table, key, suspending.returned)
    assert ["b@example.com"] == live(db, key)
    assert ("consumed", key) == consume(db, key)


def test_a_suspended_active_user_gets_no_recovery(db: Db, suspending: Framework) -> None:
    key = sign_up(db, suspending.table, "a@example.com")
    change(db, suspending.table, key, suspending.confirmed)
    recover(db, key)
    change(db, suspending.table, key, suspending.suspended)
    recover(db, key)
    assert ["activated", "suspended", "suspended"] == ended(db, key)


def test_a_soft_deletion_ends_everything(db: Db, framework: Framework) -> None:
    if framework.deleted_softly is None:
        pytest.skip("the framework's table has no column for it")
    key = sign_up(db, framework.table, "a@example.com")
    change(db, framework.table, key, framework.deleted_softly)
    assert ["suspended"] == ended(db, key)


@pytest.mark.parametrize("statement", ["DELETE FROM {}", "TRUNCATE {}", "TRUNCATE {} CASCADE"])
def test_a_deletion_ends_everything(db: Db, framework: Framework, statement: str) -> None:
    key = sign_up(db, framework.table, "a@example.com")
    ((secret,),) = run(db, "SELECT secret FROM tokens")
    run(db, statement.format(framework.table))
    assert ["user deleted"] == ended(db, key)
    assert [("unknown",)] == run(db, "SELECT outcome FROM mailroom.consume(%s, 'activation')", secret)


def test_a_changed_key_ends_what_names_the_old_one(db: Db, framework: Framework) -> None:
    key = sign_up(db, framework.table, "a@example.com")
    new = "gen_random_uuid()" if "-" in key else "id + 1000"
    change(db, framework.table, key, f"id = {new}")
    assert ["user deleted"] == ended(db, key)


def test_consuming_runs_the_assignments_in_the_same_transaction(db: Db, framework: Framework) -> None:
    key = sign_up(db, framework.table, "a@example.com")
    active = f"SELECT {framework.is_active} FROM {framework.table}"
    with db.transaction(force_rollback=True):
        assert ("consumed", key) == consume(db, key)
        assert [(True,)] == run(db, active)
    assert [(False,)] == run(db, active)
    assert ("consumed", key) == consume(db, key)
    assert [(True,)] == run(db, active)
    assert ("used", None) == consume(db, key)


def test_a_recovery_needs_its_code_and_ends_after_five_wrong_ones(db: Db, framework: Framework) -> None:
    key = sign_up(db, framework.table, "a@example.com")
    change(db, framework.table, key, framework.confirmed)
    for _ in range(2):
        recover(db, key)
    assert ("wrong_code", None) == consume(db, key, "password_recovery", "wrong")
    ((code,),) = run(db, "SELECT code FROM tokens ORDER BY id DESC LIMIT 1")
    assert ("consumed", key) == consume(db, key, "password_recovery", str(code))
    assert ["activated", "sibling consumed", None] == ended(db, key)
    recover(db, key)
    outcomes = [consume(db, key, "password_recovery", "wrong")[0] for _ in range(6)]
    assert ["wrong_code"] * 4 + ["exhausted"] * 2 == outcomes


def test_a_code_alone_is_consumed_for_the_user(db: Db, framework: Framework) -> None:
    run(db, "UPDATE mailroom.actions SET has_link = false WHERE action = 'password_recovery'")
    key, other = (sign_up(db, framework.table, f"{name}@example.com") for name in "ab")
    run(db, f"UPDATE {framework.table} SET {framework.confirmed}")
    recover(db, key)
    ((code,),) = run(db, "SELECT code FROM tokens ORDER BY id DESC LIMIT 1")
    query = "SELECT outcome, subject FROM mailroom.consume_code('password_recovery', %s, p_user_id => %s)"
    assert [("unknown", None)] == run(db, query, code, other)
    assert [("wrong_code", None)] == run(db, query, "wrong", key)
    spelling = key.upper() if "-" in key else f"0{key}"
    assert [("unknown", None)] == run(db, query, code, spelling)
    assert [("consumed", key)] == run(db, query, code, key)
    assert [("used", None)] == run(db, query, code, key)


def test_a_new_mail_grants_no_more_tries(db: Db, framework: Framework) -> None:
    run(db, "UPDATE mailroom.actions SET has_link = false WHERE action = 'password_recovery'")
    key = sign_up(db, framework.table, "a@example.com")
    run(db, f"UPDATE {framework.table} SET {framework.confirmed}")
    query = "SELECT outcome FROM mailroom.consume_code('password_recovery', %s, p_user_id => %s)"
    recover(db, key)
    assert [[("wrong_code",)]] * 4 == [run(db, query, "wrong", key) for _ in range(4)]
    recover(db, key)
    ((code,),) = run(db, "SELECT code FROM tokens ORDER BY id DESC LIMIT 1")
    assert [("exhausted",)] == run(db, query, "wrong", key)
    assert [("exhausted",)] == run(db, query, code, key)


def test_a_code_alone_is_consumed_for_the_user_in_python(db: Db, framework: Framework) -> None:
    run(db, "UPDATE mailroom.actions SET has_link = false WHERE action = 'password_recovery'")
    action = replace(mailroom.load_actions()["password_recovery"], has_link=False)
    key = sign_up(db, framework.table, "a@example.com")
    run(db, f"UPDATE {framework.table} SET {framework.confirmed}")
    recover(db, key)
    ((code,),) = run(db, "SELECT code FROM tokens ORDER BY id DESC LIMIT 1")
    consumed = mailroom.consume_code(db, str(code), action, user_id=key, user_table=framework.table)
    assert (key, "password_recovery") == (consumed.subject, consumed.action)
    assert consumed.user_table in {framework.table, f"public.{framework.table}"}


def test_a_mail_for_nobody_is_an_error(db: Db, framework: Framework) -> None:
    nobody = "00000000-0000-4000-8000-000000000000" if framework.table in {"auth.users", '"user"'} else "99"
    for key in (nobody, "abc", "", "9" * 30, "a\x1bb"):
        with pytest.raises(psycopg.errors.ForeignKeyViolation, match="has no user"):
            recover(db, key)
        assert [("unknown",)] == run(
            db, "SELECT outcome FROM mailroom.consume_code('password_recovery', '1', p_user_id => %s)", key
        )


def test_users_from_before_get_no_mail(db: Db, framework: Framework) -> None:
    run(db, f"ALTER TABLE {framework.table} DISABLE TRIGGER USER")
    key = sign_up(db, framework.table, "before@example.com")
    run(db, f"ALTER TABLE {framework.table} ENABLE TRIGGER USER")
    change(db, framework.table, key, "email = 'changed@example.com'")
    for assignments in filter(None, (framework.suspended, framework.returned)):
        change(db, framework.table, key, assignments)
    assert [] == tokens(db)


def test_several_tables_are_told_apart(db: Db) -> None:
    devise, fastapi = adopt_preset(db, "devise"), adopt_preset(db, "fastapi-users")
    key = sign_up(db, devise.table, "a@example.com")
    other = sign_up(db, fastapi.table, "a@example.com")
    run(db, f"UPDATE {devise.table} SET {devise.confirmed}")
    assert (["activated"], [None]) == (ended(db, key), ended(db, other))
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="one of several tables"):
        recover(db, key)
    run(db, "SELECT mailroom.send('password_recovery', user_id => %s, user_table => 'users')", key)
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="tokens is not adopted"):
        run(db, "SELECT mailroom.send('password_recovery', user_id => %s, user_table => 'tokens')", key)
    assert [("activation", key), ("activation", other), ("password_recovery", key)] == [
        row[:2] for row in tokens(db)
    ]
