"""SES's events come through the queue: none is lost, none counts twice, and no trouble stops the sending."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from mailroom.demo.postgres import PostgresServer, free_port
from mailroom.inbox import sqs as inbox_sqs
from mailroom.inbox.faults import Fault
from mailroom.inbox.server import InboxServer
from mailroom.wire import Reference
from support import commands, processes, ses_events
from support.moto import moto_server
from support.queue_sql import Db, claim, record, record_all, sign_up, sign_up_many
from support.runs import UNSETTLED, RunProcess, Start, fetch, wait_until
from support.senders import aws
from support.ses_events import EVERY, bridged, raw
from support.sqs import NAME, MotoQueue, ScriptedSqs, scripted_sqs

COUNT = "SELECT count(*)::integer FROM mailroom.events"
UNREADABLE = "SELECT count(*)::integer FROM mailroom.unreadable_events"
SENT = "SELECT count(*)::integer FROM mailroom.deliveries WHERE outcome = 'sent'"
# What `mailroom why` concludes of a mail after each kind of event.
WHY = {
    "sent": "SES: sent as ",
    "delivered": "the recipient's server took it at ",
    "bounced": "the address takes no mail, as its server said at ",
    "complained": "the person marked it as spam at ",
    "delayed": "the recipient's server has not taken it, as of ",
    "rejected": "SES took it and did not send it, at ",
    "rendering_failed": "SES: could not render it",
}
StartReader = Callable[..., RunProcess]


@pytest.fixture
def sqs(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedSqs]:
    with scripted_sqs() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", server.url)
        yield server


@pytest.fixture
def start_reader(tmp_path: Path) -> Iterator[StartReader]:
    """Starts ``mailroom events`` on a database and an SQS."""
    started: list[RunProcess] = []

    def start_one(database: str, url: str) -> RunProcess:
        variables = processes.environment(database, EVENTS=NAME) | aws("http://127.0.0.1:1")
        log = tmp_path / f"events-{len(started)}"
        reader = RunProcess(variables | {"AWS_ENDPOINT_URL_SQS": url}, log, command="events")
        started.append(reader)
        return reader

    yield start_one
    for reader in started:
        reader.__exit__()


def wait_until_left(queue: ScriptedSqs | MotoQueue, count: int) -> None:
    deadline = time.monotonic() + processes.PATIENCE_S
    while (left := queue.left()) != count:
        assert time.monotonic() < deadline, f"{left} messages are left, and not {count}"
        time.sleep(0.02)


def references(db: Db) -> dict[str, tuple[str, Reference]]:
    """The message id and the attempt of the mail to each address."""
    rows = db.execute(
        "SELECT t.email, d.message_id, d.token, d.fingerprint, d.attempt"
        " FROM mailroom.deliveries d JOIN tokens t ON t.id = d.token WHERE d.outcome = 'sent'"
    ).fetchall()
    return {row[0]: (row[1], Reference(*row[2:])) for row in rows}


@pytest.mark.slow
def test_each_kind_in_each_envelope_through_an_independent_sqs(
    db: Db, database: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """moto's SNS wraps what it sends, or sends it raw; it knows nothing of us."""
    people = {f"{kind}-{envelope}": kind for kind in EVERY for envelope in ("raw", "sns", "bridge")}
    for login in people:
        sign_up(db, login)
    with moto_server() as url:
        queue = MotoQueue(url)
        monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", url)
        run = start(EVENTS=NAME)
        wait_until(db, SENT, len(people))
        known = references(db)
        for login, kind in people.items():
            message_id, reference = known[f"{login}@example.com"]
            event = EVERY[kind](to=f"{login}@example.com", message_id=message_id, reference=reference)
            if login.endswith("bridge"):
                queue.send(bridged(event))
            else:
                queue.publish(raw(event), raw=login.endswith("raw"))
        queue.publish("Successfully validated SNS topic for Amazon SES event publishing.", raw=False)
        wait_until(db, COUNT, len(people))
        wait_until_left(queue, 0)
        assert 0 == run.stop()
    found = db.execute(
        "SELECT t.login, e.kind FROM mailroom.events e JOIN tokens t ON t.id = e.token"
        " JOIN mailroom.deliveries d ON d.message_id = e.message_id AND d.token = e.token"
        " WHERE d.outcome = 'sent'"
    ).fetchall()
    assert people == dict(found)
    assert len(people) == len(found)
    suppressed = db.execute(
        "SELECT login FROM tokens WHERE mailroom.suppressed(email) IS NOT NULL"
    ).fetchall()
    assert {login for login, kind in people.items() if kind in {"bounced", "complained"}} == {
        login for (login,) in suppressed
    }
    assert [(0,)] == db.execute(UNREADABLE).fetchall()
    failed = db.execute(
        "SELECT t.login, d.detail FROM mailroom.deliveries d JOIN tokens t ON t.id = d.token"
        " WHERE d.outcome = 'rejected'"
    ).fetchall()
    assert {login for login, kind in people.items() if kind == "rendering_failed"} == {
        login for login, _ in failed
    }
    for login, kind in people.items():
        told = commands.run("why", login, env=processes.environment(database)).stdout
        assert WHY[kind] in told, told


