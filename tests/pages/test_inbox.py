"""The inbox as botocore sees it: SES's answers, its refusals, its silences, and the faults one asks for."""

from __future__ import annotations

import http.client
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode, urlsplit
from xml.etree import ElementTree

import pytest
from botocore import exceptions as aws
from botocore.parsers import ResponseParserError
from hypothesis import given, settings
from hypothesis import strategies as st

from mailroom.inbox.data import read_data
from mailroom.inbox.faults import KINDS, STATUSES, Fault, Faults, read_fault
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.limits import DAY_S, Limits
from mailroom.inbox.server import InboxError, InboxServer
from mailroom.inbox.ses import ACTIONS, reply
from mailroom.inbox.ses_protocol import FORM_TYPE, Refusal
from mailroom.templates.mails import field_names, for_ses, ses_name
from mailroom.templates.sources import load
from support.inbox import ses_client
from support.processes import without

TEMPLATE = {
    "TemplateName": "hello",
    "SubjectPart": "Hello {{login}}",
    "TextPart": "Go to\r\n{{link}}, {{login}}",
    "HtmlPart": "<a href='{{link}}'>{{login}}</a>",
}
DATA = {"login": "ada", "link": "https://app.example/a?b=c&d=e"}
PARTS = (TEMPLATE["SubjectPart"], TEMPLATE["TextPart"], TEMPLATE["HtmlPart"])


def filled(inbox: Inbox) -> Inbox:
    inbox.account.put_template("hello", PARTS, new=True)
    return inbox


