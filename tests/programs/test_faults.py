"""Crashes, restarts, lost networks, restored backups: nothing is lost, and the log stays readable."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from mailroom.collector.program import REPEATED_TOKENS
from mailroom.demo.postgres import PostgresServer
from support import postgres
from support.postgres import DURABLE, below, bindir, needs
from support.processes import CollectorProcess
from support.proxy import Proxy
from support.queue_sql import claim, claimed_tokens, sign_up, sign_up_many


class SteadySignUps(threading.Thread):
    """A steady stream of sign-ups that goes on whatever happens to the server."""

    def __init__(self, url: str, count: int, pause_s: float) -> None:
        super().__init__(daemon=True)
        self._url, self._count, self._pause_s = url, count, pause_s
        self.start()

    def run(self) -> None:
        number = 0
        while number < self._count:
            try:
                with psycopg.connect(self._url, autocommit=True, connect_timeout=5) as connection:
                    while number < self._count:
                        number += 1
                        sign_up(connection, f"u{number}")
                        time.sleep(self._pause_s)
            except psycopg.OperationalError:
                time.sleep(0.05)  # the one in hand may be in or not: the table knows


def committed_emails(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        return {row[0] for row in connection.execute("SELECT email FROM accounts").fetchall()}


def wait_for_all(collectors: list[CollectorProcess], emails: set[str]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if emails <= {email for collector in collectors for email in collector.emails()}:
            return
        time.sleep(0.1)
    missing = emails - {email for collector in collectors for email in collector.emails()}
    raise AssertionError(f"never printed: {sorted(missing)[:20]}; log:\n{collectors[-1].log()[-2000:]}")


@pytest.mark.slow
def test_kill_9_twenty_times_loses_nothing_and_repeats_at_most_200_each(
    database: str, tmp_path: Path
) -> None:
    chance = random.Random(9)
    writer = SteadySignUps(database, 3000, 0.002)
    killed: list[CollectorProcess] = []
    for number in range(20):
        with CollectorProcess(database, log=tmp_path / f"log{number}", BATCH_TIMEOUT=20) as collector:
            collector.wait_until_listening()
            time.sleep(chance.uniform(0, 0.4))
            collector.kill()
            killed.append(collector)
    writer.join()
    with CollectorProcess(database, log=tmp_path / "last") as last:
        last.wait_until_listening()  # before that SIGTERM ends it without an order
        wait_for_all([*killed, last], committed_emails(database))
        assert 0 == last.stop()
    assert 3000 == len(committed_emails(database))
    assert sum(len(collector.emails()) for collector in killed) > 500
    for number, collector in enumerate(killed):
        later = {email for other in [*killed[number + 1 :], last] for email in other.emails()}
        assert len(later & set(collector.emails())) <= REPEATED_TOKENS


@pytest.mark.parametrize("accounts", [3000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_kill_9_in_a_deep_backlog_repeats_at_most_200(database: str, tmp_path: Path, accounts: int) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        sign_up_many(connection, accounts)
    with CollectorProcess(database, log=tmp_path / "one") as one:
        one.wait_for_messages(1000)
        one.kill()
    with CollectorProcess(database, log=tmp_path / "two") as two:
        wait_for_all([one, two], committed_emails(database))
        assert 0 == two.stop()
    assert len(set(one.emails()) & set(two.emails())) <= REPEATED_TOKENS
    assert len(two.emails()) == len(set(two.emails()))


@pytest.mark.slow
def test_a_frozen_collector_does_not_write_what_another_took_over(database: str, tmp_path: Path) -> None:
    with (
        psycopg.connect(database, autocommit=True) as connection,
        CollectorProcess(database, log=tmp_path / "frozen", BATCH_LIMIT=100) as frozen,
    ):
        sign_up_many(connection, 20_000)
        frozen.wait_for_messages(1000)
        frozen.process.send_signal(signal.SIGSTOP)
        while connection.execute("SELECT FROM mailroom.leases").fetchall() == []:
            assert len(frozen.messages) < 20_000, "it was never seen with a lease"
            frozen.process.send_signal(signal.SIGCONT)
            time.sleep(0.003)
            frozen.process.send_signal(signal.SIGSTOP)
        with CollectorProcess(database, log=tmp_path / "other", BATCH_LIMIT=100) as other:
            wait_for_all([frozen, other], committed_emails(database))
            frozen.process.send_signal(signal.SIGCONT)
            frozen.wait_for_log("queue.lease_lost")
            assert 0 == frozen.stop()
            assert 0 == other.stop()
        twice = [email for email, count in Counter(frozen.emails() + other.emails()).items() if count > 1]
        assert len(twice) <= REPEATED_TOKENS


@pytest.mark.slow
def test_five_crashes_of_postgresql_lose_nothing_and_are_logged_once_each(
    own_server: PostgresServer, tmp_path: Path
) -> None:
    with CollectorProcess(
        own_server.url(), log=tmp_path / "log", level="info", BATCH_TIMEOUT=20
    ) as collector:
        collector.wait_until_listening()
        writer = SteadySignUps(own_server.url(), 2000, 0.002)
        for crash in range(5):
            collector.wait_for_messages(len(collector.messages) + 50)
            own_server.stop("immediate")
            collector.wait_for_log("database.lost", crash + 1)
            own_server.start()
            collector.wait_for_log("database.back", crash + 1)
        writer.join()
        wait_for_all([collector], committed_emails(own_server.url()))
        assert 0 == collector.stop()
        log = collector.log()
    assert (5, 5) == (log.count("database.lost"), log.count("database.back"))
    other_lines = [line for line in log.splitlines() if "collector.batch" not in line]
    assert len(other_lines) < 40, other_lines


@pytest.mark.slow
def test_a_server_that_refuses_claims_for_a_while_is_logged_once(database: str, tmp_path: Path) -> None:
    """Such as a full disk: the connection lives, the statement fails."""
    with (
        psycopg.connect(database, autocommit=True) as connection,
        CollectorProcess(database, log=tmp_path / "log", BATCH_TIMEOUT=0) as collector,
    ):
        collector.wait_until_listening()
        connection.execute("CREATE SEQUENCE tries")
        ((claim_function,),) = connection.execute(
            "SELECT pg_get_functiondef('mailroom.claim'::regproc)"
        ).fetchall()
        connection.execute(
            claim_function.replace(
                "IF p_tokens < 1",
                "PERFORM nextval('tries'); RAISE EXCEPTION 'no room' USING ERRCODE = 'disk_full';"
                " IF p_tokens < 1",
            )
            .replace("SET search_path TO 'pg_catalog', 'pg_temp'", "SET search_path TO 'public'")
            .encode()
        )
        sign_up(connection, "a")
        while connection.execute("SELECT last_value FROM tries").fetchall()[0][0] < 6:
            time.sleep(0.02)
        connection.execute(claim_function)
        collector.wait_for_messages(1)
        collector.wait_for_log("queue.accepted")
        assert 0 == collector.stop()
        log = collector.log()
    assert (1, 1, 0) == tuple(
        log.count(word) for word in ("queue.refused", "queue.accepted", "database.lost")
    )
    assert 'reason="no room (SQLSTATE 53100)"' in log


def test_killed_backends_are_replaced(database: str, tmp_path: Path) -> None:
    with (
        psycopg.connect(database, autocommit=True) as connection,
        CollectorProcess(database, log=tmp_path / "log") as collector,
    ):
        collector.wait_until_listening()
        for number in range(3):
            sign_up(connection, f"a{number}")
            collector.wait_for_messages(number + 1)
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'mailroom collector' AND datname = current_database()"
            )
            collector.wait_for_log("database.back", number + 1)
        sign_up(connection, "last")
        collector.wait_for_messages(4)


def test_a_collector_that_starts_before_postgresql_waits_for_it(
    own_server: PostgresServer, tmp_path: Path
) -> None:
    own_server.stop()
    with CollectorProcess(own_server.url(), log=tmp_path / "log") as collector:
        collector.wait_for_log("database.lost")
        own_server.start()
        with psycopg.connect(own_server.url(), autocommit=True) as connection:
            sign_up(connection, "a")
        collector.wait_for_messages(1)
        assert 0 == collector.stop()


def test_a_signal_ends_a_collector_that_waits_for_postgresql(
    own_server: PostgresServer, tmp_path: Path
) -> None:
    with CollectorProcess(own_server.url(), log=tmp_path / "log") as collector:
        collector.wait_until_listening()
        own_server.stop("immediate")
        collector.wait_for_log("database.lost")
        assert 0 == collector.stop()
    with CollectorProcess(own_server.url(), log=tmp_path / "log2") as collector:
        collector.wait_for_log("database.lost")
        assert 0 == collector.stop()


@pytest.mark.slow
def test_a_deaf_network_is_noticed_within_the_health_check_interval(database: str, tmp_path: Path) -> None:
    interval_s = 3.0
    parameters = conninfo_to_dict(database)
    with (
        Proxy(int(parameters["port"] or 5432)) as proxy,
        psycopg.connect(database, autocommit=True) as connection,
    ):
        url = make_conninfo(database, host="127.0.0.1", port=proxy.port)
        with CollectorProcess(
            url, log=tmp_path / "log", HEALTHCHECK_INTERVAL=int(interval_s * 1000), BATCH_TIMEOUT=0
        ) as collector:
            collector.wait_until_listening()
            sign_up(connection, "a")
            collector.wait_for_messages(1)
            for deafness in range(1, 3):
                proxy.go_deaf()
                since = time.monotonic()
                sign_up(connection, f"b{deafness}")
                collector.wait_for_log("database.lost", deafness)
                # A second more than promised, for a machine that is busy.
                assert time.monotonic() - since < interval_s + 1
                collector.wait_for_messages(1 + deafness)
            assert 0 == collector.stop()
            assert (2, 2) == (collector.log().count("database.lost"), collector.log().count("database.back"))


@pytest.mark.slow
def test_it_follows_a_failover_to_another_host(own_server: PostgresServer, tmp_path: Path) -> None:
    needs("pg_basebackup")
    standby = PostgresServer(bindir=bindir(), settings=DURABLE, password=own_server.password, below=below())
    try:
        standby.run_tool("pg_basebackup", "-D", str(standby.data), "-R", "-c", "fast", "-d", own_server.url())
        standby.start()
        places = f"127.0.0.1:{standby.port},127.0.0.1:{own_server.port}"
        url = own_server.url().replace(f"127.0.0.1:{own_server.port}", places)
        with CollectorProcess(url, log=tmp_path / "log", BATCH_TIMEOUT=0) as collector:
            with psycopg.connect(own_server.url(), autocommit=True) as connection:
                sign_up(connection, "before")
                collector.wait_for_messages(1)
                caught_up = "SELECT pg_current_wal_flush_lsn() <= replay_lsn FROM pg_stat_replication"
                while connection.execute(caught_up).fetchall() != [(True,)]:
                    time.sleep(0.01)
            own_server.stop("immediate")
            with psycopg.connect(standby.url(), autocommit=True) as connection:
                connection.execute("SELECT pg_promote()")
                sign_up(connection, "after")
            assert ["before@example.com", "after@example.com"] == [
                message.email for message in collector.wait_for_messages(2)
            ]
            assert 0 == collector.stop()
            assert 1 == collector.log().count("database.back")
    finally:
        standby.remove()


def burn_transaction_ids(url: str, count: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "DO $$ BEGIN FOR i IN 1.."
            + str(count)
            + " LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$"
        )


@pytest.mark.slow
@pytest.mark.parametrize("new_cluster", ["lower", "higher"])
def test_a_restored_backup_sends_what_waited_and_what_is_new(
    own_server: PostgresServer, tmp_path: Path, new_cluster: str
) -> None:
    needs("pg_dump", "psql")
    if new_cluster == "lower":
        burn_transaction_ids(own_server.url(), 5000)
    with (
        psycopg.connect(own_server.url(), autocommit=True) as connection,
        psycopg.connect(own_server.url()) as late,
    ):
        sign_up(late, "rolled back by the move")
        sign_up_many(connection, 30, "settled")
        assert 30 == len(claimed_tokens(connection))
        sign_up_many(connection, 130, "leased")
        assert 130 == sum(
            len(lease.tokens) for lease in claim(connection, 130, lease_tokens=50, lease_ms=3000)
        )
        sign_up_many(connection, 25, "window")
        assert 5 == len(claimed_tokens(connection, 5))  # leaves the window half drained
        sign_up_many(connection, 25, "waiting")
        dump = own_server.run_tool("pg_dump", own_server.url())
    settled = {f"settled{number}@example.com" for number in range(1, 31)}
    settled |= {f"window{number}@example.com" for number in range(1, 6)}
    with postgres.server(DURABLE) as new:
        if new_cluster == "higher":
            burn_transaction_ids(new.url(), 5000)
        new.run_tool("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", new.url(), stdin=dump)
        with psycopg.connect(new.url(), autocommit=True) as connection:
            sign_up_many(connection, 20, "early")  # before any collector has seen the new cluster
            expected = committed_emails(new.url()) - settled
            assert 130 + 20 + 25 + 20 == len(expected)
            with CollectorProcess(new.url(), log=tmp_path / "log") as collector:
                wait_for_all([collector], expected)
                sign_up_many(connection, 20, "new")
                wait_for_all([collector], expected | {f"new{n}@example.com" for n in range(1, 21)})
                if new_cluster == "lower":
                    # Let the new cluster's ids pass those that the old one had given.
                    burn_transaction_ids(new.url(), 7000)
                sign_up_many(connection, 20, "later")
                wait_for_all([collector], {f"later{n}@example.com" for n in range(1, 21)})
                assert 0 == collector.stop()
                assert len(collector.emails()) == len(set(collector.emails()))
                assert not settled & set(collector.emails())
                assert 1 == collector.log().count("was restored from another cluster")
