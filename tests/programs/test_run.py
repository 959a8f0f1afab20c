"""``mailroom run``: every mail's outcome in the database, whatever dies or misbehaves."""

from __future__ import annotations

import random
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from mailroom.demo.postgres import PostgresServer
from mailroom.inbox.faults import Fault
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.server import InboxServer
from mailroom.queue.lease import LEASE_MS
from mailroom.runner.delivery import MAX_AT_BREAKER_S
from support import commands, processes, senders
from support.queue_sql import Db, expire_leases, sign_up, sign_up_many
from support.runs import UNSETTLED, RunProcess, Start, ledger, wait_until


def test_a_committed_account_is_mailed_and_written_down(db: Db, ses: InboxServer, start: Start) -> None:
    worker = start().wait_for_log("run.started")
    token = sign_up(db, "zoe")
    ses.wait_for(lambda inbox: inbox.counts.accepted == 1)
    wait_until(db, UNSETTLED, 0)
    (mail,) = ses.inbox.mails.find()
    assert [(token, 1, "sent", "sent", "ses", mail.id)] == ledger(
        db, "token", "attempt", "outcome", "result", "provider", "message_id"
    )
    assert 0 == worker.stop()


@pytest.mark.slow
def test_a_backlog_goes_out_in_full_calls(db: Db, ses: InboxServer, start: Start) -> None:
    sign_up_many(db, 1000)
    worker = start(BATCH_LIMIT=10)
    wait_until(db, "SELECT count(*) FROM mailroom.deliveries WHERE outcome = 'sent'", 1000)
    assert {1} == set(ses.inbox.counts.by_recipient.values())
    assert 30 > ses.inbox.counts.calls
    assert 0 == worker.stop()
    wait_until(db, UNSETTLED, 0)


@pytest.mark.slow
def test_each_recipient_has_its_own_outcome(db: Db, ses: InboxServer, start: Start) -> None:
    ses.inbox.faults.add(Fault("status", recipient="u2@example.com", status="MessageRejected"))
    ses.inbox.faults.add(Fault("status", recipient="u3@example.com", status="TransientFailure", calls=2))
    ses.inbox.faults.add(Fault("status", recipient="u4@example.com", status="Failed"))
    sign_up_many(db, 5)
    start(constants={"mailroom.runner.delivery.RETRY_LIMIT": 2})
    wait_until(db, "SELECT count(*) FROM mailroom.deliveries WHERE outcome IN ('sent', 'rejected')", 5)
    wait_until(db, UNSETTLED, 0)
    found = db.execute(
        "SELECT a.login, array_agg(d.outcome ORDER BY d.id), array_agg(d.attempt ORDER BY d.id)"
        " FROM mailroom.deliveries d JOIN tokens t ON t.id = d.token JOIN accounts a ON a.id = t.account"
        " GROUP BY a.login ORDER BY a.login"
    ).fetchall()
    assert [
        ("u1", ["sent"], [1]),
        ("u2", ["rejected"], [1]),
        ("u3", ["retried", "retried", "sent"], [1, 2, 3]),
        ("u4", ["retried", "rejected"], [1, 2]),
        ("u5", ["sent"], [1]),
    ] == found
    assert ["u1", "u3", "u5"] == sorted(name.partition("@")[0] for name in ses.inbox.counts.by_recipient)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "outcome", "detail"),
    [
        ("UPDATE tokens SET consumed_at = now()", "skipped", "consumed"),
        ("UPDATE accounts SET status = 'suspended'", "skipped", "suspended"),
        ("UPDATE tokens SET expires_at = now()", "expired", "expired"),
        ("DELETE FROM accounts", "skipped", "deleted"),
    ],
)
def test_what_may_not_be_mailed_any_more_is_not_tried_again(
    db: Db, ses: InboxServer, start: Start, change: str, outcome: str, detail: str
) -> None:
    ses.inbox.faults.add(Fault("status", status="TransientFailure"))
    start()
    token = sign_up(db, "zoe")
    ses.wait_for(lambda inbox: inbox.counts.calls >= 1)
    wait_until(db, "SELECT count(*) >= 1 FROM mailroom.deliveries WHERE outcome = 'retried'", True)
    db.execute(change.encode())
    ses.inbox.faults.clear()
    wait_until(db, f"SELECT count(*) FROM mailroom.deliveries WHERE outcome = '{outcome}'", 1)
    wait_until(db, UNSETTLED, 0)
    assert (token, outcome, detail) == ledger(db, "token", "outcome", "detail")[-1]
    assert 0 == ses.inbox.counts.accepted


