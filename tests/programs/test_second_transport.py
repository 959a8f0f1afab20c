"""Two transports under load: the second sends while the first cannot, and nobody is lost on either way."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest

from mailroom.demo.postgres import free_port
from mailroom.inbox.faults import Fault
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.server import InboxServer
from support import commands, processes, senders
from support.queue_sql import Db, sign_up
from support.runs import UNSETTLED, RunProcess, fetch, ledger, wait_until
from support.senders import SenderProcess

PER_S = 100
# What `mailroom run` waits for an event about a lost answer.
SHORT = {"mailroom.runner.delivery.EVENT_S": 1.0}


class Provider:
    """A provider with SES's API and SMTP, which can go away."""

    def __init__(self, stack: ExitStack) -> None:
        self.inbox = senders.with_templates(Inbox())
        self._ports = free_port(), free_port()
        self._stack = stack
        self.come()

    @property
    def ses_url(self) -> str:
        return f"http://127.0.0.1:{self._ports[0]}"

    @property
    def smtp_url(self) -> str:
        return f"smtp://127.0.0.1:{self._ports[1]}"

    def come(self) -> None:
        self._open = ExitStack()
        self.server = self._open.enter_context(
            InboxServer(port=self._ports[0], smtp_port=self._ports[1], inbox=self.inbox)
        )
        self._stack.push(self._open)

    def go(self) -> None:
        self._open.close()

    @property
    def accepted(self) -> int:
        return self.inbox.counts.accepted

    def wait_for(self, accepted: int) -> None:
        self.server.wait_for(lambda inbox: inbox.counts.accepted >= accepted, 2 * processes.PATIENCE_S)


def paused(provider: Provider) -> Callable[[], None]:
    provider.inbox.account.paused = True

    def resume() -> None:
        provider.inbox.account.paused = False

    return resume


def unreachable(provider: Provider) -> Callable[[], None]:
    provider.go()
    return provider.come


def hanging(provider: Provider) -> Callable[[], None]:
    """Takes each mail, and never says so."""
    provider.inbox.faults.add(Fault("hang", accept=True))
    return provider.inbox.faults.clear


CASES = [
    ("ses", "smtp", paused),
    ("ses", "smtp", hanging),
    ("sesv2", "smtp", unreachable),
    ("smtp", "ses", unreachable),
    ("smtp", "ses", hanging),
]


@pytest.fixture
def providers() -> Iterator[tuple[Provider, Provider]]:
    with ExitStack() as stack:
        yield Provider(stack), Provider(stack)


def environment(
    folder: Path,
    database: str,
    names: tuple[str, str],
    providers: tuple[Provider, Provider],
    **variables: float,
) -> dict[str, str]:
    addresses = [
        provider.smtp_url if name == "smtp" else name for name, provider in zip(names, providers, strict=True)
    ]
    ses = next(provider for name, provider in zip(names, providers, strict=True) if name != "smtp")
    given = {"SEND_RATE": 10_000, "SEND_TIMEOUT": 2000, "FAILOVER_AFTER": 1000} | variables
    sending = senders.environment(folder / "output", TRANSPORT=",".join(addresses), **given)
    return processes.environment(database) | sending | senders.aws(ses.ses_url)


