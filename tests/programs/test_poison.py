"""No content of a row ends a worker, the collector or the pipe's sender: each token gets an outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as limits
from hypothesis import strategies as st

from mailroom.database.connection import Database
from mailroom.database.session import Session
from mailroom.demo.postgres import PostgresServer
from mailroom.inbox.faults import Fault
from mailroom.inbox.server import InboxServer
from mailroom.sender.rejected import FILE_NAME, read
from mailroom.templates import mails
from mailroom.wire import Message, encode
from support import commands, processes
from support.messages import decoded, message
from support.postgres import migrated
from support.processes import CollectorProcess
from support.queue_sql import Db, sign_up, sign_up_many
from support.runs import UNSETTLED, RunProcess, Start, wait_until
from support.senders import aws, environment
from support.smtp import mail_server

# A field of the action that nothing fills, for one user.
UNFILLED: Final = {
    "mailroom.templates.mails.fields": "lambda message, language, fill=mailroom.templates.mails.fields:"
    " {}['inviter'] if message.username == 'poison' else fill(message, language)"
}
# What the transport does not expect, for one user.
UNEXPECTED: Final = {
    "mailroom.transports.ses.request": "lambda *given, make=mailroom.transports.ses.request:"
    " 1 / 0 if 'poison' in str(given) else make(*given)"
}
IS_DEAD: Final = "SELECT mailroom.is_dead(%s)"
UNTRIED: Final = (
    "SELECT count(*) FROM tokens t WHERE NOT EXISTS"
    " (SELECT FROM mailroom.deliveries d WHERE d.token = t.id AND d.outcome IN ('sent', 'rejected'))"
)


def rejection(db: Db, token: int) -> str:
    wait_until(
        db, f"SELECT count(*) FROM mailroom.deliveries WHERE token = {token} AND outcome = 'rejected'", 1
    )
    row = db.execute(
        "SELECT detail FROM mailroom.deliveries WHERE token = %s AND outcome = 'rejected'", [token]
    ).fetchone()
    assert row
    return str(row[0])


def test_a_field_that_nothing_fills_is_that_tokens_rejection(db: Db, ses: InboxServer, start: Start) -> None:
    tokens = {login: sign_up(db, login) for login in ("zoe", "poison", "yan")}
    worker = start(constants=UNFILLED)
    assert "the mail cannot be prepared: KeyError: 'inviter'" == rejection(db, tokens["poison"])
    ses.wait_for(lambda inbox: inbox.counts.accepted == 2)
    wait_until(db, UNSETTLED, 0)
    dead = [token for token in tokens.values() if db.execute(IS_DEAD, [token]).fetchone() == (True,)]
    assert [tokens["poison"]] == dead
    assert 1 == worker.log().count("'inviter'")
    assert 0 == worker.stop()


def test_an_unexpected_error_of_the_transport_is_narrowed_down_to_its_mail(
    db: Db, ses: InboxServer, start: Start
) -> None:
    tokens = {login: sign_up(db, login) for login in ("zoe", "poison", "yan", "xia")}
    retries = {"mailroom.runner.delivery.RETRY_LIMIT": 2}
    worker = start(constants=UNEXPECTED | retries)
    assert "ZeroDivisionError" in rejection(db, tokens["poison"])
    ses.wait_for(lambda inbox: inbox.counts.accepted == 3)
    wait_until(db, UNSETTLED, 0)
    assert 0 == worker.stop()


@pytest.mark.slow
def test_a_reply_that_the_database_cannot_hold_is_recorded(
    own_server: PostgresServer, ses: InboxServer, tmp_path: Path
) -> None:
    """Not a row's content, but it would mail the row again and again."""
    with psycopg.connect(own_server.url(), autocommit=True) as admin:
        admin.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    url = migrated(own_server.url("latin"))
    words = "キーが\u00e9… " * 100
    ses.inbox.faults.add(Fault("status", recipient="u1@example.com", status="MessageRejected", message=words))
    variables = environment(tmp_path / "output", SEND_RATE=1000) | aws(ses.url)
    with (
        psycopg.connect(url, autocommit=True) as latin,
        RunProcess(processes.environment(url) | variables, tmp_path / "log") as worker,
    ):
        sign_up_many(latin, 2)
        wait_until(latin, UNTRIED, 0)
        assert (1, 1) == (ses.inbox.counts.accepted, ses.inbox.counts.refused)
        assert 0 == worker.stop()


def test_texts_that_no_database_holds_are_stored_without(database: str) -> None:
    async def stored() -> object:
        session = Session(Database(database, program="mailroom test", answer_limit_s=30))
        try:
            return await session.ask("SELECT %s::text, %s::text[]", ["a\0b…\ud800", ["c\0", "d"]])
        finally:
            await session.close()

    assert [("a?b…?", ["c?", "d"])] == asyncio.run(stored())


