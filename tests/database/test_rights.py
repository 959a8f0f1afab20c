"""Nothing in the schema lends its owner's rights to a role that was granted none."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from support.queue_sql import Db, sign_up

TRIGGER_FUNCTIONS = ("issue_activation", "after_consumption", "ring")


@pytest.fixture
def role(db: Db) -> Iterator[str]:
    """A plain role, as which the connection ``db`` may act."""
    name = f"mailroom_plain_{secrets.token_hex(4)}"
    db.execute(f"CREATE ROLE {name}".encode())
    db.execute(f"GRANT USAGE ON SCHEMA mailroom TO {name}".encode())
    yield name
    db.execute(b"RESET ROLE")
    db.execute(f"REASSIGN OWNED BY {name} TO CURRENT_USER".encode())
    db.execute(f"DROP OWNED BY {name}".encode())
    db.execute(f"DROP ROLE {name}".encode())


def test_nothing_that_runs_with_its_owners_rights_is_anybodys(db: Db) -> None:
    everybodys = db.execute(
        "SELECT p.oid::regprocedure::text FROM pg_proc p"
        " WHERE p.pronamespace = 'mailroom'::regnamespace AND p.prosecdef AND EXISTS ("
        "  SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) WHERE grantee = 0)"
    ).fetchall()
    assert [] == everybodys


@pytest.mark.parametrize("function", TRIGGER_FUNCTIONS)
def test_a_trigger_function_cannot_be_borrowed(db: Db, role: str, function: str) -> None:
    db.execute(f"SET ROLE {role}".encode())
    db.execute("CREATE TEMP TABLE theirs (id bigint, status public.account_status, txid xid8)")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match=rf"function mailroom\.{function}$"):
        db.execute(
            sql.SQL(
                "CREATE TRIGGER borrowed AFTER INSERT ON theirs FOR EACH STATEMENT EXECUTE FUNCTION {}()"
            ).format(sql.Identifier("mailroom", function))
        )


@pytest.mark.parametrize("owns", [False, True])
def test_any_role_that_may_write_the_tables_fires_their_triggers(db: Db, role: str, owns: bool) -> None:
    for table in ("accounts", "tokens"):
        db.execute(f"GRANT SELECT, INSERT, UPDATE ON {table} TO {role}".encode())
        if owns:
            db.execute(f"GRANT CREATE ON SCHEMA public TO {role}".encode())
            db.execute(f"ALTER TABLE {table} OWNER TO {role}".encode())
    db.execute(f"SET ROLE {role}".encode())
    token = sign_up(db, "zoe")
    db.execute("INSERT INTO tokens (action, account) SELECT 'activation', id FROM accounts")
    db.execute("UPDATE tokens SET consumed_at = clock_timestamp() WHERE id = %s", [token])
    db.execute("RESET ROLE")
    assert [("active",)] == db.execute("SELECT status::text FROM accounts").fetchall()
    assert [(2, 1)] == db.execute(
        "SELECT count(*), count(*) FILTER (WHERE expires_at > clock_timestamp()) FROM tokens"
    ).fetchall()
