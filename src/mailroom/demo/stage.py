"""Runs everything that the demonstration needs, on loopback.

That is an embedded PostgreSQL with Mailroom's migrations and the example's actions, the inbox in this
process, and as processes the example application, `mailroom run` and the console. They end with this
process; if it is killed, only where setpriv is installed.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Final, NamedTuple, Self

from mailroom.actions import load_actions
from mailroom.database import migrate, sync
from mailroom.demo.folders import remove_leftovers
from mailroom.demo.postgres import FOLDER_PREFIX, PostgresServer
from mailroom.demo.programs import APP, QUEUE, RUN, Programs, port_or_free
from mailroom.demo.signup.database import ACTIONS
from mailroom.inbox.event_queue import NAME as EVENTS
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.server import InboxServer
from mailroom.operations import actions
from mailroom.templates import sources
from mailroom.tokens import new_key

INBOX_PORT: Final = 8025
APP_PORT: Final = 8000
QUEUE_PORT: Final = 8026
METRICS_PORT: Final = 8027
KEEP: Final = 30_000
APP_NAME: Final = "Acme"
SOURCE: Final = "Acme <noreply@acme.example>"

Tell = Callable[[str], None]


class Address(NamedTuple):
    """The name and the address of a server, and its preferred port."""

    name: str
    url: str
    preferred: int

    def text(self) -> str:
        """Return a line to print."""
        in_use = "" if f":{self.preferred}" in self.url else f"  (port {self.preferred} is in use)"
        return f"  {self.name:<12} {self.url}{in_use}"


class Stage:
    """Runs everything while the context is entered.

    Args:
        tell: prints what is being started.

    Attributes:
        key: signs the tokens.
        database_url: the database's address, with its password.
        psql: a command that connects by the socket, without a password.
        inbox: the address of the inbox; likewise ``app``, ``metrics`` and ``queue``.
        programs: the programs that are processes.
    """

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._stack = ExitStack()
        self.key = new_key()

    def __enter__(self) -> Self:
        """Start everything.

        Raises:
            MailroomError: a program does not start.
        """
        with ExitStack() as stack:
            began_s = time.monotonic()
            self._open_database(stack)
            self._start_programs(stack)
            self._tell(f"Everything runs after {time.monotonic() - began_s:.1f} s.")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def addresses(self) -> list[Address]:
        """Return the addresses to open in a browser."""
        return [self.inbox, self.app, self.queue, self.metrics]

    def _open_database(self, stack: ExitStack) -> None:
        remove_leftovers(FOLDER_PREFIX)
        self._tell("Making an embedded PostgreSQL …")
        server = PostgresServer()
        stack.callback(server.remove)
        server.make()
        self._tell("… starting it …")
        server.start()
        self._folder, self.database_url = server.folder, server.url()
        psql = shutil.which("psql") or server.bindir / "psql"
        self.psql = f"{psql} -h {server.folder} -p {server.port} -U postgres"
        applied: list[str] = []
        with sync.connected(server.url()) as connection:
            migrate.up(connection, None, applied.append)
            known = load_actions()
            actions.apply(connection, {name: known[name] for name in ACTIONS})
        self._tell(f"… it has Mailroom's {len(applied)} migrations, and {len(ACTIONS)} more actions.")

    def _start_programs(self, stack: ExitStack) -> None:
        self._tell("Starting the inbox, the example application, mailroom run and the console …")
        inbox = stack.enter_context(InboxServer(port=port_or_free(INBOX_PORT), inbox=Inbox(keep=KEEP)))
        self.inbox = Address("inbox", inbox.url, INBOX_PORT)
        self.programs = Programs(
            stack,
            self._folder,
            _environment()
            | {
                "MAILROOM_DATABASE_URL": self.database_url,
                "MAILROOM_SECRET_KEY": self.key,
                "MAILROOM_APP_NAME": APP_NAME,
            },
        )
        app = self.programs.serve(
            APP,
            ["mailroom.demo.signup"],
            {"PORT": "{port}", "INBOX_URL": inbox.url},
            port=APP_PORT,
            ready="Uvicorn running on",
        )
        self.app = Address("application", app, APP_PORT)
        # The links in the mails lead to it.
        inbox.inbox.publish(sources.load(None, {"app_name": APP_NAME, "app_url": app}).values())
        run = self.programs.serve(
            RUN,
            ["mailroom", "run"],
            {
                "MAILROOM_HTTP": "127.0.0.1:{port}",
                "MAILROOM_APP_URL": app,
                "MAILROOM_SES_SOURCE": SOURCE,
                "MAILROOM_SES_OUTPUT_PATH": str(self._folder / "output"),
                "MAILROOM_EVENTS": EVENTS,
                "AWS_ENDPOINT_URL_SES": inbox.url,
                "AWS_ENDPOINT_URL_SQS": inbox.url,
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_ACCESS_KEY_ID": "demo",
                "AWS_SECRET_ACCESS_KEY": "demo",
                "NO_PROXY": "127.0.0.1",
            },
            port=METRICS_PORT,
            ready="run.started",
        )
        self.metrics = Address("metrics", f"{run}/metrics", METRICS_PORT)
        queue = self.programs.serve(
            QUEUE,
            ["mailroom", "console", "--port", "{port}"],
            {},
            port=QUEUE_PORT,
            ready="The queue is shown at",
        )
        self.queue = Address("queue", queue, QUEUE_PORT)


def _environment() -> dict[str, str]:
    """Return this process's variables, without those that would point the programs elsewhere."""
    elsewhere = ("MAILROOM_", "AWS_", "PG", "SESSION_SECRET")
    return {name: value for name, value in os.environ.items() if not name.startswith(elsewhere)}
