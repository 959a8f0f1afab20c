"""Lanes: urgent mail first, a tenth for each lower lane, and an exact cursor for each of them."""

from __future__ import annotations

import psycopg
import pytest

from support.queue_sql import Db, claim, claimed_tokens, expire_leases, next_due, sign_up, sign_up_many
from support.runs import ledger

OF_A_CLAIM = "SELECT lane, unnest(actions) FROM mailroom.claim('w', %s, 1000, 60000)"


def active(db: Db, count: int) -> list[int]:
    """Insert accounts that may ask for a recovery; returns their ids."""
    rows = db.execute(
        "INSERT INTO accounts (email, login, status) SELECT 'a' || g || '@example.com', 'a' || g, 'active'"
        " FROM generate_series(1, %s) g RETURNING id",
        [count],
    ).fetchall()
    return [row[0] for row in rows]


def recover(db: Db, accounts: list[int], lane: str | None = "urgent") -> list[int]:
    rows = db.execute(
        "INSERT INTO tokens (action, account, lane) SELECT 'password_recovery', a, %s::mailroom.lane"
        " FROM unnest(%s::bigint[]) a RETURNING id",
        [lane, accounts],
    ).fetchall()
    return [row[0] for row in rows]


def lanes_of(db: Db, tokens: list[int]) -> list[str]:
    rows = db.execute(
        "SELECT t.lane::text FROM tokens t JOIN unnest(%s::bigint[]) WITH ORDINALITY u (id, n) USING (id)"
        " ORDER BY u.n",
        [tokens],
    ).fetchall()
    return [row[0] for row in rows]


def test_what_is_urgent_comes_first_whatever_waits(db: Db) -> None:
    sign_up_many(db, 500)
    single = sign_up(db, "single")
    recovery = recover(db, active(db, 1), None)
    first = claimed_tokens(db, 5)
    assert [*recovery, single] == first[:2]
    assert ["urgent", "normal", "bulk", "bulk", "bulk"] == lanes_of(db, first)


def test_a_statement_of_more_than_fifty_rows_is_bulk(db: Db) -> None:
    accounts = active(db, 51)
    assert {"urgent"} == set(lanes_of(db, recover(db, accounts[:50], None)))
    assert ["urgent"] * 50 + ["bulk"] == lanes_of(db, recover(db, accounts, None))
    sign_up_many(db, 50, "few")
    sign_up_many(db, 51, "many")
    rows = db.execute(
        "SELECT left(login, 3), lane::text, count(*) FROM tokens WHERE action = 'activation' GROUP BY 1, 2"
    ).fetchall()
    assert {("few", "normal", 50), ("man", "bulk", 51)} == set(rows)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10, 33, 100, 1000])
def test_each_lower_lane_keeps_a_tenth(db: Db, size: int) -> None:
    """However small the claims are, and while what is urgent does not end."""
    accounts = active(db, 3000)
    recover(db, accounts[:1500])
    recover(db, accounts[1500:], "normal")
    sign_up_many(db, 1500)
    handed: list[str] = []
    while len(handed) < 1000:
        tokens = claimed_tokens(db, size)
        assert size == len(tokens)
        handed += lanes_of(db, tokens)
    share = {lane: handed.count(lane) / len(handed) for lane in ("urgent", "normal", "bulk")}
    assert share == pytest.approx({"urgent": 0.8, "normal": 0.1, "bulk": 0.1}, abs=0.01)


def test_what_a_lower_lane_is_owed_is_handed_out_as_urgent(db: Db) -> None:
    recover(db, active(db, 100))
    sign_up_many(db, 100)
    rows = db.execute(OF_A_CLAIM, [20]).fetchall()
    assert 2 == rows.count(("urgent", "activation"))
    assert 18 == rows.count(("urgent", "password_recovery"))
    rows = db.execute(OF_A_CLAIM, [1000]).fetchall()  # nothing urgent is left behind: bulk is bulk
    assert 82 == rows.count(("urgent", "password_recovery"))
    assert 98 == len([row for row in rows if row[1] == "activation"])
    assert {"bulk"} == {lane for lane, action in rows if action == "activation"} - {"urgent"}


def test_what_nobody_competes_with_has_its_own_lane(db: Db) -> None:
    sign_up_many(db, 100)
    assert {("bulk", "activation")} == set(db.execute(OF_A_CLAIM, [50]).fetchall())
    sign_up(db, "single")
    assert ("normal", "activation") in db.execute(OF_A_CLAIM, [10]).fetchall()


def test_an_empty_lane_is_owed_nothing(db: Db) -> None:
    recover(db, active(db, 100))
    for _ in range(20):
        assert ["urgent", "urgent"] == lanes_of(db, claimed_tokens(db, 2))
    sign_up_many(db, 100)
    handed = [lane for _ in range(10) for lane in lanes_of(db, claimed_tokens(db, 2))]
    assert handed.count("bulk") <= 3


def test_a_due_lease_of_a_lower_lane_waits_for_urgent_tokens(db: Db) -> None:
    sign_up_many(db, 60)
    claim(db)
    expire_leases(db)
    recovery = recover(db, active(db, 5))
    first, *rest = [lease.tokens for lease in claim(db, 5)]
    assert set(recovery) == set(first)
    assert [] == rest
    assert 60 == len(claimed_tokens(db))


def test_late_commits_of_each_lane_are_found(database: str, db: Db) -> None:
    accounts = active(db, 3)
    with psycopg.connect(database) as late:
        tokens = [recover(late, [account], lane)[0] for account, lane in zip(accounts, LANES, strict=True)]
        claimed_tokens(db)
        sign_up(db, "meanwhile")
        sign_up_many(db, 60)
        assert 61 == len(claimed_tokens(db))
        late.commit()
    assert tokens == claimed_tokens(db)
    assert [] == claimed_tokens(db)
    assert next_due(db) is not None


LANES = ("urgent", "normal", "bulk")


def test_the_lane_of_a_token_cannot_be_changed(db: Db) -> None:
    """Its cursor may have passed it, and another one not yet."""
    token = sign_up(db, "zoe")
    claimed_tokens(db)
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="the lane of a token"):
        db.execute("UPDATE tokens SET lane = 'urgent' WHERE id = %s", [token])
    db.execute("UPDATE tokens SET lane = 'normal' WHERE id = %s", [token])
    assert [] == claimed_tokens(db)


def test_a_lost_cursor_of_a_lane_is_an_error(db: Db) -> None:
    db.execute("DELETE FROM mailroom.cursors WHERE lane = 'bulk'")
    with pytest.raises(psycopg.errors.NoDataFound, match="the table cursors has lost a row"):
        claim(db)


def test_a_restore_takes_over_each_lane(db: Db) -> None:
    tokens = [recover(db, [account], lane)[0] for account, lane in zip(active(db, 3), LANES, strict=True)]
    sent = sign_up(db, "sent")
    db.execute("INSERT INTO mailroom.deliveries (token, attempt, outcome) VALUES (%s, 1, 'sent')", [sent])
    db.execute("UPDATE jobs SET system_identifier = 1")
    assert tokens == claimed_tokens(db)
    assert [("sent",)] == ledger(db, "outcome")


def test_an_idle_claim_looks_at_few_pages(db: Db) -> None:
    sign_up_many(db, 2000)
    claimed_tokens(db, 5000)
    found = []
    for _ in range(4):
        ((answer,),) = db.execute(
            "EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON)"
            " SELECT * FROM mailroom.claim('w', 10, 10, 1000)"
        ).fetchall()
        plan = answer[0]["Plan"]
        found.append(int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]))
    assert min(found) < 100
