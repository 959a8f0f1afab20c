"""Limits for one recipient, and the newest of several that wait."""

from __future__ import annotations

import re
import threading
from collections import Counter
from typing import Any

import psycopg

from support import commands
from support.processes import environment
from support.queue_sql import Db, claim, claimed_tokens, expire_leases, record, settle, sign_up, sign_up_many
from support.runs import ledger

LIMIT = 5


def value(db: Db, query: str, *parameters: object) -> Any:
    ((found,),) = db.execute(query.encode(), parameters).fetchall()
    return found


def active(db: Db, login: str) -> int:
    return int(
        value(
            db,
            "INSERT INTO accounts (email, login, status) VALUES (%s, %s, 'active') RETURNING id",
            f"{login}@example.com",
            login,
        )
    )


def recover(db: Db, account: int, email: str | None = None) -> int:
    return int(
        value(db, "SELECT mailroom.send('password_recovery', account => %s, recipient => %s)", account, email)
    )


def skipped(db: Db) -> Counter[str]:
    return Counter(str(row[0]) for row in ledger(db, "detail", "outcome") if row[1] == "skipped")


def test_at_most_that_many_to_one_recipient(db: Db) -> None:
    zoe, ann = active(db, "zoe"), active(db, "ann")
    for _ in range(LIMIT):
        token = recover(db, zoe)
        assert [token] == claimed_tokens(db)
    excess = recover(db, zoe)
    other = recover(db, ann)
    assert [other] == claimed_tokens(db)
    assert [(excess, "skipped", "limited")] == ledger(db, "token", "outcome", "detail")


def test_case_makes_no_other_recipient(db: Db) -> None:
    zoe = active(db, "zoe")
    addresses = ["zoe@example.com", "ZOE@example.com", "Zoe@Example.Com"]
    handed = 0
    for number in range(9):
        recover(db, zoe, addresses[number % 3])
        handed += len(claimed_tokens(db))
    assert LIMIT == handed


def test_an_action_without_a_limit_has_none(db: Db) -> None:
    sign_up(db, "zoe")
    claimed_tokens(db)
    for _ in range(20):
        db.execute("INSERT INTO tokens (action, account) SELECT 'activation', id FROM accounts")
        assert 1 == len(claimed_tokens(db))
    assert 0 == value(db, "SELECT count(*) FROM mailroom.granted")


def test_the_limit_is_for_a_time(db: Db) -> None:
    zoe = active(db, "zoe")
    for _ in range(LIMIT):
        recover(db, zoe)
        claimed_tokens(db)
    db.execute("UPDATE mailroom.granted SET at = at - interval '15 minutes'")
    token = recover(db, zoe)
    assert [token] == claimed_tokens(db)
    assert 4 == value(
        db, "SELECT count(*) FROM mailroom.granted"
    )  # for each new one, two old ones are deleted


def test_a_mail_that_was_put_off_counts_for_nothing(db: Db) -> None:
    """Recoveries asked for while the provider does not answer use up no limit."""
    zoe = active(db, "zoe")
    token = recover(db, zoe)
    for _ in range(3 * LIMIT):
        (lease,) = claim(db)
        assert (token,) == lease.tokens
        record(db, lease, {token: "transient"})
        expire_leases(db)
    (lease,) = claim(db)
    record(db, lease, {token: "sent"})
    assert 1 == value(db, "SELECT count(*) FROM mailroom.granted")


def test_a_mail_that_may_have_been_sent_counts(db: Db) -> None:
    zoe = active(db, "zoe")
    token = recover(db, zoe)
    for result in ("unknown", "transient"):
        (lease,) = claim(db)
        record(db, lease, {token: result})
        expire_leases(db)
        assert 1 == value(db, "SELECT count(*) FROM mailroom.granted")


def test_a_worker_that_lost_its_lease_takes_no_count_back(db: Db) -> None:
    zoe = active(db, "zoe")
    token = recover(db, zoe)
    (lost,) = claim(db)
    expire_leases(db)
    claim(db, worker="other")
    assert not record(db, lost, {token: "transient"})
    assert 1 == value(db, "SELECT count(*) FROM mailroom.granted")


def test_a_lost_lease_counts_once_and_its_mail_is_not_limited(db: Db) -> None:
    zoe = active(db, "zoe")
    tokens = []
    for _ in range(LIMIT):
        tokens.append(recover(db, zoe))
        claim(db)
    expire_leases(db)
    handed = claimed_tokens(db)
    assert tokens[-1:] == handed  # and the older ones are superseded
    assert LIMIT == value(db, "SELECT count(*) FROM mailroom.granted")


def test_of_several_that_wait_the_newest_goes_out(db: Db) -> None:
    zoe, ann = active(db, "zoe"), active(db, "ann")
    clicks = [recover(db, zoe) for _ in range(4)]
    other = recover(db, ann)
    assert [clicks[-1], other] == claimed_tokens(db)
    assert [(click, "superseded") for click in clicks[:-1]] == ledger(db, "token", "detail")