def test_a_superseded_token_is_called_so(db: Db, ses: InboxServer, start: Start) -> None:
    ses.inbox.faults.add(Fault("status", status="TransientFailure"))
    start()
    token = sign_up(db, "zoe")
    wait_until(db, "SELECT count(*) >= 1 FROM mailroom.deliveries", True)
    db.execute(
        "INSERT INTO tokens (action, account, consumed_at) SELECT 'activation', id, NULL FROM accounts"
    )
    db.execute("UPDATE tokens SET consumed_at = clock_timestamp() WHERE id <> %s", [token])
    wait_until(
        db, f"SELECT count(*) FROM mailroom.deliveries WHERE token = {token} AND outcome = 'skipped'", 1
    )
    assert ("sibling consumed",) in ledger(db, "detail")


@pytest.mark.slow
def test_what_expires_during_an_outage_is_written_down_and_never_sent(
    db: Db, ses: InboxServer, start: Start
) -> None:
    ses.inbox.account.paused = True
    start().wait_for_log("run.started")
    sign_up_many(db, 200)
    ses.wait_for(lambda inbox: inbox.counts.calls >= 1)
    db.execute("UPDATE tokens SET expires_at = clock_timestamp() + interval '100 milliseconds'")
    # What was claimed before waits at the breaker for this time; then it is claimed again.
    time.sleep(0.1 + MAX_AT_BREAKER_S)
    ses.inbox.account.paused = False
    wait_until(db, "SELECT count(*) FROM mailroom.deliveries WHERE outcome = 'expired'", 200)
    wait_until(db, UNSETTLED, 0)
    assert 0 == ses.inbox.counts.accepted


def test_pause_and_resume(db: Db, database: str, ses: InboxServer, start: Start) -> None:
    def mailroom(*arguments: str) -> str:
        return commands.run(*arguments, env=processes.environment(database)).stdout

    start().wait_for_log("run.started")
    assert "paused\n" == mailroom("pause", "--reason", "a wrong template")
    sign_up_many(db, 5)
    assert [("a wrong template",)] == db.execute("SELECT pause_reason FROM jobs").fetchall()
    assert (5, 0) == db.execute("SELECT waiting, in_flight FROM mailroom.backlog()").fetchone()
    assert 0 == ses.inbox.counts.calls
    assert "resumed\n" == mailroom("resume")
    ses.wait_for(lambda inbox: inbox.counts.accepted == 5)
    assert "it was not paused\n" == mailroom("resume")


@pytest.mark.slow
def test_a_signal_gives_back_what_cannot_be_finished(db: Db, ses: InboxServer, start: Start) -> None:
    ses.inbox.faults.add(Fault("hang", accept=False))
    worker = start(SHUTDOWN_TIMEOUT=300, SEND_TIMEOUT=60_000)
    sign_up_many(db, 20)
    ses.wait_for(lambda inbox: inbox.counts.calls >= 1)
    assert 0 == worker.stop()
    due = "SELECT count(*) FROM mailroom.leases WHERE due_at > clock_timestamp()"
    assert [(0,)] == db.execute(due.encode()).fetchall()
    assert (20,) == db.execute(UNSETTLED.encode()).fetchone()
    ses.inbox.faults.clear()
    start()
    wait_until(db, "SELECT count(*) FROM mailroom.deliveries WHERE outcome = 'sent'", 20)


@pytest.mark.slow
def test_a_signal_keeps_the_leases_of_what_is_under_way(db: Db, ses: InboxServer, start: Start) -> None:
    """For longer than a lease lasts; and nothing is claimed any more."""
    ses.inbox.faults.add(Fault("hang", calls=1, accept=True))
    worker = start(SHUTDOWN_TIMEOUT=60_000, SEND_TIMEOUT=60_000, SEND_RATE=100, SEND_CONCURRENCY=2)
    sign_up_many(db, 1000)
    ses.wait_for(lambda inbox: inbox.counts.calls == 4)
    worker.process.terminate()
    began = time.monotonic()
    wait_until(db, "SELECT count(*) FROM mailroom.leases", 1)
    calls = ses.inbox.counts.calls
    held = "SELECT due_at > clock_timestamp() FROM mailroom.leases"
    while time.monotonic() < began + LEASE_MS / 1000 + 3:
        assert [(True,)] == db.execute(held.encode()).fetchall()
        time.sleep(0.2)
    assert worker.process.poll() is None
    assert calls == ses.inbox.counts.calls