@pytest.fixture
def server(caplog: pytest.LogCaptureFixture) -> Iterator[InboxServer]:
    """A server with one template, that must not log an error, such as a traceback."""
    with InboxServer(inbox=filled(Inbox())) as server:
        yield server
    errors = [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    assert [] == errors


@pytest.fixture
def ses(server: InboxServer) -> Iterator[Any]:
    client = ses_client(server.url)
    yield client
    client.close()


def destination(address: str, **data: Any) -> dict[str, Any]:
    return {
        "Destination": {"ToAddresses": [address]},
        "ReplacementTemplateData": json.dumps(data or DATA),
    }


def people(count: int) -> list[dict[str, Any]]:
    return [destination(f"person{number}@example.com") for number in range(1, count + 1)]


def bulk(ses: Any, destinations: list[dict[str, Any]] | None = None, **changes: Any) -> list[dict[str, str]]:
    arguments = {
        "Source": "App <noreply@app.example>",
        "Template": "hello",
        "ConfigurationSetName": "default",
        "DefaultTemplateData": "{}",
        "Destinations": people(2) if destinations is None else destinations,
    }
    answer = ses.send_bulk_templated_email(**arguments | changes)
    assert 200 == answer["ResponseMetadata"]["HTTPStatusCode"]
    status: list[dict[str, str]] = answer["Status"]
    return status


def refused(error: pytest.ExceptionInfo[aws.ClientError]) -> tuple[str, int]:
    answer: Any = error.value.response
    return answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"]


def api(server: InboxServer, method: str, path: str, body: object = None) -> tuple[int, Any]:
    status, text = raw(
        server, method, f"/api/{path}", None if body is None else json.dumps(body).encode(), {}
    )
    return status, json.loads(text)


def raw(
    server: InboxServer, method: str, path: str, body: bytes | None, headers: dict[str, str]
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


# Sending


def test_a_bulk_call_is_accepted_kept_and_counted(server: InboxServer, ses: Any) -> None:
    statuses = bulk(ses, people(50))
    assert ["Success"] * 50 == [status["Status"] for status in statuses]
    mails = server.inbox.mails.find()
    assert [mail.id for mail in mails] == [status["MessageId"] for status in statuses]
    assert 50 == len(set(server.inbox.counts.by_recipient))
    assert ("person1@example.com", "hello", DATA) == (
        mails[0].recipient,
        mails[0].template.name,
        mails[0].data,
    )
    counts = server.inbox.counts
    assert (1, 50, 50, 0, 0) == (
        counts.calls, counts.recipients, counts.accepted, counts.refused, counts.duplicates,
    )  # fmt: skip


def test_nothing_is_escaped_as_in_ses(server: InboxServer, ses: Any) -> None:
    bulk(ses, [destination("a@b.example", login="<b>&'\"", link="x")])
    rendered = server.inbox.mails.find()[0].render()
    assert ("Hello <b>&'\"", "Go to\r\nx, <b>&'\"", "<a href='x'><b>&'\"</a>") == rendered


def test_a_mail_without_a_variable_is_accepted_and_dropped(server: InboxServer, ses: Any) -> None:
    (status,) = bulk(ses, [destination("a@b.example", login="ada")])
    assert "Success" == status["Status"]
    _, mail = api(server, "GET", f"mails/{status['MessageId']}")
    assert (True, None, None) == (mail["dropped"], mail["subject"], mail["text"])
    assert "rendering failure: the data has no 'link'" == mail["failure"]
    counts = server.inbox.counts
    assert (1, 1) == (counts.accepted, counts.dropped)


def test_default_data_fills_in_what_a_recipient_lacks(server: InboxServer, ses: Any) -> None:
    default = json.dumps({"link": "https://default.example", "login": "nobody"})
    bulk(ses, [destination("a@b.example", login="ada")], DefaultTemplateData=default)
    rendered = server.inbox.mails.find()[0].render()
    assert rendered is not None
    assert ("Hello ada", "Go to\r\nhttps://default.example, ada") == rendered[:2]


def test_a_variable_that_only_a_block_asks_for_may_be_missing(server: InboxServer, ses: Any) -> None:
    parts = ("x", "{{#if code}}{{code}}{{else}}none{{/if}}", "")
    server.inbox.account.put_template("block", parts, new=True)
    bulk(ses, [destination("a@b.example", login="ada")], Template="block")
    assert (0, ("x", "none", "")) == (server.inbox.counts.dropped, server.inbox.mails.find()[0].render())


def test_a_failure_that_only_rendering_shows_is_counted_once(server: InboxServer, ses: Any) -> None:
    server.inbox.account.put_template("deep", ("x", "{{user.name}}", ""), new=True)
    bulk(ses, [destination("a@b.example", user={})], Template="deep")
    assert 0 == server.inbox.counts.dropped
    for _ in range(2):
        assert api(server, "GET", "mails")[1]["mails"][0]["dropped"]
    assert 1 == server.inbox.counts.dropped


def test_a_mail_keeps_the_template_it_was_sent_with(server: InboxServer, ses: Any) -> None:
    bulk(ses)
    ses.update_template(Template=TEMPLATE | {"SubjectPart": "Another"})
    bulk(ses)
    subjects = [mail["subject"] for mail in api(server, "GET", "mails")[1]["mails"]]
    assert ["Hello ada", "Hello ada", "Another", "Another"] == subjects


def test_our_own_templates_render(server: InboxServer, ses: Any) -> None:
    loaded = load(None, {"app_name": "App", "app_url": "https://app.example"}).values()
    for template in loaded:
        name = ses_name(template.action.template, template.tag)
        ses.create_template(Template=for_ses(template, name))
        data = dict.fromkeys(field_names(template.action), "x")
        bulk(ses, [destination("a@b.example", **data)], Template=name)
    mails = api(server, "GET", "mails")[1]["mails"]
    assert [False] * len(loaded) == [mail["dropped"] for mail in mails]


# Refusals


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"Template": "nothing"}, "TemplateDoesNotExist"),
        ({"ConfigurationSetName": "nothing"}, "ConfigurationSetDoesNotExist"),
        ({"Destinations": people(51)}, "InvalidParameterValue"),
        ({"Destinations": []}, "InvalidParameterValue"),
        ({"DefaultTemplateData": "[]"}, "InvalidParameterValue"),
        ({"DefaultTemplateData": "{"}, "InvalidParameterValue"),
        ({"Source": "nobody"}, "InvalidParameterValue"),
    ],
    ids=str,
)
def test_what_ses_refuses_is_refused_in_its_words(
    server: InboxServer, ses: Any, changes: dict[str, Any], code: str
) -> None:
    with pytest.raises(aws.ClientError) as error:
        bulk(ses, **changes)
    assert (code, 400) == refused(error)
    counts = server.inbox.counts
    assert (0, counts.recipients) == (counts.accepted, counts.refused)