def test_a_retried_one_gives_way_to_a_newer_one_that_was_sent(db: Db) -> None:
    zoe = active(db, "zoe")
    first = recover(db, zoe)
    (lease,) = claim(db)
    record(db, lease, {first: "transient"}, retry_ms=60_000)
    second = recover(db, zoe)
    assert [second] == claimed_tokens(db)
    expire_leases(db)
    assert [] == claim(db)
    assert ("superseded",) in ledger(db, "detail")


def test_other_data_or_subjects_are_other_mails(db: Db) -> None:
    send = "SELECT mailroom.send('password_recovery', account => %s, subject => %s)"
    zoe = active(db, "zoe")
    tokens = [value(db, send, zoe, subject) for subject in ("a", "b", None, "a")]
    assert tokens[1:] == claimed_tokens(db)


def test_a_newer_one_that_is_limited_takes_no_place(db: Db) -> None:
    zoe = active(db, "zoe")
    first = recover(db, zoe)
    (lease,) = claim(db)
    record(db, lease, {first: "transient"}, retry_ms=60_000)
    send = "SELECT mailroom.send('password_recovery', account => %s, subject => %s)"
    for number in range(LIMIT):
        value(db, send, zoe, str(number))
        assert 1 == len(claimed_tokens(db))
    limited = recover(db, zoe)
    assert [] == claim(db)
    assert (limited, "limited") in ledger(db, "token", "detail")
    db.execute("DELETE FROM mailroom.granted")
    expire_leases(db)
    assert [first] == claimed_tokens(db)


def test_a_newer_one_that_was_rejected_takes_no_place(db: Db) -> None:
    zoe = active(db, "zoe")
    first = recover(db, zoe)
    (lease,) = claim(db)
    record(db, lease, {first: "transient"}, retry_ms=60_000)
    second = recover(db, zoe)
    (lease,) = claim(db)
    record(db, lease, {second: "rejected"})
    expire_leases(db)
    assert [first] == claimed_tokens(db)


def test_an_import_and_a_click_are_one_mail(db: Db) -> None:
    """Though they wait in different lanes."""
    sign_up_many(db, 60)
    (old,) = db.execute("SELECT id, account FROM tokens ORDER BY id LIMIT 1").fetchall()
    click = value(db, "INSERT INTO tokens (action, account) VALUES ('activation', %s) RETURNING id", old[1])
    handed = claimed_tokens(db)
    assert click in handed
    assert old[0] not in handed
    assert 60 == len(handed)


def test_anybody_is_limited_by_address(db: Db) -> None:
    db.execute(
        "UPDATE mailroom.actions SET account_status = NULL, needs_code = false"
        " WHERE action = 'password_recovery'"
    )
    send = "SELECT mailroom.send('password_recovery', recipient => %s)"
    for number in range(LIMIT + 3):
        value(db, send, ["bob@example.org", "BOB@example.org"][number % 2])
        claimed_tokens(db)
    assert {"limited": 3} == skipped(db)
    db.execute("DELETE FROM mailroom.granted")
    several = [value(db, send, "bob@example.org") for _ in range(3)]
    assert several[-1:] == claimed_tokens(db)


def test_a_thousand_concurrent_requests_are_five_mails_of_four_workers(database: str, db: Db) -> None:
    zoe = active(db, "zoe")
    handed: list[int] = []
    asked: list[int] = []
    asking = threading.Event()
    asking.set()

    def ask() -> None:
        with psycopg.connect(database, autocommit=True) as connection:
            asked.extend(recover(connection, zoe) for _ in range(100))

    def work(name: int) -> None:
        with psycopg.connect(database, autocommit=True) as connection:
            while True:
                last = not asking.is_set()
                leases = claim(connection, 10, worker=str(name), lease_tokens=3)
                for lease in leases:
                    handed.extend(lease.tokens)
                    assert settle(connection, lease)
                if last and not leases:
                    return

    askers = [threading.Thread(target=ask) for _ in range(10)]
    workers = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in askers + workers:
        thread.start()
    for thread in askers:
        thread.join()
    asking.clear()
    for thread in workers:
        thread.join()
    assert 1000 == len(asked)
    assert 1 <= len(handed) <= LIMIT
    assert 1000 - len(handed) == sum(skipped(db).values())
    secret, code = db.execute("SELECT secret, code FROM tokens WHERE id = %s", [max(handed)]).fetchall()[0]
    assert "consumed" == value(
        db, "SELECT outcome FROM mailroom.consume(%s, 'password_recovery', %s)", secret, code
    )


def test_why_says_it(database: str, db: Db) -> None:
    def why(token: int) -> str:
        done = commands.run("why", str(token), env=environment(database))
        return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", "T", done.stdout.splitlines()[0])

    zoe = active(db, "zoe")
    older, newer = recover(db, zoe), recover(db, zoe)
    assert [newer] == claimed_tokens(db)
    for _ in range(LIMIT):
        last = recover(db, zoe)
        claimed_tokens(db)
    assert "not sent: a newer password_recovery for the same recipient went out instead" == why(older)
    assert why(last) == (
        "not sent: the recipient had as many as the limit of the action allows when its turn came, at T"
    )


