"""``mailroom sender`` as a process, and ``mailroom collector | mailroom sender``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mailroom import verify
from mailroom.action_text import table
from mailroom.addresses import wire_address
from mailroom.errors import WireError
from mailroom.inbox.faults import Fault
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.server import InboxServer
from mailroom.operations.action_files import write_built_in
from mailroom.sender.program import Pipe
from mailroom.sender.rejected import RejectedRow, read
from mailroom.sender.stdin import Input
from mailroom.transports.transport import open_transports
from mailroom.wire import encode
from support import commands
from support.inbox import ses_client
from support.messages import PASSWORD_RECOVERY, decoded, message, messages, mixed
from support.moto import moto_server
from support.processes import KEY, OWN, PATIENCE_S, with_password
from support.processes import environment as collector_environment
from support.queue_sql import Db, sign_up_many
from support.senders import (
    AWS_KEY_ID,
    AWS_SECRET,
    AWS_TOKEN,
    SenderProcess,
    aws,
    environment,
    settings,
    with_templates,
)

Start = Callable[..., SenderProcess]


@pytest.fixture
def ses() -> Iterator[InboxServer]:
    with InboxServer(inbox=with_templates(Inbox())) as server:
        yield server


@pytest.fixture
def start(ses: InboxServer, tmp_path: Path) -> Iterator[Start]:
    """Starts senders that speak to the local SES, and ends those that still run."""
    with contextlib.ExitStack() as stack:

        def start_one(
            url: str = "", stdin: int = subprocess.PIPE, level: str = "info", **variables: str | float
        ) -> SenderProcess:
            given = environment(tmp_path / "output", **({"SEND_RATE": 10_000} | variables))
            log = tmp_path / f"sender-{time.monotonic_ns()}"
            return stack.enter_context(
                SenderProcess(given | aws(url or ses.url), log, stdin=stdin, level=level)
            )

        yield start_one


def pipe_of(start: Start, collector: PipedCollector, **variables: str | float) -> SenderProcess:
    """A sender that reads what the collector writes."""
    sender = start(stdin=collector.reader, **variables)
    os.close(collector.reader)
    return sender


class PipedCollector:
    """``mailroom collector`` with its standard output in a pipe for somebody else."""

    def __init__(self, url: str, log: Path, **variables: str | int) -> None:
        self.reader, writer = os.pipe()
        self.log = log
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mailroom", "collector"],
                stdin=subprocess.DEVNULL,
                stdout=writer,
                stderr=stderr,
                env=collector_environment(url, **variables),
            )
        os.close(writer)


@pytest.fixture
def collect(database: str, tmp_path: Path) -> Iterator[Callable[..., PipedCollector]]:
    with contextlib.ExitStack() as stack:

        def start_one(url: str = database, **variables: str | int) -> PipedCollector:
            one = PipedCollector(url, tmp_path / "collector", **variables)
            stack.callback(one.process.wait, PATIENCE_S)
            stack.callback(one.process.kill)
            return one

        yield start_one


def set_aside(output: Path) -> list[RejectedRow]:
    return [row for _, row in read(output / "rejected.csv")]


def test_every_line_is_mailed_and_the_end_of_input_ends_it(
    ses: InboxServer, start: Start, tmp_path: Path
) -> None:
    sender = start()
    sender.send(mixed(7), mixed(120, first=7), mixed(1, first=127))
    assert 0 == sender.end()
    assert {f"person{n}@example.com": 1 for n in range(128)} == ses.inbox.counts.by_recipient
    assert "sender.finished sent=128 rejected=0 expired=0 unsent=0 unknown=0" in sender.log()
    assert b"" == sender.output
    assert [] == set_aside(tmp_path / "output")


def test_a_line_is_mailed_as_soon_as_it_is_whole(ses: InboxServer, start: Start) -> None:
    sender = start()
    line = encode(mixed(30))
    for at in range(0, len(line) - 1, 100):
        sender.write(line[at : min(at + 100, len(line) - 1)])
    assert 0 == ses.inbox.counts.calls
    sender.write(b"\n")
    ses.wait_for(lambda inbox: inbox.counts.accepted == 30)
    assert sender.process.poll() is None


def test_lines_that_wait_share_calls(ses: InboxServer, start: Start, tmp_path: Path) -> None:
    lines = [encode([message(number) for number in range(first, first + 10)]) for first in range(0, 200, 10)]
    lines.insert(9, b"no line\n")
    reader, writer = os.pipe()
    os.write(writer, b"".join(lines))
    os.close(writer)
    sender = start(stdin=reader)
    os.close(reader)
    assert 75 == sender.wait()  # since one line was set aside
    assert {f"person{n}@example.com": 1 for n in range(200)} == ses.inbox.counts.by_recipient
    assert 4 == ses.inbox.counts.calls
    assert [b"no line"] == [row.line for row in set_aside(tmp_path / "output")]


def test_a_malformed_line_is_told_and_set_aside_and_the_next_is_mailed(
    ses: InboxServer, start: Start, tmp_path: Path
) -> None:
    sender = start()
    bad = b'1,"x@example.com,zoe'
    sender.write(encode([message(1)]) + bad + b"\n" + encode([message(2)]) + b"\xff\r\n1,cut off")
    assert 75 == sender.end()
    assert {"person1@example.com": 1, "person2@example.com": 1} == ses.inbox.counts.by_recipient
    rows = set_aside(tmp_path / "output")
    assert [bad, b"\xff\r", b"1,cut off"] == [line for _, _, line in rows]
    assert ["malformed"] * 3 == [outcome for outcome, _, _ in rows]
    assert "line 2, column 3: a field is quoted wrongly" == rows[0][1]
    assert "line 4, byte 1: not UTF-8" == rows[1][1]
    for _, reason, _ in rows:
        assert f"sender.malformed reason={json.dumps(reason)}" in sender.log()
    assert "x@example.com" not in sender.log()


def test_an_unknown_action_affects_no_other_and_is_read_when_the_folder_has_it(
    ses: InboxServer, start: Start, tmp_path: Path
) -> None:
    folder = tmp_path / "mails"
    write_built_in(folder)
    sender = start(TEMPLATES=str(folder))
    ses.inbox.account.put_template("joinv1", ("Join", "{{secret}}", "{{secret}}"), new=True)
    unknown = message(2, OWN)
    sender.send([message(1), unknown, message(3)])
    ses.wait_for(lambda inbox: inbox.counts.accepted == 2)
    with (folder / "actions.toml").open("a") as file:
        file.write(f"\n{table(OWN)}")
    sender.send([message(4), message(5, OWN)])
    ses.wait_for(lambda inbox: inbox.counts.accepted == 4)
    assert 75 == sender.end()
    assert {f"person{n}@example.com": 1 for n in (1, 3, 4, 5)} == ses.inbox.counts.by_recipient
    (row,) = set_aside(tmp_path / "output")
    assert ("malformed", encode([unknown])[:-1]) == (row.outcome, row.line)
    assert "line 1, column 1: action: not the number of an action" == row.reason
    again = commands.run_bytes(
        "replay", str(tmp_path / "output" / "rejected.csv"), env={"MAILROOM_TEMPLATES": str(folder)}
    )
    assert (0, encode([unknown])) == (again.returncode, again.stdout)


def test_the_sender_reads_json_and_sets_aside_json(ses: InboxServer, start: Start, tmp_path: Path) -> None:
    sender = start()
    german = message(2)._replace(locale="de-AT", username="")
    refused = message(3)._replace(locale="de")
    ses.inbox.faults.add(
        Fault("status", recipient=refused.email, status="MessageRejected", message="no such person")
    )
    sender.write(encode([message(1)]) + encode([german, refused], "json"))
    assert 75 == sender.end()
    templates = {mail.recipient: mail.template.name for mail in ses.inbox.mails.find()}
    assert {message(1).email: "activationv1", german.email: "activationv1-de"} == templates
    (row,) = set_aside(tmp_path / "output")
    assert [refused] == decoded(row.line + b"\n")
    again = commands.run_bytes("replay", str(tmp_path / "output" / "rejected.csv"), env={})
    assert (0, encode([refused], "json")) == (again.returncode, again.stdout)


def is_bad(address: str) -> bool:
    try:
        wire_address(address)
    except ValueError:
        return True
    return False


@pytest.mark.slow
@hypothesis_settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@example(content=b"")
@example(content=b"\n\n\x00\n")
@given(
    content=st.lists(
        st.one_of(
            st.binary(max_size=300), st.lists(messages(), min_size=1, max_size=4).map(encode), st.just(b"\n")
        ),
        max_size=8,
    ).map(b"".join)
)
def test_arbitrary_input_never_crashes_it_nor_mails_what_was_not_encoded(
    tmp_path: Path, content: bytes
) -> None:
    """All that is mailed or set aside is what the lines say, and together it is the whole input."""
    expected = refused = 0
    malformed = []
    for line in re.findall(b"[^\n]*\n|[^\n]+", content):
        try:
            bad = [is_bad(one.email) for one in decoded(line)]
            expected, refused = expected + bad.count(False), refused + bad.count(True)
        except WireError:
            malformed.append(line.removesuffix(b"\n"))
    output = tmp_path / f"output-{time.monotonic_ns()}"
    done = commands.run_bytes(
        "sender", env=environment(output, DEBUG="true", SEND_RATE=10_000), stdin=content
    )
    assert (75 if malformed or refused else 0) == done.returncode, done.stderr
    assert b"Traceback" not in done.stderr
    calls = [json.loads(line) for line in done.stdout.splitlines()]
    assert expected == sum(len(call["request"]["Destinations"]) for call in calls)
    rows = set_aside(output)
    assert malformed == [row.line for row in rows if row.outcome == "malformed"]
    assert refused == sum(row.outcome == "rejected" for row in rows)


def test_debug_mode_prints_the_calls_and_needs_no_account(tmp_path: Path) -> None:
    one, other = message(1), message(3, PASSWORD_RECOVERY)
    done = subprocess.run(
        [sys.executable, "-m", "mailroom", "sender"],
        input=encode([one, other]),
        capture_output=True,
        env=environment(tmp_path, DEBUG="true"),
        timeout=PATIENCE_S,
        check=True,
    )
    calls = [json.loads(line) for line in done.stdout.splitlines()]
    first, second = sorted(calls, key=lambda call: str(call["request"]["Template"]))
    assert "SendBulkTemplatedEmail" == first["call"]
    assert ["Success"] == [entry["Status"] for entry in first["response"]["Status"]]
    request = second["request"]
    assert ("passwordrecoveryv1", "default") == (request["Template"], request["ConfigurationSetName"])
    data = json.loads(request["Destinations"][0]["ReplacementTemplateData"])
    assert {
        "login": "person3",
        "login_html": "person3",
        "secret": other.token,
        "code": "00003",
        "expires_in": "15 minutes",
        "expires_in_html": "15 minutes",
    } == data


@pytest.mark.slow
def test_the_whole_pipe_against_an_independent_ses(
    database: str, db: Db, collect: Callable[..., PipedCollector], tmp_path: Path, start: Start
) -> None:
    """moto's server knows nothing of us: what it took is what a client of SES's has to send."""
    with moto() as (url, sent_messages):
        pushed = commands.run("templates", "push", env=environment(tmp_path) | aws(url))
        assert (0, "") == (pushed.returncode, pushed.stderr)
        collector = collect(BATCH_TIMEOUT=200)
        sender = pipe_of(start, collector, url=url)
        sign_up_many(db, 300)
        db.execute(
            "INSERT INTO accounts (email, login, status)"
            " SELECT 'lost' || g || '@example.com', 'lost<' || g, 'active' FROM generate_series(1, 200) g"
        )
        db.execute(
            "INSERT INTO tokens (action, account)"
            " SELECT 'password_recovery', id FROM accounts WHERE status = 'active'"
        )
        sender.wait_for_log("count=")
        deadline = time.monotonic() + PATIENCE_S
        while recipients(sent_messages()) < 500 and time.monotonic() < deadline:
            time.sleep(0.05)
        collector.process.terminate()
        assert 0 == sender.wait()
        accepted = Counter(
            to["Destination"]["ToAddresses"][0] for call in sent_messages() for to in call.destinations
        )
        rows = db.execute(
            "SELECT a.email, a.login, t.action::text, t.secret, t.code"
            " FROM tokens t JOIN accounts a ON a.id = t.account"
        ).fetchall()
        assert dict.fromkeys((row[0] for row in rows), 1) == accepted
        known = {row[0]: row[1:] for row in rows}
        for call in sent_messages():
            for to in call.destinations:
                login, action, secret, code = known[to["Destination"]["ToAddresses"][0]]
                data = json.loads(to["ReplacementTemplateData"])
                template = {"activation": "activationv1", "password_recovery": "passwordrecoveryv1"}[action]
                assert (template, "noreply@acme.example", login) == (
                    call.template,
                    call.source,
                    data["login"],
                )
                assert secret == verify(data["secret"], action, keys=KEY, code=code)
                assert (code if action == "password_recovery" else None) == data.get("code")


@contextlib.contextmanager
def moto() -> Iterator[tuple[str, Callable[[], list[Any]]]]:
    """moto's server with a verified sender; its address, and what it was sent."""
    from moto.backends import get_backend

    with moto_server() as url:
        ses_client(url).verify_email_identity(EmailAddress="noreply@acme.example")
        backend = get_backend("ses")["123456789012"]["us-east-1"]
        yield url, lambda: list(backend.sent_messages)


