"""Dead letters: listed, told, mailed again exactly once more, renewed, dropped."""

from __future__ import annotations

import json
import os
import pty
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from mailroom.database import sync
from mailroom.errors import DatabaseError
from mailroom.inbox.faults import Fault
from mailroom.inbox.server import InboxServer
from mailroom.operations.dead import WHY_NOT, Decided, all_dead, count, dead_letters, drop, retry
from mailroom.operations.reports import overview, stories
from support import commands
from support.processes import environment
from support.queue_sql import Db, ask_recovery, claim, record, settle, sign_up, sign_up_many
from support.runs import UNSETTLED, Start, wait_until

TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC")
WHO = re.compile(r"by hand, [^ ]*: ")


def run(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return commands.run("dead", *arguments, env=environment(url))


def told(db: Db, token: int) -> str:
    """The story as it is printed, with T for each time, and O for who decided."""
    (story,) = [story for story in stories(db, str(token)) if story.mail.token == token]
    return WHO.sub("by hand, O: ", TIME.sub("T", story.text()))


def settle_all(db: Db, result: str, *, detail: str = "", limit: int = 3) -> None:
    """Claim all, and settle each lease as `mailroom run` does, with one outcome."""
    for lease in claim(db):
        ids = {token: f"id-{token}" for token in lease.tokens if result == "sent"}
        record(db, lease, dict.fromkeys(lease.tokens, result), detail=detail, message_ids=ids, limit=limit)


def die(db: Db, login: str = "zoe", detail: str = "Address {} is blacklisted") -> int:
    """A dead letter."""
    token = sign_up(db, login)
    settle_all(db, "rejected", detail=detail.format(f"{login}@example.com"))
    return token


def expire(db: Db, *tokens: int) -> None:
    db.execute(
        "UPDATE tokens SET expires_at = clock_timestamp() - interval '3 hours' WHERE id = ANY (%s)",
        [list(tokens)],
    )


def dead_tokens(db: Db) -> list[int]:
    return [token for page in all_dead(db, None, None) for token in page]


def again(db: Db, *tokens: int, renew: bool = False, reason: str = "") -> list[Decided]:
    return retry(db, "token_insert", tokens, renew=renew, reason=reason)


# What is one


def test_only_the_last_row_of_the_ledger_makes_a_dead_letter(db: Db) -> None:
    dead = die(db)
    sign_up(db, "sent")
    settle_all(db, "sent")
    sign_up(db, "retried")
    settle_all(db, "transient")
    sign_up(db, "waiting")
    assert [dead] == dead_tokens(db)
    assert (1, False) == count(db)
    db.execute("INSERT INTO mailroom.deliveries (token, attempt, outcome) VALUES (%s, 2, 'skipped')", [dead])
    assert [] == dead_tokens(db)


def test_what_was_sent_or_is_in_a_lease_is_none_whatever_a_late_worker_writes(db: Db) -> None:
    sent, held = sign_up(db, "sent"), 0
    settle_all(db, "sent")
    held = sign_up(db, "held")
    claim(db)
    for token in (sent, held):
        db.execute(
            "INSERT INTO mailroom.deliveries (token, attempt, outcome) VALUES (%s, 1, 'rejected')", [token]
        )
    assert [] == dead_tokens(db)
    assert (0, False) == count(db)
    assert [Decided(sent, "not dead"), Decided(held, "not dead")] == again(db, sent, held)


def test_the_list_shows_the_newest_first_and_says_how_many_more(db: Db, database: str) -> None:
    assert "no dead letters\n" == run(database, "list").stdout
    old = die(db, "ann")
    expire(db, old)
    db.execute("INSERT INTO accounts (email, login, status) VALUES ('b@example.org', 'bob', 'active')")
    recovery = ask_recovery(db, "bob")
    for _ in range(3):
        settle_all(db, "failed", detail="Failed")
    done = run(database, "list")
    assert [
        "token  action  address  rejected at  attempts  state  reason",
        f"{recovery}  password_recovery  b…@example.org  T  3  expires in 15 min  Failed",
        f"{old}  activation  a…@example.com  T  1  expired 3 h ago  Address a…@example.com is blacklisted",
        "2 dead letters",
    ] == re.sub(" {2,}", "  ", TIME.sub("T", done.stdout)).splitlines()
    first = run(database, "list", "--limit", "1").stdout.splitlines()
    assert [str(recovery), "and 1 more; --limit shows more of them"] == [first[1].split()[0], first[2]]
    assert ["2 dead letters", "1 dead letter", "no dead letters"] == [
        run(database, "list", *filters).stdout.splitlines()[-1]
        for filters in (["--since", "1h"], ["--action", "activation"], ["--since", "0m"])
    ]
    found = json.loads(run(database, "list", "--json", "--limit", "1").stdout)
    assert (1, False) == (found["more"], found["at_least"])
    (letter,) = found["dead"]
    assert (recovery, "b…@example.org", None, 3) == (
        letter["token"],
        letter["email"],
        letter["why_not_mailable"],
        letter["attempts"],
    )
    assert 800 < letter["expires_in_s"] < 900
    assert letter["at"].endswith("+00:00")


def test_the_state_says_whether_it_may_still_be_mailed(db: Db) -> None:
    tokens = {name: die(db, name) for name in ("valid", "never", "consumed", "suspended", "active", "gone")}
    for name, change in {
        "never": "UPDATE tokens SET expires_at = 'infinity'",
        "consumed": "UPDATE tokens SET consumed_at = now()",
    }.items():
        db.execute(f"{change} WHERE id = %s".encode(), [tokens[name]])
    db.execute("UPDATE accounts SET status = 'suspended' WHERE login = 'suspended'")
    db.execute("UPDATE accounts SET status = 'active' WHERE login = 'active'")
    db.execute("DELETE FROM accounts WHERE login = 'gone'")
    states = {letter.token: letter.state for letter in dead_letters(db, None, None, 10)}
    assert {
        "valid": "expires in 15 min",
        "never": "never expires",
        "consumed": "consumed",
        "suspended": "suspended",
        "active": "ineligible",
        "gone": "gone",
    } == {name: states[token] for name, token in tokens.items()}
    assert {
        "valid": "retried",
        "never": "retried",
        "consumed": "not retried: the token was consumed",
        "suspended": "not retried: the account is suspended",
        "active": "not retried: the account's status does not fit the action",
        "gone": "not retried: the token is gone: its account was deleted, or it was pruned",
    } == {name: one.text() for name, one in zip(tokens, again(db, *tokens.values(), renew=True), strict=True)}
    assert 4 == overview(db).dead
    assert "dead       4; see `mailroom dead list`" in overview(db).text().splitlines()


def test_show_tells_the_story_or_what_it_is_instead(db: Db, database: str) -> None:
    dead = die(db)
    sent = sign_up(db, "sent")
    settle_all(db, "sent")
    db.execute("INSERT INTO accounts (email, login) VALUES ('n@example.com', '987654')")
    assert "rejected: at T: SES answered: Address z…@example.com is blacklisted" == (
        TIME.sub("T", run(database, "show", str(dead)).stdout.splitlines()[0])
    )
    assert "rejected" == json.loads(run(database, "show", str(dead), "--json").stdout)["verdict"]
    done = run(database, "show", str(sent))
    assert (65, "") == (done.returncode, done.stdout)
    assert (
        f"Error: token {sent} is not a dead letter: sent: SES accepted it at T as id-{sent}"
        == TIME.sub("T", done.stderr).splitlines()[0]
    )
    for nothing in ("987654", "4711", "-5", str(2**63), "9" * 40):
        done = run(database, "show", "--", nothing)
        assert (65, "") == (done.returncode, done.stdout)
        assert f"Error: there is no token {nothing}" == done.stderr.splitlines()[0]
    assert 64 == run(database, "show", "zoe").returncode


# Mailing it again


def test_a_retried_dead_letter_is_mailed_exactly_once_more(
    db: Db, database: str, ses: InboxServer, start: Start
) -> None:
    ses.inbox.faults.add(Fault("status", status="MessageRejected", message="no such mailbox"))
    worker = start(BATCH_TIMEOUT=0).wait_for_log("run.started")
    sign_up_many(db, 3)
    wait_until(db, "SELECT count(*) FROM mailroom.deliveries WHERE outcome = 'rejected'", 3)
    wait_until(db, UNSETTLED, 0)
    tokens = sorted(dead_tokens(db))
    ses.inbox.faults.clear()
    done = run(database, "retry", *map(str, tokens), "--reason", "SES was wrong")
    assert (0, [*(f"{token}  retried" for token in tokens), "retried 3"]) == (
        done.returncode,
        done.stdout.splitlines(),
    )
    # The worker slept, and nothing but the bell could wake it.
    ses.wait_for(lambda inbox: inbox.counts.accepted == 3)
    wait_until(db, UNSETTLED, 0)
    assert 65 == run(database, "retry", *map(str, tokens)).returncode
    assert 0 == worker.stop()
    assert {1} == set(ses.inbox.counts.by_recipient.values())
    assert [] == dead_tokens(db)
    story = re.sub(r"(T  attempt 1), [^ ]+:", r"\1, W:", told(db, tokens[0]))
    mail = ses.inbox.mails.find()
    assert any(f"sent: SES accepted it at T as {one.id}" in story for one in mail)
    assert [
        "  T  attempt 1, W: rejected: MessageRejected: no such mailbox",
        "  T  by hand, O: retried: by hand: SES was wrong",
    ] == [line.partition(" (")[0] for line in story.splitlines()[3:5]]


def test_a_retried_dead_letter_is_shown_as_such(db: Db) -> None:
    token = die(db)
    assert [Decided(token, "retried")] == again(db, token, reason="as zoe@example.com asked")
    db.execute("UPDATE mailroom.leases SET due_at = due_at + interval '1 second'")
    assert (
        "retrying: it was rejected, and retried by hand: as z…@example.com asked, at T;"
        " no `mailroom run` is alive (a collector in a pipe does not show here)\n"
        f"  token {token}: activation for zoe <z…@example.com>, whose account is provisioned\n"
        "  T  made; it expires at T\n"
        "  T  attempt 1, w: rejected: Address z…@example.com is blacklisted\n"
        "  T  by hand, O: retried: by hand: as z…@example.com asked\n"
        "  T  attempt 2 is due"
    ) == told(db, token)
    assert [("", 0, [token])] == db.execute(
        "SELECT worker, generation, tokens FROM mailroom.leases"
    ).fetchall()
    db.execute("UPDATE mailroom.leases SET due_at = now()")
    for lease in claim(db):
        settle(db, lease)  # as a pipe's collector does
    assert told(db, token).startswith("handed out: to a pipe")


def test_a_retried_token_has_as_many_tries_as_a_new_one(db: Db) -> None:
    token = sign_up(db, "zoe")
    for _ in range(3):
        settle_all(db, "failed")
    assert [token] == dead_tokens(db)
    again(db, token)
    outcomes = []
    for _ in range(3):
        settle_all(db, "failed")
        row = db.execute(
            "SELECT outcome, attempt FROM mailroom.deliveries ORDER BY id DESC LIMIT 1"
        ).fetchone()
        outcomes.append(row)
    assert [("retried", 1), ("retried", 2), ("rejected", 3)] == outcomes
    assert [token] == dead_tokens(db)


def test_a_retried_token_that_may_not_be_mailed_when_its_turn_comes_is_not(db: Db) -> None:
    token = die(db)
    again(db, token)
    db.execute("UPDATE tokens SET consumed_at = clock_timestamp()")
    assert [] == claim(db)
    assert told(db, token).startswith("not sent: the token was consumed at T while it waited")


def test_a_lease_has_fifty_tokens_at_most(db: Db) -> None:
    sign_up_many(db, 120)
    settle_all(db, "rejected")
    with psycopg.connect(make_conninfo(db.info.dsn, password=db.info.password), autocommit=True) as listener:
        listener.execute("LISTEN token_insert")
        again(db, *dead_tokens(db))
        assert ["120"] == [note.payload for note in listener.notifies(timeout=30, stop_after=1)]
    sizes = db.execute("SELECT cardinality(tokens) FROM mailroom.leases ORDER BY id").fetchall()
    assert [(50,), (50,), (20,)] == sizes
    assert 120 == len({token for lease in claim(db) for token in lease.tokens})


def test_two_who_retry_at_the_same_time_mail_it_once(db: Db, database: str) -> None:
    sign_up_many(db, 60)
    settle_all(db, "rejected")
    tokens = dead_tokens(db)
    decided: list[list[Decided]] = []
    ready = threading.Barrier(4)

    def operator(renew: bool) -> None:
        with sync.connected(database) as connection:
            ready.wait()
            decided.append(again(connection, *tokens, renew=renew))

    threads = [threading.Thread(target=operator, args=[number % 2 == 0]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 60 == sum(one.outcome == "retried" for found in decided for one in found)
    assert 180 == sum(one.outcome == "not dead" for found in decided for one in found)
    assert 60 == sum(len(lease.tokens) for lease in claim(db))


@pytest.mark.slow
def test_workers_and_operators_at_once_mail_everybody_once(
    db: Db, database: str, ses: InboxServer, start: Start
) -> None:
    ses.inbox.faults.add(Fault("status", share=0.5, status="MessageRejected", message="no such mailbox"))
    for _ in range(2):
        start(BATCH_TIMEOUT=0).wait_for_log("run.started")
    sign_up_many(db, 500)
    stop = threading.Event()

    def operator() -> None:
        with sync.connected(database) as connection:
            while not stop.is_set():
                for page in all_dead(connection, None, None):
                    again(connection, *page, renew=True)

    threads = [threading.Thread(target=operator) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        wait_until(db, "SELECT count(*) FROM mailroom.deliveries WHERE outcome = 'sent'", 500)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    wait_until(db, UNSETTLED, 0)
    assert (500, {1}) == (
        len(ses.inbox.counts.by_recipient),
        set(ses.inbox.counts.by_recipient.values()),
    )
    assert [] == dead_tokens(db)
    retries = "SELECT count(*) > 300 FROM mailroom.deliveries WHERE result = 'by hand'"
    assert (True,) == db.execute(retries).fetchone()


def test_who_waits_for_another_sees_what_the_other_did(db: Db, database: str) -> None:
    token = die(db)
    found: list[Decided] = []
    with psycopg.connect(database) as first:
        assert [Decided(token, "retried")] == again(first, token)
        second = threading.Thread(target=lambda: found.extend(drop(db, [token], reason="")))
        second.start()
        with psycopg.connect(database, autocommit=True) as watch:
            waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            wait_until(watch, waiting, 1)
        assert [] == found
        first.commit()
        second.join()
    assert [Decided(token, "not dead")] == found
    assert "not a dead letter any more" == found[0].text()


def test_an_old_snapshot_is_refused(db: Db, database: str) -> None:
    token = die(db)
    with psycopg.connect(database) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with pytest.raises(DatabaseError, match="READ COMMITTED"):
            again(connection, token)


# What has expired


def test_what_has_expired_is_left_and_reported(db: Db, database: str) -> None:
    expired, valid = die(db, "ann"), die(db, "bob")
    expire(db, expired)
    done = run(database, "retry", str(expired), str(valid))
    assert (1, "") == (done.returncode, done.stderr)
    assert [
        f"{expired}  not retried: the token has expired; --renew makes a new one",
        f"{valid}  retried",
        "not retried 1, retried 1",
    ] == done.stdout.splitlines()
    assert [expired] == dead_tokens(db)


def test_renewing_mails_a_new_token_and_tells_it(
    db: Db, database: str, ses: InboxServer, start: Start
) -> None:
    old = die(db)
    expire(db, old)
    start(BATCH_TIMEOUT=0).wait_for_log("run.started")
    done = run(database, "retry", str(old), "--renew", "--reason", "the filter is mended")
    found = re.fullmatch(rf"{old}  renewed as token (\d+)\nrenewed 1\n", done.stdout)
    assert found, done
    new = int(found[1])
    ses.wait_for(lambda inbox: inbox.counts.accepted == 1)
    wait_until(db, UNSETTLED, 0)
    (mail,) = ses.inbox.mails.find()
    assert "zoe@example.com" == mail.recipient
    assert [] == dead_tokens(db)
    assert f"sent: SES accepted it at T as {mail.id}" == told(db, new).splitlines()[0]
    assert (
        f"renewed: renewed as token {new}: the filter is mended, at T,"
        " after SES answered: Address z…@example.com is blacklisted\n"
        f"  token {old}: activation for zoe <z…@example.com>, whose account is provisioned\n"
        "  T  made; it expires at T\n"
        "  T  attempt 1, w: rejected: Address z…@example.com is blacklisted\n"
        f"  T  by hand, O: skipped: renewed as token {new}: the filter is mended"
    ) == told(db, old)


def test_an_account_gets_no_second_valid_token(db: Db) -> None:
    db.execute("INSERT INTO accounts (email, login, status) VALUES ('b@example.org', 'bob', 'active')")
    first = ask_recovery(db, "bob")
    settle_all(db, "rejected")
    second = ask_recovery(db, "bob")
    settle_all(db, "rejected")
    expire(db, first, second)
    renewed, refused = again(db, first, second, renew=True)
    assert ("renewed", "valid", renewed.other) == (renewed.outcome, refused.outcome, refused.other)
    assert (
        f"not retried: token {renewed.other} of the same account and action is still valid" == refused.text()
    )
    assert [second] == dead_tokens(db)


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ("UPDATE accounts SET status = 'suspended'", "suspended"),
        ("UPDATE accounts SET status = 'provisioned'", "ineligible"),
        (
            (
                "INSERT INTO tokens (action, account, consumed_at)"
                " SELECT 'password_recovery', id, now() FROM accounts"
            ),
            "sibling consumed",
        ),
        (
            "UPDATE mailroom.actions SET fields = '{inviter}' WHERE action = 'password_recovery'",
            "other fields",
        ),
    ],
)
def test_nothing_is_renewed_that_is_not_wanted_any_more(db: Db, change: str, outcome: str) -> None:
    db.execute("INSERT INTO accounts (email, login, status) VALUES ('b@example.org', 'bob', 'active')")
    token = ask_recovery(db, "bob")
    settle_all(db, "rejected")
    expire(db, token)
    db.execute(change.encode())
    assert [Decided(token, outcome)] == again(db, token, renew=True)
    assert outcome in WHY_NOT
    assert [token] == dead_tokens(db)


def test_an_account_that_is_being_changed_is_left_for_later(db: Db, database: str) -> None:
    token = die(db)
    expire(db, token)
    with psycopg.connect(database) as other:
        other.execute("UPDATE accounts SET status = 'active'")
        (busy,) = again(db, token, renew=True)
        assert "not retried: its account is being changed right now; try again" == busy.text()


# All of them


def test_all_goes_through_every_page_once(db: Db, database: str) -> None:
    sign_up_many(db, 1203)
    db.execute("INSERT INTO accounts (email, login, status) VALUES ('b@example.org', 'bob', 'active')")
    recovery = ask_recovery(db, "bob")
    for _ in range(2):
        settle_all(db, "rejected")
    expired = dead_tokens(db)[600]
    expire(db, expired)
    done = run(database, "retry", "--all", "--action", "activation", "--since", "1h")
    assert (1, 1204) == (done.returncode, len(done.stdout.splitlines())), done.stderr
    assert {"retried 1202", "not retried 1"} == set(done.stdout.splitlines()[-1].split(", "))
    assert {recovery, expired} == set(dead_tokens(db))
    assert 1202 == len({token for lease in claim(db, 5000) for token in lease.tokens})
    done = run(database, "drop", "--all", "--yes")
    assert (0, "dropped 2") == (done.returncode, done.stdout.splitlines()[-1])
    for command in (["retry", "--all"], ["drop", "--all", "--yes"]):
        assert (0, "no dead letters\n") == ((done := run(database, *command)).returncode, done.stdout)


def test_dropping_is_reported(db: Db, database: str) -> None:
    token = die(db)
    done = run(database, "drop", str(token), "--reason", "a typo: zoe@example.com")
    assert (0, f"{token}  dropped\ndropped 1\n") == (done.returncode, done.stdout)
    assert (
        "dropped: dropped by hand: a typo: z…@example.com, at T,"
        " after SES answered: Address z…@example.com is blacklisted\n"
        f"  token {token}: activation for zoe <z…@example.com>, whose account is provisioned\n"
        "  T  made; it expires at T\n"
        "  T  attempt 1, w: rejected: Address z…@example.com is blacklisted\n"
        "  T  by hand, O: skipped: dropped by hand: a typo: z…@example.com"
    ) == told(db, token)
    assert [] == claim(db)
    done = run(database, "drop", str(token))
    assert 65 == done.returncode
    assert f"{token}  not a dead letter: dropped: dropped by hand" in done.stdout


def test_a_dead_letter_of_a_deleted_account_can_be_dropped(db: Db, database: str) -> None:
    token = die(db)
    db.execute("DELETE FROM accounts")
    assert 1 == run(database, "retry", str(token), "--renew").returncode
    assert 0 == run(database, "drop", str(token)).returncode
    assert [] == dead_tokens(db)


def test_dropping_all_asks_on_a_terminal_and_refuses_without(db: Db, database: str) -> None:
    token = die(db)
    done = run(database, "drop", "--all")
    assert (64, "") == (done.returncode, done.stdout)
    assert "--all without a terminal needs --yes" in done.stderr
    for answer, code, left in ((b"n\n", 130, [token]), (b"y\n", 0, [])):
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "mailroom", "dead", "drop", "--all"],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(database),
        )
        os.write(ours, answer)
        _, stderr = process.communicate(timeout=60)
        os.close(ours)
        os.close(theirs)
        assert (code, left) == (process.returncode, dead_tokens(db)), stderr
        assert b"Drop all these dead letters?" in stderr


