"""The functions of docs/how-to/consuming-a-token.md keep a transaction, and count a wrong code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy.orm import Session

import mailroom
from database.test_consumption import recovery, wrong
from database.test_sqlalchemy import engine, wrong_codes
from support.processes import KEY

Db = psycopg.Connection[Any]
GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "consuming-a-token.md"


@pytest.fixture
def guide(db: Db) -> dict[str, Any]:
    db.execute("CREATE TABLE passwords (account bigint, hash text)")
    names: dict[str, Any] = {"KEYS": KEY}
    for code in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL):
        exec(code, names)  # noqa: S102 - it is our own
    return names


@pytest.mark.parametrize("autocommit", [True, False])
def test_with_psycopg(database: str, db: Db, guide: dict[str, Any], autocommit: bool) -> None:
    sent = recovery(db)
    db.execute("INSERT INTO passwords VALUES (%s, 'old')", [sent.account])
    with psycopg.connect(database, autocommit=autocommit) as connection:
        with pytest.raises(mailroom.WrongCode):
            guide["recover"](connection, sent.token, wrong(sent.code), "new")
        assert (1, [("old",)]) == (wrong_codes(db, sent), db.execute("SELECT hash FROM passwords").fetchall())
        assert sent.account == guide["recover"](connection, sent.token, sent.code, "new")
        assert [("new",)] == db.execute("SELECT hash FROM passwords").fetchall()


def test_with_sqlalchemy(database: str, db: Db, guide: dict[str, Any]) -> None:
    sent = recovery(db)
    db.execute("INSERT INTO passwords VALUES (%s, 'old')", [sent.account])
    with engine(database) as made:
        with pytest.raises(mailroom.WrongCode), Session(made) as session, session.begin():
            guide["recover_in"](session, sent.token, wrong(sent.code), "new")
        assert (1, [("old",)]) == (wrong_codes(db, sent), db.execute("SELECT hash FROM passwords").fetchall())
        with Session(made) as session, session.begin():
            assert sent.account == guide["recover_in"](session, sent.token, sent.code, "new")
    assert [("new",)] == db.execute("SELECT hash FROM passwords").fetchall()