def recipients(calls: list[Any]) -> int:
    return sum(len(call.destinations) for call in calls)


@pytest.mark.slow
def test_a_rate_of_fourteen_is_never_exceeded(tmp_path: Path) -> None:
    """One knows its quota; the other is not allowed to ask and believes in thirty."""
    with (
        InboxServer(inbox=with_templates(Inbox(rate=14))) as knows,
        InboxServer(inbox=with_templates(Inbox(rate=14))) as learns,
        SenderProcess(environment(tmp_path / "1") | aws(knows.url), tmp_path / "log1") as one,
        SenderProcess(
            environment(tmp_path / "2", SEND_RATE=30) | aws(learns.url), tmp_path / "log2"
        ) as other,
    ):
        lines = b"".join(encode(mixed(10, first)) for first in range(0, 2000, 10))
        threads = [threading.Thread(target=feed, args=[sender, lines]) for sender in (one, other)]
        for thread in threads:
            thread.start()
        for server in (knows, learns):
            server.wait_for(lambda inbox: inbox.calls and inbox.calls[-1].at_s > inbox.calls[0].at_s + 60, 90)
        for sender in (one, other):
            sender.process.kill()
        for thread in threads:
            thread.join()
        for server in (knows, learns):
            accepted = [(call.at_s, call.accepted) for call in server.inbox.calls if call.accepted]
            for at, (since, _) in enumerate(accepted):
                seen = 0
                for until, count in accepted[at:]:
                    seen += count
                    assert seen <= 14 * (until - since) + 14 + 1e-6
            assert 10 * 60 < sum(count for _, count in accepted)
            assert 1 == max(server.inbox.counts.by_recipient.values())
        assert 0 == knows.inbox.counts.throttled
        refused = [call.at_s for call in learns.inbox.calls if call.verdict == "Throttling"]
        # Its rate settles just above the quota, where about a twentieth is throttled.
        assert 0 < len(refused) < 0.2 * len(learns.inbox.calls)