@pytest.mark.parametrize("address", ["nonsense", "a b@", "Ådne@example.com", "@", "a@b@\x7f"])
def test_an_address_that_is_none_is_refused_alone(server: InboxServer, ses: Any, address: str) -> None:
    statuses = bulk(ses, [destination(address), *people(1)])
    assert ["InvalidParameterValue", "Success"] == [status["Status"] for status in statuses]
    assert "Error" in statuses[0]
    assert {"person1@example.com": 1} == server.inbox.counts.by_recipient


@pytest.mark.parametrize(
    "data", ["[]", "1", "{", "", "{'a': 1}", '{"a": NaN}', '{"a": 1e999}', "[" * 100_000]
)
def test_data_that_is_no_json_object_is_refused_alone(ses: Any, data: str) -> None:
    entry = {"Destination": {"ToAddresses": ["a@b.example"]}, "ReplacementTemplateData": data}
    wanted = "InvalidParameterValue" if data else "Success"
    assert [wanted, "Success"] == [status["Status"] for status in bulk(ses, [entry, *people(1)])]


def test_only_given_identities_may_send() -> None:
    inbox = filled(Inbox(identities=["app.example", "someone@else.example"]))
    with InboxServer(inbox=inbox) as server:
        ses = ses_client(server.url)
        for source in ("x@app.example", "x@mail.app.example", "Me <someone@else.example>"):
            bulk(ses, Source=source)
        with pytest.raises(ses.exceptions.MessageRejected) as error:
            bulk(ses, Source="x@else.example")
        assert "The following identities failed the check in region US-EAST-1: x@else.example" in str(
            error.value
        )
        names = ["app.example", "someone@else.example", "else.example"]
        found = ses.get_identity_verification_attributes(Identities=names)["VerificationAttributes"]
        assert set(names[:2]) == set(found)
        assert {"Success"} == {attributes["VerificationStatus"] for attributes in found.values()}


def test_a_call_beyond_the_rate_is_throttled_whole() -> None:
    with InboxServer(inbox=filled(Inbox(rate=0.001))) as server:
        ses = ses_client(server.url)
        assert 0.001 == ses.get_send_quota()["MaxSendRate"]
        bulk(ses, people(1))
        with pytest.raises(aws.ClientError, match="Maximum sending rate exceeded") as error:
            bulk(ses, people(1))
        assert ("Throttling", 400) == refused(error)
        counts = server.inbox.counts
        assert (1, 1, 1) == (counts.accepted, counts.throttled, counts.refused)


def test_a_calls_time_is_when_the_rate_was_charged() -> None:
    inbox = filled(Inbox())
    with InboxServer(inbox=inbox) as server:
        bulk(ses_client(server.url), people(50))
    assert inbox.limits.taken_at_s == inbox.calls[-1].at_s


def test_the_bucket_holds_a_second_and_fills_at_the_rate() -> None:
    now = 0.0
    limits = Limits(10, clock=lambda: now)
    assert [True, True, False] == [limits.take(5) for _ in range(3)]
    now = 0.5
    assert [True, False] == [limits.take(5) for _ in range(2)]
    now = 100.0
    assert [False, True] == [limits.take(11), limits.take(10)]


def test_the_quota_is_over_a_day() -> None:
    now = 0.0
    limits = Limits(quota_24h=10, clock=lambda: now)
    limits.count(4)
    now = DAY_S / 2
    limits.count(6)
    assert (10, 0) == (limits.sent_24h(), limits.left_24h())
    now = DAY_S + 120.0
    assert (6, 4) == (limits.sent_24h(), limits.left_24h())


def test_recipients_beyond_the_daily_quota_are_refused_with_that_reason(
    server: InboxServer, ses: Any
) -> None:
    assert -1 == ses.get_send_quota()["Max24HourSend"]
    server.inbox.limits.quota_24h = 3
    statuses = [status["Status"] for status in bulk(ses, people(5))]
    assert ["Success"] * 3 + ["AccountDailyQuotaExceeded"] * 2 == statuses
    quota = ses.get_send_quota()
    assert (3.0, 3.0) == (quota["Max24HourSend"], quota["SentLast24Hours"])


def test_a_paused_account_sends_nothing_until_it_is_enabled(server: InboxServer, ses: Any) -> None:
    server.inbox.account.paused = True
    assert not ses.get_account_sending_enabled()["Enabled"]
    with pytest.raises(ses.exceptions.AccountSendingPausedException):
        bulk(ses)
    server.inbox.account.paused = False
    assert ses.get_account_sending_enabled()["Enabled"]
    bulk(ses)