class Arrivals(threading.Thread):
    """Signs people up, ``PER_S`` a second, until it is stopped."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._over = threading.Event()
        self.count = 0
        self.start()

    def run(self) -> None:
        began = time.monotonic()
        with psycopg.connect(self._url, autocommit=True) as connection:
            while not self._over.wait(max(began + self.count / PER_S - time.monotonic(), 0)):
                self.count += 1
                sign_up(connection, f"u{self.count}")

    def stop(self) -> int:
        """End, and return how many came."""
        self._over.set()
        self.join()
        return self.count


def fail_over_and_back(
    url: str, first: Provider, second: Provider, fails: Callable[[Provider], Callable[[], None]]
) -> int:
    """Let the first fail and work again while mails come; returns how many came."""
    arrivals = Arrivals(url)
    first.wait_for(PER_S // 2)
    works_again = fails(first)
    second.wait_for(PER_S)
    works_again()
    first.wait_for(first.accepted + PER_S)
    return arrivals.stop()


def by_recipient(first: Provider, second: Provider) -> Counter[str]:
    return Counter(first.inbox.counts.by_recipient) + Counter(second.inbox.counts.by_recipient)


@pytest.mark.slow
@pytest.mark.parametrize(("one", "other", "fails"), CASES)
def test_run_mails_everybody_through_a_failover_and_back_and_the_ledger_explains_each_duplicate(
    db: Db,
    database: str,
    providers: tuple[Provider, Provider],
    tmp_path: Path,
    figures: Callable[[str], None],
    one: str,
    other: str,
    fails: Callable[[Provider], Callable[[], None]],
) -> None:
    first, second = providers
    variables = environment(tmp_path, database, (one, other), providers)
    with RunProcess(variables, tmp_path / "log", SHORT) as worker:
        worker.wait_for_log("run.started")
        people = fail_over_and_back(database, first, second, fails)
        wait_until(db, UNSETTLED, 0, 2 * processes.PATIENCE_S)
        assert 0 == worker.stop()
        log = worker.log()
    mailed = by_recipient(first, second)
    assert {f"u{number}@example.com" for number in range(1, people + 1)} == set(mailed)
    unknown = Counter(
        str(recipient) for recipient, outcome in ledger(db, "recipient", "outcome") if outcome == "unknown"
    )
    # The other transport gets it only once an event had its time.
    ((early,),) = db.execute(
        "SELECT count(*) FROM mailroom.deliveries u"
        " JOIN mailroom.deliveries d ON d.token = u.token AND d.id > u.id"
        " WHERE u.outcome = 'unknown' AND d.provider <> u.provider AND d.at < u.at + interval '1 second'"
    ).fetchall()
    assert 0 == early
    duplicates = {address: count - 1 for address, count in mailed.items() if count > 1}
    assert all(extra <= unknown[address] for address, extra in duplicates.items()), log
    # Each mail that a provider has is in the ledger under its name, unless its answer was lost.
    sent = Counter(provider for provider, outcome in ledger(db, "provider", "outcome") if outcome == "sent")
    assert {one, other} == set(sent)
    assert people == sent.total()
    assert 1 <= log.count("sender.failover") == log.count("sender.back"), log
    figures(
        f"{people} people, {sent[other]} by the second, {unknown.total()} answers lost,"
        f" {sum(duplicates.values())} mails twice"
    )


@pytest.mark.slow
def test_with_ses_events_a_first_that_hangs_mails_nobody_twice(
    db: Db,
    database: str,
    providers: tuple[Provider, Provider],
    tmp_path: Path,
    figures: Callable[[str], None],
) -> None:
    first, second = providers
    variables = environment(tmp_path, database, ("ses", "smtp"), providers) | {
        "MAILROOM_EVENTS": "mailroom-events",
        "AWS_ENDPOINT_URL_SQS": first.ses_url,
    }
    with RunProcess(variables, tmp_path / "log") as worker:
        worker.wait_for_log("run.started")
        people = fail_over_and_back(database, first, second, hanging)
        wait_until(db, UNSETTLED, 0, 2 * processes.PATIENCE_S)
        assert 0 == worker.stop()
    mailed = by_recipient(first, second)
    assert (people, people) == (len(mailed), mailed.total())
    lost = [row for row in ledger(db, "outcome", "provider") if row == ("unknown", "ses")]
    told = [row for row in ledger(db, "result", "provider") if row == ("known", "ses")]
    assert lost
    assert len(lost) == len(told)
    figures(f"{people} people, {second.accepted} by the second, {len(lost)} answers lost, 0 mails twice")


@contextmanager
def pipe(variables: dict[str, str], log: Path) -> Iterator[SenderProcess]:
    """``mailroom collector | mailroom sender``; they end with the block."""
    with (
        subprocess.Popen(
            [sys.executable, "-m", "mailroom", "collector"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=variables | {"MAILROOM_BATCH_TIMEOUT": "50"},
        ) as collector,
        SenderProcess(variables, log, stdin=collector.stdout.fileno() if collector.stdout else 0) as sender,
    ):
        try:
            yield sender
        finally:
            collector.terminate()
        assert 0 == sender.wait()


@pytest.mark.slow
@pytest.mark.parametrize(("one", "other", "fails"), CASES)
def test_the_pipe_mails_everybody_through_a_failover_and_back_and_the_log_counts_the_lost_answers(
    database: str,
    providers: tuple[Provider, Provider],
    tmp_path: Path,
    figures: Callable[[str], None],
    one: str,
    other: str,
    fails: Callable[[Provider], Callable[[], None]],
) -> None:
    first, second = providers
    variables = environment(tmp_path, database, (one, other), providers, SHUTDOWN_TIMEOUT=20_000)
    with pipe(variables, tmp_path / "log") as sender:
        sender.wait_for_log("sender.started")
        people = fail_over_and_back(database, first, second, fails)
        everybody = {f"u{number}@example.com" for number in range(1, people + 1)}
        deadline = time.monotonic() + 2 * processes.PATIENCE_S
        while everybody - set(by_recipient(first, second)):
            assert time.monotonic() < deadline, sender.log()
            time.sleep(0.05)
    log = sender.log()
    mailed = by_recipient(first, second)
    duplicates = mailed.total() - len(mailed)
    (summary,) = [line for line in log.splitlines() if "sender.finished" in line]
    lost = int(summary.partition("unknown_answers=")[2].split()[0])
    assert f"sent={people} " in summary
    assert duplicates <= lost
    assert 1 <= log.count("sender.failover") == log.count("sender.back"), log
    figures(
        f"{people} people, {second.accepted} by the second, {lost} answers lost, {duplicates} mails twice"
    )


def test_a_worker_that_starts_while_the_first_is_away_says_that_the_second_sends(
    db: Db, database: str, providers: tuple[Provider, Provider], tmp_path: Path
) -> None:
    first, second = providers
    first.go()
    port = free_port()
    variables = environment(tmp_path, database, ("ses", "smtp"), providers, HTTP=port)
    with RunProcess(variables, tmp_path / "log", {"mailroom.runner.program.HEARTBEAT_S": 0.2}) as worker:
        worker.wait_for_log("run.started")
        token = sign_up(db, "zoe")
        second.wait_for(1)
        wait_until(db, UNSETTLED, 0)
        status, text = fetch(port, "/readyz")
        assert (200, "smtp sends instead of ses since ") == (status, text[text.find("smtp") :][:32])
        assert "mailroom_failover_active 1.0" in fetch(port, "/metrics")[1]
        wait_until(db, "SELECT trouble LIKE 'smtp sends instead of ses since %' FROM mailroom.workers", True)
        shown = commands.run("status", env=variables).stdout
        assert "in trouble since" in shown
        assert "smtp sends instead of ses since" in shown
        first.come()
        logins = iter(range(1000))
        deadline = time.monotonic() + processes.PATIENCE_S
        while "mailroom_failover_active 0.0" not in fetch(port, "/metrics")[1]:
            assert time.monotonic() < deadline, worker.log()
            sign_up(db, f"later{next(logins)}")
        wait_until(db, UNSETTLED, 0)
        wait_until(db, "SELECT trouble FROM mailroom.workers", "")
        assert {"ready": True, "faults": {}, "warnings": {}} == json.loads(fetch(port, "/readyz")[1])
        assert 0 == worker.stop()
    assert "sent by the SMTP server" in commands.run("why", str(token), env=variables).stdout
    assert {"ses", "smtp"} == {provider for (provider,) in ledger(db, "provider")}


def test_a_first_without_credentials_ends_nothing(
    db: Db, database: str, providers: tuple[Provider, Provider], tmp_path: Path
) -> None:
    _, second = providers
    variables = environment(tmp_path, database, ("ses", "smtp"), providers)
    without = {
        name: text for name, text in variables.items() if not name.startswith("AWS_SE") or "URL" in name
    }
    del without["AWS_ACCESS_KEY_ID"]
    with RunProcess(without, tmp_path / "log") as worker:
        worker.wait_for_log("run.started")
        sign_up(db, "zoe")
        second.wait_for(1)
        wait_until(db, UNSETTLED, 0)
        assert 0 == worker.stop()
    assert "credentials" in worker.log()
