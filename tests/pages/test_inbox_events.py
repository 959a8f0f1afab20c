"""The inbox's queue as botocore sees it, and the events that the inbox puts into it."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore import exceptions as aws
from hypothesis import given, settings
from hypothesis import strategies as st

from mailroom.inbox import event_queue
from mailroom.inbox.event_queue import NAME, EventQueue
from mailroom.inbox.events import COURSES, simulated
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.server import InboxServer
from support.inbox import ask, ses_client, sqs_client

TEMPLATE = ("Hello {{login}}", "Hello {{login}}", "<p>{{login}}</p>")
TARGET = "AmazonSQS.ReceiveMessage"


@pytest.fixture
def server(caplog: pytest.LogCaptureFixture) -> Iterator[InboxServer]:
    """A server with one template, that must not log an error, such as a traceback."""
    inbox = Inbox()
    inbox.account.put_template("hello", TEMPLATE, new=True)
    with InboxServer(inbox=inbox) as server:
        yield server
    errors = [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    assert [] == errors


@pytest.fixture
def queue(server: InboxServer) -> Iterator[Queue]:
    client = sqs_client(server.url)
    yield Queue(client)
    client.close()


class Queue:
    """The queue, by botocore's client."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.url = client.get_queue_url(QueueName=NAME)["QueueUrl"]

    def receive(self, wait_s: int = 0, most: int = 10, **options: Any) -> list[dict[str, Any]]:
        answer = self.client.receive_message(
            QueueUrl=self.url, WaitTimeSeconds=wait_s, MaxNumberOfMessages=most, **options
        )
        messages: list[dict[str, Any]] = answer.get("Messages", [])
        return messages

    def events(self) -> list[dict[str, Any]]:
        """Receive SES's events, all there are, and delete them."""
        found = []
        while messages := self.receive():
            found += [json.loads(json.loads(message["Body"])["Message"]) for message in messages]
            entries = [
                {"Id": str(at), "ReceiptHandle": each["ReceiptHandle"]} for at, each in enumerate(messages)
            ]
            answer = self.client.delete_message_batch(QueueUrl=self.url, Entries=entries)
            assert len(messages) == len(answer["Successful"])
        return found

    def depth(self) -> tuple[int, int, int]:
        attributes = self.client.get_queue_attributes(QueueUrl=self.url, AttributeNames=["All"])["Attributes"]
        names = ("", "NotVisible", "Delayed")
        visible, received, delayed = (int(attributes[f"ApproximateNumberOfMessages{name}"]) for name in names)
        return visible, received, delayed


def send(
    server: InboxServer, *recipients: str, config_set: str = "default", data: str = '{"login": "ada"}'
) -> list[str]:
    """Send a mail to each; returns the message ids."""
    client = ses_client(server.url)
    answer = client.send_bulk_templated_email(
        Source="Acme <noreply@acme.example>",
        Template="hello",
        DefaultTemplateData="{}",
        DefaultTags=[{"Name": "mailroom-action", "Value": "activation"}, {"Name": "which", "Value": "all"}],
        Destinations=[
            {
                "Destination": {"ToAddresses": [recipient]},
                "ReplacementTemplateData": data,
                "ReplacementTags": [
                    {"Name": "mailroom-token", "Value": f"{at}-0123456789abcdef"},
                    {"Name": "which", "Value": "own"},
                ],
            }
            for at, recipient in enumerate(recipients)
        ],
        **({"ConfigurationSetName": config_set} if config_set else {}),
    )
    client.close()
    return [status["MessageId"] for status in answer["Status"]]


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["eventType"] for event in events]


def test_a_mail_is_sent_and_delivered(server: InboxServer, queue: Queue) -> None:
    first, second = send(server, "ada@example.com", "bob@example.com")
    events = queue.events()
    assert ["Send", "Delivery", "Send", "Delivery"] == types(events)
    assert [first, first, second, second] == [event["mail"]["messageId"] for event in events]
    mail = events[3]["mail"]
    assert ["bob@example.com"] == mail["destination"] == events[3]["delivery"]["recipients"]
    assert "Acme <noreply@acme.example>" == mail["source"]
    assert ["1-0123456789abcdef"] == mail["tags"]["mailroom-token"]
    assert ["activation"] == mail["tags"]["mailroom-action"]
    assert ["own"] == mail["tags"]["which"]
    assert ["default"] == mail["tags"]["ses:configuration-set"]
    assert {} == events[2]["send"]


