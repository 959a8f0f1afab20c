"""An action of one's own, applied while workers run: none of its mails is lost or delayed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import psycopg
import pytest

from mailroom.actions import load_actions
from mailroom.inbox.server import InboxServer
from mailroom.operations.action_files import copy
from support import commands, processes, senders
from support.messages import CATALOGUE, message
from support.queue_sql import Db, sign_up
from support.runs import UNSETTLED, Start, wait_until

TRIAL_ENDS = """
[trial_ends]
number = 30
prefix = "/trial"
link = false
fields = ["days"]
"""
PARTS = {
    ".html": "<p>{{login}}, your trial of {{app_name}} ends in {{days}} days.</p>",
    ".txt": "{{login}}, your trial of {{app_name}} ends in {{days}} days.",
    ".subject.txt": "{{days}} days left",
}
MAILS = 200


@pytest.mark.slow
def test_a_new_action_while_two_workers_run(
    db: Db, database: str, ses: InboxServer, start: Start, tmp_path: Path, figures: Callable[[str], None]
) -> None:
    """An application that asks for its mails from before it is applied, as often as it is refused."""
    folder = tmp_path / "mails"
    folder.mkdir()
    for name in ("activation", "password_recovery"):
        copy(CATALOGUE[name], folder)
    for _ in range(2):
        start(TEMPLATES=folder).wait_for_log("run.started")
    # The first call of a process takes longer: each worker makes it before the clock runs.
    for number in count(1):
        sign_up(db, f"u{number}")
        wait_until(db, UNSETTLED, 0)
        if db.execute("SELECT count(DISTINCT worker) FROM mailroom.deliveries").fetchone() == (2,):
            break
    before = ses.inbox.counts.accepted

    requested: dict[str, float] = {}
    refused: list[str] = []

    def ask() -> None:
        numbers = count(1)
        with psycopg.connect(database, autocommit=True) as connection:
            while len(requested) < MAILS:
                login = f"t{next(numbers)}"
                try:
                    connection.execute(
                        "SELECT mailroom.send('trial_ends', %s, login => %s, data => '{\"days\": 3}')",
                        [f"{login}@example.com", login],
                    )
                except psycopg.Error as error:
                    refused.append(str(error))
                else:
                    requested[f"{login}@example.com"] = time.time()
                time.sleep(0.005)

    asking = threading.Thread(target=ask)
    asking.start()
    with (folder / "actions.toml").open("a") as file:
        file.write(TRIAL_ENDS)
    for suffix, text in PARTS.items():
        (folder / f"trial_ends{suffix}").write_text(text)
    assert "trial_ends" in load_actions(folder)
    environment = processes.environment(database) | senders.environment(tmp_path / "out", TEMPLATES=folder)
    environment |= senders.aws(ses.url)
    for command in (["templates", "push"], ["actions", "apply", "--yes"]):
        done = commands.run(*command, env=environment)
        assert 0 == done.returncode, done.stderr
    asking.join(processes.PATIENCE_S)
    ses.wait_for(lambda inbox: inbox.counts.accepted >= before + MAILS)
    wait_until(db, UNSETTLED, 0)
    accepted = {
        mail.recipient: mail.time.timestamp() for mail in ses.inbox.mails.find(template="trialendsv1")
    }
    assert refused
    assert requested.keys() == accepted.keys()
    waited_s = sorted(accepted[email] - at for email, at in requested.items())
    figures(f"the median waited for {waited_s[MAILS // 2]:.3f} s, the longest for {waited_s[-1]:.3f} s")
    assert waited_s[-1] < 1
    # No worker claimed a mail before it knew the action.
    assert [(1,)] == db.execute("SELECT DISTINCT attempt FROM mailroom.deliveries").fetchall()
    assert {1} == set(ses.inbox.counts.by_recipient.values())


def test_the_pipes_sender_reads_the_folder_again_for_a_new_action(ses: InboxServer, tmp_path: Path) -> None:
    folder = tmp_path / "mails"
    folder.mkdir()
    copy(CATALOGUE["activation"], folder)
    variables = senders.environment(tmp_path / "output", TEMPLATES=folder, SEND_RATE=1000)
    with senders.SenderProcess(variables | senders.aws(ses.url), tmp_path / "log") as sender:
        sender.send([message(1)])
        ses.wait_for(lambda inbox: inbox.counts.accepted == 1)
        copy(CATALOGUE["magic_link"], folder)
        environment = processes.environment("") | variables | senders.aws(ses.url)
        assert 0 == commands.run("templates", "push", env=environment).returncode
        sender.send([message(2, CATALOGUE["magic_link"])])
        ses.wait_for(lambda inbox: inbox.counts.accepted == 2)
        assert 0 == sender.end()
    assert "malformed=0" in sender.log()
