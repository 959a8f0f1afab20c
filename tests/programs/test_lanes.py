"""An import of 100,000 accounts delays no recovery, and the recoveries take nothing from the import."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mailroom.inbox.inbox import Inbox
from mailroom.inbox.server import InboxServer
from support import processes, senders
from support.queue_sql import Db, sign_up_many
from support.runs import RunProcess
from support.slow_ses import answering_after

IMPORTED = 100_000
RECOVERIES = 50
RATE = 100
ANSWER_S = 0.03
PAUSE_S = 1.0


@pytest.fixture
def slow_ses() -> Iterator[InboxServer]:
    with answering_after(ANSWER_S), InboxServer(inbox=senders.with_templates(Inbox(keep=50_000))) as server:
        yield server


def variables(database: str, ses: InboxServer, folder: Path) -> dict[str, str]:
    return (
        processes.environment(database)
        | senders.environment(folder / "output", SEND_RATE=RATE)
        | senders.aws(ses.url)
    )


def import_and_recover(db: Db, ses: InboxServer, figures: Callable[[str], None]) -> None:
    """Ask for recoveries while the mails of an import wait, and check how fast all of them are."""
    db.execute(
        "INSERT INTO accounts (email, login, status)"
        " SELECT 'r' || g || '@example.com', 'r' || g, 'active' FROM generate_series(1, %s) g",
        [RECOVERIES],
    )
    sign_up_many(db, IMPORTED)
    ses.wait_for(lambda inbox: inbox.counts.accepted >= 5 * RATE)
    before, began = ses.inbox.counts.accepted, time.monotonic()
    committed = {}
    for number in range(1, RECOVERIES + 1):
        time.sleep(random.uniform(0, 2 * PAUSE_S))  # so that they come at any moment of the drain
        email = f"r{number}@example.com"
        db.execute(
            "INSERT INTO tokens (action, account)"
            " SELECT 'password_recovery', id FROM accounts WHERE email = %s",
            [email],
        )
        committed[email] = time.time()
    ses.wait_for(lambda inbox: all(email in inbox.counts.by_recipient for email in committed))
    per_s = (ses.inbox.counts.accepted - before) / (time.monotonic() - began)
    accepted = {mail.recipient: mail.time.timestamp() for mail in ses.inbox.mails.find()}
    waited_s = sorted(accepted[email] - at for email, at in committed.items())
    figures(
        f"{RECOVERIES} recoveries beside {IMPORTED} imported at {per_s:.0f} of {RATE}/s:"
        f" median {waited_s[RECOVERIES // 2]:.2f} s, longest {waited_s[-1]:.2f} s"
    )
    assert waited_s[-1] < 2
    assert per_s > 0.9 * RATE


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_import_delays_no_recovery(
    db: Db, database: str, slow_ses: InboxServer, tmp_path: Path, figures: Callable[[str], None]
) -> None:
    with RunProcess(variables(database, slow_ses, tmp_path), tmp_path / "log") as worker:
        import_and_recover(db, slow_ses, figures)
        assert 0 == worker.stop()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_import_delays_no_recovery_in_the_pipe(
    db: Db, database: str, slow_ses: InboxServer, tmp_path: Path, figures: Callable[[str], None]
) -> None:
    given = variables(database, slow_ses, tmp_path)
    with (
        (tmp_path / "collector").open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "mailroom", "collector"], stdout=subprocess.PIPE, stderr=log, env=given
        ) as collector,
    ):
        assert collector.stdout
        with senders.SenderProcess(given, tmp_path / "sender", stdin=collector.stdout.fileno()) as sender:
            collector.stdout.close()  # the sender has it
            import_and_recover(db, slow_ses, figures)
            collector.terminate()
            assert 0 == collector.wait(processes.PATIENCE_S)
            assert 0 == sender.wait()
