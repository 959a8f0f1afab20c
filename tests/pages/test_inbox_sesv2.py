"""The inbox by version 2 of SES's API, as botocore sees it: content in calls, refusals, faults, account."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given, settings
from hypothesis import strategies as st

from mailroom.inbox.faults import STATUSES, Fault
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.server import InboxServer
from mailroom.inbox.sesv2 import LOOKS, SEND, look, send
from mailroom.inbox.sesv2 import STATUSES as SECOND
from mailroom.inbox.switches import BY_NAME, turn
from support.inbox import ask, ses_client, sesv2_client

CONTENT = {"Subject": "Hello {{login}}", "Text": "{{link}}, {{login}}", "Html": "<b>{{login}}</b>"}
DATA = {"login": "ada", "link": "https://app.example/a?b=c&d=e"}


@pytest.fixture
def server(caplog: pytest.LogCaptureFixture) -> Iterator[InboxServer]:
    """A server that must not log an error, such as a traceback."""
    with InboxServer() as server:
        yield server
    errors = [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    assert [] == errors


@pytest.fixture
def ses(server: InboxServer) -> Iterator[Any]:
    client = sesv2_client(server.url)
    yield client
    client.close()


def entry(address: str, **data: Any) -> dict[str, Any]:
    written = json.dumps(data or DATA)
    return {
        "Destination": {"ToAddresses": [address]},
        "ReplacementEmailContent": {"ReplacementTemplate": {"ReplacementTemplateData": written}},
    }


def people(count: int) -> list[dict[str, Any]]:
    return [entry(f"person{number}@example.com") for number in range(1, count + 1)]


def bulk(ses: Any, entries: list[dict[str, Any]] | None = None, **changes: Any) -> list[dict[str, str]]:
    arguments: dict[str, Any] = {
        "FromEmailAddress": "Acme <noreply@acme.example>",
        "DefaultContent": {"Template": {"TemplateContent": CONTENT, "TemplateData": "{}"}},
        "BulkEmailEntries": people(2) if entries is None else entries,
    } | changes
    found: list[dict[str, str]] = ses.send_bulk_email(**arguments)["BulkEmailEntryResults"]
    return found


def content(**parts: str) -> dict[str, Any]:
    return {"Template": {"TemplateContent": CONTENT | parts, "TemplateData": "{}"}}


def refused(error: pytest.ExceptionInfo[ClientError]) -> tuple[str, int]:
    answer = error.value.response
    return answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"]


def test_content_of_a_call_is_rendered_and_kept(server: InboxServer, ses: Any) -> None:
    tags = [{"Name": "mailroom-action", "Value": "password_changed"}, {"Name": "a", "Value": "1"}]
    one = entry("zoe@example.com", login="Zoë", link="l") | {"ReplacementTags": [{"Name": "a", "Value": "2"}]}
    (result,) = bulk(
        ses,
        [one],
        ConfigurationSetName="default",
        DefaultEmailTags=tags,
        ReplyToAddresses=["help@acme.example", "sales@acme.example"],
    )
    (mail,) = server.inbox.mails.find()
    assert {"Status": "SUCCESS", "MessageId": mail.id} == result
    rendered = server.inbox.render(mail)
    assert ("Hello Zoë", "l, Zoë", "<b>Zoë</b>") == rendered
    assert mail.sending
    assert {"mailroom-action": "password_changed", "a": "2"} == dict(mail.sending.tags)
    assert "password_changed" == server.inbox.brief(mail).action  # which has no link
    shown = ask(server.url, f"/api/mails/{mail.id}").json
    assert ["Reply-To", "help@acme.example, sales@acme.example"] in shown["headers"]
    assert ("", ["send", "delivery"]) == (shown["template"], [event["event"] for event in shown["events"]])
    page = ask(server.url, f"/mails/{mail.id}?view=request", accept="text/html").text
    assert "content in the call" in page
    assert "DefaultContent.Template.TemplateContent.Subject" in page


def test_a_stored_template_can_be_named(server: InboxServer, ses: Any) -> None:
    template = {
        "TemplateName": "hello",
        "SubjectPart": "Hello {{#if login}}{{login}}{{/if}}",
        "TextPart": "x",
    }
    ses_client(server.url).create_template(Template=template)
    named = {"Template": {"TemplateName": "hello", "TemplateData": "{}"}}
    assert ["SUCCESS"] * 2 == [one["Status"] for one in bulk(ses, DefaultContent=named)]
    (mail, _) = server.inbox.mails.find()
    assert "Hello ada" == server.inbox.brief(mail).subject
    with pytest.raises(ClientError) as error:
        bulk(ses, DefaultContent={"Template": {"TemplateName": "other"}})
    assert ("NotFoundException", 404) == refused(error)


def test_a_mail_without_a_variable_is_accepted_and_dropped(server: InboxServer, ses: Any) -> None:
    bulk(ses, [entry("zoe@example.com", login="zoe")], ConfigurationSetName="default")
    (mail,) = server.inbox.mails.find()
    assert (True, 1) == (mail.dropped, server.inbox.counts.dropped)
    assert ["rendering_failure"] == [event.kind for event in mail.events]


@pytest.mark.parametrize(
    ("changes", "code", "status"),
    [
        ({"DefaultContent": content(Text="{{#if login}}a{{/if}}")}, "BadRequestException", 400),
        ({"DefaultContent": content(Subject="{{! a }}")}, "BadRequestException", 400),
        ({"DefaultContent": content(Html="{{{login}}}")}, "BadRequestException", 400),
        ({"DefaultContent": content(Text="", Html="")}, "BadRequestException", 400),
        ({"DefaultContent": content(Html="x" * 500_001)}, "BadRequestException", 400),
        ({"DefaultContent": {}}, "BadRequestException", 400),
        ({"BulkEmailEntries": people(51)}, "BadRequestException", 400),
        ({"BulkEmailEntries": []}, "BadRequestException", 400),
        ({"FromEmailAddress": "nobody"}, "BadRequestException", 400),
        ({"FromEmailAddress": ""}, "BadRequestException", 400),
        ({"ConfigurationSetName": "letters"}, "NotFoundException", 404),
        ({"DefaultEmailTags": [{"Name": "a b", "Value": "c"}]}, "BadRequestException", 400),
    ],
)
def test_what_ses_refuses_is_refused_in_its_words(
    server: InboxServer, ses: Any, changes: dict[str, Any], code: str, status: int
) -> None:
    with pytest.raises(ClientError) as error:
        bulk(ses, **changes)
    assert (code, status) == refused(error)
    assert 0 == server.inbox.counts.accepted


def test_limits_and_pause_are_in_the_words_of_this_version(server: InboxServer, ses: Any) -> None:
    server.inbox.limits.rate = 1
    with pytest.raises(ClientError) as error:
        bulk(ses)
    assert ("TooManyRequestsException", 429) == refused(error)
    server.inbox.limits.rate, server.inbox.limits.quota_24h = 1000, 1
    assert ["SUCCESS", "ACCOUNT_DAILY_QUOTA_EXCEEDED"] == [one["Status"] for one in bulk(ses)]
    server.inbox.account.paused = True
    with pytest.raises(ClientError) as error:
        bulk(ses)
    assert ("SendingPausedException", 400) == refused(error)
    server.inbox.account.paused, server.inbox.account.identities = False, {"other.example"}
    with pytest.raises(ClientError, match=r"not verified.*noreply@acme\.example") as error:
        bulk(ses)
    assert ("MessageRejected", 400) == refused(error)


@pytest.mark.parametrize("status", STATUSES[1:])
def test_a_status_refuses_one_recipient(server: InboxServer, ses: Any, status: str) -> None:
    server.inbox.faults.add(Fault("status", status=status, recipient="person2@example.com", message="why"))
    assert [("SUCCESS", None), (SECOND[status], "why"), ("SUCCESS", None)] == [
        (one["Status"], one.get("Error")) for one in bulk(ses, people(3))
    ]


def test_an_address_that_is_none_is_refused_alone(ses: Any) -> None:
    found = bulk(ses, [entry("zoe@example.com"), entry("nobody"), entry("max@example.com")])
    assert ["SUCCESS", "INVALID_PARAMETER", "SUCCESS"] == [one["Status"] for one in found]


@pytest.mark.parametrize("name", BY_NAME)
def test_each_switch_works_for_this_version(server: InboxServer, ses: Any, name: str) -> None:
    if name in ("hang", "cut", "lose"):
        pytest.skip("the suite of the transports has them")
    turn(server.inbox, BY_NAME[name], True)
    try:
        statuses = {one["Status"] for one in bulk(ses, ConfigurationSetName="default")}
    except (ClientError, KeyError) as error:
        statuses = {error.response["Error"]["Code"] if isinstance(error, ClientError) else "unreadable"}
    expected = {
        "throttle": "TooManyRequestsException",
        "pause": "SendingPausedException",
        "reject": "MESSAGE_REJECTED",
        "transient": "TRANSIENT_FAILURE",
        "unavailable": "503",
        "garbage": "unreadable",
    }
    assert {expected.get(name, "SUCCESS")} == statuses


def test_the_account_is_described(server: InboxServer, ses: Any) -> None:
    server.inbox.limits.rate, server.inbox.limits.quota_24h = 14, 50_000
    bulk(ses)
    account = ses.get_account()
    assert {"Max24HourSend": 50_000.0, "MaxSendRate": 14.0, "SentLast24Hours": 2.0} == account["SendQuota"]
    assert (True, True) == (account["SendingEnabled"], account["ProductionAccessEnabled"])
    server.inbox.account.paused, server.inbox.limits.quota_24h, server.inbox.limits.rate = True, 200, 1
    account = ses.get_account()
    assert (False, False) == (account["SendingEnabled"], account["ProductionAccessEnabled"])
    server.inbox.limits.quota_24h = None
    assert -1.0 == ses.get_account()["SendQuota"]["Max24HourSend"]
    assert [] == ses.list_suppressed_destinations()["SuppressedDestinationSummaries"]


def test_identities_and_configuration_sets_are_described(server: InboxServer, ses: Any) -> None:
    server.inbox.account.identities = {"acme.example", "a+b@acme.example"}
    for name in ("acme.example", "a+b@acme.example"):
        assert ses.get_email_identity(EmailIdentity=name)["VerifiedForSendingStatus"]
    assert "default" == ses.get_configuration_set(ConfigurationSetName="default")["ConfigurationSetName"]
    (destination,) = ses.get_configuration_set_event_destinations(ConfigurationSetName="default")[
        "EventDestinations"
    ]
    assert (True, True) == (destination["Enabled"], "RENDERING_FAILURE" in destination["MatchingEventTypes"])
    missing = [
        (ses.get_email_identity, {"EmailIdentity": "other.example"}),
        (ses.get_configuration_set, {"ConfigurationSetName": "letters"}),
        (ses.get_configuration_set_event_destinations, {"ConfigurationSetName": "letters"}),
    ]
    for call, names in missing:
        with pytest.raises(ClientError) as error:
            call(**names)
        assert ("NotFoundException", 404) == refused(error)


@pytest.mark.slow
def test_memory_for_content_of_calls_is_bounded() -> None:
    inbox = Inbox()
    body = {
        "FromEmailAddress": "a@acme.example",
        "BulkEmailEntries": [{"Destination": {"ToAddresses": ["b@acme.example"]}}],
    }
    for number in range(560):
        text = f"{number}" + "x" * 480_000
        whole = body | {"DefaultContent": {"Template": {"TemplateContent": {"Text": text}}}}
        assert 200 == send(inbox, json.dumps(whole).encode()).status
    assert (560, True) == (inbox.counts.accepted, len(inbox.mails) < 540)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.just("{{a}}"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["FromEmailAddress", "DefaultContent", "BulkEmailEntries", "DefaultEmailTags", "ReplyToAddresses",
     "ConfigurationSetName", "Template", "TemplateContent", "TemplateData", "Subject", "Text", "Html",
     "Destination", "ToAddresses", "ReplacementTags", "ReplacementEmailContent", "Name", "Value"]
)  # fmt: skip
calls = st.recursive(
    json_values,
    lambda inner: st.dictionaries(NAMES, inner, max_size=4) | st.lists(inner, max_size=2),
    max_leaves=20,
)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=60) | calls.map(lambda value: json.dumps(value).encode()))
def test_any_body_gets_an_answer_in_json(body: bytes) -> None:
    found = send(Inbox(), body)
    assert found.status in (200, 400, 404)
    answer = json.loads(found.body)
    assert bool(found.error) is ("message" in answer) is (found.status != 200)


@pytest.mark.parametrize("path", LOOKS)
def test_any_name_gets_an_answer_in_json(path: str) -> None:
    for name in ("", "ü", "\ud800", "a" * 10_000, "../../x"):
        assert isinstance(json.loads(look(Inbox(identities=[]), path, name).body), dict)


def test_a_hostile_body_is_no_error_of_the_server(server: InboxServer) -> None:
    for body in (b"", b"[" * 100_000, b'{"FromEmailAddress": "\\ud800"}', b"\xff", b"null", b"1e999"):
        answer = ask(server.url, SEND, "POST", body)
        assert (400, "SerializationException") == (answer.status, answer.headers["x-amzn-errortype"])
    assert 405 == ask(server.url, SEND).status
