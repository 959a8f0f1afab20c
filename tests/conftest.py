"""Real PostgreSQL for the tests: one embedded server a test process, one cloned database a test.

``MAILROOM_TEST_DATABASE_URL`` points the suite at another server (its user must be allowed to make
databases); ``MAILROOM_TEST_POSTGRES_BINDIR`` starts the servers from other binaries.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from mailroom.demo.folders import remove_leftovers
from mailroom.demo.postgres import FOLDER_PREFIX, PostgresServer
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.server import InboxServer
from support import postgres, processes, senders
from support.postgres import migrated
from support.runs import RunProcess, Start
from support.secrets import Watch

# A script that starts the tests with & makes them ignore SIGINT, and so would the programs they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_secret_in_logs() -> Iterator[Watch]:
    """What ``mailroom`` logs holds no key, no password, no secret, no token, no code and no whole address."""
    watch = Watch()
    with pytest.MonkeyPatch.context() as patch:
        watch.begin(patch)
        yield watch
    assert [] == watch.end()


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """A server's maintenance database."""
    if url := os.environ.get("MAILROOM_TEST_DATABASE_URL"):
        yield url
        return
    remove_leftovers(FOLDER_PREFIX, postgres.below())
    with postgres.server() as server:
        yield server.url()


def database_of(server_url: str, name: str) -> str:
    return make_conninfo(server_url, dbname=name)


@pytest.fixture(scope="session")
def template(server_url: str) -> Iterator[str]:
    """A migrated database to clone; nobody may be connected to it."""
    name = f"mailroom_template_{secrets.token_hex(6)}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        migrated(database_of(server_url, name))
        yield name
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def empty_database(server_url: str) -> Iterator[str]:
    """The address of a database without any schema."""
    yield from _fresh(server_url, "template1")


@pytest.fixture
def database(server_url: str, template: str) -> Iterator[str]:
    """The address of a migrated database of the test's own."""
    yield from _fresh(server_url, template)


@pytest.fixture
def db(database: str) -> Iterator[psycopg.Connection]:
    """An autocommit connection to it."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def owned_database(empty_database: str) -> Iterator[str]:
    """The address of ``empty_database`` for an ordinary user, who may make and own the schema in it."""
    name, password = f"acme_owner_{secrets.token_hex(4)}", secrets.token_hex(8)
    role = sql.Identifier(name)
    with psycopg.connect(empty_database, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, password))
        admin.execute(sql.SQL("GRANT ALL ON SCHEMA public TO {}").format(role))
        database = sql.Identifier(admin.info.dbname)
        admin.execute(sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(database, role))
        yield make_conninfo(empty_database, user=name, password=password)
        admin.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(role))
        admin.execute(sql.SQL("DROP ROLE {}").format(role))


@pytest.fixture(scope="session")
def cluster() -> Iterator[PostgresServer]:
    """A migrated server that does not run, to copy."""
    with postgres.cluster() as one:
        yield one


@pytest.fixture
def own_server(cluster: PostgresServer) -> Iterator[PostgresServer]:
    """A migrated server of the test's own, to stop and start; it keeps over a crash what it has committed."""
    with postgres.copy_of(cluster, postgres.DURABLE) as server:
        yield server


@pytest.fixture
def ses() -> Iterator[InboxServer]:
    """A local SES with the templates."""
    with InboxServer(inbox=senders.with_templates(Inbox())) as server:
        yield server


@pytest.fixture
def start(database: str, ses: InboxServer, tmp_path: Path) -> Iterator[Start]:
    """Starts ``mailroom run`` on the test's database and SES; variables without MAILROOM_.

    ``constants`` replaces constants of its modules, such as ``mailroom.runner.readiness.READY_AGE_S``.
    """
    with contextlib.ExitStack() as stack:

        def start_one(
            *, constants: Mapping[str, float | str] | None = None, **variables: str | int
        ) -> RunProcess:
            given = senders.environment(tmp_path / "output", **({"SEND_RATE": 10_000} | variables))
            every = processes.environment(database) | given | senders.aws(ses.url)
            return stack.enter_context(
                RunProcess(every, tmp_path / f"run-{time.monotonic_ns()}", constants or {})
            )

        yield start_one


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Takes a line of what was measured, to be shown when the tests are over."""
    return lambda line: request.node.user_properties.append(("figures", f"{request.node.name}: {line}"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that need the most time.

    So they are not alone at the end, and one worker runs them all: others take from the end of its list.
    """
    items.sort(key=lambda item: -max((mark.args[0] for mark in item.iter_markers("timeout")), default=0))


LEFT_OUT = pytest.StashKey[int]()


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Count what `-m` left out."""
    if items:
        stash = items[0].config.stash
        stash[LEFT_OUT] = stash.get(LEFT_OUT, 0) + len(items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Report it to xdist's controller, which deselects nothing itself."""
    if output := getattr(session.config, "workeroutput", None):
        output["left_out"] = session.config.stash.get(LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the count from one of xdist's workers: each has the same."""
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the tests measured, and what was left out."""
    left_out = terminalreporter.config.stash.get(LEFT_OUT, 0)
    if left_out and terminalreporter.config.option.markexpr == "not slow":
        terminalreporter.section("left out")
        terminalreporter.write_line(
            f"{left_out} slow tests. To run them: make slow, or make check for everything"
        )
    lines = [
        text
        for report in terminalreporter.stats.get("passed", [])
        for name, text in report.user_properties
        if name == "figures" and report.when == "call"
    ]
    if lines:
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.write_line(line)


def _fresh(server_url: str, template: str) -> Iterator[str]:
    name = f"mailroom_test_{secrets.token_hex(6)}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        clone = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
            sql.Identifier(name), sql.Identifier(template)
        )
        if connection.info.server_version >= 150000:  # a quarter of what its default costs here
            clone += sql.SQL(" STRATEGY FILE_COPY")
        connection.execute(clone)
        yield database_of(server_url, name)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