# The other calls


def test_templates_are_created_read_and_updated(ses: Any) -> None:
    with pytest.raises(ses.exceptions.AlreadyExistsException):
        ses.create_template(Template=TEMPLATE)
    assert TEMPLATE == ses.get_template(TemplateName="hello")["Template"]
    changed = {"TemplateName": "hello", "SubjectPart": "<]]>&amp;", "TextPart": "ü\t\n\U0001f600"}
    ses.update_template(Template=changed)
    assert changed == ses.get_template(TemplateName="hello")["Template"]
    with pytest.raises(ses.exceptions.TemplateDoesNotExistException):
        ses.get_template(TemplateName="other")
    with pytest.raises(ses.exceptions.TemplateDoesNotExistException):
        ses.update_template(Template=TEMPLATE | {"TemplateName": "other"})
    with pytest.raises(ses.exceptions.InvalidTemplateException):
        ses.create_template(Template={"TemplateName": "bad", "TextPart": "{{#if x}}"})
    with pytest.raises(ses.exceptions.LimitExceededException):
        ses.create_template(Template={"TemplateName": "large", "TextPart": "x" * 500_001})


def test_every_identity_is_verified_unless_some_are_given(ses: Any) -> None:
    names = ["a@b.example", "b.example"]
    found = ses.get_identity_verification_attributes(Identities=names)["VerificationAttributes"]
    assert set(names) == set(found)
    assert found["b.example"]["VerificationToken"]


def test_a_configuration_set_is_described_if_it_exists(ses: Any) -> None:
    described = ses.describe_configuration_set(ConfigurationSetName="default")
    assert "default" == described["ConfigurationSet"]["Name"]
    with pytest.raises(ses.exceptions.ConfigurationSetDoesNotExistException):
        ses.describe_configuration_set(ConfigurationSetName="nothing")


def test_an_unknown_call_is_an_invalid_action(ses: Any) -> None:
    with pytest.raises(aws.ClientError) as error:
        ses.list_receipt_filters()
    assert ("InvalidAction", 400) == refused(error)


# Faults


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        (Fault("http", http_status=500, body="no XML"), ResponseParserError),
        (Fault("http", http_status=503, body=""), aws.ClientError),
        (Fault("garbage"), ResponseParserError),
        (Fault("garbage", body=""), ResponseParserError),
        (Fault("hang"), aws.ReadTimeoutError),
        (Fault("hang", seconds=0.01), aws.ConnectionClosedError),
        (Fault("cut"), aws.ConnectionClosedError),
        (Fault("cut_body"), ResponseParserError),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
@pytest.mark.parametrize("accept", [False, True])
def test_a_lost_answer_is_counted_and_accepted_if_so_wished(
    server: InboxServer, fault: Fault, seen: type[Exception], accept: bool
) -> None:
    ses = ses_client(server.url, read_timeout_s=0.1 if fault.seconds > 1 and fault.kind == "hang" else 30)
    fields = {name: getattr(fault, name) for name in ("kind", "http_status", "body", "seconds")}
    server.inbox.faults.add(Fault(**fields, accept=accept, calls=1))
    with pytest.raises(seen):
        bulk(ses)
    counts, accepted = server.inbox.counts, 2 if accept else 0
    assert (2, accepted, 0) == (counts.unanswered, counts.accepted, counts.refused)
    assert (fault.kind, accepted) == (server.inbox.calls[-1].verdict, server.inbox.calls[-1].accepted)
    assert ["Success", "Success"] == [status["Status"] for status in bulk(ses)]
    assert accepted == server.inbox.counts.duplicates
    ses.close()


@pytest.mark.parametrize(
    ("code", "status"), [("Throttling", 400), ("InternalFailure", 500), ("ServiceUnavailable", 503)]
)
def test_an_error_refuses_the_whole_call(server: InboxServer, ses: Any, code: str, status: int) -> None:
    server.inbox.faults.add(
        Fault("error", code=code, message="<slower> \x00\ud800", http_status=status, calls=2)
    )
    for _ in range(2):
        with pytest.raises(aws.ClientError, match="<slower>") as error:
            bulk(ses)
        assert (code, status) == refused(error)
    bulk(ses)
    counts = server.inbox.counts
    assert (4, 2) == (counts.refused, counts.accepted)
    assert (2 if code == "Throttling" else 0) == counts.throttled


