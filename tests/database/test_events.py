"""Events: facts about mails that SES took, and what each of them brings about."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from support.events import TAKEN, event, hand_out, of, send, tell, unrendered
from support.queue_sql import Db, Handed, ask_recovery, claim, claimed_tokens, expire_leases, record, sign_up


def rows(db: Db, text: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
    return db.execute(text.encode(), parameters).fetchall()


def outcomes(db: Db, token: int) -> list[tuple[Any, ...]]:
    return rows(db, "SELECT outcome, detail FROM mailroom.deliveries WHERE token = %s ORDER BY id", [token])


@pytest.fixture
def handed(db: Db) -> Handed:
    """The mail of zoe, claimed."""
    return hand_out(db)


@pytest.fixture
def sent(db: Db, handed: Handed) -> Handed:
    """The mail of zoe, sent as m-1."""
    return send(db, handed)


def test_an_event_is_kept_with_all_that_it_says(db: Db, sent: Handed) -> None:
    given = of(
        sent, "bounced", type="permanent", subtype="General", status="5.1.1", diagnostic="550 no such user"
    )
    assert [("bounced", True, True)] == tell(db, given)
    names = [name for name in given if name != "fingerprint"]
    kept = rows(db, f"SELECT {', '.join(names)}, encode(fingerprint, 'hex') FROM mailroom.events")
    at = datetime(2026, 1, 1, 0, 0, 0, 123000, UTC)
    assert [(*[given[name] if name != "at" else at for name in names], given["fingerprint"])] == kept


def test_repeated_events_change_nothing(db: Db, sent: Handed) -> None:
    given = [of(sent, "delivered"), of(sent, "bounced", type="transient"), of(sent, "delivered")]
    assert [True, True, False] == [is_new for _, is_new, _ in tell(db, *given)]
    assert [False, False, False] == [is_new for _, is_new, _ in tell(db, *reversed(given))]
    assert [(2,)] == rows(db, "SELECT count(*) FROM mailroom.events")


def test_events_that_differ_in_what_they_say_are_kept_apart(db: Db) -> None:
    changed = {
        "message_id": "m-2",
        "recipient": "max@example.com",
        "at": "2026-01-01T00:00:01Z",
        "type": "transient",
        "subtype": "MailboxFull",
        "status": "4.2.2",
        "diagnostic": "full",
    }
    given = [
        event("bounced"),
        event("delayed"),
        *(event("bounced", **{key: changed[key]}) for key in changed),
    ]
    assert all(is_new for _, is_new, _ in tell(db, *given))


def test_an_event_is_known_by_its_tags_or_by_its_message_id(db: Db, sent: Handed) -> None:
    token = sent.tokens[0]
    given = [
        of(sent, "sent", message_id="other"),
        event("delivered"),
        event("delivered", message_id="nobody's"),
        of(sent, "delayed", message_id="x", fingerprint="00" * 8),
        event("delayed", message_id="", recipient=""),
    ]
    assert [True, True, False, False, False] == [is_known for _, _, is_known in tell(db, *given)]
    assert [(token, sent.generation)] == rows(
        db, "SELECT token, attempt FROM mailroom.events WHERE kind = 'delivered' AND message_id = 'm-1'"
    )


def test_an_event_from_before_the_settlement_is_known(db: Db, handed: Handed) -> None:
    assert [("delivered", True, True)] == tell(db, of(handed, "delivered"))


@pytest.mark.parametrize("kind", TAKEN)
@pytest.mark.parametrize("is_early", [False, True])
def test_an_unknown_answer_becomes_known(db: Db, handed: Handed, kind: str, *, is_early: bool) -> None:
    (token,) = handed.tokens
    if is_early:  # the worker still waits for the answer
        tell(db, of(handed, kind))
    record(db, handed, {token: "unknown"}, recipient="zoe@example.com", template="activation", language="de")
    if not is_early:
        tell(db, of(handed, kind))
    expire_leases(db)
    assert [] == claim(db)
    assert [("unknown", ""), ("sent", "known from SES's event")] == outcomes(db, token)
    assert [("m-1", "zoe@example.com", "activation", "de")] == rows(
        db,
        "SELECT message_id, recipient, template, language FROM mailroom.deliveries WHERE outcome = 'sent'",
    )
    assert [(0,)] == rows(db, "SELECT count(*) FROM mailroom.leases")


@pytest.mark.parametrize(
    "values",
    [{"attempt": 2}, {"fingerprint": "00" * 8}, {"token": 99}, {"kind": "rejected"}],
    ids=["attempt", "fingerprint", "token", "kind"],
)
def test_an_event_of_another_mail_settles_nothing(db: Db, handed: Handed, values: dict[str, Any]) -> None:
    (token,) = handed.tokens
    record(db, handed, {token: "unknown"})
    tell(db, of(handed, "sent") | values)
    expire_leases(db)
    assert [token] == claimed_tokens(db)


def test_what_was_sent_again_meanwhile_is_not_settled_twice(db: Db, handed: Handed) -> None:
    (token,) = handed.tokens
    record(db, handed, {token: "unknown"})
    expire_leases(db)
    (again,) = claim(db)
    record(db, again, {token: "sent"}, message_ids={token: "m-2"})
    tell(db, of(handed, "sent"))
    assert ["unknown", "sent"] == [outcome for outcome, _ in outcomes(db, token)]


def test_a_permanent_bounce_or_a_complaint_suppresses(db: Db, sent: Handed) -> None:
    tell(
        db,
        of(sent, "bounced", type="permanent"),
        of(sent, "bounced", type="transient", recipient="max@example.com"),
        of(sent, "bounced", type="undetermined", recipient="kim@example.com"),
        of(sent, "complained", recipient="eve@example.com"),
        of(sent, "delivered", recipient="max@example.com"),
        of(sent, "rejected", recipient="max@example.com"),
        event("bounced", type="permanent", recipient="not an address"),
    )
    found = rows(
        db,
        "SELECT s.address, s.reason, s.source, e.kind FROM mailroom.suppressions s"
        " JOIN mailroom.events e ON e.id = s.event ORDER BY 1",
    )
    assert found == [
        ("eve@example.com", "complained", "SES", "complained"),
        ("zoe@example.com", "bounced", "SES", "bounced"),
    ]


def test_a_repeated_bounce_does_not_suppress_what_a_person_lifted(db: Db, sent: Handed) -> None:
    bounce = of(sent, "bounced", type="permanent")
    tell(db, bounce)
    assert [(True,)] == rows(db, "SELECT mailroom.unsuppress('ZOE@example.com')")
    tell(db, bounce)
    assert [(None,)] == rows(db, "SELECT mailroom.suppressed('zoe@example.com')")
    tell(db, bounce | {"message_id": "m-2"})
    assert [("bounced",)] == rows(db, "SELECT mailroom.suppressed('zoe@example.com')")


def test_bounces_and_complaints_are_announced(db: Db, sent: Handed) -> None:
    (token,) = sent.tokens
    db.execute("UPDATE tokens SET subject = 'u-1'")
    later = event("complained", message_id="x", at="2026-01-02T00:00:00Z")
    db.execute("LISTEN mailroom_events")
    tell(db, of(sent, "delivered"), of(sent, "bounced", type="permanent"), later)
    tell(db, of(sent, "bounced", type="permanent"))
    db.execute("SELECT pg_notify('mailroom_events', 'end')")
    told = [note.payload for note in db.notifies(timeout=5, stop_after=3)]
    assert "end" == told.pop()
    ids = dict(rows(db, "SELECT kind, id FROM mailroom.events"))
    assert [
        {"token": token, "subject": "u-1", "kind": "bounced", "type": "permanent", "event": ids["bounced"]},
        {"token": None, "subject": None, "kind": "complained", "type": "", "event": ids["complained"]},
    ] == [json.loads(each) for each in told]
    assert not any("@" in each for each in told)


def test_events_cannot_be_changed(db: Db, sent: Handed) -> None:
    tell(db, of(sent, "delivered"))
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        db.execute("UPDATE mailroom.events SET kind = 'bounced'")


def test_an_invalid_event_records_nothing(db: Db, sent: Handed) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        tell(db, of(sent, "delivered"), of(sent, "opened"))
    assert [(0,)] == rows(db, "SELECT count(*) FROM mailroom.events")


def test_long_words_are_cut(db: Db) -> None:
    tell(
        db,
        event(
            "bounced", **dict.fromkeys(("message_id", "type", "subtype", "status", "diagnostic"), "ä" * 9000)
        ),
    )
    assert [(200, 100, 100, 100, 2000)] == rows(
        db,
        "SELECT length(message_id), length(type), length(subtype), length(status), length(diagnostic)"
        " FROM mailroom.events",
    )


def test_two_readers_of_the_same_events_do_not_deadlock(database: str, db: Db) -> None:
    given = [
        event("bounced", type="permanent", message_id=f"m-{n}", recipient=f"{n}@example.com")
        for n in range(200)
    ]
    new: list[int] = []

    def read(events: list[dict[str, Any]]) -> None:
        with psycopg.connect(database, autocommit=True) as connection:
            for _ in range(5):
                new.append(sum(is_new for _, is_new, _ in tell(connection, *events)))

    threads = [threading.Thread(target=read, args=[events]) for events in (given, given[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (10, 200) == (len(new), sum(new))
    assert [(200,)] == rows(db, "SELECT count(*) FROM mailroom.suppressions")


def test_unreadable_messages_are_kept_once_and_cut(db: Db) -> None:
    long = "ü" * 70_000
    keep = "SELECT mailroom.keep_unreadable(%s, %s)"
    assert [(2,)] == rows(db, keep, [["{", long, "{"], ["no JSON", "too long", "again"]])
    assert [(0,)] == rows(db, keep, [["{"], ["no JSON"]])
    kept = rows(db, "SELECT text, reason FROM mailroom.unreadable_events ORDER BY 2")
    assert [("{", "no JSON"), (long[:65_536], "too long")] == kept


def retry(db: Db, token: int) -> Handed:
    """Resume the action of a dead letter, and claim it again."""
    db.execute("SELECT mailroom.resume('c')")
    db.execute("SELECT mailroom.retry_dead('c', %s, false, '', 'me')", [[token]])
    (lease,) = claim(db)
    return lease


def test_a_lost_answer_after_a_retry_becomes_known(db: Db, sent: Handed) -> None:
    (token,) = sent.tokens
    tell(db, of(sent, "sent"), unrendered(sent))
    again = retry(db, token)
    record(db, again, {token: "unknown"})
    tell(db, of(again, "sent", message_id="m-2"))
    expire_leases(db)
    assert [] == claim(db)
    assert [("m-2", "known")] == rows(
        db, "SELECT message_id, result FROM mailroom.deliveries ORDER BY id DESC LIMIT 1"
    )


@pytest.mark.parametrize("is_killed", [False, True])
def test_the_events_of_a_mail_that_ses_could_not_render_say_nothing_of_its_retry(
    db: Db, sent: Handed, *, is_killed: bool
) -> None:
    (token,) = sent.tokens
    tell(db, of(sent, "sent"), unrendered(sent))
    again = retry(db, token)
    if not is_killed:
        record(db, again, {token: "unknown"})
    expire_leases(db)
    assert [token] == claimed_tokens(db)


@pytest.mark.parametrize("kind", TAKEN)
def test_a_mail_of_a_killed_worker_that_ses_took_counts_as_sent(db: Db, handed: Handed, kind: str) -> None:
    (token,) = handed.tokens
    tell(db, of(handed, kind))
    assert [] == outcomes(db, token)  # its worker may still record it
    expire_leases(db)
    assert [] == claim(db)
    assert [("sent", "w", "m-1", "zoe@example.com", handed.generation)] == rows(
        db,
        "SELECT outcome, worker, message_id, recipient, attempt FROM mailroom.deliveries",
    )
    assert [("known", "known from SES's event")] == rows(db, "SELECT result, detail FROM mailroom.deliveries")
    assert [(0,)] == rows(db, "SELECT count(*) FROM mailroom.leases")


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "rejected"},
        {"kind": "rendering_failed"},
        {"kind": "sent", "attempt": 2},
        {"kind": "sent", "fingerprint": "00" * 8},
    ],
    ids=str,
)
def test_a_mail_of_a_killed_worker_is_sent_again_without_an_event_of_its_attempt(
    db: Db, handed: Handed, values: dict[str, Any]
) -> None:
    tell(db, of(handed, **values))
    expire_leases(db)
    assert list(handed.tokens) == claimed_tokens(db)


WHY = "SES could not render the mail: Attribute 'app' is not present"


@pytest.mark.parametrize("is_early", [False, True])
def test_a_mail_that_ses_cannot_render_is_a_dead_letter(db: Db, handed: Handed, *, is_early: bool) -> None:
    (token,) = handed.tokens
    if is_early:  # the worker still waits for the answer
        tell(db, unrendered(handed))
    record(db, handed, {token: "sent"}, message_ids={token: "m-1"})
    if is_early:
        db.execute("SELECT mailroom.heartbeat('w', '1', '')")
    else:
        tell(db, unrendered(handed))
    tell(db, unrendered(handed))
    assert [("sent", ""), ("rejected", WHY)] == outcomes(db, token)
    assert [(True,)] == rows(db, "SELECT mailroom.is_dead(%s)", [token])
    assert [(1,)] == rows(db, "SELECT dead FROM mailroom.dead_count(NULL, NULL, 100)")
    letters = "SELECT token, detail FROM mailroom.dead_letters(NULL, NULL, 'infinity', 0, 100)"
    assert [(token, WHY)] == rows(db, letters)


def test_a_mail_that_ses_cannot_render_pauses_its_action(db: Db, sent: Handed) -> None:
    (token,) = sent.tokens
    tell(db, unrendered(sent))
    assert [("activation", WHY)] == rows(db, "SELECT action, pause_reason FROM mailroom.paused_actions()")
    sign_up(db, "max")
    db.execute("UPDATE accounts SET status = 'active' WHERE login = 'zoe'")
    assert [ask_recovery(db, "zoe")] == claimed_tokens(db)
    assert [("paused",)] == rows(db, "SELECT worker FROM mailroom.leases")
    db.execute("UPDATE accounts SET status = 'provisioned' WHERE login = 'zoe'")
    retry = "SELECT outcome FROM mailroom.retry_dead('c', %s, false, '', 'me')"
    assert [("retried",)] == rows(db, retry, [[token]])
    assert [] == claim(db)

    assert [(True,)] == rows(db, "SELECT mailroom.resume('c')")
    assert [(False,)] == rows(db, "SELECT mailroom.resume('c')")
    claimed = {token: lease for lease in claim(db) for token in lease.tokens}
    assert 2 == len(claimed)
    record(db, claimed[token], {token: "sent"}, message_ids={token: "m-2"})
    tell(db, unrendered(sent), unrendered(sent, at="2026-01-02T00:00:00Z"))
    assert [] == rows(db, "SELECT * FROM mailroom.paused_actions()")
    assert [(False,)] == rows(db, "SELECT mailroom.is_dead(%s)", [token])


def test_an_unknown_mail_that_ses_cannot_render_leaves_its_lease(db: Db) -> None:
    for name in ("zoe", "max"):
        sign_up(db, name)
    (lease,) = claim(db)
    token, other = lease.tokens
    record(db, lease, dict.fromkeys(lease.tokens, "unknown"), retry_ms=0)
    with db.transaction(), held_by_another(db):
        tell(db, unrendered(lease))  # a claim looks at the lease just now
    leased = "SELECT tokens FROM mailroom.leases"
    assert [([token, other],)] == rows(db, leased)
    db.execute("SELECT mailroom.heartbeat('w', '1', '')")
    assert [([other],)] == rows(db, leased)
    assert [("unknown", ""), ("rejected", WHY)] == outcomes(db, token)
    assert [(True, False)] == rows(db, "SELECT mailroom.is_dead(%s), mailroom.is_dead(%s)", [token, other])
    db.execute("SELECT mailroom.resume('c')")
    assert [other] == claimed_tokens(db)
    assert [("retried",)] == rows(
        db, "SELECT outcome FROM mailroom.retry_dead('c', %s, false, '', 'me')", [[token]]
    )
    db.execute("SELECT mailroom.heartbeat('w', '1', '')")
    assert [token] == claimed_tokens(db)


@contextmanager
def held_by_another(db: Db) -> Iterator[None]:
    """Locks all leases in a session of its own."""
    with psycopg.connect(db.info.dsn, password=db.info.password) as other:
        other.execute("SELECT FROM mailroom.leases FOR NO KEY UPDATE")
        yield


def test_the_last_unknown_mail_of_a_lease_ends_it(db: Db, handed: Handed) -> None:
    (token,) = handed.tokens
    record(db, handed, {token: "unknown"}, retry_ms=60_000)
    tell(db, unrendered(handed))
    assert [] == rows(db, "SELECT tokens FROM mailroom.leases")
    assert [(1,)] == rows(db, "SELECT dead FROM mailroom.dead_count(NULL, NULL, 100)")


def test_an_id_that_thousands_of_mails_have_costs_little(db: Db) -> None:
    """As an emulator gives it to all of them."""
    db.execute(
        "INSERT INTO mailroom.deliveries (token, attempt, outcome, result, message_id, recipient)"
        " SELECT n, 1, 'sent', 'sent', 'm-1', 'zoë' || n || '@exämple.com' FROM generate_series(1, 5000) n"
    )
    began = time.monotonic()
    tell(db, *(event("delivered", recipient=f"zoë{n}@exämple.com") for n in range(50)))
    assert time.monotonic() - began < 4


def test_a_late_rendering_failure_from_before_the_resumption_pauses_nothing(db: Db, handed: Handed) -> None:
    sign_up(db, "max")
    (other,) = claim(db)
    for lease in (handed, other):
        (token,) = lease.tokens
        record(db, lease, {token: "sent"}, message_ids={token: f"m-{token}"})
    first, second = (unrendered(lease, message_id=f"m-{lease.tokens[0]}") for lease in (handed, other))
    tell(db, first)
    db.execute("SELECT mailroom.resume('c')")
    tell(db, second)
    assert [(2,)] == rows(db, "SELECT dead FROM mailroom.dead_count(NULL, NULL, 100)")
    assert [] == rows(db, "SELECT * FROM mailroom.paused_actions()")


def test_a_forged_rendering_failure_does_nothing(db: Db, sent: Handed) -> None:
    given = [
        unrendered(sent, message_id="m-2"),
        unrendered(sent, fingerprint="00" * 8),
        event("rendering_failed", message_id="m-2"),
    ]
    tell(db, *given)
    assert [("sent", "")] == outcomes(db, sent.tokens[0])
    assert [] == rows(db, "SELECT * FROM mailroom.paused_actions()")


def test_a_rendering_failure_counts_by_the_tags_only(db: Db, sent: Handed) -> None:
    """The message id stands in the mail's header, which its recipient sees."""
    tell(db, event("rendering_failed", recipient=""))
    assert [("sent", "")] == outcomes(db, sent.tokens[0])
    assert [] == rows(db, "SELECT * FROM mailroom.paused_actions()")


