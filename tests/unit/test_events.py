"""SES's events are read in every envelope, and no text of a message does harm."""

from __future__ import annotations

import contextlib
import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailroom.events import facts
from mailroom.events.envelopes import Unreadable, opened
from mailroom.events.facts import MAX_RECIPIENTS, Fact, facts_of
from mailroom.events.sqs import region_of
from mailroom.transports import tags
from mailroom.wire import Reference
from support import ses_events
from support.ses_events import ENVELOPES, EVERY, Event, bridged, raw, wrapped

ALLOWED = string.ascii_letters + string.digits + "-_"
ATTEMPT = Reference(7, bytes.fromhex("00112233445566ff"), 3)
AT, MAILED_AT = "2026-03-02T10:11:12.345000+00:00", "2026-03-02T10:11:10.001000+00:00"
FACTS = {
    "sent": Fact("sent", "m-1", "ada@example.com", MAILED_AT),
    "delivered": Fact("delivered", "m-1", "ada@example.com", AT, diagnostic="250 2.0.0 OK queued"),
    "bounced": Fact(
        "bounced",
        "m-1",
        "ada@example.com",
        AT,
        type="permanent",
        subtype="General",
        status="5.1.1",
        diagnostic="smtp; 550 5.1.1 user unknown",
    ),
    "complained": Fact("complained", "m-1", "ada@example.com", AT, type="abuse"),
    "delayed": Fact(
        "delayed",
        "m-1",
        "ada@example.com",
        AT,
        subtype="MailboxFull",
        status="4.2.2",
        diagnostic="smtp; 452 4.2.2 mailbox full",
    ),
    "rejected": Fact("rejected", "m-1", "ada@example.com", MAILED_AT, diagnostic="Bad content"),
    "rendering_failed": Fact(
        "rendering_failed",
        "m-1",
        "ada@example.com",
        MAILED_AT,
        subtype="activationv1",
        diagnostic="Attribute 'code' is not present in the rendering data.",
    ),
}


def read(text: str) -> list[Fact]:
    event = opened(text)
    return facts_of(event) if event else []


@pytest.mark.parametrize("envelope", ENVELOPES.values(), ids=ENVELOPES)
@pytest.mark.parametrize("kind", EVERY)
def test_each_kind_is_read_in_each_envelope(kind: str, envelope: Callable[[Event], str]) -> None:
    assert [FACTS[kind]] == read(envelope(EVERY[kind]()))
    named = FACTS[kind]._replace(token=7, fingerprint="00112233445566ff", attempt=3)
    assert [named] == read(envelope(EVERY[kind](reference=ATTEMPT)))


def test_an_event_may_be_in_two_envelopes() -> None:
    assert [FACTS["sent"]] == read(wrapped(bridged(ses_events.sent())))


def test_an_event_of_eventbridge_need_not_name_its_type_twice() -> None:
    content = json.loads(bridged(ses_events.bounced()))
    del content["detail"]["eventType"]
    assert [FACTS["bounced"]] == read(json.dumps(content))


def test_a_notification_of_an_identity_names_its_type_otherwise() -> None:
    content = ses_events.bounced()
    content["notificationType"] = content.pop("eventType")
    del content["mail"]["tags"]
    assert [FACTS["bounced"]] == read(raw(content))


@pytest.mark.parametrize(
    ("given_type", "kind"),
    [
        ("Permanent", "permanent"),
        ("Transient", "transient"),
        ("Undetermined", "undetermined"),
        ("New", "undetermined"),
    ],
)
def test_a_bounce_is_of_one_of_three_types(given_type: str, kind: str) -> None:
    (fact,) = read(raw(ses_events.bounced(kind=given_type)))
    assert kind == fact.type


def test_a_complaint_may_come_without_a_report_and_a_correction_is_none() -> None:
    assert [FACTS["complained"]._replace(type=None)] == read(raw(ses_events.complained(report=False)))
    content = ses_events.complained()
    content["complaint"]["complaintFeedbackType"] = "not-spam"
    assert [] == read(raw(content))
    source = Path(facts.__file__).parents[1]
    texts = [*source.rglob("*.py"), *(source / "sql").glob("*.sql")]
    assert ["facts.py"] == [path.name for path in texts if "not-spam" in path.read_text()]