@pytest.mark.parametrize("status", STATUSES[1:])
def test_a_status_refuses_one_recipient(server: InboxServer, ses: Any, status: str) -> None:
    server.inbox.faults.add(Fault("status", status=status, recipient="person2@example.com", message="why"))
    assert [("Success", None), (status, "why"), ("Success", None)] == [
        (entry["Status"], entry.get("Error")) for entry in bulk(ses, people(3))
    ]
    counts = server.inbox.counts
    assert (2, 1, "mixed") == (counts.accepted, counts.refused, server.inbox.calls[-1].verdict)
    assert "person2@example.com" not in counts.by_recipient


def test_a_status_can_hit_a_share_of_the_recipients_the_same_in_every_run() -> None:
    runs = []
    for seed in (7, 7, 8):
        inbox = filled(Inbox(seed=seed))
        inbox.faults.add(Fault("status", share=0.3, status="TransientFailure"))
        with InboxServer(inbox=inbox) as server:
            runs.append([status["Status"] for status in bulk(ses_client(server.url), people(50))])
    assert runs[0] == runs[1] != runs[2]
    assert 5 <= runs[0].count("TransientFailure") <= 25


def test_a_share_of_the_calls_is_hit_and_only_hits_use_a_fault_up() -> None:
    faults = Faults(seed=1)
    faults.add(Fault("cut", share=0.5, calls=10))
    hits = [faults.pick([["a@b.example"]]).call is not None for _ in range(100)]
    assert 10 == sum(hits)
    assert not all(hits[:10])
    assert [] == faults.listing()


def test_faults_are_used_in_order_for_the_calls_they_match(server: InboxServer, ses: Any) -> None:
    faults = server.inbox.faults
    faults.add(Fault("error", code="MessageRejected", recipient="person9@example.com"))
    faults.add(Fault("status", status="Failed", recipient="person1@example.com"))
    faults.add(Fault("status", status="MessageRejected", recipient="person2@example.com"))
    last = faults.add(Fault("cut", recipient="person3@example.com", accept=True, calls=1))
    assert ["Failed", "MessageRejected"] == [status["Status"] for status in bulk(ses)]
    with pytest.raises(aws.ConnectionClosedError):
        bulk(ses, people(3))
    assert {"person3@example.com": 1} == server.inbox.counts.by_recipient
    with pytest.raises(ses.exceptions.MessageRejected):
        bulk(ses, people(9))
    assert [1, 2, 2] == [rule["used"] for rule in faults.listing()]
    assert not faults.remove(last)


def test_the_end_of_the_server_cuts_a_call_that_hangs() -> None:
    inbox = filled(Inbox())
    inbox.faults.add(Fault("hang"))
    seen: list[Exception] = []

    def call(url: str) -> None:
        try:
            bulk(ses_client(url))
        except aws.BotoCoreError as error:
            seen.append(error)

    with InboxServer(inbox=inbox) as server:
        caller = threading.Thread(target=call, args=[server.url])
        caller.start()
        server.wait_for(lambda inbox: inbox.counts.unanswered == 2)
    caller.join(10)
    assert [aws.ConnectionClosedError] == [type(error) for error in seen]


def test_waiting_for_what_does_not_come_ends(server: InboxServer) -> None:
    with pytest.raises(TimeoutError, match="Counts"):
        server.wait_for(lambda inbox: inbox.counts.calls, timeout_s=0.01)


# What is kept, and the API


def test_the_oldest_mails_go_and_the_counts_stay() -> None:
    with InboxServer(inbox=filled(Inbox(keep=3))) as server:
        ses = ses_client(server.url)
        first = bulk(ses, people(2))[0]["MessageId"]
        bulk(ses, people(3))
        assert (404, "no mail of this id is kept") == (
            (answer := api(server, "GET", f"mails/{first}"))[0],
            answer[1]["error"],
        )
        counts = api(server, "GET", "counts")[1]
        assert (3, 5, 2) == (counts["kept"], counts["accepted"], counts["duplicates"])
        assert 3 == len(api(server, "GET", f"mails?after={first}")[1]["mails"])


