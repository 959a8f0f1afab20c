"""What cannot heal by waiting is told at the start, with the remedy, and exit code 78."""

from __future__ import annotations

import secrets
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from conftest import database_of
from mailroom.demo.postgres import PostgresServer
from support import commands
from support.postgres import migrated
from support.processes import CollectorProcess, environment
from support.queue_sql import Db, claimed_tokens, sign_up


def refused(url: str, *, command: str = "collector", **variables: str | int) -> str:
    """Start a collector that has to give up at once; what it says."""
    done = commands.run(command, env=environment(url, **variables))
    assert (78, "") == (done.returncode, done.stdout)
    assert "Error: " in done.stderr
    assert "Try: " in done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_no_such_database(database: str) -> None:
    assert 'database "nowhere" does not exist' in refused(make_conninfo(database, dbname="nowhere"))


def test_no_such_role(database: str) -> None:
    message = refused(make_conninfo(database, user="nobody_here"))
    assert "nobody_here" in message


def test_migrations_missing(empty_database: str) -> None:
    assert "run `mailroom migrate up`" in refused(empty_database)


def test_an_older_schema(empty_database: str) -> None:
    from mailroom.database import migrate, sync

    with sync.connected(empty_database) as connection:
        migrate.up(connection, 1, lambda _: None)
    assert "run `mailroom migrate up`" in refused(empty_database)


def test_a_newer_schema(database: str, db: Db) -> None:
    db.execute("CREATE OR REPLACE FUNCTION mailroom.schema_version() RETURNS integer LANGUAGE sql RETURN 999")
    assert "this Mailroom is older than the schema" in refused(database)