# What is asked wrongly, and by whom


def test_wrong_ids_are_named_and_the_others_are_done(db: Db, database: str) -> None:
    token = die(db)
    sent = sign_up(db, "sent")
    settle_all(db, "sent")
    ids = [str(token), "-5", str(sent), "0", str(2**63), "9" * 40, str(token), "4711"]
    done = run(database, "retry", "--", *ids)
    assert (65, "") == (done.returncode, done.stderr)
    assert [
        f"{token}  retried",
        "-5  there is no token -5",
        f"{sent}  not a dead letter: sent: SES accepted it at T as id-{sent}",
        "0  there is no token 0",
        f"{2**63}  there is no token {2**63}",
        f"{'9' * 40}  there is no token {'9' * 40}",
        "4711  there is no token 4711",
        "retried 1, no dead letter 6",
    ] == TIME.sub("T", done.stdout).splitlines()


@pytest.mark.parametrize(
    "arguments",
    [
        ["retry"],
        ["drop"],
        ["retry", "zoe@example.com"],
        ["retry", "1.5"],
        ["retry", "-5"],
        ["retry", "1", "--all"],
        ["retry", "1", "--action", "activation"],
        ["drop", "1", "--since", "1h"],
        ["retry", "--all", "--action", "nonsense"],
        ["list", "--since", "soon"],
        ["list", "--limit", "0"],
        ["show"],
    ],
    ids=" ".join,
)
def test_wrong_usage(database: str, arguments: list[str]) -> None:
    done = run(database, *arguments)
    assert (64, "") == (done.returncode, done.stdout)
    assert "Error" in done.stderr


