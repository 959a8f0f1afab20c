"""``mailroom run``: every mail's outcome in the database, whatever dies or misbehaves."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import psycopg
import pytest

from mailroom.inbox import Fault, Inbox, InboxServer
from support.processes import PATIENCE_S
from support.processes import environment as collector_environment
from support.queue_sql import Db, expire_leases, sign_up, sign_up_many
from support.senders import aws, environment, with_templates


class RunProcess:
    """``mailroom run``, whose log grows while it runs."""

    def __init__(self, variables: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mailroom", "run"],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                env=variables,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(PATIENCE_S)

    def log(self) -> str:
        return self._log.read_text()

    def wait_for_log(self, text: str) -> Self:
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.log():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise AssertionError(f"no {text!r} in the log:\n{self.log()[-3000:]}")
            time.sleep(0.01)
        return self

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(PATIENCE_S)


Start = Callable[..., RunProcess]


@pytest.fixture
def ses() -> Iterator[InboxServer]:
    with InboxServer(inbox=with_templates(Inbox())) as server:
        yield server


@pytest.fixture
def start(database: str, ses: InboxServer, tmp_path: Path) -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def start_one(**variables: str | int) -> RunProcess:
            given = environment(tmp_path / "output", **({"SEND_RATE": 10_000} | variables))
            every = collector_environment(database) | given | aws(ses.url)
            return stack.enter_context(RunProcess(every, tmp_path / f"run-{time.monotonic_ns()}"))

        yield start_one


def ledger(db: Db, *columns: str) -> list[tuple[object, ...]]:
    wanted = ", ".join(columns or ("token", "attempt", "outcome"))
    return db.execute(f"SELECT {wanted} FROM mailroom.deliveries ORDER BY id".encode()).fetchall()


def wait_until(db: Db, query: str, expected: object) -> None:
    """Wait until a query's one value is as expected."""
    deadline = time.monotonic() + PATIENCE_S
    while (found := db.execute(query.encode()).fetchone()) != (expected,):
        if time.monotonic() > deadline:
            raise AssertionError(f"{query}: {found}, and not {expected}; {ledger(db)[-20:]}")
        time.sleep(0.02)


UNSETTLED = "SELECT waiting + in_flight FROM mailroom.backlog('mailroom')"


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


def test_a_backlog_goes_out_in_full_calls(db: Db, ses: InboxServer, start: Start) -> None:
    sign_up_many(db, 1000)
    worker = start(BATCH_LIMIT=10)
    wait_until(db, "SELECT count(*) FROM mailroom.deliveries WHERE outcome = 'sent'", 1000)
    assert {1} == set(ses.inbox.counts.by_recipient.values())
    assert 30 > ses.inbox.counts.calls
    assert 0 == worker.stop()
    wait_until(db, UNSETTLED, 0)


def test_each_recipient_has_its_own_outcome(db: Db, ses: InboxServer, start: Start) -> None:
    ses.inbox.faults.add(Fault("status", recipient="u2@example.com", status="MessageRejected", message="no"))
    ses.inbox.faults.add(Fault("status", recipient="u3@example.com", status="TransientFailure", calls=2))
    ses.inbox.faults.add(Fault("status", recipient="u4@example.com", status="Failed"))
    sign_up_many(db, 5)
    start(RETRY_LIMIT=2)
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
    assert ("superseded",) in ledger(db, "detail")


def test_what_expires_during_an_outage_is_written_down_and_never_sent(
    db: Db, ses: InboxServer, start: Start
) -> None:
    ses.inbox.account.paused = True
    start().wait_for_log("run.started")
    sign_up_many(db, 200)
    ses.wait_for(lambda inbox: inbox.counts.calls >= 1)
    db.execute("UPDATE tokens SET expires_at = clock_timestamp() + interval '100 milliseconds'")
    wait_until(db, "SELECT count(*) FROM tokens WHERE expires_at > clock_timestamp()", 0)
    ses.inbox.account.paused = False
    wait_until(db, "SELECT count(*) FROM mailroom.deliveries WHERE outcome = 'expired'", 200)
    wait_until(db, UNSETTLED, 0)
    assert 0 == ses.inbox.counts.accepted