def test_the_words_of_an_event_are_recorded(db: Db, sqs: ScriptedSqs, start: Start) -> None:
    token = sign_up(db, "ada")
    run = start(EVENTS=NAME)
    wait_until(db, SENT, 1)
    ((message_id, reference),) = references(db).values()
    assert token == reference.token
    sqs.send(raw(ses_events.bounced(message_id=message_id)))  # without tags, by its message id
    wait_until(db, COUNT, 1)
    wait_until_left(sqs, 0)
    row = db.execute(
        "SELECT kind, token, recipient, at::text, type, subtype, status, diagnostic FROM mailroom.events"
    ).fetchone()
    assert row
    assert (row[0], row[1], row[2], *row[4:]) == (
        "bounced",
        token,
        "ada@example.com",
        "permanent",
        "General",
        "5.1.1",
        "smtp; 550 5.1.1 user unknown",
    )
    assert 0 == run.stop()
    assert "events.recorded bounced=1 repeated=0 unmatched=0" in run.log()


def test_what_cannot_be_read_is_kept_and_disturbs_no_other(
    db: Db, database: str, sqs: ScriptedSqs, start_reader: StartReader
) -> None:
    db.execute("ALTER TABLE mailroom.events ADD CHECK (recipient <> 'refused@example.com')")
    sqs.send("no JSON \0", "[]", raw(ses_events.sent("refused@example.com")), raw(ses_events.sent()), "[]")
    reader = start_reader(database, sqs.url)
    wait_until(db, COUNT, 1)
    wait_until_left(sqs, 0)
    kept: dict[str, str] = dict(db.execute("SELECT text, reason FROM mailroom.unreadable_events").fetchall())
    assert {"no JSON ?", "[]", raw(ses_events.sent("refused@example.com"))} == set(kept)
    assert "not a JSON object" == kept["[]"]
    assert kept[raw(ses_events.sent("refused@example.com"))].startswith("the database refuses it: ")
    assert 0 == reader.stop()
    assert 'events.unreadable count=2 reason="not a JSON object"' in reader.log()
    assert (
        "events.recorded sent=1 repeated=0 unmatched=1" in reader.log()
    )  # it is of no mail of this database


def test_what_cannot_be_read_is_kept_without_secrets_and_each_message_once(
    db: Db, database: str, sqs: ScriptedSqs, start_reader: StartReader
) -> None:
    token = "aB3-" * 21 + "xy"
    event = ses_events.bounced(to="nobody")
    words = f"554 spam: ?token={token[:50]}=\r\n{token[50:]} code 12345"
    event["bounce"]["bouncedRecipients"][0]["diagnosticCode"] = words
    sqs.send(raw(event), "x!" * 33_000 + "one", "x!" * 33_000 + "two")
    reader = start_reader(database, sqs.url)
    wait_until(db, UNREADABLE, 3)
    wait_until_left(sqs, 0)
    (text,) = [text for (text,) in db.execute("SELECT text FROM mailroom.unreadable_events") if "554" in text]
    assert 2 == text.count("[redacted]"), text
    assert not any(part in text for part in ("aB3-", "-xy", "code 12345")), text
    assert 0 == reader.stop()


