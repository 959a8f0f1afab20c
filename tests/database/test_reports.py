"""What the people on call ask: `status`, `why` and `prune`, from states made by SQL."""

from __future__ import annotations

import json
import os
import pty
import re
import secrets
import signal
import subprocess
import sys
from datetime import timedelta

import click
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from mailroom.cli.prune import prune as prune_command
from mailroom.operations.mail_state import mask, plain
from mailroom.operations.prune import prune
from mailroom.operations.reports import UnknownPerson, overview, stories
from support import commands
from support.processes import environment
from support.queue_sql import (
    Db,
    ask_recovery,
    claim,
    expire_leases,
    record_all,
    reserve,
    settle,
    sign_up,
    sign_up_many,
)

TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC")
NOBODY = "no `mailroom run` is alive (a collector in a pipe does not show here)"
PIPE = "handed out: to a pipe (`mailroom collector`); see its sender's log and rejected.csv"


def run(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return commands.run(*arguments, env=environment(url))


def told(db: Db, who: object) -> list[str]:
    """The stories as they are printed, with T for each time."""
    return [TIME.sub("T", story.text()) for story in stories(db, str(who))]


def conclusion(db: Db, who: object = "zoe") -> str:
    """The conclusion of the only story."""
    (text,) = told(db, who)
    return text.splitlines()[0]


def deliver(db: Db, token: int, outcome: str, **columns: object) -> None:
    """A row of the ledger."""
    row = {"attempt": 1, "result": outcome, "provider": "ses", "message_id": "", "detail": "", "worker": "w"}
    row |= columns
    db.execute(
        "INSERT INTO mailroom.deliveries"
        " (token, outcome, attempt, result, provider, message_id, detail, worker)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
        [token, outcome, *row.values()],
    )


def pause(db: Db, reason: str = "a wrong template") -> None:
    db.execute("SELECT mailroom.pause(%s)", [reason])


def live(db: Db, trouble: str = "", worker: str = "host:1:ab") -> None:
    """Let a worker be alive."""
    db.execute("SELECT mailroom.heartbeat(%s, '1', %s)", [worker, trouble])


def test_a_sent_mail_is_explained_from_the_row_to_the_message_id(db: Db) -> None:
    token = sign_up(db, "zoe")
    record_all(db, "throttled", detail="Maximum sending rate exceeded.", retry_ms=0)
    record_all(db, "sent", message_id="0100-abc")
    assert [
        (
            "sent: SES accepted it at T as 0100-abc\n"
            f"  token {token}: activation for zoe <z…@example.com>, whose account is provisioned\n"
            "  T  made; it expires at T\n"
            "  T  attempt 1, w: retried: Maximum sending rate exceeded.\n"
            "  T  attempt 2, w: sent by SES as 0100-abc"
        )
    ] == told(db, "zoe")


def test_a_rejected_mail(db: Db) -> None:
    sign_up(db, "zoe")
    record_all(db, "rejected", detail="Address zoe@example.com is blacklisted")
    assert "rejected: at T: SES answered: Address z…@example.com is blacklisted" == conclusion(db)


def test_a_mail_given_up_after_its_last_attempt(db: Db) -> None:
    sign_up(db, "zoe")
    for _ in range(3):
        record_all(db, "failed", detail="Failed", retry_ms=0)
    assert "rejected: at T after attempt 3, the last one: SES answered: Failed" == conclusion(db)


def test_a_mail_that_waits(db: Db) -> None:
    sign_up(db, "zoe")
    assert f"waiting: {NOBODY}" == conclusion(db)
    live(db)
    assert (
        "waiting: no worker has claimed it yet; `mailroom status` shows whether others are sent"
        == conclusion(db)
    )
    pause(db)
    assert "waiting: the queue is paused since T: a wrong template" == conclusion(db)


def test_a_mail_whose_account_was_suspended_before_a_worker_came(db: Db) -> None:
    token = sign_up(db, "zoe")
    db.execute("UPDATE accounts SET status = 'suspended'")
    assert [] == claim(db)
    assert "not sent: the account is suspended" == conclusion(db, token)
    db.execute("UPDATE accounts SET status = 'active'")  # leaving suspended restores the status before it
    assert "not sent: the account was suspended when its turn came, at T" == conclusion(db, token)


def test_a_mail_behind_a_cursor_that_stands_before_it_waits(db: Db) -> None:
    sign_up_many(db, 3)
    for lease in claim(db, 2):
        settle(db, lease)
    verdicts = [stories(db, login)[0].verdict for login in ("u1", "u2", "u3")]
    assert ["handed out", "handed out", "waiting"] == verdicts


def test_a_mail_of_a_transaction_that_commits_late_waits(db: Db, database: str) -> None:
    live(db)
    with psycopg.connect(database) as late:
        late.execute("INSERT INTO accounts (email, login) VALUES ('l@example.com', 'late')")
        sign_up(db, "zoe")
        for lease in claim(db):
            settle(db, lease)
        with pytest.raises(UnknownPerson):
            told(db, "late")
        late.commit()
    assert conclusion(db, "late").startswith("waiting: no worker has claimed it yet")
    assert PIPE == conclusion(db)


def test_a_mail_in_hand(db: Db) -> None:
    live(db)
    sign_up(db, "zoe")
    claim(db, worker="host:1:ab")
    assert "in flight: host:1:ab has claimed it, attempt 1" == conclusion(db)
    assert "  T  attempt 1: the lease of host:1:ab ends" == told(db, "zoe")[0].splitlines()[-1]
    expire_leases(db)
    ended = "waiting: the lease of host:1:ab expired at T without an outcome; "
    assert ended + "the next worker that claims takes it over" == conclusion(db)
    pause(db)
    assert ended + "the queue is paused since T: a wrong template" == conclusion(db)


def test_a_mail_that_is_tried_again(db: Db) -> None:
    live(db)
    token = sign_up(db, "zoe")
    record_all(db, "transient", retry_ms=0)
    record_all(db, "throttled", detail="slow down")
    assert [
        (
            "retrying: attempt 2 failed: slow down; next attempt at T\n"
            f"  token {token}: activation for zoe <z…@example.com>, whose account is provisioned\n"
            "  T  made; it expires at T\n"
            "  T  attempt 1, w: retried: transient\n"
            "  T  attempt 2, w: retried: slow down\n"
            "  T  attempt 3 is due"
        )
    ] == told(db, "zoe")
    pause(db)
    assert (
        "retrying: attempt 2 failed: slow down; the queue is paused since T: a wrong template"
        == conclusion(db)
    )


def test_a_mail_whose_answer_was_lost(db: Db) -> None:
    live(db)
    sign_up(db, "zoe")
    record_all(db, "unknown", detail="ReadTimeoutError")
    lost = "the answer to attempt 1 was lost (ReadTimeoutError), so it may arrive twice"
    assert f"retrying: {lost}; next attempt at T" == conclusion(db)


def test_a_mail_that_was_held_back_is_explained_with_the_workers_troubles(db: Db) -> None:
    sign_up(db, "zoe")
    record_all(db, "", retry_ms=0)
    live(db)
    held = "a worker claimed it and made no attempt"
    assert f"retrying: {held} (see `mailroom status`); next attempt at T" == conclusion(db)
    for worker in ("a", "b"):
        live(db, "Email sending is paused for zoe@example.com", worker)
    assert (
        f"retrying: {held} (in trouble: Email sending is paused for z…@example.com); next attempt at T"
    ) == conclusion(db)
    db.execute("UPDATE mailroom.workers SET seen_at = now() - interval '1 minute'")
    assert f"retrying: {held} (see `mailroom status`); {NOBODY}" == conclusion(db)


def test_attempts_are_numbered_by_the_ledger_and_not_by_the_claims(db: Db) -> None:
    sign_up(db, "zoe")
    live(db)
    for result in ("", "transient", "", "", "throttled"):
        record_all(db, result, detail=result and "slow down", retry_ms=0)
    assert "retrying: attempt 2 failed: slow down; next attempt at T" == conclusion(db)
    record_all(db, "")
    held = "a worker claimed it and made no attempt (see `mailroom status`)"
    assert f"retrying: attempt 2 failed: slow down; {held}; next attempt at T" == conclusion(db)
    assert [
        "  T  attempt 1, w: retried: slow down",
        "  T  attempt 2, w: retried: slow down",
        "  T  attempt 3 is due",
    ] == told(db, "zoe")[0].splitlines()[3:]
    expire_leases(db)
    claim(db, worker="host:1:ab")
    assert "in flight: host:1:ab has claimed it, attempt 3" == conclusion(db)
    # The outcome is written between our look at the lease and our look at the ledger.
    db.execute(
        "INSERT INTO mailroom.deliveries (token, attempt, outcome, result)"
        " SELECT tokens[1], generation, 'retried', 'throttled' FROM mailroom.leases"
    )
    assert "in flight: host:1:ab has claimed it, attempt 3" == conclusion(db)


@pytest.mark.parametrize(
    ("change", "waiting", "retried"),
    [
        (
            "UPDATE tokens SET expires_at = clock_timestamp()",
            "not sent: the token expired at T while it waited",
            "not sent: the token expired at T, after attempt 1 failed",
        ),
        (
            "UPDATE tokens SET consumed_at = clock_timestamp()",
            "not sent: the token was consumed at T while it waited",
            "not sent: the token was consumed at T, after attempt 1 failed",
        ),
        (
            "UPDATE accounts SET status = 'suspended'",
            "not sent: the account is suspended",
            "not sent: the account is suspended",
        ),
        (
            "UPDATE accounts SET status = 'active'",
            "not sent: the account is active, and activation requires provisioned",
            "not sent: the account is active, and activation requires provisioned",
        ),
    ],
)
def test_a_mail_that_may_not_be_sent_any_more(db: Db, change: str, waiting: str, retried: str) -> None:
    token = sign_up(db, "zoe")
    db.execute(change.encode())
    assert waiting == conclusion(db)
    db.execute("DELETE FROM accounts")
    token = sign_up(db, "zoe")
    record_all(db, "transient", retry_ms=0)
    db.execute(change.encode())
    assert retried == conclusion(db)  # still in its lease
    record_all(db, "sent")
    assert retried == conclusion(db)  # written down by the claim
    assert 0 == overview(db).retrying
    assert f"token {token}:" in told(db, token)[0]


def test_an_expiry_in_the_queue_is_reported_when_the_claim_has_recorded_it(db: Db) -> None:
    sign_up(db, "zoe")
    claim(db)
    sign_up(db, "ann")
    db.execute("UPDATE tokens SET expires_at = clock_timestamp()")
    claim(db)
    (text,) = told(db, "ann")
    assert "not sent: the token expired at T while it waited" == text.splitlines()[0]
    assert "  T  before any attempt, w: expired" in text.splitlines()


def test_a_superseded_mail(db: Db) -> None:
    token = sign_up(db, "zoe")
    record_all(db, "transient", retry_ms=0)
    db.execute("INSERT INTO tokens (action, account) SELECT 'activation', id FROM accounts")
    db.execute("UPDATE tokens SET consumed_at = clock_timestamp() WHERE id <> %s", [token])
    assert "not sent: another activation token was consumed, which ended this one at T" == conclusion(
        db, token
    )
    record_all(db, "sent")
    assert "not sent: another activation token was consumed, which ended this one at T" == conclusion(
        db, token
    )


def test_a_suspension_that_is_over_is_reported_as_past(db: Db) -> None:
    token = sign_up(db, "zoe")
    record_all(db, "transient", retry_ms=0)
    db.execute("UPDATE accounts SET status = 'suspended'")
    record_all(db, "sent")
    db.execute("UPDATE accounts SET status = 'provisioned'")
    assert "not sent: the account was suspended when its turn came, at T" == conclusion(db, token)


def test_a_recovery_before_the_activation_is_not_handed_out(db: Db) -> None:
    sign_up(db, "zoe")
    token = ask_recovery(db, "zoe")
    expected = "not sent: the account is provisioned, and password_recovery requires active"
    assert expected == conclusion(db, token)
    for lease in claim(db):
        settle(db, lease)
    assert expected == conclusion(db, token)
    db.execute("UPDATE accounts SET status = 'active'")
    assert "not sent: the account's status did not fit the action when its turn came, at T" == conclusion(
        db, token
    )


def test_a_mail_handed_to_a_pipe(db: Db) -> None:
    token = sign_up(db, "zoe")
    for lease in claim(db):
        settle(db, lease)
    assert [
        (
            f"{PIPE}\n"
            f"  token {token}: activation for zoe <z…@example.com>, whose account is provisioned\n"
            "  T  made; it expires at T"
        )
    ] == told(db, "zoe")
    db.execute("UPDATE tokens SET consumed_at = clock_timestamp()")
    assert f"{PIPE}; it was consumed at T" == conclusion(db)


def test_a_deleted_account_is_known_by_its_token(db: Db) -> None:
    token = sign_up(db, "zoe")
    record_all(db, "transient", retry_ms=0)
    db.execute("DELETE FROM accounts")
    gone = "not sent: the token is gone: its account was deleted, or it was pruned"
    assert gone == conclusion(db, token)
    record_all(db, "sent")
    assert [
        (
            f"{gone}\n  token {token}\n"
            "  T  attempt 1, w: retried: transient\n"
            "  T  after attempt 1, w: skipped: deleted"
        )
    ] == told(db, token)
    with pytest.raises(UnknownPerson):
        told(db, "zoe")


def test_a_sent_mail_stays_sent_whatever_a_late_worker_writes(db: Db) -> None:
    token = sign_up(db, "zoe")
    record_all(db, "sent", message_id="0100-abc")
    deliver(db, token, "unknown", attempt=1, worker="frozen")
    assert "sent: SES accepted it at T as 0100-abc" == conclusion(db)


def test_a_retried_mail_in_no_lease_is_unsettled(db: Db) -> None:
    token = sign_up(db, "zoe")
    record_all(db, "transient", retry_ms=0)
    db.execute("DELETE FROM mailroom.leases")
    expected = "unsettled: attempt 1 ended as retried (transient), and no lease holds it"
    assert expected == conclusion(db, token)


def test_the_last_five_are_listed_oldest_first(db: Db) -> None:
    sign_up(db, "zoe")
    db.execute("UPDATE accounts SET status = 'active'")
    tokens = [ask_recovery(db, "zoe") for _ in range(6)]
    assert tokens[1:] == [story.mail.token for story in stories(db, "ZOE@Example.COM")]


def test_who_is_an_address_a_login_or_an_id(db: Db) -> None:
    token = sign_up(db, "zoe")
    assert told(db, "Zoe@EXAMPLE.com") == told(db, "zoe") == told(db, token) == told(db, f"0{token}")
    db.execute("INSERT INTO accounts (email, login) VALUES ('n@example.com', '987654')")
    assert "for 987654 <" in told(db, "987654")[0]
    for unknown in ("Zoe", "nobody@example.com", "4711", "9" * 30, "", "%"):
        with pytest.raises(UnknownPerson, match="no account or token matches") as caught:
            told(db, unknown)
        assert 65 == caught.value.exit_code


def test_an_account_without_tokens_is_called_so(db: Db) -> None:
    db.execute("INSERT INTO accounts (email, login, status) VALUES ('a@example.com', 'a', 'active')")
    with pytest.raises(UnknownPerson, match="is active and has no token"):
        told(db, "a")


def test_what_never_expires_is_called_so(db: Db) -> None:
    sign_up(db, "zoe")
    db.execute("UPDATE tokens SET expires_at = 'infinity'")
    assert "  T  made; it never expires" in told(db, "zoe")[0].splitlines()


def test_no_secret_and_no_address_is_shown(db: Db, database: str) -> None:
    token = sign_up(db, "zoe")
    db.execute("UPDATE accounts SET login = 'zoe.login@example.org'")
    db.execute("UPDATE tokens SET code = '90817'")
    record_all(db, "transient", detail="ZOE@example.com and bob.b@example.net \x1b[31mbounce")
    secret = db.execute("SELECT encode(secret, 'hex') FROM tokens").fetchone()
    assert secret
    for arguments in (["why", str(token)], ["why", str(token), "--json"]):
        done = run(database, *arguments)
        assert 0 == done.returncode, done.stderr
        for hidden in (secret[0], "90817", "zoe@", "ZOE@", "bob.b@", "zoe.login@", "\x1b"):
            assert hidden not in done.stdout
        assert "\\u001b" not in done.stdout
        assert "z…@example.com and b…@example.net" in done.stdout


def test_addresses_are_masked_wherever_they_stand() -> None:
    assert "z…@example.com" == mask("zoe@example.com", "zoe@example.com")
    assert 'z…@b "z…@b"' == mask('z"o e@b "Z"O e@b"', 'z"o e@b')
    assert "to <a…@x.org>, b…@y.org;" == mask("to <ann@x.org>, bob@y.org;")
    assert "a line  [0m" == plain("a line\n\x1b[0m\r")


def test_why_as_json(db: Db, database: str) -> None:
    token = sign_up(db, "zoe")
    record_all(db, "sent", message_id="0100-abc")
    (story,) = json.loads(run(database, "why", "zoe", "--json").stdout)
    assert ("sent", token, "z…@example.com") == (story["verdict"], story["token"], story["email"])
    assert story["created_at"].endswith("+00:00")
    (delivery,) = story["deliveries"]
    assert ("sent", "0100-abc", "ses") == (delivery["outcome"], delivery["message_id"], delivery["provider"])


def test_why_of_nobody_exits_with_65(database: str) -> None:
    done = run(database, "why", "nobody")
    assert (65, "") == (done.returncode, done.stdout)
    assert "Error: no account or token matches 'nobody'" in done.stderr
    assert "Try:" in done.stderr


def test_status_counts_what_there_is(db: Db, database: str) -> None:
    sign_up_many(db, 3, "sent")
    record_all(db, "sent")
    sign_up_many(db, 2, "retried")
    record_all(db, "unknown")
    sign_up(db, "held")
    claim(db)
    sign_up_many(db, 4, "waiting")
    db.execute(
        "INSERT INTO mailroom.deliveries (token, attempt, outcome, at)"
        " VALUES (1, 1, 'rejected', now() - interval '2 minutes'),"
        " (1, 1, 'rejected', now() - interval '2 hours')"
    )
    pause(db)
    reserve(db, 1, 14)
    done = run(database, "status")
    assert (
        "waiting    4: 4 normal\n"
        "in flight  1\n"
        "retrying   2\n"
        "oldest     S s\n"
        "sent       3 in the last minute, 3 in the last hour\n"
        "rejected   0 in the last minute, 1 in the last hour\n"
        "unknown    2 in the last minute, 2 in the last hour\n"
        "dead       0\n"
        "rate       14/s, shared by all workers, as of the last send\n"
        "workers    0 alive\n"
        "no worker: 7 tokens to be mailed, and no `mailroom run` is alive"
        " (a collector in a pipe does not show here)\n"
        "paused since T: a wrong template\n"
    ) == re.sub(r"\d+\.\d s", "S s", TIME.sub("T", done.stdout)), done.stderr
    found = json.loads(run(database, "status", "--json").stdout)
    assert (4, 1, 2, 14.0) == (found["waiting"], found["in_flight"], found["retrying"], found["rate"])


def test_status_of_an_empty_queue_and_of_none(db: Db) -> None:
    assert (
        "waiting    0\n"
        "in flight  0\n"
        "retrying   0\n"
        "oldest     -\n"
        "sent       0 in the last minute, 0 in the last hour\n"
        "rejected   0 in the last minute, 0 in the last hour\n"
        "unknown    0 in the last minute, 0 in the last hour\n"
        "dead       0\n"
        "workers    0 alive"
    ) == overview(db).text()


@pytest.mark.parametrize(
    ("rate", "shown"), [(1_000_000, "1000000"), (12_345.6, "12346"), (14.5, "14.5"), (0.01, "0.01")]
)
def test_the_rate_is_a_plain_number(db: Db, rate: float, shown: str) -> None:
    reserve(db, 1, 14)
    db.execute("UPDATE mailroom.rates SET rate = %s", [rate])
    assert f"\nrate       {shown}/s, shared" in overview(db).text()


ON_CALL = (
    ["status"],
    ["why", "zoe"],
    ["dead", "list"],
    ["prune", "--older-than", "30d"],
    ["pause", "--reason", "a drill"],
    ["resume"],
    ["console", "--port", "0"],
)


@pytest.mark.parametrize("command", ON_CALL, ids=" ".join)
def test_a_user_without_the_right_is_asked_to_get_the_role_of_those_on_call(
    db: Db, database: str, command: list[str]
) -> None:
    name = f"mailroom_stranger_{secrets.token_hex(4)}"
    db.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'stranger'".encode())
    try:
        done = run(make_conninfo(database, user=name, password="stranger"), *command)
    finally:
        db.execute(f"DROP ROLE {name}".encode())
    assert (78, "") == (done.returncode, done.stdout)
    assert done.stderr.startswith("Error: the user may not do this: permission denied")
    assert "\nTry: GRANT mailroom_oncall to it" in done.stderr


@pytest.mark.parametrize("command", ON_CALL, ids=" ".join)
def test_without_migrations_the_remedy_is_to_migrate(empty_database: str, command: list[str]) -> None:
    done = run(empty_database, *command)
    assert (78, "") == (done.returncode, done.stdout)
    assert "\nTry: run `mailroom migrate up` on this database" in done.stderr


def test_watch_is_refused_without_a_terminal(database: str) -> None:
    done = run(database, "status", "--watch")
    assert (64, "") == (done.returncode, done.stdout)
    assert "--watch needs a terminal" in done.stderr


@pytest.mark.slow
def test_watch_shows_it_until_interrupted(database: str) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "mailroom", "status", "--watch"],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env=environment(database) | {"TERM": "xterm"},
    )
    os.close(theirs)  # so that reading fails when the process is gone
    try:
        seen = b""
        while seen.count(b"retrying   0") < 2:
            seen += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
        assert (0, b"") == (process.returncode, stderr)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_prune_deletes_what_is_old_and_nothing_else(db: Db, database: str) -> None:
    sign_up_many(db, 40)
    kept_by_lease, consumed, expired = "u1", [f"u{n}" for n in range(2, 12)], [f"u{n}" for n in range(12, 22)]
    claim(db, 1)
    long_ago = "clock_timestamp() - interval '31 days'"
    of = "account IN (SELECT id FROM accounts WHERE login = ANY (%s))"
    db.execute(
        f"UPDATE tokens SET consumed_at = {long_ago} WHERE {of}".encode(), [[kept_by_lease, *consumed]]
    )
    db.execute(f"UPDATE tokens SET expires_at = {long_ago} WHERE {of}".encode(), [expired])
    db.execute(
        "UPDATE tokens SET expires_at = clock_timestamp() - interval '29 days'"
        " WHERE id = (SELECT max(id) FROM tokens)"
    )
    db.execute(
        "INSERT INTO mailroom.deliveries (token, attempt, outcome, at)"
        f" SELECT g, 1, 'sent', {long_ago} FROM generate_series(1, 25) g".encode()
    )
    db.execute("INSERT INTO mailroom.deliveries (token, attempt, outcome) VALUES (26, 1, 'sent')")
    for table, text in (("events", "kind, at"), ("unreadable_events", "text, reason")):
        db.execute(
            f"INSERT INTO mailroom.{table} ({text}, received_at, digest)"
            f" SELECT 'sent', now()::text::{'timestamptz' if table == 'events' else 'text'}, v.at, v.digest"
            f" FROM (VALUES ({long_ago}, '1'::bytea), (clock_timestamp(), '2')) v (at, digest)".encode()
        )
    done = run(database, "prune", "--older-than", "30d", "--batch", "7")
    assert (0, "deleted 25 deliveries, 2 events and 20 tokens\n") == (done.returncode, done.stdout)
    assert "deliveries: 7 deleted so far" == done.stderr.splitlines()[0]
    assert [(20,)] == db.execute("SELECT count(*) FROM tokens").fetchall()
    assert [(26,)] == db.execute("SELECT token FROM mailroom.deliveries").fetchall()
    assert [(b"2",)] == db.execute("SELECT digest FROM mailroom.events").fetchall()
    assert [(b"2",)] == db.execute("SELECT digest FROM mailroom.unreadable_events").fetchall()
    assert [(1,)] == db.execute("SELECT count(*) FROM tokens WHERE consumed_at IS NOT NULL").fetchall()