def test_what_a_signal_cuts_off_is_unknown_and_due(db: Db, ses: InboxServer, start: Start) -> None:
    ses.inbox.faults.add(Fault("hang", accept=True))
    worker = start(SHUTDOWN_TIMEOUT=300, SEND_TIMEOUT=60_000)
    sign_up_many(db, 20)
    ses.wait_for(lambda inbox: inbox.counts.accepted == 20)
    assert 0 == worker.stop()
    assert [(1, "unknown", "stopped before it was answered; it may have been accepted")] * 20 == ledger(
        db, "attempt", "outcome", "detail"
    )
    due = "SELECT sum(cardinality(tokens)) FROM mailroom.leases WHERE due_at <= clock_timestamp()"
    assert (20,) == db.execute(due.encode()).fetchone()
    assert "run.leases_released tokens=20" in worker.log()


@pytest.mark.slow
def test_the_late_settling_of_a_lost_lease_is_refused_and_told(
    db: Db, ses: InboxServer, start: Start
) -> None:
    ses.inbox.faults.add(Fault("hang", calls=1, accept=True, seconds=3))
    frozen = start(SEND_TIMEOUT=20_000)
    sign_up_many(db, 10)
    ses.wait_for(lambda inbox: inbox.counts.accepted >= 10)
    frozen.process.send_signal(signal.SIGSTOP)
    expire_leases(db)
    other = start()
    wait_until(db, "SELECT count(*) FROM mailroom.deliveries WHERE outcome = 'sent'", 10)
    frozen.process.send_signal(signal.SIGCONT)
    frozen.wait_for_log("queue.lease_lost")
    assert {2} == set(ses.inbox.counts.by_recipient.values())  # what the frozen one had in flight
    wait_until(db, UNSETTLED, 0)
    assert 0 == other.stop()


@pytest.mark.slow
def test_four_workers_one_killed_one_frozen(
    db: Db, ses: InboxServer, start: Start, figures: Callable[[str], None]
) -> None:
    workers = [start(SEND_RATE=400).wait_for_log("run.started") for _ in range(4)]
    killed, frozen, *_ = workers
    for number in range(10):
        sign_up_many(db, 200, f"w{number}-")
    ses.wait_for(lambda inbox: inbox.counts.accepted >= 200)
    (name,) = re.findall(r"run\.started worker=(\S+)", frozen.log())
    wait_until(db, f"SELECT count(*) > 0 FROM mailroom.leases WHERE worker = '{name}'", True)
    frozen.process.send_signal(signal.SIGSTOP)
    killed.process.kill()
    killed.process.wait()
    expire_leases(db)  # as if their time had been waited for
    names = [
        row[0]
        for row in db.execute("SELECT DISTINCT worker FROM mailroom.leases WHERE worker <> ''").fetchall()
    ]
    in_flight = sum(
        row[0]
        for row in db.execute("SELECT cardinality(tokens) FROM mailroom.leases WHERE worker <> ''").fetchall()
    )
    wait_until(db, "SELECT count(DISTINCT token) FROM mailroom.deliveries WHERE outcome = 'sent'", 2000)
    wait_until(db, UNSETTLED, 0)
    frozen.process.send_signal(signal.SIGCONT)
    frozen.wait_for_log("queue.lease_lost")
    assert names
    assert 2000 == len(ses.inbox.counts.by_recipient)
    duplicates = ses.inbox.counts.duplicates
    figures(f"{duplicates} duplicates, {in_flight} in flight when one was killed and one frozen")
    assert duplicates <= in_flight


