"""An action whose mails cannot be sent delays no other, loses nothing, and goes on once they can."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mailroom.inbox.server import InboxServer
from support import senders
from support.messages import PASSWORD_RECOVERY, message
from support.queue_sql import Db, sign_up_many
from support.runs import UNSETTLED, Start, wait_until

PAUSED = 1000
OTHERS = 200
RATE = 100


def remove_template(ses: InboxServer, name: str) -> Callable[[], None]:
    """Removes a template; the result puts it back."""
    kept = ses.inbox.account.templates.pop(name)
    parts = (kept.subject, kept.text, kept.html)
    return lambda: ses.inbox.account.put_template(name, parts, new=True)


def ask_for_recoveries(db: Db, count: int) -> None:
    """Active accounts, and a recovery for each, in statements that are no import."""
    for first in range(0, count, 20):
        db.execute(
            "WITH a AS (INSERT INTO accounts (email, login, status)"
            " SELECT 'r' || g || '@example.com', 'r' || g, 'active' FROM generate_series(%s::int, %s::int) g"
            " RETURNING id)"
            " INSERT INTO tokens (action, account) SELECT 'password_recovery', id FROM a",
            [first, min(first + 20, count) - 1],
        )


@pytest.mark.slow
def test_a_thousand_mails_of_a_paused_action_delay_no_other(
    db: Db, ses: InboxServer, start: Start, figures: Callable[[str], None]
) -> None:
    put_back = remove_template(ses, "activationv1")
    sign_up_many(db, PAUSED)
    worker = start(SEND_RATE=RATE)
    worker.wait_for_log("sender.paused breaker=activation")
    began = time.monotonic()
    ask_for_recoveries(db, OTHERS)
    ses.wait_for(lambda inbox: inbox.counts.accepted == OTHERS)
    took_s = time.monotonic() - began
    figures(f"{OTHERS} mails beside {PAUSED} of a paused action at {RATE}/s: {took_s:.1f} s")
    assert took_s < 1.25 * OTHERS / RATE + 1
    why = "activation: paused: TemplateDoesNotExist"
    wait_until(db, f"SELECT starts_with(trouble, '{why}') FROM mailroom.workers", True)
    put_back()
    ses.wait_for(lambda inbox: inbox.counts.accepted == OTHERS + PAUSED, 90)
    wait_until(db, UNSETTLED, 0)
    assert {1} == set(ses.inbox.counts.by_recipient.values())
    assert 0 == worker.stop()


@pytest.mark.slow
def test_in_the_pipe_too(ses: InboxServer, tmp_path: Path, figures: Callable[[str], None]) -> None:
    put_back = remove_template(ses, "activationv1")
    variables = senders.environment(tmp_path / "output", SEND_RATE=RATE) | senders.aws(ses.url)
    paused = [message(number) for number in range(PAUSED)]
    others = [message(number, PASSWORD_RECOVERY) for number in range(PAUSED, PAUSED + OTHERS)]
    with senders.SenderProcess(variables, tmp_path / "log") as sender:
        for batch in (paused, others):
            sender.send(*(batch[first : first + 10] for first in range(0, len(batch), 10)))
            sender.wait_for_log("sender.paused breaker=activation")
            began = time.monotonic()
        ses.wait_for(lambda inbox: inbox.counts.accepted == OTHERS)
        took_s = time.monotonic() - began
        figures(f"{OTHERS} mails beside {PAUSED} of a paused action at {RATE}/s: {took_s:.1f} s")
        put_back()
        assert 0 == sender.end()
    assert {1} == set(ses.inbox.counts.by_recipient.values())
    assert OTHERS + PAUSED == ses.inbox.counts.accepted
    assert took_s < 1.25 * OTHERS / RATE + 1
