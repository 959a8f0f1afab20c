"""Refusals in words that nobody knows, in ``mailroom run`` and ``mailroom sender``: nothing is lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from mailroom.inbox.faults import Fault
from mailroom.inbox.server import InboxServer
from support.messages import message
from support.queue_sql import Db, sign_up, sign_up_many
from support.runs import UNSETTLED, Start, ledger, wait_until
from support.senders import SenderProcess, environment
from support.smtp import mail_server

WORDS = "Computer says no"
SMTP_FAULTS = {
    "unknown words": f"550 5.7.1 {WORDS}",
    "not owned": "553 5.7.1 <noreply@acme.example>: Sender address rejected: not owned by user app",
    "daily limit": "550 5.4.5 Daily user sending limit exceeded",
}
TROUBLE = "SELECT count(*) FROM mailroom.recent_workers() WHERE trouble LIKE '%{}%'"


@pytest.mark.slow
@pytest.mark.parametrize("fault", SMTP_FAULTS)
def test_run_rejects_nobody_for_a_fault_of_the_sender_over_smtp(db: Db, start: Start, fault: str) -> None:
    with mail_server() as server:
        server.answer("RCPT", SMTP_FAULTS[fault])
        worker = start(TRANSPORT=f"smtp://127.0.0.1:{server.port}").wait_for_log("run.started")
        sign_up_many(db, 20)
        worker.wait_for_log("error sender.paused")
        assert SMTP_FAULTS[fault].split()[-1] in worker.log()
        sign_up_many(db, 5, "later")
        server.forget_answers()
        wait_until(db, UNSETTLED, 0)
        assert 0 == worker.stop()
        assert {1} == set(Counter(mail.recipient for mail in server.mails).values())
        assert 25 == len(server.mails)
    outcomes = Counter(outcome for _, _, outcome in ledger(db))
    assert (25, 0, 0) == (outcomes["sent"], outcomes["rejected"], outcomes["expired"])


@pytest.mark.slow
def test_run_rejects_nobody_in_unknown_words_of_ses(db: Db, ses: InboxServer, start: Start) -> None:
    ses.inbox.faults.add(Fault("status", status="MessageRejected", message=WORDS))
    worker = start().wait_for_log("run.started")
    sign_up_many(db, 20)
    worker.wait_for_log("error sender.paused")
    assert WORDS in worker.log()
    wait_until(db, TROUBLE.format(WORDS), 1)  # `mailroom status` and `mailroom doctor` show it
    ses.inbox.faults.clear()
    wait_until(db, UNSETTLED, 0)
    assert 0 == worker.stop()
    assert 20 == ses.inbox.counts.accepted
    assert {"retried", "sent"} == {outcome for _, _, outcome in ledger(db)}


@pytest.mark.slow
@pytest.mark.parametrize("fault", SMTP_FAULTS)
def test_the_pipes_sender_rejects_nobody_for_a_fault_of_the_sender(tmp_path: Path, fault: str) -> None:
    with mail_server() as server:
        server.answer("message", SMTP_FAULTS[fault])
        chosen = environment(
            tmp_path / "output", TRANSPORT=f"smtp://127.0.0.1:{server.port}", SEND_RATE=10_000
        )
        with SenderProcess(chosen, tmp_path / "log") as sender:
            sender.send(*([message(number)] for number in range(20)))
            sender.wait_for_log("error sender.paused")
            server.forget_answers()
            assert 0 == sender.end()
    assert sorted(message(number).email for number in range(20)) == sorted(
        mail.recipient for mail in server.mails
    )
    assert "sender.finished sent=20 rejected=0" in (tmp_path / "log").read_text()


# What takes minutes outside of tests takes seconds.
QUICK = {
    "mailroom.sender.breaker.BACK_OFF_S": "{key: (first / 10, longest / 40) for key, (first, longest) in"
    " mailroom.sender.breaker.BACK_OFF_S.items()}",
    "mailroom.runner.delivery.BACK_OFF_S": "(0.05, 1.5)",
}


@pytest.mark.slow
def test_refused_recipients_do_not_keep_others_from_being_tried(db: Db, start: Start) -> None:
    with mail_server() as server:
        server.answer("RCPT", SMTP_FAULTS["unknown words"], "bad")
        worker = start(TRANSPORT=f"smtp://127.0.0.1:{server.port}", SEND_RATE=14, constants=QUICK)
        worker.wait_for_log("run.started")
        sign_up_many(db, 40, "bad")
        worker.wait_for_log("error sender.paused")
        # Now their leases are due one after the other.
        wait_until(db, "SELECT max(generation) > 1 FROM mailroom.leases", expected=True)
        good = sign_up(db, "good")
        sent = f"SELECT count(*) FROM mailroom.deliveries WHERE token = {good} AND outcome = 'sent'"
        wait_until(db, sent, 1)
        assert ["good@example.com"] == [mail.recipient for mail in server.mails]
