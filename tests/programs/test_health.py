"""Health and metrics of ``mailroom run``: red within seconds of a fault, and green again after it."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from mailroom.demo.postgres import PostgresServer, free_port
from mailroom.inbox.faults import Fault
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.server import InboxServer
from mailroom.queue.pulse import FRESH_S, LIMIT_S
from mailroom.runner.metrics import Metrics
from mailroom.settings.variables import read_settings
from mailroom.settings.worker import HealthSettings, RunSettings
from support import processes, senders
from support.doorbell import wait_for_holder
from support.proxy import Proxy
from support.queue_sql import Db, sign_up, sign_up_many
from support.runs import (
    UNSETTLED,
    RunProcess,
    Start,
    fetch,
    ledger,
    readiness,
    wait_for_readiness,
    wait_until,
)

REFERENCE = (Path(__file__).parents[2] / "docs" / "reference" / "metrics.md").read_text()
# What "within seconds" is here, on a machine that does other things as well.
SECONDS = 15.0
READY_AGE = "mailroom.runner.readiness.READY_AGE_S"
READY_PAUSE = "mailroom.runner.readiness.READY_PAUSE_S"


def metric(port: int, name: str) -> float:
    """A sample by its name and labels."""
    (found,) = re.findall(rf"^{re.escape(name)} (\S+)$", fetch(port, "/metrics")[1], re.MULTILINE)
    return float(found)


def test_a_mail_is_counted(db: Db, ses: InboxServer, start: Start) -> None:
    port = free_port()
    worker = start(HTTP=port)
    wait_for_readiness(port, None)
    for outcome in ("sent", "retried", "rejected", "unknown"):  # so that the first one is an increase
        assert 0 == metric(port, f'mailroom_outcomes_total{{action="activation",outcome="{outcome}"}}')
    sign_up(db, "zoe")
    sign_up(db, "max")
    ses.wait_for(lambda inbox: inbox.counts.accepted == 2)
    wait_until(db, UNSETTLED, 0)
    assert (200, '{"alive":true}') == fetch(port, "/livez")
    sent = metric(port, 'mailroom_outcomes_total{action="activation",outcome="sent"}')
    assert 2 == sent == metric(port, 'mailroom_answers_total{result="sent"}')
    assert 2 == metric(port, "mailroom_claimed_total")
    assert 2 == metric(port, 'mailroom_delivery_seconds_count{action="activation"}')
    assert 1 <= metric(port, 'mailroom_call_seconds_count{action="activation"}') <= 2
    assert 1 == metric(port, "mailroom_database_up") == metric(port, "mailroom_listener_up")
    text = fetch(port, "/metrics")[1]
    assert "zoe" not in text
    assert processes.KEY not in text
    assert 0 == worker.stop()
    assert readiness(port) is None


def test_the_metrics_are_those_in_the_reference() -> None:
    text = Metrics().exposition(None, outages=0, is_listening=False, sending_paused_s=0).decode()
    exposed = {
        (name, kind)
        for name, kind in re.findall(r"^# TYPE (mailroom_\w+) (\w+)$", text, re.MULTILINE)
        if not name.endswith("_created")
    }
    assert exposed
    assert exposed == set(re.findall(r"^\| `(mailroom_\w+)` \| ([a-z]+) \|", REFERENCE, re.MULTILINE))


def test_a_pause_is_a_warning_with_its_reason_and_remedy(db: Db, start: Start) -> None:
    port = free_port()
    start(HTTP=port)
    wait_for_readiness(port, None)
    assert 0 == metric(port, "mailroom_actions_paused")
    db.execute(
        "UPDATE mailroom.actions SET paused_at = now(), pause_reason = 'no field app for zoe@example.com'"
        " WHERE action = 'activation'"
    )
    found = warning_of(port, "pause")
    assert (
        "the action activation is paused: no field app for …@example.com (try: correct the template, then"
        " `mailroom resume` and `mailroom dead retry`)" == found
    )
    assert 1 == metric(port, "mailroom_actions_paused")
    db.execute("SELECT mailroom.pause('a restore')")
    assert "the queue is paused: a restore (try: `mailroom resume`)" == warning_of(port, "pause", "queue")
    db.execute("SELECT mailroom.resume('token_insert')")
    assert not warning_of(port, "pause", "")
    assert 0 == metric(port, "mailroom_actions_paused")


def warning_of(port: int, part: str, text: str = "action") -> str:
    """The warning of ``/readyz`` about a part, once it has a text; with an empty text, once it is gone."""
    deadline = time.monotonic() + SECONDS
    while True:
        status, answer = fetch(port, "/readyz")
        found = json.loads(answer)
        assert (200, True) == (status, found["ready"])
        warning = str(found["warnings"].get(part, ""))
        if text in warning if text else not warning:
            return warning
        assert time.monotonic() < deadline, warning


@pytest.mark.slow
def test_the_backlog_is_shown(db: Db, ses: InboxServer, start: Start) -> None:
    port = free_port()
    ses.inbox.account.paused = True
    sign_up_many(db, 300)
    start(HTTP=port)
    ses.wait_for(lambda inbox: inbox.counts.calls >= 1)
    wait_for_readiness(port, None)
    counted = ('waiting{lane="bulk"}', 'waiting{lane="urgent"}', "in_flight", "retrying")
    assert 300 == sum(metric(port, f"mailroom_{name}") for name in counted)
    assert 0 < metric(port, 'mailroom_waiting{lane="bulk"}')
    assert 0 < metric(port, "mailroom_oldest_due_seconds")
    assert 0 < metric(port, "mailroom_sending_paused_seconds")
    assert 0 == metric(port, "mailroom_queue_paused")
    db.execute("SELECT mailroom.pause('a test')")
    deadline = time.monotonic() + SECONDS
    while not metric(port, "mailroom_queue_paused"):
        assert time.monotonic() < deadline


def test_red_when_the_listener_is_killed_and_cannot_come_back(
    server_url: str, database: str, db: Db, start: Start
) -> None:
    port = free_port()
    start(HTTP=port)
    wait_for_readiness(port, None)
    name = conninfo_to_dict(database)["dbname"]
    listening = wait_for_holder(db, "bell_lock")
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'.encode())
        try:
            admin.execute("SELECT pg_terminate_backend(%s)", [listening])
            wait_for_readiness(port, "listener", SECONDS)
            assert 200 == fetch(port, "/livez")[0]
        finally:
            admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'.encode())
    wait_for_readiness(port, None)
    assert 0 == metric(port, "mailroom_database_outages_total")  # the other connections stayed


@pytest.mark.slow
def test_red_when_the_provider_refuses_for_longer_than_the_limit(
    db: Db, ses: InboxServer, start: Start
) -> None:
    port = free_port()
    ses.inbox.account.paused = True
    start(HTTP=port, constants={READY_PAUSE: 1.0})
    wait_for_readiness(port, None)
    sign_up(db, "zoe")
    wait_for_readiness(port, "sending", SECONDS)
    found = readiness(port)
    assert found
    assert "AccountSendingPaused" in found["sending"]
    ses.inbox.account.paused = False
    wait_for_readiness(port, None)


@pytest.mark.slow
def test_green_again_when_no_mail_is_left_to_try(db: Db, ses: InboxServer, start: Start) -> None:
    port = free_port()
    ses.inbox.account.paused = True
    worker = start(HTTP=port, constants={READY_PAUSE: 1.0})
    wait_for_readiness(port, None)
    sign_up(db, "zoe")
    wait_for_readiness(port, "sending", SECONDS)
    db.execute("UPDATE tokens SET expires_at = clock_timestamp()")
    wait_for_readiness(port, None)
    assert 0 == ses.inbox.counts.accepted
    assert 0 == metric(port, "mailroom_sending_paused_seconds")
    worker.wait_for_log("sender.reset")
    wait_until(db, "SELECT trouble FROM mailroom.workers", "")


@pytest.mark.slow
def test_the_trouble_of_one_action_is_called_so(db: Db, ses: InboxServer, start: Start) -> None:
    port = free_port()
    ses.inbox.faults.add(Fault("error", code="TemplateDoesNotExist"))
    start(HTTP=port, constants={READY_PAUSE: 1.0})
    wait_for_readiness(port, None)
    sign_up(db, "zoe")
    wait_for_readiness(port, "sending", SECONDS)
    found = readiness(port)
    assert found
    assert found["sending"].startswith("no mail of the action activation could be sent for ")
    assert 0 == metric(port, "mailroom_sending_paused_seconds")
    wait_until(db, "SELECT trouble LIKE 'activation: paused: %' FROM mailroom.workers", True)
    ses.inbox.faults.clear()
    wait_for_readiness(port, None)


@pytest.mark.slow
def test_red_while_every_mail_fails(db: Db, ses: InboxServer, start: Start) -> None:
    port = free_port()
    ses.inbox.faults.add(Fault("status", status="TransientFailure"))
    start(HTTP=port, constants={READY_AGE: 2.0})
    wait_for_readiness(port, None)
    sign_up_many(db, 5)
    wait_for_readiness(port, "queue", SECONDS)
    assert 2 < metric(port, "mailroom_oldest_unsettled_seconds")
    db.execute("SELECT mailroom.pause('a person knows')")
    wait_for_readiness(port, None, SECONDS)
    db.execute("SELECT mailroom.resume('token_insert')")
    wait_for_readiness(port, "queue", SECONDS)
    db.execute("UPDATE mailroom.actions SET paused_at = now() WHERE action = 'activation'")
    wait_for_readiness(port, None, SECONDS)
    db.execute("SELECT mailroom.resume('token_insert')")
    wait_for_readiness(port, "queue", SECONDS)
    ses.inbox.faults.clear()
    wait_for_readiness(port, None)
    assert 0 == metric(port, "mailroom_oldest_unsettled_seconds")


@pytest.mark.slow
def test_what_was_not_tried_is_not_counted(db: Db, ses: InboxServer, start: Start) -> None:
    """Two actions in a lease, and a tripped breaker that lets one of them try."""
    port = free_port()
    ses.inbox.account.paused = True
    sign_up_many(db, 2)
    db.execute("UPDATE accounts SET status = 'active' WHERE login = 'u2'")
    db.execute("DELETE FROM tokens WHERE account = (SELECT id FROM accounts WHERE login = 'u2')")
    db.execute(
        "INSERT INTO tokens (action, account, lane)"
        " SELECT 'password_recovery', id, 'normal' FROM accounts WHERE login = 'u2'"
    )
    worker = start(HTTP=port)
    wait_until(db, "SELECT count(*) >= 4 FROM mailroom.deliveries", True)
    assert 0 == worker.stop()
    (held,) = db.execute("SELECT generation, cardinality(tokens) FROM mailroom.leases").fetchall()
    tried = len(ledger(db))
    assert tried < held[0] * held[1]
    told = re.findall(r"run\.settled retried=(\d+)", worker.log())
    assert tried == sum(map(int, told))


@pytest.mark.slow
def test_red_when_the_oldest_due_mail_is_too_old(database: str, db: Db, start: Start) -> None:
    port = free_port()
    start(HTTP=port, constants={READY_AGE: 1.0})
    wait_for_readiness(port, None)
    with psycopg.connect(database) as blocker:  # a claim waits for it
        blocker.execute("SELECT FROM jobs FOR UPDATE")
        sign_up(db, "zoe")
        wait_for_readiness(port, "queue", SECONDS)
        blocker.rollback()
    wait_for_readiness(port, None)


def test_red_when_the_schema_is_gone(db: Db, start: Start) -> None:
    port = free_port()
    start(HTTP=port)
    wait_for_readiness(port, None)
    db.execute("ALTER FUNCTION mailroom.pulse(integer) RENAME TO pulse_no_more")
    wait_for_readiness(port, "database", SECONDS)


def test_a_failed_task_ends_the_process(db: Db, start: Start) -> None:
    worker = start(HTTP=free_port())
    worker.wait_for_log("run.started")
    db.execute("DROP FUNCTION mailroom.claim")
    sign_up(db, "zoe")
    assert 78 == worker.process.wait(processes.PATIENCE_S)
    assert "mailroom migrate up" in worker.log()


@pytest.mark.slow
def test_red_while_the_network_is_deaf(own_server: PostgresServer, tmp_path: Path) -> None:
    """Without traffic, and with the health check's interval of minutes that is the default."""
    given = conninfo_to_dict(own_server.url())
    with Proxy(int(str(given["port"]))) as proxy, InboxServer(inbox=senders.with_templates(Inbox())) as ses:
        port = free_port()  # last: the others have taken theirs
        url = make_conninfo(own_server.url(), port=proxy.port)
        variables = processes.environment(url, HTTP=port) | senders.environment(tmp_path / "output")
        with RunProcess(variables | senders.aws(ses.url) | {"MAILROOM_HTTP": str(port)}, tmp_path / "log"):
            wait_for_readiness(port, None)
            time.sleep(FRESH_S)  # what it last heard of the database is too old by then
            proxy.go_deaf()
            began = time.monotonic()
            assert 503 == fetch(port, "/readyz")[0]
            assert LIMIT_S + 1 > time.monotonic() - began
            wait_for_readiness(port, "listener", SECONDS)
            assert 200 == fetch(port, "/livez")[0]