def test_pause_and_resume(db: Db, database: str, ses: InboxServer, start: Start) -> None:
    def mailroom(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "mailroom", *arguments],
            env=collector_environment(database),
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    start().wait_for_log("run.started")
    assert "paused\n" == mailroom("pause", "--reason", "a wrong template")
    sign_up_many(db, 5)
    assert [("a wrong template",)] == db.execute("SELECT pause_reason FROM jobs").fetchall()
    assert (5, 0) == db.execute("SELECT waiting, in_flight FROM mailroom.backlog('mailroom')").fetchone()
    assert 0 == ses.inbox.counts.calls
    assert "resumed\n" == mailroom("resume")
    ses.wait_for(lambda inbox: inbox.counts.accepted == 5)
    assert "it was not paused\n" == mailroom("resume")


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


def test_workers_share_one_rate(db: Db, ses: InboxServer, start: Start) -> None:
    ses.inbox.limits.rate = 14.0
    sign_up_many(db, 400)
    workers = [start(SEND_RATE=14) for _ in range(4)]
    ses.wait_for(lambda inbox: inbox.calls and inbox.calls[-1].at_s > inbox.calls[0].at_s + 8)
    workers[0].process.kill()
    ses.wait_for(lambda inbox: inbox.calls[-1].at_s > inbox.calls[0].at_s + 16)
    accepted = [(call.at_s, call.accepted) for call in ses.inbox.calls if call.accepted]
    for at, (since, _) in enumerate(accepted):
        seen = 0
        for until, count in accepted[at:]:
            seen += count
            assert seen <= 14 * (until - since) + 14 + 1e-6
    assert 12 * 16 < sum(count for _, count in accepted)
    assert 0 == ses.inbox.counts.throttled


def test_kills_at_random_moments_lose_nothing(db: Db, ses: InboxServer, start: Start) -> None:
    """Thirty kill -9 under sign-ups and a server that misbehaves."""
    chance = random.Random(4)
    faults = ses.inbox.faults
    faults.add(Fault("error", share=0.1, code="Throttling"))
    faults.add(Fault("status", share=0.05, status="TransientFailure"))
    faults.add(Fault("cut", share=0.03, accept=True))
    signed_up = 0
    for kill in range(30):
        worker = start(BATCH_TIMEOUT=0, RETRY_LIMIT=1000)
        while signed_up < 100 * (kill + 1):
            sign_up_many(db, 10, f"k{signed_up}-")
            signed_up += 10
        worker.wait_for_log("run.started")
        time.sleep(chance.uniform(0, 0.4))  # a random moment
        worker.process.kill()
        worker.process.wait()
    faults.clear()
    expire_leases(db)
    start()
    wait_until(db, UNSETTLED, 0)
    counts = ses.inbox.counts
    assert 3000 == signed_up == len(counts.by_recipient)
    # Nothing is sent again once it is settled: a second time was in flight at a kill, or unanswered.
    again = "SELECT token FROM mailroom.deliveries WHERE outcome = 'sent' GROUP BY token HAVING count(*) > 1"
    assert [] == db.execute(again).fetchall()
    lost = sum(call.accepted for call in ses.inbox.calls if call.verdict == "cut")
    sent = db.execute(
        "SELECT count(DISTINCT token) FROM mailroom.deliveries WHERE outcome = 'sent'"
    ).fetchone()
    assert (3000,) == sent
    # In flight at a kill: four calls of fifty.
    assert counts.duplicates <= lost + 30 * 200, (counts.duplicates, lost)


def test_the_ledger_is_insert_only(db: Db) -> None:
    db.execute("INSERT INTO mailroom.deliveries (token, attempt, outcome) VALUES (1, 1, 'sent')")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="insert only"):
        db.execute("UPDATE mailroom.deliveries SET outcome = 'rejected'")
