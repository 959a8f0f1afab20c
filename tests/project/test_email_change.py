"""An action is added by following docs/how-to/adding-an-action.md, and nothing else is touched."""

from __future__ import annotations

import filecmp
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from database.test_roles import APP, WORKER, as_, with_roles
from mailroom.inbox.server import InboxServer
from support import processes, senders

pytestmark = pytest.mark.slow

__all__ = ["with_roles"]  # a fixture

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "how-to" / "adding-an-action.md").read_text()
PARTS = ("email_change.subject.txt", "email_change.txt", "email_change.html")

# The application's side: the guide's functions, asked for by the name of one and its arguments.
APPLICATION = """
import os, sys
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


def clone(folder: Path) -> Path:
    """A copy of the package, changed as the guide says."""
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "email_change.patch").write_text(only("diff"))
    subprocess.run(["/bin/sh", "-ec", only("sh", containing="patch")], cwd=folder, check=True)
    for name, content in zip(PARTS, blocks("handlebars"), strict=True):
        assert f"`{name}`:\n" in GUIDE
        (folder / "src" / "mailroom" / "templates" / "default" / name).write_text(content)
    return folder / "src"


def changed(copy: Path) -> set[str]:
    """What differs from the package that we have."""
    names = {
        str(path.relative_to(copy))
        for path in copy.rglob("*")
        if path.is_file() and path.suffix != ".pyc" and "__pycache__" not in path.parts
    }
    return {
        name
        for name in names
        if not (ROOT / "src" / name).exists()
        or not filecmp.cmp(copy / name, ROOT / "src" / name, shallow=False)
    }


def test_an_action_is_added_by_the_guide_alone(with_roles: str, tmp_path: Path) -> None:
    database = with_roles
    source = clone(tmp_path)
    assert {"mailroom/actions.py", *(f"mailroom/templates/default/{name}" for name in PARTS)} == changed(
        source
    )

    with psycopg.connect(database, autocommit=True) as db:
        db.execute("INSERT INTO accounts (email, login, status) VALUES ('zoe@example.com', 'zoe', 'active')")
        for code in blocks("sql"):
            for statement in filter(str.strip, code.split(";\n")):
                db.execute(statement.encode())

    application = tmp_path / "application.py"
    application.write_text(APPLICATION.format(functions=only("python")))

    with InboxServer() as ses:
        variables = (
            processes.environment(database, BATCH_TIMEOUT=0)
            | senders.environment(tmp_path / "output", SES_CONFIG_SET="none")
            | senders.aws(ses.url)
            | {"PYTHONPATH": str(source)}
        )

        def run(*command: str | Path, expected: int = 0, url: str = database) -> str:
            done = subprocess.run(
                [sys.executable, *command],
                env=variables | {"MAILROOM_DATABASE_URL": url},
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert expected == done.returncode, done.stdout + done.stderr
            return done.stdout + done.stderr

        assert str(source) in run("-c", "import mailroom; print(mailroom.__file__)")
        looking = only("sh", containing="pip install").replace("pip install .\n", "")
        for line in looking.splitlines():
            run("-m", *line.split())
            if (
                line == "mailroom templates push email_change"
            ):  # the others are there already, with who follows it
                run("-m", "mailroom", "templates", "push")
        assert {"activationv1", "passwordrecoveryv1", "emailchangev1"} == set(ses.inbox.account.templates)

        worker = subprocess.Popen(
            [sys.executable, "-m", "mailroom", "run"],
            env=variables | {"MAILROOM_DATABASE_URL": as_(database, WORKER)},
            cwd=tmp_path,
        )
        try:
            run(application, "ask_for_change", "1", "zoe@elsewhere.example", url=as_(database, APP))
            ses.wait_for(lambda inbox: inbox.counts.accepted == 1)
        finally:
            worker.terminate()
            assert 0 == worker.wait(30)

        (mail,) = ses.inbox.mails.find()
        rendered = ses.inbox.render(mail)
        assert "zoe@example.com" == mail.recipient
        assert rendered
        assert "Confirm your new address at Acme" == rendered.subject
        token = re.findall(r"https://acme\.example/change-email\?token=([\w-]{86})", rendered.text)[0]

        run("-m", "mailroom", "token", "verify", token, "--action", "email_change")
        refused = run("-m", "mailroom", "token", "verify", token, "--action", "activation", expected=65)
        assert "wrong action" in refused
        assert "1\n" == run(application, "change", token, url=as_(database, APP))
        assert "TokenUsed" in run(application, "change", token, expected=1, url=as_(database, APP))

    with psycopg.connect(database) as db:
        assert [("zoe@elsewhere.example",)] == db.execute("SELECT email FROM accounts").fetchall()
        assert [("sent",)] == db.execute("SELECT outcome FROM mailroom.deliveries").fetchall()


def test_an_unknown_action_stays_in_the_queue(database: str, tmp_path: Path) -> None:
    with psycopg.connect(database, autocommit=True) as db:
        db.execute("INSERT INTO accounts (email, login, status) VALUES ('zoe@example.com', 'zoe', 'active')")
        for statement in filter(str.strip, only("sql", containing="ADD VALUE").split(";\n")):
            db.execute(statement.encode())
        with processes.CollectorProcess(database, log=tmp_path / "log") as collector:
            collector.wait_until_listening()
            db.execute("INSERT INTO tokens (action, account) VALUES ('email_change', 1)")
            collector.wait_for_log("collector.unknown_action")
            collector.stop()
        rows = db.execute("SELECT waiting + in_flight FROM mailroom.backlog()").fetchall()
        assert [(1,)] == rows
