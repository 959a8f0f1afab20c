"""Mails are added by following docs/how-to/adding-a-mail.md, while two workers run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from database.test_roles import APP, WORKER, as_, with_roles
from mailroom.inbox.server import InboxServer
from mailroom.templates import sources
from support import processes, senders
from support.processes import PATIENCE_S

pytestmark = pytest.mark.slow

__all__ = ["with_roles"]  # a fixture

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "how-to" / "adding-a-mail.md").read_text()
FILES = ("join_team.subject.txt", "join_team.txt", "join_team.html")
INVITED = 40

# The application's side: the guide's functions, asked for by the name of one and its arguments.
APPLICATION = """
import json, os, sys
import psycopg
import mailroom
KEYS = os.environ["MAILROOM_SECRET_KEY"]
{functions}
with psycopg.connect(os.environ["MAILROOM_DATABASE_URL"]) as connection:
    print(globals()[sys.argv[1]](connection, *sys.argv[2:]))
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


def only(language: str, *, containing: str = "") -> str:
    (code,) = (code for code in blocks(language) if containing in code)
    return code


def test_mails_are_added_by_the_guide_alone(with_roles: str, tmp_path: Path) -> None:
    database, mails = with_roles, tmp_path / "mails"
    (tmp_path / "application.py").write_text(APPLICATION.format(functions=only("python")))
    with psycopg.connect(database, autocommit=True) as db, InboxServer() as ses:
        db.execute("INSERT INTO accounts (email, login, status) VALUES ('zoe@example.com', 'zoe', 'active')")
        db.execute("CREATE TABLE members (team text, email text)")
        db.execute("GRANT SELECT, INSERT ON members TO mailroom_app")
        variables = (
            processes.environment(database, BATCH_TIMEOUT=0, TEMPLATES="mails")
            | senders.environment(tmp_path / "output", SES_CONFIG_SET="none", SEND_RATE=1000)
            | senders.aws(ses.url)
        )

        def run(*command: str, expected: int = 0, url: str = database) -> str:
            done = subprocess.run(
                [sys.executable, *command],
                env=variables | {"MAILROOM_DATABASE_URL": url},
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=False,
            )
            assert expected == done.returncode, done.stdout + done.stderr
            return done.stdout + done.stderr

        del variables["MAILROOM_TEMPLATES"]
        run("-m", *only("sh", containing="mailroom init").split())
        variables["MAILROOM_TEMPLATES"] = "mails"
        ses.inbox.publish(
            sources.load(mails, {"app_name": "Acme", "app_url": "https://acme.example"}).values()
        )
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", "mailroom", "run"],
                env=variables | {"MAILROOM_DATABASE_URL": as_(database, WORKER)},
                cwd=tmp_path,
            )
            for _ in range(2)
        ]
        try:
            for line in only("sh", containing="add magic_link").splitlines():
                run("-m", *line.split())
            db.execute(only("sql").encode())
            ses.wait_for(lambda inbox: inbox.counts.accepted == 1)

            with (mails / "actions.toml").open("a") as file:
                file.write("\n" + only("toml"))
            for name, content in zip(FILES, blocks("handlebars"), strict=True):
                assert f"`mails/{name}`:\n" in GUIDE
                (mails / name).write_text(content)
            for line in only("sh", containing="actions apply").splitlines():
                run("-m", *line.split(), expected=int(line.endswith(" diff")))
            for number in range(INVITED):
                db.execute(
                    "SELECT mailroom.send('join_team', recipient => %s,"
                    """ data => '{"inviter": "Anna", "team": "Blue"}')""",
                    [f"person{number}@example.org"],
                )
            ses.wait_for(lambda inbox: inbox.counts.accepted == 1 + INVITED)
            run("application.py", "invite", "bob@example.org", "Red", "Eve", url=as_(database, APP))
            run("application.py", "invite", "bob@example.org", "Red", "Eve", url=as_(database, APP))
            ses.wait_for(lambda inbox: inbox.counts.accepted == 2 + INVITED)
        finally:
            for worker in workers:
                worker.terminate()
            assert [0, 0] == [worker.wait(PATIENCE_S) for worker in workers]

        late = db.execute(
            "SELECT t.id, d.at - t.created_at FROM tokens t LEFT JOIN mailroom.deliveries d"
            " ON d.token = t.id AND d.outcome = 'sent'"
            " WHERE d.at IS NULL OR d.at - t.created_at > interval '1 second'"
        ).fetchall()
        assert [] == late
        (mail,) = ses.inbox.mails.find(recipient="bob@example.org")
        rendered = ses.inbox.render(mail)
        assert rendered
        assert "Eve invites you to Red" == rendered.subject
        assert "It works once, and for 7 days." in rendered.text
        (token,) = re.findall(r"https://acme\.example/join-team\?token=([\w-]{86})", rendered.text)
        run("-m", "mailroom", "token", "verify", token, "--action", "join_team")
        refused = run("-m", "mailroom", "token", "verify", token, "--action", "activation", expected=65)
        assert "forged" in refused or "wrong action" in refused
        assert "Red\n" == run("application.py", "join", token, url=as_(database, APP))
        assert "TokenUsed" in run("application.py", "join", token, expected=1, url=as_(database, APP))
        assert [("Red", "bob@example.org")] == db.execute("SELECT team, email FROM members").fetchall()