@pytest.mark.parametrize(
    ("address", "expected", "kind"),
    [
        ("success@simulator.amazonses.com", ["Send", "Delivery"], ""),
        ("bounce@simulator.amazonses.com", ["Send", "Bounce"], "Permanent General"),
        ("Bounce+7@Simulator.AmazonSES.com", ["Send", "Bounce"], "Permanent General"),
        ("suppressionlist@simulator.amazonses.com", ["Send", "Bounce"], "Permanent Suppressed"),
        ("ooto+a.b@simulator.amazonses.com", ["Send", "Delivery", "Bounce"], "Transient General"),
        ("complaint@simulator.amazonses.com", ["Send", "Delivery", "Complaint"], ""),
        ("bounce@simulator.amazonses.com.example.com", ["Send", "Delivery"], ""),
    ],
)
def test_the_mailbox_simulator_answers_as_that_of_ses(
    server: InboxServer, queue: Queue, address: str, expected: list[str], kind: str
) -> None:
    send(server, address)
    events = queue.events()
    assert expected == types(events)
    bounce = events[-1].get("bounce", {})
    assert kind == f"{bounce.get('bounceType', '')} {bounce.get('bounceSubType', '')}".strip()
    for recipient in bounce.get("bouncedRecipients", []):
        assert address == recipient["emailAddress"]


def test_a_call_without_a_configuration_set_has_no_events(server: InboxServer, queue: Queue) -> None:
    (mail,) = send(server, "ada@example.com", config_set="")
    assert [] == queue.events()
    answer = ask(server.url, f"/api/mails/{mail}/events", "POST", '{"event": "bounce"}')
    assert 400 == answer.status
    assert "no configuration set" in answer.json["error"]


def test_a_mail_that_cannot_be_rendered_has_a_rendering_failure(server: InboxServer, queue: Queue) -> None:
    send(server, "bounce@simulator.amazonses.com", data="{}")
    (event,) = queue.events()
    assert "Rendering Failure" == event["eventType"]
    assert "hello" == event["failure"]["templateName"]
    assert "login" in event["failure"]["errorMessage"]


def test_a_rule_decides_what_becomes_of_mails(server: InboxServer, queue: Queue) -> None:
    rule = {"kind": "event", "event": "complaint", "recipient": "ada@example.com", "calls": 1}
    assert 200 == ask(server.url, "/api/faults", "POST", json.dumps(rule)).status
    send(server, "ada@example.com", "bob@example.com")
    assert ["Send", "Delivery", "Complaint", "Send", "Delivery"] == types(queue.events())
    assert [] == ask(server.url, "/api/faults").json["faults"]


def test_each_kind_of_event_can_be_published_about_a_mail(server: InboxServer, queue: Queue) -> None:
    (mail,) = send(server, "ada@example.com")
    queue.events()
    for kind in COURSES:
        answer = ask(server.url, f"/api/mails/{mail}/events", "POST", json.dumps({"event": kind}))
        assert 200 == answer.status
    expected = [
        "Send",
        "Delivery",
        *["Bounce"] * 4,
        "Complaint",
        "DeliveryDelay",
        "Reject",
        "Rendering Failure",
    ]
    assert expected == types(queue.events())
    shown = ask(server.url, f"/api/mails/{mail}").json["events"]
    assert ["send", "delivery", *COURSES] == [event["event"] for event in shown]


