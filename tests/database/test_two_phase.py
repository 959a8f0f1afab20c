"""Two-phase commit: what PostgreSQL refuses to prepare, and what is sent of what it prepared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from mailroom.demo.postgres import PostgresServer
from support import commands
from support.postgres import DURABLE, copy_of
from support.processes import CollectorProcess, environment
from support.queue_sql import Db, sign_up
from support.runs import wait_until

SLEEPS = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND granted"
    " AND (classid::bigint << 32 | objid::bigint) = mailroom.sleep_lock('token_insert')"
)


@pytest.fixture
def server(cluster: PostgresServer) -> Iterator[PostgresServer]:
    """A server that can prepare transactions."""
    with copy_of(cluster, DURABLE | {"max_prepared_transactions": "10"}) as one:
        yield one


@pytest.fixture
def db(server: PostgresServer) -> Iterator[Db]:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        yield connection


def prepare(db: Db, login: str) -> None:
    db.execute("BEGIN")
    sign_up(db, login)
    db.execute("PREPARE TRANSACTION 'sign-up'")


@pytest.mark.slow
def test_postgresql_refuses_it_while_all_workers_are_idle(
    server: PostgresServer, db: Db, tmp_path: Path
) -> None:
    with CollectorProcess(server.url(), log=tmp_path / "log", BATCH_TIMEOUT=0) as collector:
        wait_until(db, SLEEPS, 1)
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="NOTIFY"):
            prepare(db, "idle")
        sign_up(db, "ordinary")
        assert ["ordinary"] == [message.username for message in collector.wait_for_messages(1)]
        assert 0 == collector.stop()
    assert [(1,)] == db.execute("SELECT count(*) FROM accounts").fetchall()


def test_what_could_be_prepared_is_sent_once_it_is_committed(
    server: PostgresServer, db: Db, tmp_path: Path
) -> None:
    prepare(db, "prepared")
    with CollectorProcess(server.url(), log=tmp_path / "log", BATCH_TIMEOUT=0) as collector:
        sign_up(db, "other")
        assert ["other"] == [message.username for message in collector.wait_for_messages(1)]
        assert [(0,)] == db.execute(SLEEPS).fetchall()
        db.execute("COMMIT PREPARED 'sign-up'")
        assert ["other", "prepared"] == [message.username for message in collector.wait_for_messages(2)]
        wait_until(db, SLEEPS, 1)
        assert 0 == collector.stop()


def test_doctor_says_what_to_do_instead(server: PostgresServer) -> None:
    done = commands.run("doctor", env=environment(server.url()))
    assert "max_prepared_transactions is 10" in done.stdout
    assert "after COMMIT PREPARED" in done.stdout