def test_mails_are_found_by_recipient_template_and_cursor(server: InboxServer, ses: Any) -> None:
    server.inbox.account.put_template("other", ("x", "x", "x"), new=True)
    bulk(ses, people(3))
    bulk(ses, people(1), Template="other")

    def find(query: str) -> list[tuple[str, str]]:
        found = api(server, "GET", f"mails?{query}")[1]["mails"]
        return [(mail["recipient"][:7], mail["template"]) for mail in found]

    assert 4 == len(find(""))
    assert [("person1", "hello"), ("person1", "other")] == find("recipient=person1@example.com")
    assert [("person1", "other")] == find("template=other")
    page = api(server, "GET", "mails?limit=2")[1]["mails"]
    rest = f"after={page[-1]['id']}"
    assert [("person3", "hello"), ("person1", "other")] == find(rest)
    assert (200, {"mails": []}) == api(server, "DELETE", "mails")
    assert [] == find("")
    bulk(ses, people(1))
    assert [("person1", "hello")] == find(rest)
    assert {"person1@example.com": 3, "person2@example.com": 1, "person3@example.com": 1} == api(
        server, "GET", "counts/recipients"
    )[1]


def test_calls_are_remembered_with_their_verdicts(server: InboxServer, ses: Any) -> None:
    bulk(ses)
    with pytest.raises(aws.ClientError):
        bulk(ses, Template="nothing")
    calls = api(server, "GET", "calls")[1]["calls"]
    assert [(1, 2, 2, "Success"), (2, 2, 0, "TemplateDoesNotExist")] == [
        (call["number"], call["recipients"], call["accepted"], call["verdict"]) for call in calls
    ]
    assert calls[0]["at_s"] <= calls[1]["at_s"]
    assert calls[0]["time"].endswith("Z")
    assert [2] == [call["number"] for call in api(server, "GET", "calls?after=1")[1]["calls"]]


def test_faults_can_be_managed_over_the_api(server: InboxServer, ses: Any) -> None:
    status, rule = api(
        server, "POST", "faults", {"kind": "error", "code": "Throttling", "calls": 2, "share": 1}
    )
    assert (200, 1, 0, 2) == (status, rule["id"], rule["used"], rule["calls"])
    with pytest.raises(aws.ClientError):
        bulk(ses)
    assert [(1, 1, 1)] == [
        (rule["id"], rule["used"], rule["calls"]) for rule in api(server, "GET", "faults")[1]["faults"]
    ]
    assert (200, {"faults": []}) == api(server, "DELETE", "faults/1")
    assert 404 == api(server, "DELETE", "faults/1")[0]
    for kind in KINDS:
        assert 200 == api(server, "POST", "faults", {"kind": kind})[0]
    assert (200, {"faults": []}) == api(server, "DELETE", "faults")
    bulk(ses)


def test_settings_can_be_changed_over_the_api(server: InboxServer, ses: Any) -> None:
    assert (200, {"rate": 1_000_000, "quota_24h": None, "paused": False}) == api(server, "GET", "settings")
    changed = {"rate": 14, "quota_24h": 200, "paused": True}
    assert (200, changed) == api(server, "PATCH", "settings", changed)
    quota = ses.get_send_quota()
    assert (14, 200) == (quota["MaxSendRate"], quota["Max24HourSend"])
    with pytest.raises(ses.exceptions.AccountSendingPausedException):
        bulk(ses)
    assert (200, changed | {"paused": False}) == api(server, "PATCH", "settings", {"paused": False})


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "faults", {}, 400),
        ("POST", "faults", [], 400),
        ("POST", "faults", {"kind": "nonsense"}, 400),
        ("POST", "faults", {"kind": "cut", "nonsense": 1}, 400),
        ("POST", "faults", {"kind": "cut", "accept": 1}, 400),
        ("POST", "faults", {"kind": "cut", "calls": 0}, 400),
        ("POST", "faults", {"kind": "cut", "calls": True}, 400),
        ("POST", "faults", {"kind": "cut", "share": float("nan")}, 400),
        ("POST", "faults", {"kind": "http", "http_status": 204}, 400),
        ("POST", "faults", {"kind": "status", "status": "Success"}, 400),
        ("POST", "faults", {"kind": "hang", "seconds": 1e9}, 400),
        ("PATCH", "settings", {"rate": 0}, 400),
        ("PATCH", "settings", {"rate": True}, 400),
        ("PATCH", "settings", {"quota_24h": 1.5}, 400),
        ("PATCH", "settings", {"paused": 1}, 400),
        ("PATCH", "settings", {"nonsense": 1}, 400),
        ("GET", "mails?limit=0", None, 400),
        ("GET", "mails?limit=²", None, 400),
        ("GET", "mails?after=nonsense", None, 400),
        ("GET", "calls?after=-1", None, 400),
        ("GET", "nonsense", None, 404),
        ("PUT", "mails", None, 405),
        ("DELETE", "faults/x", None, 404),
    ],
)
def test_the_api_says_what_it_does_not_understand(
    server: InboxServer, method: str, path: str, body: object, status: int
) -> None:
    found, answer = api(server, method, path.replace("²", "%C2%B2"), body)
    assert (status, True) == (found, bool(answer["error"]))
    assert [] == server.inbox.faults.listing()