def feed(sender: SenderProcess, lines: bytes) -> None:
    with contextlib.suppress(OSError):
        sender.write(lines)


@pytest.mark.slow
def test_an_outage_of_ses_loses_nothing_and_the_queue_stays_in_the_database(
    db: Db, database: str, collect: Callable[..., PipedCollector], tmp_path: Path, start: Start
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    collector = collect(BATCH_TIMEOUT=50)
    sender = pipe_of(start, collector, url=f"http://127.0.0.1:{port}")
    signed_up = 0
    peaks = []
    outage_ends = time.monotonic() + 30
    while time.monotonic() < outage_ends:
        sign_up_many(db, 40, f"r{signed_up}-")
        signed_up += 40
        peaks.append(psutil.Process(sender.process.pid).memory_info().rss)
        time.sleep(0.25)  # the stream of sign-ups
    ((waiting, in_flight),) = db.execute("SELECT waiting, in_flight FROM mailroom.backlog()").fetchall()
    # What is not in the database is in the pipe (64 KiB) or in the sender's hand.
    assert waiting + in_flight > signed_up - 1000
    assert signed_up > 3000
    settled = peaks[len(peaks) // 3 :]
    assert max(settled) - min(settled) < 4 * 1024 * 1024
    with InboxServer(port=port, inbox=with_templates(Inbox())) as server:
        server.wait_for(lambda inbox: len(inbox.counts.by_recipient) == signed_up, 90)
        collector.process.terminate()
        assert 0 == sender.wait()
        assert {1} == set(server.inbox.counts.by_recipient.values())
    told = re.findall(r" sender\.paused .*", sender.log())
    assert 1 == len(told), told
    assert "sender.resumed" in sender.log()


@pytest.mark.slow
def test_a_killed_sender_ends_the_collector_and_what_it_had_not_read_is_sent(
    db: Db, ses: InboxServer, collect: Callable[..., PipedCollector], start: Start
) -> None:
    sign_up_many(db, 2000)
    collector = collect()
    sender = pipe_of(start, collector, SEND_RATE=200)
    ses.wait_for(lambda inbox: inbox.counts.accepted >= 200)
    sender.process.kill()
    assert 69 == collector.process.wait(PATIENCE_S)
    assert "Error: the reader of standard output is gone" in collector.log.read_text()
    unread = {
        email
        for (email,) in db.execute(
            "SELECT t.email FROM tokens t JOIN mailroom.cursors c ON c.lane = t.lane"
            " WHERE t.id IN (SELECT unnest(tokens) FROM mailroom.leases)"
            " OR NOT pg_visible_in_snapshot(t.txid, c.low) AND (t.txid, t.id) > (c.last_txid, c.last_seq)"
        )
    }
    before = set(ses.inbox.counts.by_recipient)
    assert 2000 - len(before | unread) < 150  # the killed one's own: in its calls, or one small read
    again = collect()
    other = pipe_of(start, again)
    ses.wait_for(lambda inbox: set(inbox.counts.by_recipient) >= before | unread)
    again.process.terminate()
    assert 0 == other.wait()
    ((left,),) = db.execute("SELECT waiting + in_flight FROM mailroom.backlog()").fetchall()
    assert 0 == left


@pytest.mark.slow
def test_nothing_is_read_while_the_account_is_paused(ses: InboxServer, start: Start, tmp_path: Path) -> None:
    ses.inbox.account.paused = True
    sender = start()
    sender.send(mixed(10))
    sender.wait_for_log("sender.paused breaker=account")
    assert sender.process.stdin
    os.set_blocking(sender.process.stdin.fileno(), False)
    taken = 0
    with contextlib.suppress(BlockingIOError):
        while taken < 200_000:
            taken += os.write(sender.process.stdin.fileno(), encode(mixed(10)))
    assert taken <= 64 * 1024 + 4096
    ses.wait_for(lambda inbox: inbox.counts.calls >= 3)
    assert 1 == sender.log().count("sender.paused")
    ses.inbox.account.paused = False
    ses.wait_for(lambda inbox: inbox.counts.accepted >= 400)
    assert "sender.resumed breaker=account" in sender.log()


@pytest.mark.slow
def test_a_signal_lets_it_finish_what_it_has_and_leaves_the_rest_in_the_pipe(
    ses: InboxServer, start: Start, tmp_path: Path
) -> None:
    reader, writer = os.pipe()
    sender = start(stdin=reader, SEND_RATE=40)
    for first in range(0, 400, 20):
        os.write(writer, encode([message(number) for number in range(first, first + 20)]))
    os.close(writer)
    ses.wait_for(lambda inbox: inbox.counts.accepted >= 20)
    sender.process.terminate()
    assert 0 == sender.wait()
    with os.fdopen(reader, "rb") as rest:
        unread = [one.email for line in rest for one in decoded(line)]
    accepted = ses.inbox.counts.by_recipient
    assert 400 > len(accepted)
    assert {f"person{number}@example.com": 1 for number in range(400 - len(unread))} == accepted
    assert [f"person{number}@example.com" for number in range(400 - len(unread), 400)] == unread


def test_a_signal_waits_for_the_rest_of_a_line(ses: InboxServer, start: Start) -> None:
    sender = start()
    sender.wait_for_log("sender.started")
    line = encode(mixed(20))
    sender.write(encode(mixed(1)) + line[:900])
    ses.wait_for(lambda inbox: inbox.counts.accepted == 1)
    sender.process.terminate()
    sender.wait_for_log("sender.stopping")
    sender.write(line[900:] + encode(mixed(5)))
    assert 0 == sender.wait()
    assert 21 == ses.inbox.counts.accepted


def test_a_line_that_never_ends_is_set_aside(ses: InboxServer, start: Start, tmp_path: Path) -> None:
    sender = start(SHUTDOWN_TIMEOUT=300)
    sender.write(encode(mixed(1)) + b"1,half")
    ses.wait_for(lambda inbox: inbox.counts.accepted == 1)
    sender.process.terminate()
    assert 75 == sender.wait()
    assert [b"1,half"] == [row.line for row in set_aside(tmp_path / "output")]


@pytest.mark.slow
def test_what_cannot_be_finished_in_time_is_set_aside_and_replayed(
    ses: InboxServer, start: Start, tmp_path: Path
) -> None:
    ses.inbox.account.paused = True
    sender = start(SHUTDOWN_TIMEOUT=300)
    sender.send(mixed(30))
    sender.wait_for_log("sender.paused")
    sender.process.terminate()
    assert 75 == sender.wait()
    rows = set_aside(tmp_path / "output")
    assert {"unsent"} == {row.outcome for row in rows}
    assert "AccountSendingPausedException" in rows[0].reason
    ses.inbox.account.paused = False
    (tmp_path / "output" / "rejected.csv").rename(tmp_path / "again.csv")
    replayed = commands.run_bytes("replay", str(tmp_path / "again.csv"), env={})
    other = start()
    other.write(replayed.stdout)
    assert 0 == other.end()
    assert {f"person{number}@example.com": 1 for number in range(30)} == ses.inbox.counts.by_recipient


def test_lines_that_were_read_ahead_are_set_aside_one_by_one(
    ses: InboxServer, start: Start, tmp_path: Path
) -> None:
    ses.inbox.account.paused = True
    sender = start(SHUTDOWN_TIMEOUT=300)
    sender.send(*([message(number)] for number in range(20)))
    sender.wait_for_log("sender.paused")
    sender.process.terminate()
    assert 75 == sender.wait()
    rows = set_aside(tmp_path / "output")
    assert {"unsent"} == {row.outcome for row in rows}
    assert {message(number) for number in range(20)} == {
        one for row in rows for one in decoded(row.line + b"\n")
    }


def test_an_answer_that_quotes_the_data_shows_no_token(
    ses: InboxServer, start: Start, tmp_path: Path
) -> None:
    one = message(1)
    words = (
        f'no such user, cannot render {{"secret": "{one.token}", "code":"{one.code}"}} for "john"@a.example'
    )
    ses.inbox.faults.add(Fault("error", code="MessageRejected", message=words))
    sender = start()
    sender.send([one])
    assert 75 == sender.end()
    (saved,) = (tmp_path / "output").glob("*.http")
    (row,) = set_aside(tmp_path / "output")
    for text in (sender.log(), saved.read_text(), row.reason):
        assert one.token not in text
        assert f'"code":"{one.code}"' not in text
    assert "cannot render" in sender.log()
    assert "john" not in sender.log()


def test_a_fault_of_ours_is_noticed_while_nothing_is_read(
    ses: InboxServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in aws(ses.url).items():
        monkeypatch.setenv(name, value)

    def broken(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("mailroom.sender.provider.Provider._answers", broken)
    chosen = settings(tmp_path)
    reader, writer = os.pipe()
    os.write(writer, encode([message(1)]))
    with pytest.raises(KeyError, match="a bug"):
        asyncio.run(Pipe(chosen, Input(reader), open_transports(chosen)).run(asyncio.Event()))
    os.close(reader)
    os.close(writer)
    assert 1 == len(set_aside(tmp_path))


def test_an_interrupt_after_a_signal_ends_it_at_once(ses: InboxServer, start: Start, tmp_path: Path) -> None:
    ses.inbox.account.paused = True
    sender = start(SHUTDOWN_TIMEOUT=60_000)
    sender.send(mixed(3))
    sender.wait_for_log("sender.paused")
    sender.process.send_signal(signal.SIGINT)
    sender.wait_for_log("sender.stopping")
    started = time.monotonic()
    sender.process.send_signal(signal.SIGINT)
    assert 130 == sender.wait()
    assert 20 > time.monotonic() - started
    assert 3 == len(set_aside(tmp_path / "output"))


def test_debug_into_a_full_disk_ends_with_a_remedy(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mailroom", "sender"],
            input=encode([message(1)]),
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(tmp_path, DEBUG="true") | {"PYTHONUNBUFFERED": ""},
            timeout=PATIENCE_S,
            check=False,
        )
    assert 69 == done.returncode
    assert b"Error: cannot write to standard output: [Errno 28] No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_call_that_hangs_does_not_hold_up_the_end(ses: InboxServer, start: Start, tmp_path: Path) -> None:
    ses.inbox.faults.add(Fault("hang", accept=True))
    sender = start(SHUTDOWN_TIMEOUT=300, SEND_TIMEOUT=60_000)
    sender.send([message(1)])
    ses.wait_for(lambda inbox: inbox.counts.accepted == 1)
    started = time.monotonic()
    sender.process.terminate()
    assert 75 == sender.wait()
    assert 20 > time.monotonic() - started
    (row,) = set_aside(tmp_path / "output")
    assert ("unknown", encode([message(1)])[:-1]) == (row.outcome, row.line)


def test_a_full_disk_stops_the_reading_until_there_is_room(
    ses: InboxServer, start: Start, tmp_path: Path
) -> None:
    ses.inbox.faults.add(Fault("status", status="MessageRejected", message="no such mailbox"))
    sender = start()
    sender.wait_for_log("sender.started")
    limit = sender.log_path.stat().st_size + 900  # which holds for the log as well
    resource.prlimit(sender.process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    sender.send([message(number) for number in range(20)])
    sender.wait_for_log("sender.not_set_aside")
    resource.prlimit(
        sender.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    )
    sender.wait_for_log("sender.set_aside_again")
    assert 75 == sender.end()
    assert [[message(n)] for n in range(20)] == [
        decoded(row.line + b"\n") for row in set_aside(tmp_path / "output")
    ]


def test_what_cannot_be_set_aside_is_told_at_the_end(ses: InboxServer, start: Start, tmp_path: Path) -> None:
    ses.inbox.faults.add(Fault("status", status="MessageRejected", message="no such mailbox"))
    sender = start(SHUTDOWN_TIMEOUT=500)
    sender.wait_for_log("sender.started")
    (tmp_path / "output" / "rejected.csv").unlink()
    (tmp_path / "output" / "rejected.csv").mkdir()
    sender.send(mixed(3))
    sender.wait_for_log("sender.not_set_aside")
    sender.process.terminate()
    assert 75 == sender.wait()
    assert "Error: 3 recipients or lines could not be set aside" in sender.log()


def test_an_output_folder_that_cannot_be_written_is_told_at_the_start(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    sender = start(SES_OUTPUT_PATH=tmp_path / "file" / "output")
    assert 78 == sender.wait()
    assert "MAILROOM_SES_OUTPUT_PATH" in sender.log()


@pytest.mark.slow
def test_a_template_that_would_lose_mail_pauses_its_action_alone(ses: InboxServer, start: Start) -> None:
    ses.inbox.account.put_template("activationv1", ("Hello {{name}}", "{{secret}}", "{{secret}}"), new=False)
    sender = start()
    sender.send([message(1)], [message(3, PASSWORD_RECOVERY)])
    ses.wait_for(lambda inbox: inbox.counts.accepted == 1)
    sender.wait_for_log("the template 'activationv1' in SES does not match activation: subject: {{name}}")
    assert "(`mailroom templates push activation` replaces it)" in sender.log()
    ses.inbox.account.put_template("activationv1", ("Hello", "{{secret}}", "{{secret}}"), new=False)
    ses.wait_for(lambda inbox: inbox.counts.accepted == 2)
    assert 0 == sender.end()


def test_answers_that_tell_of_trouble_are_saved_whole_and_others_are_not(
    ses: InboxServer, start: Start, tmp_path: Path
) -> None:
    sender = start()
    sender.send([message(1)])
    ses.wait_for(lambda inbox: inbox.counts.accepted == 1)
    assert [] == list((tmp_path / "output").glob("*.http"))
    ses.inbox.faults.add(Fault("status", status="MessageRejected", message="no such person"))
    sender.send([message(3, PASSWORD_RECOVERY)])
    sender.end()
    (saved,) = (tmp_path / "output").glob("*.http")
    assert re.fullmatch(r"ses_\d{8}T\d{6}\.\d{6}Z_password_recovery\.http", saved.name)
    head, _, body = saved.read_bytes().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"content-type: text/xml" in head.lower()
    assert b"<Status>MessageRejected</Status>" in body
    assert body.endswith(b"</SendBulkTemplatedEmailResponse>")


@pytest.mark.slow
@pytest.mark.parametrize("level", ["info", "debug"])
def test_no_secret_is_in_a_log_a_saved_answer_or_the_rejected(
    db: Db,
    database: str,
    ses: InboxServer,
    collect: Callable[..., PipedCollector],
    start: Start,
    tmp_path: Path,
    level: str,
) -> None:
    """A server that quotes what it was sent, as SES does when it doubts a signature."""
    words = f"{'x' * 240} The signature for {AWS_KEY_ID} with {AWS_SECRET} and {AWS_TOKEN} is wrong"
    ses.inbox.faults.add(Fault("error", calls=2, code="SignatureDoesNotMatch", message=words))
    ses.inbox.faults.add(Fault("http", calls=1, http_status=500, body=words))
    ses.inbox.faults.add(Fault("garbage", calls=1, body=words))
    words = f"no such mailbox {words}"
    ses.inbox.faults.add(Fault("status", calls=1, status="MessageRejected", message=words))
    url, password = with_password(database)
    collector = collect(url)
    sender = pipe_of(start, collector, level=level)
    sign_up_many(db, 20)
    ses.wait_for(lambda inbox: inbox.counts.recipients >= 60)
    sender.wait_for_log("sender.rejected")
    collector.process.terminate()
    sender.wait()
    tokens = [one.token for row in set_aside(tmp_path / "output") for one in decoded(row.line + b"\n")]
    assert tokens
    assert 4 <= len(list((tmp_path / "output").glob("*.http")))
    for path in [*tmp_path.rglob("*")]:
        if path.is_file():
            content = path.read_text(errors="replace")
            for secret in (AWS_KEY_ID[:8], AWS_SECRET[:12], AWS_TOKEN[:12], KEY, password):
                assert secret not in content, path
            if path.name != "rejected.csv":
                for secret in [*tokens, "@example.com"]:
                    assert secret not in content, path


def test_what_is_set_aside_is_on_the_disk_before_the_next_read(
    ses: InboxServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in aws(ses.url).items():
        monkeypatch.setenv(name, value)
    ses.inbox.faults.add(
        Fault("status", recipient="person0@example.com", status="MessageRejected", message="no such user")
    )
    chosen = settings(tmp_path, SEND_RATE=1000, SEND_CONCURRENCY=1)
    reader, writer = os.pipe()
    lines = Input(reader)
    events = []
    read_once, sync = os.read, os.fsync

    def reading(descriptor: int, count: int) -> bytes:
        if descriptor == reader:
            events.append("read")
        return read_once(descriptor, count)

    def syncing(descriptor: int) -> None:
        sync(descriptor)
        events.append("fsync")

    monkeypatch.setattr(os, "read", reading)
    monkeypatch.setattr(os, "fsync", syncing)
    for _ in range(3):
        os.write(writer, encode([message(number) for number in range(50)]))  # a whole call
    os.close(writer)
    assert asyncio.run(Pipe(chosen, lines, open_transports(chosen)).run(asyncio.Event())) is False
    os.close(reader)
    assert 3 == len(set_aside(tmp_path))
    # A line is taken when the one before it is settled: so a read follows each fsync. The first one
    # has the folder's with it, which keeps the file's name.
    assert "read read fsync fsync read read fsync read fsync read" == " ".join(events)


def test_a_signal_at_the_start_is_heard_while_ses_hangs(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        sender = start(
            url=f"http://127.0.0.1:{deaf.getsockname()[1]}", SHUTDOWN_TIMEOUT=300, SEND_RATE="auto"
        )
        with deaf.accept()[0]:  # and nobody answers
            sender.process.terminate()
            started = time.monotonic()
            assert 0 == sender.wait()
            assert 8 > time.monotonic() - started