def test_an_action_without_a_row_makes_dead_letters(database: str, db: Db) -> None:
    """And the cursor does not pass over them."""
    token = sign_up(db, "zoe")
    retried = sign_up(db, "ann")
    (lease,) = claim(db, 1)
    assert (token,) == lease.tokens
    record(db, lease, {token: "transient"})
    db.execute("CREATE TABLE kept AS SELECT * FROM mailroom.actions")
    db.execute("DELETE FROM mailroom.actions WHERE action = 'activation'")
    assert [] == claim(db)
    reason = "mailroom.actions has no row for the action activation; run `mailroom actions apply`"
    rejected = [row for row in ledger(db, "token", "outcome", "detail") if row[1] == "rejected"]
    assert {(token, "rejected", reason), (retried, "rejected", reason)} == set(rejected)
    done = commands.run("why", str(token), env=environment(database))
    assert reason in done.stdout.splitlines()[0]
    retry = "SELECT outcome FROM mailroom.retry_dead('token_insert', %s, false, '', 'somebody')"
    assert [("unknown action",)] * 2 == db.execute(retry.encode(), [[token, retried]]).fetchall()
    db.execute("INSERT INTO mailroom.actions SELECT * FROM kept WHERE action = 'activation'")
    assert [("retried",)] * 2 == db.execute(retry.encode(), [[token, retried]]).fetchall()
    assert [token, retried] == claimed_tokens(db)


def test_thousands_for_one_recipient_hold_up_no_claim(db: Db) -> None:
    """With the limit of a statement that `mailroom run` sets, or less."""
    zoe = active(db, "zoe")
    db.execute(
        "INSERT INTO tokens (action, account, subject, lane)"
        " SELECT 'password_recovery', %s, g::text, 'urgent' FROM generate_series(1, 3000) g",
        [zoe],
    )
    db.execute("SET statement_timeout = '10s'")
    assert LIMIT == len([token for _ in range(4) for token in claimed_tokens(db)])
    assert {"limited": 2995} == skipped(db)


def answered(db: Db, result: str) -> list[int]:
    """Claim, and record this result for each; returns the tokens."""
    handed = claim(db)
    for lease in handed:
        record(db, lease, dict.fromkeys(lease.tokens, result))
    return [token for lease in handed for token in lease.tokens]


def test_an_outage_of_lost_answers_ends_with_one_mail(db: Db) -> None:
    zoe = active(db, "zoe")
    tried: set[int] = set()
    for _ in range(12):
        recover(db, zoe)
        expire_leases(db)
        tried |= {*answered(db, "unknown")}
    assert LIMIT == len(tried)
    expire_leases(db)
    (last,) = answered(db, "sent")
    assert last in tried
    expire_leases(db)
    assert [] == claimed_tokens(db)


def test_a_worker_that_dies_keeps_nobody_from_the_last_mail_of_a_limit(db: Db) -> None:
    zoe = active(db, "zoe")
    db.execute("UPDATE mailroom.actions SET limit_mails = 1 WHERE limit_mails IS NOT NULL")
    first = recover(db, zoe)
    assert [(first,)] == [lease.tokens for lease in claim(db)]  # and dies
    recover(db, zoe)
    expire_leases(db)
    assert [first] == claimed_tokens(db)
    assert Counter({"limited": 1}) == skipped(db)


def test_a_rejected_mail_counts_for_nothing(db: Db) -> None:
    zoe = active(db, "zoe")
    for _ in range(LIMIT + 1):
        token = recover(db, zoe)
        assert [token] == answered(db, "rejected")


def test_wide_letters_make_no_other_recipient(db: Db) -> None:
    zoe = active(db, "zoe")
    for address in ["zoe@example.com", "zoe@\uff45xample.com", "zoe@exampl\uff45.com"] * 3:
        recover(db, zoe, address)
        claimed_tokens(db)
    assert LIMIT == value(db, "SELECT count(*) FROM mailroom.granted")


def test_one_that_is_urgent_is_not_superseded_by_one_that_waits_in_bulk(db: Db) -> None:
    zoe = active(db, "zoe")
    urgent = recover(db, zoe)
    value(db, "SELECT mailroom.send('password_recovery', account => %s, lane => 'bulk')", zoe)
    assert [(urgent,)] == [lease.tokens for lease in claim(db, 1)]


def test_mails_with_different_names_are_different_mails(db: Db) -> None:
    zoe = active(db, "zoe")
    for login in ("Anna", "Ben"):
        value(db, "SELECT mailroom.send('password_recovery', account => %s, login => %s)", zoe, login)
    assert 2 == len(claimed_tokens(db))