@pytest.mark.parametrize(
    "body",
    [
        "{}!",
        "[]",
        '{"event": "open"}',
        '{"kind": "hang"}',
        '{"after_s": -1}',
        '{"after_s": true}',
        '{"event": 1}',
    ],
)
def test_an_invalid_event_is_refused(server: InboxServer, queue: Queue, body: str) -> None:
    (mail,) = send(server, "ada@example.com")
    assert 400 == ask(server.url, f"/api/mails/{mail}/events", "POST", body).status
    assert 404 == ask(server.url, "/api/mails/none/events", "POST", '{"event": "bounce"}').status
    assert 2 == len(queue.events())


def test_a_late_delivery_can_be_received_when_it_is_due(server: InboxServer, queue: Queue) -> None:
    rule = {"kind": "event", "event": "delivery", "after_s": 0.5}
    ask(server.url, "/api/faults", "POST", json.dumps(rule))
    start = time.monotonic()
    send(server, "ada@example.com")
    (sent,) = queue.receive()
    assert (0, 1, 1) == queue.depth()
    (delivered,) = queue.receive(wait_s=20)
    assert 0.5 <= time.monotonic() - start < 15
    assert sent["MessageId"] != delivered["MessageId"]


def test_long_polling_ends_with_the_first_message(server: InboxServer, queue: Queue) -> None:
    found: list[dict[str, Any]] = []
    waiting = threading.Thread(target=lambda: found.extend(queue.receive(wait_s=20)))
    start = time.monotonic()
    waiting.start()
    send(server, "ada@example.com")
    waiting.join(15)
    assert found
    assert time.monotonic() - start < 15


def test_a_message_comes_again_until_it_is_deleted(server: InboxServer, queue: Queue) -> None:
    queue.client.send_message(QueueUrl=queue.url, MessageBody="Zoë's")
    (first,) = queue.receive(VisibilityTimeout=1, MessageSystemAttributeNames=["All"])
    assert ("Zoë's", "1") == (first["Body"], first["Attributes"]["ApproximateReceiveCount"])
    assert [] == queue.receive()
    (second,) = queue.receive(wait_s=10, MessageSystemAttributeNames=["ApproximateReceiveCount"])
    assert {"ApproximateReceiveCount": "2"} == second["Attributes"]
    assert first["MessageId"] == second["MessageId"]
    queue.client.delete_message(QueueUrl=queue.url, ReceiptHandle=first["ReceiptHandle"])
    queue.client.delete_message(QueueUrl=queue.url, ReceiptHandle=second["ReceiptHandle"])
    assert (0, 0, 0) == queue.depth()


def test_a_lost_answer_still_has_its_events(server: InboxServer, queue: Queue) -> None:
    ask(server.url, "/api/faults", "POST", '{"kind": "cut", "accept": true}')
    with pytest.raises(aws.ConnectionClosedError):
        send(server, "ada@example.com")
    assert ["Send", "Delivery"] == types(queue.events())


def test_errors_are_those_of_sqs(queue: Queue) -> None:
    client, errors = queue.client, queue.client.exceptions
    for call, options in (
        (client.get_queue_url, {"QueueName": "another"}),
        (client.receive_message, {"QueueUrl": queue.url + "-2"}),
        (client.delete_message, {"QueueUrl": "another", "ReceiptHandle": "x"}),
    ):
        with pytest.raises(errors.QueueDoesNotExist) as caught:
            call(**options)
        assert "AWS.SimpleQueueService.NonExistentQueue" == caught.value.response["Error"]["Code"]
    with pytest.raises(errors.ReceiptHandleIsInvalid):
        client.delete_message(QueueUrl=queue.url, ReceiptHandle="x")
    with pytest.raises(errors.EmptyBatchRequest):
        client.delete_message_batch(QueueUrl=queue.url, Entries=[])
    with pytest.raises(errors.BatchEntryIdsNotDistinct):
        client.delete_message_batch(QueueUrl=queue.url, Entries=[{"Id": "a", "ReceiptHandle": "x"}] * 2)
    entries = [{"Id": str(at), "ReceiptHandle": "x"} for at in range(11)]
    with pytest.raises(errors.TooManyEntriesInBatchRequest):
        client.delete_message_batch(QueueUrl=queue.url, Entries=entries)
    (failed,) = client.delete_message_batch(QueueUrl=queue.url, Entries=entries[:1])["Failed"]
    assert ("0", "ReceiptHandleIsInvalid") == (failed["Id"], failed["Code"])
    with pytest.raises(errors.InvalidAttributeName):
        client.get_queue_attributes(QueueUrl=queue.url, AttributeNames=["Colour"])
    with pytest.raises(errors.InvalidMessageContents):
        client.send_message(QueueUrl=queue.url, MessageBody="\x00")
    for name, value in {"MaxNumberOfMessages": 11, "WaitTimeSeconds": 21, "VisibilityTimeout": -1}.items():
        with pytest.raises(aws.ClientError, match="InvalidParameterValue"):
            client.receive_message(QueueUrl=queue.url, **{name: value})
    with pytest.raises(errors.UnsupportedOperation):
        client.purge_queue(QueueUrl=queue.url)


