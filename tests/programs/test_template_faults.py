"""A wrong or missing file stops its own action, is reported by name, and is read again when it is right."""

from __future__ import annotations

from pathlib import Path

import pytest

from mailroom.operations.action_files import write_built_in
from support import commands, processes
from support.queue_sql import Db, sign_up
from support.runs import UNSETTLED, Start, wait_until
from support.senders import environment
from support.smtp import MailServer, mail_server

pytestmark = pytest.mark.slow

RECOVERY = """\
WITH a AS (
    INSERT INTO accounts (email, login, status) VALUES ('max@example.com', 'max', 'active') RETURNING id
)
INSERT INTO tokens (action, account, locale) SELECT 'password_recovery', id, 'de-AT' FROM a
"""


def wait_for(server: MailServer, db: Db, subjects: set[str]) -> None:
    wait_until(db, "SELECT count(*) FROM mailroom.deliveries WHERE outcome = 'sent'", len(subjects))
    assert subjects == {str(mail.message["Subject"]) for mail in server.mails}


@pytest.mark.parametrize(
    ("file", "source", "reason"),
    [
        (
            "activation.txt",
            "{{secret}} {{nobody}}",
            "activation.txt: {{nobody}} is not a field of activation",
        ),
        ("activation.txt", "{{#if login}}{{secret}}", "activation.txt: not Handlebars: unclosed block"),
        ("activation.html", None, "activation.html: No such file"),
        ("layout.html", "<html>", "layout.html: {{body}} is missing"),
    ],
    ids=["an unknown field", "no Handlebars", "missing", "a layout without a body"],
)
def test_a_wrong_file_stops_its_action_and_no_worker(
    db: Db, database: str, start: Start, tmp_path: Path, file: str, source: str | None, reason: str
) -> None:
    folder = tmp_path / "mails"
    write_built_in(folder)
    if file == "layout.html":  # it is of every action: the other one has pages of its own
        for name in ("password_recovery", "password_recovery.de"):
            (folder / f"{name}.html").write_text("<!DOCTYPE html><p>{{secret}} {{code}}</p>")
    right = (folder / file).read_text()
    (folder / file).unlink()
    if source is not None:
        (folder / file).write_text(source)

    with mail_server() as server:
        address = f"smtp://127.0.0.1:{server.port}"
        worker = start(TRANSPORT=address, TEMPLATES=str(folder))
        worker.wait_for_log("smtp.template_unusable action=activation")
        sign_up(db, "zoe")
        worker.wait_for_log("sender.paused breaker=activation")
        db.execute(RECOVERY)
        wait_for(server, db, {"Ihr neues Passwort für Acme"})
        wait_until(db, f"SELECT strpos(trouble, '{reason}') > 0 FROM mailroom.workers", True)
        variables = processes.environment(database) | environment(tmp_path, TRANSPORT=address)
        told = commands.run("why", "zoe@example.com", env=variables)
        assert reason in told.stdout, told

        (folder / file).write_text(right)
        wait_for(server, db, {"Ihr neues Passwort für Acme", "Activate your Acme account"})
        wait_until(db, UNSETTLED, 0)
        assert 0 == worker.stop()