def test_a_worker_that_may_not_use_the_schema_public_starts(database: str, db: Db, tmp_path: Path) -> None:
    """The functions run as their owner, so a worker needs nothing of the tables."""
    role = f"worker_{secrets.token_hex(4)}"
    db.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'acme'".encode())
    db.execute(f"GRANT USAGE ON SCHEMA mailroom TO {role}".encode())
    db.execute(f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA mailroom TO {role}".encode())
    db.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    try:
        sign_up(db, "zoe")
        url = make_conninfo(database, user=role, password="acme")
        with CollectorProcess(url, log=tmp_path / "log") as collector:
            assert "zoe" == collector.wait_for_messages(1)[0].username
    finally:
        db.execute(f"DROP OWNED BY {role}".encode())
        db.execute(f"DROP ROLE {role}".encode())


@pytest.mark.parametrize("txid", ["4000000000", "3"])
def test_rows_that_were_restored_without_the_cursor(database: str, db: Db, txid: str) -> None:
    """As pg_restore --data-only --disable-triggers leaves them in a cluster with younger or older ids."""
    sent, waiting, held = (sign_up(db, login) for login in ("sent", "waiting", "held"))
    db.execute("INSERT INTO mailroom.deliveries (token, attempt, outcome) VALUES (%s, 1, 'sent')", [sent])
    db.execute(
        "INSERT INTO mailroom.leases (lane, tokens, worker, generation, due_at)"
        " VALUES ('normal', ARRAY[%s::bigint], 'w', 1, now() + interval '1 hour')",
        [held],
    )
    db.execute("UPDATE tokens SET txid = %s", [txid])
    message = refused(database)
    assert "the database was restored without the queue's cursor" in message
    assert "SELECT mailroom.take_over()" in message
    db.execute("SELECT mailroom.take_over()")
    assert [(0, 0)] == db.execute("SELECT unreachable, repeated FROM mailroom.misplaced_tokens()").fetchall()
    assert [waiting] == claimed_tokens(db)
    new = sign_up(db, "new")
    assert [new] == claimed_tokens(db)


def test_a_failover_that_lost_a_claim_is_no_restore(db: Db) -> None:
    """The worker's answer came before the token is claimed again, which another worker may do."""
    claimed_tokens(db)  # the cursor has moved
    waiting = [sign_up(db, login) for login in ("first", "second")]
    (handed,) = claimed_tokens(db, 1)  # leaves the window open behind it
    (lost,) = set(waiting) - {handed}
    db.execute("INSERT INTO mailroom.deliveries (token, attempt, outcome) VALUES (%s, 1, 'sent')", [lost])
    assert [(0, 0)] == db.execute("SELECT unreachable, repeated FROM mailroom.misplaced_tokens()").fetchall()


def test_another_queue(database: str) -> None:
    message = refused(database, QUEUE_NAME="letters")
    assert "MAILROOM_QUEUE_NAME: a database has one queue, called mailroom, not 'letters'" in message


def test_a_channel_that_no_trigger_rings(database: str) -> None:
    message = refused(database, CHANNEL_NAME="tokens")
    assert "MAILROOM_CHANNEL_NAME: no trigger notifies 'tokens'" in message
    assert "'token_insert'" in message


def test_a_disabled_trigger(database: str, db: Db) -> None:
    db.execute("ALTER TABLE tokens DISABLE TRIGGER tokens_ring")
    assert "MAILROOM_CHANNEL_NAME: no trigger notifies 'token_insert'" in refused(database)


def test_a_channel_of_ones_own(database: str, db: Db) -> None:
    db.execute("DROP TRIGGER tokens_ring ON tokens")
    db.execute(
        "CREATE TRIGGER tokens_ring AFTER INSERT ON tokens REFERENCING NEW TABLE AS inserted"
        " FOR EACH STATEMENT EXECUTE FUNCTION mailroom.ring('Post!')"
    )
    assert "'Post!'" in refused(database)
    with psycopg.connect(database, autocommit=True) as listener:
        listener.execute('LISTEN "Post!"')
        listener.execute("SELECT pg_advisory_lock(mailroom.sleep_lock('Post!'))")
        db.execute("INSERT INTO accounts (email, login) VALUES ('a@b', 'a')")
        assert ["1"] == [note.payload for note in listener.notifies(timeout=30, stop_after=1)]


def test_a_role_without_privileges(database: str, db: Db) -> None:
    db.execute("DROP ROLE IF EXISTS mailroom_stranger")
    db.execute("CREATE ROLE mailroom_stranger LOGIN PASSWORD 'stranger'")
    try:
        message = refused(make_conninfo(database, user="mailroom_stranger", password="stranger"))
        assert "permission denied" in message
        assert "GRANT" in message
    finally:
        db.execute("DROP ROLE mailroom_stranger")


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_other_encodings(server_url: str, encoding: str, tmp_path: Path) -> None:
    name = f"mailroom_{encoding.lower()}_{secrets.token_hex(4)}"
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'".encode())
        try:
            url = database_of(server_url, name)
            if encoding == "SQL_ASCII":
                assert "the database has no encoding (SQL_ASCII)" in refused(url)
                return
            migrated(url)
            with psycopg.connect(url, autocommit=True) as db:
                sign_up(db, "zoë")
                with pytest.raises(psycopg.errors.CheckViolation):
                    sign_up(db, "\x85")
            with CollectorProcess(url, log=tmp_path / "log") as collector:
                assert "zoë" == collector.wait_for_messages(1)[0].username
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def test_an_option_that_libpq_does_not_know(database: str) -> None:
    assert "MAILROOM_DATABASE_URL" in refused(database + " sslmode=perhaps")
    assert "MAILROOM_DATABASE_URL" in refused(database + " port=1,2")
    assert "MAILROOM_DATABASE_URL" in refused("service=nowhere")


def test_a_wrong_password(own_server: PostgresServer) -> None:
    with psycopg.connect(own_server.url(), autocommit=True) as connection:
        connection.execute("CREATE ROLE guarded LOGIN PASSWORD 'right'")
    url = make_conninfo(own_server.url(), user="guarded", password="")
    for address, words in (
        (make_conninfo(url, password="wrong"), "password authentication failed"),
        (url, "no password supplied"),
    ):
        for command in ("collector", "run"):
            message = refused(
                address, command=command, TRANSPORT="debug", APP_NAME="A", APP_URL="https://a.b"
            )
            assert words in message
            assert "password" in message.split("Try:")[1]
            assert "leases_not_released" not in message  # nothing was claimed