def test_prune_says_which_rows_of_the_application_are_in_its_way(db: Db, database: str) -> None:
    db.execute("CREATE TABLE receipts (token bigint REFERENCES tokens)")
    sign_up_many(db, 1)
    db.execute("UPDATE tokens SET expires_at = clock_timestamp() - interval '2 days'")
    db.execute("INSERT INTO receipts SELECT id FROM tokens")
    done = run(database, "prune", "--older-than", "1d")
    assert 78 == done.returncode
    assert 'violates foreign key constraint "receipts_token_fkey" on table "receipts"' in done.stderr
    assert "for now" not in done.stderr


def test_prune_passes_over_what_is_locked_and_tells_each_batch(db: Db, database: str) -> None:
    sign_up_many(db, 5)
    db.execute("UPDATE tokens SET expires_at = clock_timestamp() - interval '2 days'")
    told: list[tuple[str, int]] = []
    with psycopg.connect(database) as other:
        other.execute("SELECT FROM tokens ORDER BY id LIMIT 1 FOR UPDATE")
        assert (0, 0, 4) == prune(db, timedelta(days=1), 2, lambda what, count: told.append((what, count)))
    assert [("tokens", 1), ("tokens", 3), ("tokens", 4)] == told
    assert (0, 0, 1) == prune(db, timedelta(days=1), 2, lambda _, __: None)