def test_the_address_is_the_one_that_was_mailed_not_the_one_it_was_forwarded_to() -> None:
    content = ses_events.bounced()
    content["bounce"]["bouncedRecipients"][0]["emailAddress"] = "ada@elsewhere.example"
    assert [FACTS["bounced"]] == read(raw(content))


@pytest.mark.parametrize("reported", [[{"emailAddress": "ada"}], [{"emailAddress": ""}], [{}], []])
def test_a_report_without_the_address_is_about_the_one_that_was_mailed(reported: list[Event]) -> None:
    bounce, complaint = ses_events.bounced(), ses_events.complained()
    bounce["bounce"]["bouncedRecipients"] = reported
    complaint["complaint"]["complainedRecipients"] = reported
    (bounced,), (complained,) = read(raw(bounce)), read(raw(complaint))
    assert ("bounced", "permanent", "ada@example.com") == (bounced.kind, bounced.type, bounced.recipient)
    assert ("complained", "ada@example.com") == (complained.kind, complained.recipient)


def test_each_recipient_of_a_mail_of_others_gets_a_fact() -> None:
    content = ses_events.sent()
    content["mail"]["destination"] = ["ada@example.com", "Grace <grace@example.com>"]
    assert ["ada@example.com", "grace@example.com"] == [fact.recipient for fact in read(raw(content))]


@pytest.mark.parametrize(
    "text",
    [
        wrapped("Successfully validated SNS topic for Amazon SES event publishing."),
        wrapped('{"notificationType": "AmazonSnsSubscriptionSucceeded", "message": "You have …"}'),
        raw(ses_events.event("Open", {"timestamp": AT, "ipAddress": "192.0.2.1"}, to="ada@example.com")),
        bridged(ses_events.event("Open", {"timestamp": AT}, to="ada@example.com")),
        json.dumps({"detail-type": "Sending Status Disabled", "source": "aws.ses", "detail": {}}),
    ],
)
def test_what_is_about_no_mail_and_what_people_do_with_it_is_ignored(text: str) -> None:
    assert [] == read(text)