@pytest.mark.parametrize("is_early", [False, True])
@pytest.mark.parametrize("recipient", ["zoe", "zoe@xn--exmple-cua.com"])
def test_a_bounce_suppresses_the_address_of_the_ledger(
    db: Db, handed: Handed, recipient: str, *, is_early: bool
) -> None:
    """A server may name its mailbox, and SES writes a domain in its own way."""
    (token,) = handed.tokens
    if not is_early:
        record(db, handed, {token: "sent"}, message_ids={token: "m-1"}, recipient="zoe@example.com")
    tell(db, of(handed, "bounced", type="permanent", recipient=recipient))
    assert [("bounced",)] == rows(db, "SELECT mailroom.suppressed('Zoe@example.com')")


def test_a_bounce_without_tags_suppresses_the_address_of_the_ledger(db: Db, handed: Handed) -> None:
    (token,) = handed.tokens
    record(db, handed, {token: "sent"}, message_ids={token: "m-1"}, recipient="zoe@example.com")
    tell(db, event("bounced", type="permanent", recipient="zoe"))
    assert [("bounced",)] == rows(db, "SELECT mailroom.suppressed('zoe@example.com')")


def test_a_bounce_of_another_token_suppresses_no_address_of_the_ledger(db: Db, sent: Handed) -> None:
    tell(db, of(sent, "bounced", type="permanent", recipient="zoe", fingerprint="00" * 8))
    assert [] == rows(db, "SELECT * FROM mailroom.suppressions")