@settings(max_examples=60, deadline=None)
@given(
    target=st.sampled_from([TARGET, "AmazonSQS.DeleteMessageBatch", "AmazonSQS.", "Other.GetQueueUrl", "."]),
    body=st.one_of(
        st.binary(max_size=60),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=2)
                | st.dictionaries(
                    st.sampled_from(["QueueUrl", "Entries", "Id", "AttributeNames", "MaxNumberOfMessages"]),
                    inner,
                )
            ),
            max_leaves=8,
        ).map(lambda given: json.dumps(given).replace('"QueueUrl": null', f'"QueueUrl": "{NAME}"').encode()),
    ),
)
def test_any_call_is_answered(running: InboxServer, target: str, body: bytes) -> None:
    answer = ask(running.url, "/", "POST", body, x_amz_target=target)
    assert answer.status in (200, 400)
    assert isinstance(answer.json, dict)


@pytest.fixture(scope="module")
def running() -> Iterator[InboxServer]:
    with InboxServer() as server:
        yield server


def clocked() -> tuple[EventQueue, Callable[[float], None]]:
    now = [100.0]

    def go(seconds: float) -> None:
        now[0] += seconds

    return EventQueue(lambda: now[0]), go


def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_queue, "MAX_MESSAGES", 100)
    monkeypatch.setattr(event_queue, "SPARE_ENTRIES", 10)
    queue, _ = clocked()
    for number in range(1000):
        queue.put(str(number), after_s=number % 2)
    assert 100 == len(queue)
    assert (50, 0, 50) == queue.depth()
    assert len(queue._ready) + len(queue._later) <= 2 * 100 + 10
    monkeypatch.setattr(event_queue, "MAX_BYTES", 5000)
    queue.put("x" * 10_000)
    assert 1 == len(queue)


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.sampled_from([0, 1, 5])),
            st.tuples(st.just("receive"), st.integers(1, 3)),
            st.tuples(st.just("delete"), st.integers(0, 5)),
            st.tuples(st.just("go"), st.sampled_from([1, 3, 10])),
        ),
        max_size=40,
    )
)
def test_nothing_is_lost_and_nothing_is_received_twice_at_a_time(steps: list[tuple[str, int]]) -> None:
    queue, go = clocked()
    now, visible_from, count = 0, dict[int, int](), 0
    for what, value in steps:
        if what == "put":
            count += 1
            queue.put(str(count), after_s=value)
            visible_from[count] = now + value
        elif what == "receive":
            found = [message.number for message in queue.receive(value, visibility_s=4)]
            ready = sorted(number for number, at in visible_from.items() if at <= now)
            assert ready[:value] == found
            visible_from |= dict.fromkeys(found, now + 4)
        elif what == "delete" and value in visible_from:
            queue.delete(value)
            del visible_from[value]
        elif what == "go":
            go(value)
            now += value
        assert len(visible_from) == len(queue)
        assert sum(at <= now for at in visible_from.values()) == queue.depth().visible


@given(st.text(max_size=30))
def test_any_other_address_is_delivered(text: str) -> None:
    assert "delivery" == simulated((f"{text}@example.com",))
