"""Adopted tables: an application's own users get their mails."""

from __future__ import annotations

import psycopg
import pytest

from mailroom.operations import adoption
from mailroom.operations.adoption import Wish

Db = psycopg.Connection

DEVISE = """
CREATE TABLE users (
    id bigserial PRIMARY KEY, email varchar DEFAULT '' NOT NULL UNIQUE,
    encrypted_password varchar DEFAULT '' NOT NULL,
    confirmed_at timestamp, confirmation_sent_at timestamp, locale varchar,
    created_at timestamp DEFAULT now() NOT NULL, updated_at timestamp DEFAULT now() NOT NULL)
"""


def adopt(db: Db, table: str, wish: Wish) -> None:
    adoption.apply(db, adoption.plan(db, table, wish))


def tokens(db: Db) -> list[tuple[object, ...]]:
    return db.execute(
        "SELECT action::text, subject, email, locale, ended_as FROM tokens ORDER BY id"
    ).fetchall()


@pytest.fixture
def devise(db: Db) -> Db:
    db.execute(DEVISE)
    db.execute("INSERT INTO users (email) VALUES ('before@example.com')")
    _, wish = adoption.PRESETS["devise"]
    adopt(db, "users", Wish(locale="locale").over(wish))
    return db


def test_a_new_pending_user_gets_an_activation(devise: Db) -> None:
    devise.execute("INSERT INTO users (email, locale) VALUES ('a@example.com', 'de')")
    devise.execute("INSERT INTO users (email, confirmed_at) VALUES ('b@example.com', now())")
    assert [("activation", "2", "a@example.com", "de", None)] == tokens(devise)


def test_consuming_it_runs_the_assignments(devise: Db) -> None:
    devise.execute("INSERT INTO users (email) VALUES ('a@example.com')")
    ((secret,),) = devise.execute("SELECT secret FROM tokens").fetchall()
    consumed = devise.execute(
        "SELECT outcome, subject FROM mailroom.consume(%s, 'activation')", [secret]
    ).fetchone()
    assert ("consumed", "2") == consumed
    assert [(False,)] == devise.execute("SELECT confirmed_at IS NULL FROM users WHERE id = 2").fetchall()