def test_the_front_page_says_what_this_is(server: InboxServer) -> None:
    status, text = raw(server, "GET", "/", None, {})
    assert (200, True) == (status, f"AWS_ENDPOINT_URL_SES={server.url}" in text.decode())


def test_half_a_surrogate_pair_in_data_is_shown_as_json(server: InboxServer, ses: Any) -> None:
    (status,) = bulk(ses, [destination("a@b.example", login="\ud800", link="\x00")])
    assert "Hello \ud800" == api(server, "GET", f"mails/{status['MessageId']}")[1]["subject"]


# Hostile clients

FORM = {"Content-Type": FORM_TYPE}


def parsed(answer: bytes) -> ElementTree.Element:
    return ElementTree.fromstring(answer)  # noqa: S314 - our own


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", {}, 415),
        (b"Action=GetSendQuota", {"Content-Type": "application/json"}, 415),
        (b"", FORM, 400),
        (b"Action=Nonsense%00%01", FORM, 400),
        (b"Action=GetSendQuota&Version=1", FORM, 400),
        (b"Action=GetTemplate&TemplateName=%FF", FORM, 400),
        (b"Action=GetTemplate&TemplateName=\xff", FORM, 400),
        (b"Action=GetTemplate&TemplateName=%00%1b%EF%BF%BE", FORM, 400),
        (b"Action=GetTemplate", FORM, 400),
        (b"&" * 20_000, FORM, 400),
        (b"", FORM | {"Content-Length": "10000001"}, 413),
    ],
    ids=range(11),
)
def test_a_hostile_form_is_refused_in_xml(
    server: InboxServer, body: bytes, headers: dict[str, str], status: int
) -> None:
    found, answer = raw(server, "POST", "/", body, headers)
    assert status == found
    assert parsed(answer).tag.endswith("ErrorResponse")