@pytest.mark.slow
@pytest.mark.parametrize("refusal", ["throttled", "no queue", "no right", "away", "garbage"])
def test_no_trouble_of_the_queue_stops_the_sending_or_loses_an_event(
    db: Db, sqs: ScriptedSqs, start: Start, refusal: str
) -> None:
    sqs.refuses = dict.fromkeys(["GetQueueUrl", "ReceiveMessage", "GetQueueAttributes"], refusal)
    sqs.send(raw(ses_events.sent()))
    port = free_port()
    run = start(EVENTS=NAME, HTTP=port).wait_for_log("events.not_received")
    sign_up(db, "ada")
    wait_until(db, SENT, 1)
    status, text = fetch(port, "/readyz")
    answer = json.loads(text)
    assert (200, True, {}) == (status, answer["ready"], answer["faults"])
    assert answer["warnings"]["events"].startswith("SES's events cannot be read: SQS: ")
    metrics = fetch(port, "/metrics")[1]
    assert "mailroom_events_trouble_seconds 0.0" not in metrics
    wait_until(db, "SELECT events_trouble LIKE 'SQS: %' AND trouble = '' FROM mailroom.workers", True)
    assert 1 == sqs.left()
    sqs.refuses = {}
    wait_until(db, COUNT, 1)
    wait_until_left(sqs, 0)
    run.wait_for_log("events.received_again")
    assert {} == json.loads(fetch(port, "/readyz")[1])["warnings"]
    wait_until(db, "SELECT events_trouble FROM mailroom.workers", "")
    assert 'mailroom_events_total{kind="sent",type=""} 1.0' in fetch(port, "/metrics")[1]
    assert 0 == run.stop()


# In place of 20 and 5 seconds.
PATIENCE = {"mailroom.events.sqs.LONG_POLL_S": 1, "mailroom.events.sqs.ANSWER_LIMIT_S": 1.0}


@pytest.mark.slow
def test_a_queue_that_answers_too_late_stops_no_sending_and_loses_no_event(
    db: Db, database: str, sqs: ScriptedSqs, start: Start
) -> None:
    """SQS hands out the message, and its answer comes when nobody waits for it any more."""
    sqs.delays = dict.fromkeys(["ReceiveMessage", "GetQueueAttributes"], 600.0)
    sqs.send(raw(ses_events.sent()))
    port = free_port()
    run = start(EVENTS=NAME, HTTP=port, constants=PATIENCE).wait_for_log("events.not_received")
    sign_up(db, "ada")
    wait_until(db, SENT, 1)
    status, text = fetch(port, "/readyz")
    answer = json.loads(text)
    assert (200, True, {}) == (status, answer["ready"], answer["faults"])
    assert answer["warnings"]["events"].startswith("SES's events cannot be read: SQS: Read timeout")
    metrics = fetch(port, "/metrics")[1]
    assert "mailroom_events_trouble_seconds 0.0" not in metrics
    assert "mailroom_events_waiting NaN" in metrics
    wait_until(db, "SELECT events_trouble LIKE 'SQS: Read timeout%' FROM mailroom.workers", True)
    assert "has not read SES's events since" in status_of(database)
    assert (1, [(0,)]) == (sqs.left(), db.execute(COUNT).fetchall())
    sqs.hurry()
    sqs.show_again()
    wait_until(db, COUNT, 1)
    wait_until_left(sqs, 0)
    run.wait_for_log("events.received_again")
    assert {} == json.loads(fetch(port, "/readyz")[1])["warnings"]
    wait_until(db, "SELECT events_trouble FROM mailroom.workers", "")
    assert 0 == run.stop()


def status_of(database: str) -> str:
    return commands.run("status", env=processes.environment(database)).stdout


def test_a_queue_that_is_slow_is_read_slowly(db: Db, sqs: ScriptedSqs, start: Start) -> None:
    sqs.delays = dict.fromkeys(["ReceiveMessage", "DeleteMessageBatch"], 0.5)
    sqs.send(*(raw(ses_events.sent(message_id=f"m-{number}")) for number in range(25)))
    port = free_port()
    run = start(EVENTS=NAME, HTTP=port).wait_for_log("events.started")
    sign_up(db, "ada")
    wait_until(db, SENT, 1)
    wait_until(db, COUNT, 25)
    assert {} == json.loads(fetch(port, "/readyz")[1])["warnings"]
    wait_until_left(sqs, 0)
    sqs.hurry()
    assert 0 == run.stop()
    assert "events.not_" not in run.log()


@pytest.mark.slow
def test_doctor_tells_of_a_queue_that_does_not_answer(sqs: ScriptedSqs) -> None:
    sqs.delays = {"GetQueueAttributes": 600.0}
    variables = processes.environment("", EVENTS=NAME) | aws("http://127.0.0.1:1")
    done = commands.run("doctor", "--only", "events", env=variables | {"AWS_ENDPOINT_URL_SQS": sqs.url})
    sqs.hurry()
    assert 1 == done.returncode
    (line,) = [line for line in done.stdout.splitlines() if "events-queue" in line]
    assert line.split()[0] in {"fault", "FAULT"}, done.stdout
    assert "Read timeout" in line