def without(name: str, *path: str) -> str:
    content = EVERY[name]()
    part = content
    for step in path[:-1]:
        part = part[step]
    del part[path[-1]]
    return raw(content)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not JSON"),
        (f'"{"x" * 262_144}"', "longer than the 262144 characters"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "no eventType"),
        (wrapped("{"), "not JSON"),
        (wrapped(wrapped(wrapped("{}"))), "an envelope in more than 2 others"),
        (json.dumps({"Type": "SubscriptionConfirmation", "Token": "x"}), "confirm the queue's subscription"),
        (json.dumps({"detail-type": "Email Bounced", "source": "aws.ses", "detail": 1}), "without a detail"),
        (raw(ses_events.sent() | {"eventType": "Teleported"}), "of a type that SES's documentation"),
        (without("bounced", "bounce"), "bounce: not an object"),
        (without("bounced", "bounce", "bouncedRecipients"), "bouncedRecipients: not a list"),
        (without("sent", "mail", "messageId"), "mail.messageId: missing"),
        (without("sent", "mail", "timestamp"), "timestamp: not a time"),
        (raw(ses_events.sent("nobody")), "destination: not a mail address"),
    ],
)
def test_what_cannot_be_read_says_why(text: str, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        read(text)


def test_an_event_names_at_most_fifty_recipients() -> None:
    content = ses_events.sent()
    content["mail"]["destination"] = ["ada@example.com"] * (MAX_RECIPIENTS + 1)
    with pytest.raises(Unreadable, match="1 to 50"):
        read(raw(content))


def test_no_fact_holds_a_secret_that_a_server_quotes() -> None:
    content = ses_events.bounced()
    words = f"550 spam: see https://acme.example/a?t={'aB3-' * 21}xy code: 12345\nbye"
    content["bounce"]["bouncedRecipients"][0]["diagnosticCode"] = words
    (fact,) = read(raw(content))
    assert "550 spam: see https://acme.example/a?t=[redacted] code: [redacted] bye" == fact.diagnostic


TOKEN = "aB3-" * 21 + "xy"


@pytest.mark.parametrize(
    "words",
    [
        f"see ?t={TOKEN[:40]}=\r\n{TOKEN[40:]} bye",
        f"see ?t={TOKEN[:40]}\r\n {TOKEN[40:]} bye",
        f"see ?t={TOKEN[:80]}=\n{TOKEN[80:]} bye",
        f"see ?t={TOKEN[:43]} {TOKEN[43:]} bye",
        json.dumps(f"see ?t={TOKEN[:70]}=\r\n{TOKEN[70:]} bye"),
        'cannot render {"login":"zoe","code":"12345","code_html":"<b>12345</b>"} bye',
        "Ihr Code lautet 12345; bye",
        "12345 is your code; bye",
        "Code 12 345 bye",
        "code: 12\r\n345 bye",
    ],
)
def test_no_fact_holds_a_part_of_a_secret(words: str) -> None:
    content = ses_events.bounced()
    content["bounce"]["bouncedRecipients"][0]["diagnosticCode"] = words
    (fact,) = read(raw(content))
    assert fact.diagnostic
    assert "[redacted]" in fact.diagnostic
    assert "bye" in fact.diagnostic
    assert not any(part in fact.diagnostic for part in ("aB3-", "-xy", "12345", "345"))


@pytest.mark.parametrize(
    "words",
    [
        "550 12345 queued",
        "250 2.0.0 OK 0102018f3a5b7c9d-3f2a9c1e-1b2c-4d5e-8f90-a1b2c3d4e5f6-000000",
        "554 the mailbox is not available",
    ],
)
def test_other_words_of_a_server_stay(words: str) -> None:
    content = ses_events.bounced()
    content["bounce"]["bouncedRecipients"][0]["diagnosticCode"] = words
    (fact,) = read(raw(content))
    assert words == fact.diagnostic


TEXT = st.text(max_size=20) | st.sampled_from(["\0", "\ud800", "Bounce", "a@b.example", "2026-01-01"])
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to each value in an object of JSON."""
    items: Any = ()
    if isinstance(content, dict):
        items = content.items()
    elif isinstance(content, list):
        items = enumerate(content)
    return [found for name, value in items for found in ((*path, name), *places(value, (*path, name)))]


@given(st.data(), st.sampled_from(sorted(EVERY)), JSON)
def test_any_change_of_an_event_is_read_or_said_to_be_unreadable(
    data: st.DataObject, kind: str, value: Any
) -> None:
    content = json.loads(raw(EVERY[kind](reference=ATTEMPT)))
    path = data.draw(st.sampled_from(places(content)))
    part = content
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = value
    try:
        facts = read(json.dumps(content))
    except Unreadable:
        return
    for fact in facts:
        for text in fact:
            assert not isinstance(text, str) or (len(text) <= 320 and "\0" not in text and text.encode())


@given(st.text())
def test_any_text_is_read_or_said_to_be_unreadable(text: str) -> None:
    with contextlib.suppress(Unreadable):
        assert [] == read(text)


@pytest.mark.parametrize(
    ("queue", "region"),
    [
        ("mailroom-events", None),
        ("https://sqs.eu-west-1.amazonaws.com/123456789012/q", "eu-west-1"),
        ("https://eu-west-1.queue.amazonaws.com/123456789012/q", "eu-west-1"),
        ("https://sqs.cn-north-1.amazonaws.com.cn/123456789012/q", "cn-north-1"),
        ("http://127.0.0.1:4566/000000000000/q", None),
    ],
)
def test_a_queue_at_aws_is_asked_in_its_region(queue: str, region: str | None) -> None:
    assert region == region_of(queue)


@given(st.integers(1, 2**63 - 1), st.binary(min_size=8, max_size=8), st.integers(1, 2**31 - 1))
def test_tags_name_the_attempt(token: int, fingerprint: bytes, attempt: int) -> None:
    reference = Reference(token, fingerprint, attempt)
    values = tags.written(reference)
    assert reference == tags.read(values)
    # SES's rule for names and values.
    assert all(set(text) <= set(ALLOWED) for pair in values.items() for text in pair)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {tags.TOKEN: "1-00112233445566ff"},
        {tags.TOKEN: "0-00112233445566ff", tags.ATTEMPT: "1"},
        {tags.TOKEN: "1-00112233445566f", tags.ATTEMPT: "1"},
        {tags.TOKEN: f"{2**63}-00112233445566ff", tags.ATTEMPT: "1"},
        {tags.TOKEN: "1-00112233445566ff", tags.ATTEMPT: str(2**31)},
        {tags.TOKEN: "1-00112233445566ff", tags.ATTEMPT: "1\n"},
    ],
)
def test_other_tags_name_none(values: dict[str, str]) -> None:
    assert tags.read(values) is None