def test_a_body_is_not_read_beyond_its_limit(server: InboxServer) -> None:
    def pieces() -> Iterator[bytes]:
        while True:
            yield b"x" * 1_000_000

    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    try:
        with pytest.raises(OSError, match=r"pipe|reset"):
            connection.request("POST", "/", pieces(), FORM)
    finally:
        connection.close()
    # No body follows: what was on its way would meet a closed connection, and the answer might go with it.
    place = urlsplit(server.url)
    with socket.create_connection((place.hostname or "", place.port or 0), timeout=30) as client:
        client.sendall(b"POST /api/faults HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000001\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_leaves_in_the_middle_is_no_error(server: InboxServer, ses: Any) -> None:
    place = urlsplit(server.url)
    with socket.create_connection((place.hostname or "", place.port or 0), timeout=30) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nAction=")
    bulk(ses)


TEXTS = st.text() | st.sampled_from(
    ["hello", "noreply@app.example", "{}", "[", '{"a":1}', "a@b.example", "0", "-1", "²", "1e999", *ACTIONS]
)
KEYS = st.sampled_from(
    [
        "Action",
        "Version",
        "Source",
        "Template",
        "TemplateName",
        "Template.TemplateName",
        "Template.TextPart",
        "ConfigurationSetName",
        "DefaultTemplateData",
        "Destinations.member.1.Destination.ToAddresses.member.1",
        "Destinations.member.1.ReplacementTemplateData",
        "Identities.member.1",
    ]
)


@settings(deadline=None)
@given(st.binary() | st.binary().map(lambda data: b"Action=SendBulkTemplatedEmail&Source=" + data))
def test_any_bytes_get_an_answer_that_is_xml(body: bytes) -> None:
    answer = reply(filled(Inbox()), FORM_TYPE, body)
    assert 400 <= answer.status < 500
    parsed(answer.body)


@settings(deadline=None)
@given(st.sampled_from(list(ACTIONS)), st.dictionaries(KEYS, TEXTS), st.booleans())
def test_any_parameters_get_an_answer_that_is_xml(action: str, values: dict[str, str], typical: bool) -> None:
    usual = {"Source": "a@b.example", "Template": "hello", "DefaultTemplateData": "{}"} if typical else {}
    form = urlencode({"Action": action} | usual | values, errors="replace").encode()
    answer = reply(filled(Inbox()), FORM_TYPE, form)
    assert answer.status in (200, 400)
    parsed(answer.body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(deadline=None)
@given(JSON | st.text())
def test_data_is_an_object_that_can_be_written_again_or_refused(value: Any) -> None:
    try:
        data = read_data(value if isinstance(value, str) else json.dumps(value))
    except Refusal:
        return
    assert data == json.loads(json.dumps(data, allow_nan=False))


def test_data_that_is_nested_without_end_is_refused() -> None:
    with pytest.raises(Refusal):
        read_data('{"a":' * 100_000 + "1" + "}" * 100_000)


@pytest.mark.slow
@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["kind", "calls", "share", "accept", "seconds", "body", "x"]),
        JSON | st.sampled_from(KINDS),
    )
)
def test_a_fault_from_json_is_good_or_says_what_is_not(fields: dict[str, Any]) -> None:
    try:
        fault = read_fault(fields)
    except ValueError:
        return
    assert fault.kind in KINDS


# Starting and ending


def test_a_port_in_use_is_reported_with_a_remedy(server: InboxServer) -> None:
    port = urlsplit(server.url).port or 0
    with (
        pytest.raises(InboxError, match=f"cannot listen on 127.0.0.1:{port}") as error,
        InboxServer(port=port),
    ):
        pass
    assert (69, True) == (error.value.exit_code, "--port" in error.value.hint)


@pytest.mark.parametrize("package", ["uvicorn", "jinja2", "aiosmtpd"])
def test_a_missing_extra_is_reported_with_a_remedy(package: str) -> None:
    done = without(package, "inbox", "--port", "0")
    assert 69 == done.returncode
    assert f"the package {package} is not installed\n" in done.stderr
    assert (
        "install the extra: pip install 'mailroom-postgresql[inbox]', or '.[inbox]' in a clone\n"
        in done.stderr
    )


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "mailroom", "inbox", "--port", "0"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        yield process
        process.kill()


def opened(process: subprocess.Popen[str]) -> Any:
    """A client, once the process listens; its address is where the process's own words say."""
    assert process.stderr is not None
    words = process.stderr.readline().split()
    assert "The inbox is at" == " ".join(words[:4])
    ses = ses_client(words[4].rstrip("."))
    ses.create_template(Template=TEMPLATE)
    return ses


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_prints_mails_and_ends_well(process: subprocess.Popen[str], number: int) -> None:
    ses = opened(process)
    bulk(ses, [destination("a@b.example", login='"\x1b[2J', link="x"), destination("c@d.example", login="x")])
    process.send_signal(number)
    assert 0 == process.wait(30)
    assert process.stdout is not None
    assert process.stderr is not None
    stderr = process.stderr.read()
    first, second = process.stdout.read().splitlines()
    assert 'to a@b.example  "Hello \\"\\u001b[2J"' == first.partition(" ")[2]
    assert (
        "to c@d.example  \"dropped, rendering failure: the data has no 'link'\"" == second.partition(" ")[2]
    )
    assert "export AWS_ENDPOINT_URL_SES=http://127.0.0.1:" in stderr
    assert "Traceback" not in stderr


def test_the_command_ends_when_nobody_reads_its_output(process: subprocess.Popen[str]) -> None:
    ses = opened(process)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert "Success" == bulk(ses, people(1))[0]["Status"]
    assert 69 == process.wait(30)
    assert "Error: the reader of standard output is gone\nTry: " in process.stderr.read()