def test_the_pipes_sender_sets_it_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill = mails.fields

    def poisoned(one: Message, language: str) -> Mapping[str, str]:
        if one.username == "poison":
            raise KeyError("inviter")
        return fill(one, language)

    monkeypatch.setattr(mails, "fields", poisoned)
    batch = [message(1), message(2)._replace(username="poison"), message(3)]
    done = commands.run_bytes(
        "sender", env=environment(tmp_path, DEBUG="true", SEND_RATE=1000), stdin=encode(batch)
    )
    assert 75 == done.returncode, done.stderr
    ((_, row),) = read(tmp_path / FILE_NAME)
    assert ("rejected", [batch[1]]) == (row.outcome, decoded(row.line + b"\n"))
    assert "KeyError: 'inviter'" in row.reason


TEXTS: Final = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=300),
    st.sampled_from(
        [
            "",
            " ",
            "=?utf-8?q?=00?=",
            "\u202eevil\u202c",
            "\ufeff\u200b\u2028\u2029",
            "{{secret}}{{#each}}{{login_html}}",
            '","$(id)\\u0000"\\',
            "</script>&lt;&#0;",
            "a\r\nBcc: x@example.com",
            "\U0010ffff" * 200,
            "\u0301" * 1000,
            "x" * 2000,
            ".\r\n.",
        ]
    ),
)
DOMAINS: Final = st.one_of(
    st.just("example.com"), TEXTS, st.sampled_from(["xn--a", "faß.de", "b..c", "-.-", "[127.0.0.1]"])
)
ROWS: Final = st.lists(
    st.fixed_dictionaries(
        {
            "login": TEXTS,
            "local": TEXTS,
            "domain": DOMAINS,
            "code": st.sampled_from(["12345", "1234", "١٢٣٤٥", "", "12,45", None]),
            "secret": st.sampled_from([None, b"", b"short", b"long" * 20]),
        }
    ),
    min_size=10,
    max_size=40,
)


def without_checks(db: Db) -> None:
    """The tables as an owner might have changed them: everything that a type can hold."""
    found = db.execute(
        "SELECT conrelid::regclass::text, conname FROM pg_constraint"
        " WHERE contype = 'c' AND conrelid IN ('accounts'::regclass, 'tokens'::regclass)"
    ).fetchall()
    for table, name in found:
        db.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}".encode())
    for index in ("accounts_email_key", "accounts_login_key", "tokens_secret_key"):
        db.execute(f"DROP INDEX {index}".encode())
    db.execute("ALTER TABLE tokens ALTER COLUMN code DROP NOT NULL")
    # Many rows have the same address.
    db.execute("UPDATE mailroom.actions SET limit_mails = NULL, limit_within = NULL")


def insert(db: Db, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        email = f"{row['local']}@{row['domain']}"
        (account,) = db.execute(
            "INSERT INTO accounts (email, login, status) VALUES (%s, %s, 'active') RETURNING id",
            [email, row["login"]],
        ).fetchone() or (0,)
        given = {"action": "password_recovery", "account": account, "code": row["code"]}
        given |= {} if row["secret"] is None else {"secret": row["secret"]}
        values = ", ".join(["%s"] * len(given))
        db.execute(f"INSERT INTO tokens ({', '.join(given)}) VALUES ({values})".encode(), [*given.values()])


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["ses", "sesv2", "smtp"])
def test_each_row_has_an_outcome_whatever_it_holds(db: Db, start: Start, transport: str) -> None:
    without_checks(db)
    with mail_server() as server:
        address = f"smtp://127.0.0.1:{server.port}" if transport == "smtp" else transport
        worker = start(TRANSPORT=address)

        @limits(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
        @given(ROWS)
        def check(rows: list[dict[str, Any]]) -> None:
            insert(db, rows)
            wait_until(db, UNTRIED, 0)

        check()
        assert 0 == worker.stop()


@pytest.mark.slow
def test_the_collector_settles_each_row_whatever_it_holds(database: str, db: Db, tmp_path: Path) -> None:
    without_checks(db)
    with CollectorProcess(database, log=tmp_path / "log", LINE_FORMAT="json"):  # which carries no login

        @limits(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
        @given(ROWS)
        def check(rows: list[dict[str, Any]]) -> None:
            insert(db, rows)
            wait_until(db, UNSETTLED, 0)

        check()


def test_run_sends_others_beside_an_action_that_it_cannot_use(db: Db, ses: InboxServer, start: Start) -> None:
    db.execute("ALTER TYPE token_action ADD VALUE '../up'")
    db.execute("INSERT INTO mailroom.actions (action, number, prefix) VALUES ('../up', 30, '/up')")
    sign_up_many(db, 3)
    db.execute("INSERT INTO tokens (action, account) SELECT '../up', id FROM accounts")
    with start() as worker:
        ses.wait_for(lambda inbox: inbox.counts.accepted == 3)
        worker.wait_for_log("run.unknown_action")
        sign_up_many(db, 5, "v")
        ses.wait_for(lambda inbox: inbox.counts.accepted == 8)
        assert 0 == worker.stop()
    ((left,),) = db.execute(
        "SELECT count(*) FROM tokens t WHERE t.action = '../up'"
        " AND NOT EXISTS (SELECT FROM mailroom.deliveries d WHERE d.token = t.id AND d.outcome <> 'retried')"
    ).fetchall()
    assert 3 == left