@pytest.mark.slow
def test_a_port_in_use_is_reported(db: Db, start: Start) -> None:
    port = free_port()
    start(HTTP=port)
    wait_for_readiness(port, None)
    second = start(HTTP=port)
    # Not the 78 after which a supervisor tries no more: the port may be free again.
    assert 69 == second.process.wait(processes.PATIENCE_S)
    assert f"MAILROOM_HTTP: cannot listen on 127.0.0.1:{port}: Address already in use" in second.log()
    assert "Try: choose another port, or stop the process that listens there" in second.log()


@pytest.mark.parametrize("package", ["uvicorn", "starlette"])
def test_without_the_extra_it_says_so(database: str, ses: InboxServer, tmp_path: Path, package: str) -> None:
    variables = processes.environment(database) | senders.environment(tmp_path, HTTP=free_port())
    done = processes.without(package, "run", variables=variables | senders.aws(ses.url))
    assert 78 == done.returncode
    assert f"MAILROOM_HTTP is set, and the package {package} is not installed\n" in done.stderr
    assert "mailroom-postgresql[http]" in done.stderr


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("", None),
        ("8027", ("127.0.0.1", 8027)),
        ("0.0.0.0:8027", ("0.0.0.0", 8027)),  # noqa: S104 - what people write
        ("[::1]:8027", ("::1", 8027)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_addresses(text: str, address: tuple[str, int] | None) -> None:
    assert address == read_settings(HealthSettings, {"MAILROOM_HTTP": text}).address


@pytest.mark.parametrize("text", ["http://x:1", "x", ":80", "127.0.0.1:70000", "a b:80", "::1:80", "-1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    from mailroom.errors import SettingsError

    with pytest.raises(SettingsError, match="MAILROOM_HTTP"):
        read_settings(HealthSettings, {"MAILROOM_HTTP": text})


def test_every_fault_of_the_environment_is_reported_at_once() -> None:
    from mailroom.errors import SettingsError

    with pytest.raises(SettingsError) as caught:
        read_settings(RunSettings, {"MAILROOM_HTTP": "x", "MAILROOM_SEND_RATE": "x"})
    assert {"MAILROOM_DATABASE_URL", "MAILROOM_SECRET_KEY", "MAILROOM_SEND_RATE", "MAILROOM_HTTP"} == {
        fault.partition(":")[0] for fault in caught.value.faults
    }


class SignUps(threading.Thread):
    """A stream of sign-ups that goes on whatever happens to the server."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        number = 0
        while not self._over.is_set():
            try:
                with psycopg.connect(self._url, autocommit=True, connect_timeout=5) as connection:
                    while not self._over.is_set():
                        number += 1
                        sign_up_many(connection, 5, f"n{number}-")
                        time.sleep(0.005)
            except psycopg.OperationalError:
                time.sleep(0.05)  # the ones in hand may be in or not: the table knows

    def end(self) -> None:
        self._over.set()
        self.join(30)


@pytest.mark.slow
def test_restarts_and_deaf_networks_lose_nothing(
    own_server: PostgresServer, tmp_path: Path, figures: Callable[[str], None]
) -> None:
    """Five restarts and two deaf networks under load: health red, then green, and every mail arrives."""
    given = conninfo_to_dict(own_server.url())
    with Proxy(int(str(given["port"]))) as proxy, InboxServer(inbox=senders.with_templates(Inbox())) as ses:
        port = free_port()
        url = make_conninfo(own_server.url(), port=proxy.port)
        variables = (
            processes.environment(url, BATCH_TIMEOUT=50)
            | senders.environment(tmp_path / "output", SEND_RATE=10_000, HTTP=port, HEALTHCHECK_INTERVAL=6000)
            | senders.aws(ses.url)
        )
        ses.inbox.faults.add(Fault("error", share=0.05, code="Throttling"))
        with RunProcess(variables, tmp_path / "log") as worker:
            wait_for_readiness(port, None)
            sign_ups = SignUps(own_server.url())
            red_s = []
            for _ in range(5):
                own_server.stop("immediate")
                wait_for_readiness(port, "database", SECONDS)
                own_server.start()
                red_s.append(wait_for_readiness(port, None))
            for _ in range(2):
                proxy.go_deaf()
                wait_for_readiness(port, "database", SECONDS)
                red_s.append(wait_for_readiness(port, None))
            sign_ups.end()
            with psycopg.connect(own_server.url(), autocommit=True) as db:
                wait_until(db, UNSETTLED, 0)
                people = {row[0] for row in db.execute("SELECT email FROM accounts").fetchall()}
            assert people == set(ses.inbox.counts.by_recipient)
            assert 0 == worker.stop()
        figures(
            f"{len(people)} mails, {ses.inbox.counts.duplicates} of them twice;"
            f" green again after {min(red_s):.1f} to {max(red_s):.1f} s"
        )