def test_a_role_without_privileges_gets_an_error(database: str, db: Db) -> None:
    token = die(db)
    role = f"mailroom_stranger_{secrets.token_hex(4)}"
    db.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'stranger'").format(sql.Identifier(role)))
    try:
        db.execute("GRANT USAGE ON SCHEMA mailroom TO PUBLIC")
        for arguments in (["list"], ["show", str(token)], ["retry", str(token)], ["drop", "--all", "--yes"]):
            done = run(make_conninfo(database, user=role, password="stranger"), *arguments)
            assert (78, "") == (done.returncode, done.stdout)
            assert "Error: the user may not do this: permission denied for function" in done.stderr
            assert "Try: GRANT" in done.stderr
    finally:
        db.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role)))
        db.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))
    assert [token] == dead_tokens(db)


def test_no_secret_and_no_address_is_shown(db: Db, database: str) -> None:
    token = die(db, detail="{} and bob.b@example.net \x1b[31mbounce")
    db.execute("UPDATE accounts SET login = 'zoe.login@example.org'")
    db.execute("UPDATE tokens SET code = '90817'")
    secret = db.execute("SELECT encode(secret, 'hex') FROM tokens").fetchone()
    assert secret
    sent = sign_up(db, "max")
    settle_all(db, "sent")
    for arguments in (
        ["list"],
        ["list", "--json"],
        ["show", str(token)],
        ["show", str(token), "--json"],
        ["show", str(sent)],
        ["retry", str(sent), str(token), "--reason", "zoe@example.com asked"],
        ["show", str(token)],
    ):
        done = run(database, *arguments)
        output = done.stdout + done.stderr
        for hidden in (secret[0], "90817", "zoe@", "bob.b@", "zoe.login@", "max@", "\x1b", "\\u001b"):
            assert hidden not in output, arguments