@pytest.mark.slow
def test_workers_share_one_rate(db: Db, ses: InboxServer, start: Start) -> None:
    """Four at 14 a second for a minute, one of which dies: the sum holds, and the rate is used."""
    ses.inbox.limits.rate = 14.0
    sign_up_many(db, 1000)
    workers = [start(SEND_RATE=14) for _ in range(4)]
    ses.wait_for(lambda inbox: inbox.calls and inbox.calls[-1].at_s > inbox.calls[0].at_s + 30, 60)
    workers[0].process.kill()
    ses.wait_for(lambda inbox: inbox.calls[-1].at_s > inbox.calls[0].at_s + 60, 60)
    accepted = [(call.at_s, call.accepted) for call in list(ses.inbox.calls) if call.accepted]
    for at, (since, _) in enumerate(accepted):
        seen = 0
        for until, count in accepted[at:]:
            seen += count
            assert seen <= 14 * (until - since) + 14 + 1e-6
    assert 12 * 60 < sum(count for _, count in accepted)
    assert 0 == ses.inbox.counts.throttled


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing(
    db: Db, ses: InboxServer, start: Start, figures: Callable[[str], None]
) -> None:
    """Thirty kill -9 under sign-ups and a server that misbehaves."""
    chance = random.Random(4)
    faults = ses.inbox.faults
    faults.add(Fault("error", share=0.1, code="Throttling"))
    faults.add(Fault("status", share=0.05, status="TransientFailure"))
    faults.add(Fault("cut", share=0.03, accept=True))
    unsettled = (
        "SELECT a.email FROM tokens t JOIN accounts a ON a.id = t.account"
        " WHERE NOT EXISTS (SELECT FROM mailroom.deliveries d WHERE d.token = t.id AND d.outcome = 'sent')"
    )
    signed_up = 0
    in_flight: set[tuple[str, int]] = set()  # at a kill: whose mail, accepted how often
    for kill in range(30):
        worker = start(BATCH_TIMEOUT=0, constants={"mailroom.runner.delivery.RETRY_LIMIT": 1000})
        while signed_up < 100 * (kill + 1):
            sign_up_many(db, 10, f"k{signed_up}-")
            signed_up += 10
        worker.wait_for_log("run.started")
        time.sleep(chance.uniform(0, 0.4))  # a random moment
        worker.process.kill()
        worker.process.wait()
        accepted = ses.inbox.counts.by_recipient
        in_flight |= {
            (row[0], accepted[row[0]])
            for row in db.execute(unsettled.encode()).fetchall()
            if row[0] in accepted
        }
    faults.clear()
    expire_leases(db)
    start()
    wait_until(db, UNSETTLED, 0)
    counts = ses.inbox.counts
    assert 3000 == signed_up == len(counts.by_recipient)
    # Nothing is sent again once it is settled: a second time was in flight at a kill, or unanswered.
    again = "SELECT token FROM mailroom.deliveries WHERE outcome = 'sent' GROUP BY token HAVING count(*) > 1"
    assert [] == db.execute(again).fetchall()
    sent = db.execute(
        "SELECT count(DISTINCT token) FROM mailroom.deliveries WHERE outcome = 'sent'"
    ).fetchone()
    assert (3000,) == sent
    lost = sum(call.accepted for call in ses.inbox.calls if call.verdict == "cut")
    figures(
        f"{counts.duplicates} duplicates; {len(in_flight)} were accepted and unsettled at a kill,"
        f" {lost} had their answer lost"
    )
    assert counts.duplicates <= len(in_flight) + lost


def test_the_ledger_is_insert_only(db: Db) -> None:
    db.execute("INSERT INTO mailroom.deliveries (token, attempt, outcome) VALUES (1, 1, 'sent')")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="insert only"):
        db.execute("UPDATE mailroom.deliveries SET outcome = 'rejected'")


@pytest.mark.slow
def test_an_outage_longer_than_a_lease_mails_nobody_twice(own_server: PostgresServer, tmp_path: Path) -> None:
    over = threading.Event()

    def sign_ups() -> None:
        number = 0
        while not over.is_set():
            try:
                with psycopg.connect(own_server.url(), autocommit=True) as connection:
                    while not over.is_set():
                        number += 1
                        sign_up_many(connection, 50, f"n{number}-")
                        time.sleep(0.01)
            except psycopg.Error:
                time.sleep(0.1)

    with InboxServer(inbox=senders.with_templates(Inbox())) as ses:
        variables = (
            processes.environment(own_server.url(), BATCH_TIMEOUT=0)
            | senders.environment(tmp_path / "output", SEND_RATE=10_000, SEND_CONCURRENCY=30)
            | senders.aws(ses.url)
        )
        with RunProcess(variables, tmp_path / "log") as run:
            run.wait_for_log("run.started")
            thread = threading.Thread(target=sign_ups)
            thread.start()
            ses.wait_for(lambda inbox: inbox.counts.accepted > 2000)
            own_server.stop()
            over.set()
            thread.join()
            time.sleep(LEASE_MS / 1000 + 2)
            own_server.start()
            with psycopg.connect(own_server.url(), autocommit=True) as db:
                wait_until(db, UNSETTLED, 0)
                wait_until(db, "SELECT count(*) FROM mailroom.leases", 0)
                twice = "SELECT token FROM mailroom.deliveries GROUP BY token HAVING count(*) > 1"
                assert [] == db.execute(twice).fetchall()
                assert [("sent",)] == db.execute(
                    "SELECT DISTINCT outcome FROM mailroom.deliveries"
                ).fetchall()
            assert 0 == ses.inbox.counts.duplicates
            assert "lease_lost" not in run.log()
            assert 0 == run.stop()