def rows_read(db: Db, table: str) -> int:
    """How many rows of a table this transaction has read."""
    ((count,),) = rows(
        db,
        "SELECT coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_user_tables"
        " WHERE relid = %s::regclass",
        [table],
    )
    return int(count)


def test_events_with_another_fingerprint_cost_a_claim_nothing(db: Db, handed: Handed) -> None:
    (token,) = handed.tokens
    record(db, handed, {token: "unknown"})
    db.execute(
        "INSERT INTO mailroom.events (kind, token, fingerprint, attempt, at, digest)"
        " SELECT 'sent', %s, '\\x00', 1, now(), sha256(n::text::bytea) FROM generate_series(1, 2000) n",
        [token],
    )
    with db.transaction():
        assert [token] == claimed_tokens(db)
        assert rows_read(db, "mailroom.events") < 10


def test_a_message_id_that_many_mails_have_is_searched_in_a_hundred(db: Db) -> None:
    db.execute(
        "INSERT INTO mailroom.deliveries (token, attempt, outcome, message_id, recipient)"
        " SELECT n, 1, 'sent', 'm-1', n || '@example.com' FROM generate_series(1, 2000) n"
    )
    with db.transaction():
        assert [("delivered", True, True)] == tell(db, event("delivered"))
        assert rows_read(db, "mailroom.deliveries") < 200