def test_a_right_that_is_missing_is_named_with_its_remedy_and_without_a_traceback(
    db: Db, sqs: ScriptedSqs, start: Start
) -> None:
    port = free_port()
    run = start(EVENTS=NAME, HTTP=port).wait_for_log("events.started")
    db.execute("ALTER FUNCTION mailroom.keep_unreadable RENAME TO kept_unreadable")
    sqs.send("[]")
    run.wait_for_log("events.failed")
    warning = json.loads(fetch(port, "/readyz")[1])["warnings"]["events"]
    assert "keep_unreadable" in warning
    assert "(try: " in warning
    assert 0 == run.stop()
    assert "Traceback" not in run.log()


def test_a_queue_that_nobody_reaches_stops_no_sending(
    db: Db, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", f"http://127.0.0.1:{free_port()}")
    run = start(EVENTS=NAME).wait_for_log("events.not_received")
    sign_up(db, "ada")
    wait_until(db, SENT, 1)
    assert 0 == run.stop()


def test_what_cannot_be_deleted_comes_again_and_changes_nothing(
    db: Db, database: str, sqs: ScriptedSqs, start_reader: StartReader
) -> None:
    sqs.refuses = {"DeleteMessageBatch": "no right"}
    sqs.send(raw(ses_events.delivered()))
    reader = start_reader(database, sqs.url).wait_for_log("events.not_deleted")
    assert "permit sqs:GetQueueUrl, sqs:ReceiveMessage and sqs:DeleteMessage" in reader.log()
    assert 1 == sqs.left()
    sqs.refuses = {}
    sqs.show_again()
    wait_until_left(sqs, 0)
    wait_until(db, COUNT, 1)
    reader.wait_for_log("events.deleted_again")
    assert 0 == reader.stop()
    assert "events.recorded repeated=1" in reader.log()


def test_one_deletion_that_fails_is_no_lasting_trouble(
    db: Db, database: str, sqs: ScriptedSqs, start_reader: StartReader
) -> None:
    """No other message comes: another worker may have deleted those of the deletion that failed."""
    sqs.refuses = {"DeleteMessageBatch": "no right"}
    sqs.send(raw(ses_events.delivered()))
    reader = start_reader(database, sqs.url).wait_for_log("events.not_deleted")
    sqs.refuses = {}
    reader.wait_for_log("events.deleted_again")
    assert 0 == sqs.left()
    assert 0 == reader.stop()


def test_a_message_is_deleted_only_when_its_event_is_committed(
    own_server: PostgresServer, sqs: ScriptedSqs, start_reader: StartReader
) -> None:
    reader = start_reader(own_server.url(), sqs.url).wait_for_log("events.started")
    own_server.stop()
    sqs.send(raw(ses_events.delivered()))
    reader.wait_for_log("database.lost")
    assert 1 == sqs.left()
    assert "DeleteMessageBatch" not in sqs.calls
    own_server.start()
    wait_until_left(sqs, 0)
    with psycopg.connect(own_server.url()) as db:
        assert [(1,)] == db.execute(COUNT).fetchall()
    assert 0 == reader.stop()


def test_a_forged_event_can_at_worst_suppress_an_address(
    db: Db, database: str, sqs: ScriptedSqs, start_reader: StartReader
) -> None:
    """A forger knows the addresses and may guess ids; SES's message ids and the fingerprints are random."""
    token = sign_up(db, "ada")
    record_all(db, "unknown", message_id="", retry_ms=3_600_000)
    before = state(db)
    guessed = Reference(token, bytes(8), 1)
    for make in EVERY.values():
        sqs.send(raw(make(message_id="guessed", reference=guessed)), raw(make(message_id="")))
        sqs.send(raw(make(to="ada@example.com'; DROP TABLE tokens; --", message_id="guessed")))
    reader = start_reader(database, sqs.url)
    wait_until_left(sqs, 0)
    assert 0 == reader.stop()
    assert before == state(db)
    query = "SELECT address FROM mailroom.suppressions ORDER BY 1"
    suppressed = [address for (address,) in db.execute(query).fetchall()]
    assert "ada@example.com" == suppressed[0]
    assert all(address.startswith("ada@example.com") for address in suppressed)
    threats = Path(__file__).parents[2] / "docs" / "explanation" / "threat-model.md"
    assert "suppress an address, with a forged bounce or complaint" in threats.read_text()


def state(db: Db) -> list[Any]:
    """All that a mail depends on, but for suppressions."""
    return [
        db.execute(f"SELECT t::text FROM {table} t ORDER BY 1".encode()).fetchall()
        for table in ("accounts", "tokens", "mailroom.leases", "mailroom.deliveries", "mailroom.actions")
    ]


def test_without_a_queue_the_command_says_what_to_set(database: str) -> None:
    done = commands.run("events", env=processes.environment(database))
    assert 78 == done.returncode
    assert "MAILROOM_EVENTS: not set" in done.stderr


def test_the_schema_is_checked_at_the_start(empty_database: str, sqs: ScriptedSqs) -> None:
    variables = processes.environment(empty_database, EVENTS=NAME) | aws(sqs.url)
    done = commands.run("events", env=variables | {"AWS_ENDPOINT_URL_SQS": sqs.url})
    assert 78 == done.returncode
    assert "mailroom migrate up" in done.stderr


MAILS = 5000
KINDS = ("sent", "delivered", "delayed", "bounced", "complained")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_of_50_000_events_none_is_lost_and_none_counts_twice_over_kill_9(
    db: Db, database: str, ses: InboxServer, start_reader: StartReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(19)
    monkeypatch.setattr(inbox_sqs, "VISIBILITY_S", 2)
    sign_up_many(db, MAILS)
    early, late = claim(db, MAILS // 2), claim(db, MAILS // 2)
    texts = []
    for lease in (*early, *late):
        for token, fingerprint in zip(lease.tokens, lease.fingerprints, strict=True):
            for kind in KINDS:
                about = {"message_id": f"m-{token}", "reference": Reference(token, fingerprint, 1)}
                texts.append(raw(EVERY[kind](to=f"{kind}{token}@example.com", **about)))
    texts *= 2
    chance.shuffle(texts)
    assert 50_000 == len(texts)

    def settle(leases: list[Any]) -> None:
        for lease in leases:
            ids = {token: f"m-{token}" for token in lease.tokens}
            record(db, lease, dict.fromkeys(lease.tokens, "sent"), message_ids=ids)

    settle(early)
    for text in texts:
        ses.inbox.queue.put(text)
    for kill in range(10):
        reader = start_reader(database, ses.url).wait_for_log("events.started")
        time.sleep(chance.uniform(0, 1.5))
        reader.process.kill()
        reader.process.wait()
        if kill == 5:
            settle(late)
    reader = start_reader(database, ses.url)
    deadline = time.monotonic() + 600
    while len(ses.inbox.queue) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert 0 == len(ses.inbox.queue)
    assert 0 == reader.stop()
    found = db.execute(
        "SELECT kind, count(*), count(DISTINCT token) FROM mailroom.events GROUP BY kind"
    ).fetchall()
    assert dict.fromkeys(KINDS, (MAILS, MAILS)) == {kind: (count, mails) for kind, count, mails in found}
    suppressed = db.execute("SELECT count(*)::integer FROM mailroom.suppressions").fetchall()
    assert [(3 * MAILS,)] == suppressed  # the two that the events name, and the mail's own
    assert [(0,)] == db.execute(UNREADABLE).fetchall()


PEOPLE = 1000


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_with_events_a_lost_answer_mails_nobody_twice(
    db: Db,
    ses: InboxServer,
    start: Start,
    figures: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", ses.url)
    found = {}
    ses.inbox.faults.add(Fault("cut", share=0.1, accept=True))
    for events in ("", NAME):
        ses.inbox.counts.by_recipient.clear()
        ses.inbox.queue.clear()
        sign_up_many(db, PEOPLE, f"p{len(events)}-")
        run = start(EVENTS=events, SEND_RATE=100)
        wait_until(db, UNSETTLED, 0, patience_s=300)
        assert 0 == run.stop()
        mailed = Counter(ses.inbox.counts.by_recipient)
        assert PEOPLE == len(mailed)
        ((lost,),) = db.execute(
            "SELECT count(*)::integer FROM mailroom.deliveries d JOIN tokens t ON t.id = d.token"
            " WHERE d.outcome = 'unknown' AND t.login LIKE %s",
            [f"p{len(events)}-%"],
        ).fetchall()
        duplicates = mailed.total() - PEOPLE
        assert lost
        found[events] = duplicates, lost
    for name, (duplicates, lost) in {"off": found[""], "on": found[NAME]}.items():
        per = 10_000 * duplicates / lost
        figures(f"events {name}: {duplicates} duplicates for {lost} lost answers: {per:.0f} in 10,000")
    assert found[NAME][0] <= 2 < found[""][0]
