"""The tour: people sign up in an embedded PostgreSQL, and their mails arrive in a local SES.

Everything is real: the server, the triggers, ``mailroom run`` in a process of its own, AWS's
client and its protocol. Only the far end is the inbox, which keeps mail. The tour
prints each mail as it arrives, and checks in the end that none is missing, none came twice, and that
every link holds a token that verifies.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from tempfile import TemporaryDirectory
from typing import Final

import psycopg

from mailroom import migrate, templates
from mailroom.actions import ACTIONS
from mailroom.demo.postgres import PostgresServer, ending_with_us
from mailroom.errors import TokenError
from mailroom.inbox import Inbox, InboxServer
from mailroom.inbox.mails import Mail
from mailroom.tokens import new_key, verify

RECOVERY_EVERY: Final = 7
PATIENCE_S: Final = 30.0
SOURCE: Final = "Mailroom <noreply@demo.example>"
CONSTANTS: Final = {"app_name": "Demo", "app_url": "https://demo.example"}

Tell = Callable[[str], None]


def run_tour(signups: int, tell: Tell) -> int:
    """Run the tour; gives back 0 when every mail arrived once and every token verified, else 1."""
    tell("Starting an embedded PostgreSQL and a local SES …")
    inbox = Inbox(keep=30_000, on_mail=lambda mail: tell(_shown(inbox, mail)))
    with PostgresServer() as server, InboxServer(inbox=inbox) as ses, TemporaryDirectory() as output:
        with migrate.connected(server.url()) as connection:
            migrate.up(connection, None, lambda name: tell(f"  migration {name}"))
        loaded = templates.load(None, CONSTANTS).values()
        inbox.publish(loaded)
        for template in loaded:
            tell(f"  template {template.action.template}")
        key = new_key()
        worker = _Worker(server.url(), key, ses.url, output)
        try:
            tell(f"{signups} people sign up, some of them forget their password:\n")
            committed = _trickle(server.url(), signups)
            with suppress(TimeoutError):  # which the counts will tell
                ses.wait_for(lambda inbox: inbox.counts.accepted >= committed, PATIENCE_S)
        finally:
            exit_code = worker.stop()
    return _sum_up(inbox, committed, key, exit_code, tell)


class _Worker:
    """``mailroom run``."""

    def __init__(self, url: str, key: str, ses_url: str, output: str) -> None:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("MAILROOM_", "AWS_"))
        }
        settings = {
            "MAILROOM_DATABASE_URL": url,
            "MAILROOM_SECRET_KEY": key,
            "MAILROOM_BATCH_TIMEOUT": "300",
            "MAILROOM_SES_SOURCE": SOURCE,
            "MAILROOM_SES_OUTPUT_PATH": output,
            "AWS_ENDPOINT_URL_SES": ses_url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "demo",
            "AWS_SECRET_ACCESS_KEY": "demo",
            "NO_PROXY": "127.0.0.1",
        }
        self._process = subprocess.Popen(
            ending_with_us([sys.executable, "-m", "mailroom", "--log-level", "warning", "run"]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=kept | settings,
        )

    def stop(self) -> int:
        """End it in order; gives back its exit code."""
        self._process.terminate()
        return self._process.wait(PATIENCE_S)


def _trickle(url: str, signups: int) -> int:
    """Sign people up, and let every seventh recover; gives back how many mails that makes."""
    pause = random.Random(0)  # noqa: S311 - no secret
    mails = 0
    with psycopg.connect(url, autocommit=True) as connection:
        for number in range(1, signups + 1):
            connection.execute(
                "INSERT INTO accounts (email, login) VALUES (%s, %s)",
                [f"person{number}@example.com", f"person{number}"],
            )
            mails += 1
            if number % RECOVERY_EVERY == 0:
                with connection.transaction():
                    account = connection.execute(
                        "INSERT INTO accounts (email, login, status) VALUES (%s, %s, 'active') RETURNING id",
                        [f"forgetful{number}@example.com", f"forgetful{number}"],
                    ).fetchone()
                    connection.execute(
                        "INSERT INTO tokens (action, account) VALUES ('password_recovery', %s)", account
                    )
                mails += 1
            time.sleep(pause.uniform(0, 0.1))
    return mails


def _shown(inbox: Inbox, mail: Mail) -> str:
    """A mail in two lines: to whom, the subject, and the link with most of its token left out."""
    rendered = inbox.render(mail)
    if rendered is None:
        return f"  to {mail.recipient}: dropped, {mail.failure}"
    link = re.search(r"https://\S+token=\S{12}", rendered.text)
    return f"  to {mail.recipient:26} {rendered.subject}\n     {link[0] if link else 'no link'}…"


def _sum_up(inbox: Inbox, committed: int, key: str, exit_code: int, tell: Tell) -> int:
    actions = {action.template: action.name for action in ACTIONS}
    mails = inbox.mails.find(limit=committed * 2)
    genuine = 0
    for mail in mails:
        action = actions[mail.template.name]
        try:
            verify(mail.data["secret"], action, keys=key, code=mail.data.get("code"))
        except TokenError as error:
            tell(f"a token of {mail.recipient} does not verify: {error}")
        else:
            genuine += 1
    recipients = len(inbox.counts.by_recipient)
    tell(
        f"\n{committed} mails were due, {len(mails)} arrived, for {recipients} people;"
        f" {genuine} links hold a token that verifies."
    )
    whole = committed == len(mails) == recipients == genuine and exit_code == 0
    tell("Nothing was lost, nothing was sent twice." if whole else "Something went wrong: see above.")
    return 0 if whole else 1