@pytest.mark.parametrize("age", ["59m", "0d", "30", "1y", "-1d", "1.5h", "999999d", ""])
def test_prune_refuses_less_than_an_hour_and_what_is_no_duration(age: str) -> None:
    with pytest.raises(click.BadParameter):
        prune_command.make_context("prune", ["--older-than", age])


def test_nobody_may_call_the_functions_who_was_not_let(db: Db) -> None:
    found = db.execute(
        "SELECT p.proname FROM pg_proc p, aclexplode(p.proacl) x"
        " WHERE p.pronamespace = 'mailroom'::regnamespace AND x.grantee = 0 AND p.proname IN"
        " ('overview', 'paused', 'tokens_of', 'deliveries_of', 'prune_deliveries', 'prune_tokens')"
    ).fetchall()
    assert [] == found


def test_a_lost_cursor_is_an_error_with_a_remedy_everywhere(database: str, db: Db) -> None:
    sign_up(db, "u")
    db.execute("DELETE FROM jobs")
    for command in (["status"], ["why", "u"], ["pause", "--reason", "x"], ["resume"]):
        done = commands.run(*command, env=environment(database))
        assert 78 == done.returncode, command
        assert "Error: the table jobs has lost its row" in done.stderr
        assert "Try: restore the row from a backup" in done.stderr
    doctor = commands.run("doctor", "--only", "database", env=environment(database))
    assert 1 == doctor.returncode
    assert "the table jobs has lost its row" in doctor.stdout