@pytest.mark.slow
def test_the_commands_in_the_documentation_work(db: Db, database: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / "when-a-mail-did-not-arrive.md").read_text()
    scripts = [
        script for script in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if "mailroom dead" in script
    ]
    assert 3 == len(scripts)
    sign_up_many(db, 4)
    db.execute("UPDATE tokens SET id = id + 4710 - (SELECT min(id) - 1 FROM tokens)")
    settle_all(db, "rejected")
    expire(db, 4713)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [
            "/bin/sh",
            "-e",
            "-c",
            scripts[0] + scripts[2].splitlines()[0] + "\n" + scripts[1] + scripts[2].splitlines()[1],
        ],
        env=environment(database) | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr), done.stdout
    lines = done.stdout.splitlines()
    for line in ("4711  retried", "4712  dropped", "4714  retried", "no dead letters"):
        assert line in lines
    assert any(line.startswith("4713  renewed as token ") for line in lines)
    assert [] == dead_tokens(db)


# What it costs


@pytest.mark.slow
def test_listing_and_counting_do_not_scan_the_ledger(db: Db) -> None:
    try:
        db.execute("LOAD 'auto_explain'")
    except psycopg.errors.InsufficientPrivilege:
        pytest.skip("the server's user may not LOAD auto_explain, which shows the plans inside a function")
    plans: list[str] = []
    db.add_notice_handler(lambda notice: plans.append(notice.message_primary or ""))
    sign_up_many(db, 100)
    db.execute(
        "INSERT INTO mailroom.deliveries (token, attempt, outcome, result, at)"
        " SELECT g, 1, CASE WHEN g % 10 = 0 THEN 'rejected' ELSE 'sent' END, '',"
        " now() - g * interval '1 second'"
        " FROM generate_series(1, 200000) g"
    )
    for statistics in ("SELECT 'none yet'", "ANALYZE"):
        db.execute(statistics.encode())
        plans.clear()
        db.execute(
            "SET auto_explain.log_min_duration = 0; SET auto_explain.log_nested_statements = on;"
            " SET auto_explain.log_format = json; SET client_min_messages = log"
        )
        assert 20 == len(dead_letters(db, None, None, 20))
        assert (10_000, True) == count(db)
        assert 20_000 == sum(1 for _ in dead_letters(db, None, None, 100_000))
        db.execute("SET client_min_messages = notice")
        inner = [json.loads(text[text.index("{") :]) for text in plans if "plan:" in text]
        inner = [plan for plan in inner if "mailroom.deliveries" in plan["Query Text"]]
        assert 3 <= len(inner)
        for plan in inner:
            nodes = [node for node in walk(plan["Plan"]) if node.get("Relation Name") == "deliveries"]
            assert nodes
            for node in nodes:
                assert node["Node Type"] in {"Index Scan", "Index Only Scan"}, node
                # Where every tenth is a rejection, PostgreSQL 14 and 15 find the index by time as good.
                assert node["Index Name"] in {
                    "deliveries_rejected_idx", "deliveries_token_idx", "deliveries_at_idx",
                }  # fmt: skip
        # A page costs what it shows; the count, a few blocks for each of the rejections it looks at.
        few = blocks(db, "mailroom.dead_letters(NULL, NULL, 'infinity', 9223372036854775807, 20)")
        assert few < 1500
        assert blocks(db, "mailroom.dead_count(NULL, NULL, 10000)") < 70_000
        assert blocks(db, "mailroom.dead_count(NULL, NULL, 100)") < 1000


def blocks(db: Db, function: str) -> int:
    row = db.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT * FROM {function}".encode()).fetchone()
    assert row
    plan = row[0][0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from walk(child)
