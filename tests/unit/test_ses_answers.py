"""The class of each answer of SES, row by row: by both versions of its API, from a server that gives it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import botocore.session
import pytest

from mailroom.answers import Answer, Result, Scope
from mailroom.inbox.faults import Fault
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.server import InboxServer
from mailroom.inbox.sesv2 import STATUSES as SECOND
from mailroom.transports import ses_answers
from mailroom.transports.transport import Transport, open_transport
from support.messages import message
from support.senders import aws, settings, with_templates

TEN: Final = [message(number) for number in range(10)]

SENT: Final = (Result.SENT, Scope.RECIPIENT)
REJECTED: Final = (Result.REJECTED, Scope.RECIPIENT)
ONE_OF_THE_CALL: Final = (Result.REJECTED, Scope.CALL)
THROTTLED: Final = (Result.THROTTLED, Scope.ACCOUNT)
PAUSED: Final = (Result.PAUSED, Scope.ACCOUNT)
NO_TEMPLATE: Final = (Result.PAUSED, Scope.ACTION)
UNKNOWN: Final = (Result.UNKNOWN, Scope.ACCOUNT)

# What becomes of one recipient, by the statuses of version 1.
OF_RECIPIENTS: Final = {
    "MessageRejected": REJECTED,
    "InvalidParameterValue": REJECTED,
    "TransientFailure": (Result.TRANSIENT, Scope.RECIPIENT),
    "Failed": (Result.FAILED, Scope.RECIPIENT),
    "AccountThrottled": THROTTLED,
    "TemplateDoesNotExist": NO_TEMPLATE,
    "MailFromDomainNotVerified": PAUSED,
    "ConfigurationSetDoesNotExist": PAUSED,
    "ConfigurationSetSendingPaused": PAUSED,
    "AccountSuspended": PAUSED,
    "AccountDailyQuotaExceeded": PAUSED,
    "AccountSendingPaused": PAUSED,
    "InvalidSendingPoolName": PAUSED,
}

# What becomes of a whole call, by its error and the HTTP status.
OF_CALLS: Final[dict[str, dict[tuple[str, int], tuple[Result, Scope]]]] = {
    "ses": {
        ("MessageRejected", 400): ONE_OF_THE_CALL,
        ("InvalidParameterValue", 400): ONE_OF_THE_CALL,
        ("Throttling", 400): THROTTLED,
        ("TemplateDoesNotExist", 400): NO_TEMPLATE,
        ("MailFromDomainNotVerifiedException", 400): PAUSED,
        ("ConfigurationSetDoesNotExist", 400): PAUSED,
        ("ConfigurationSetSendingPausedException", 400): PAUSED,
        ("AccountSendingPausedException", 400): PAUSED,
        ("LimitExceeded", 400): PAUSED,
        ("AccessDenied", 403): PAUSED,
        ("InvalidClientTokenId", 403): PAUSED,
        ("SignatureDoesNotMatch", 403): PAUSED,
        ("InternalFailure", 500): UNKNOWN,
        ("Unheard", 400): (Result.FAILED, Scope.CALL),
    },
    "sesv2": {
        ("MessageRejected", 400): ONE_OF_THE_CALL,
        ("BadRequestException", 400): ONE_OF_THE_CALL,
        ("TooManyRequestsException", 429): THROTTLED,
        ("NotFoundException", 404): PAUSED,
        ("MailFromDomainNotVerifiedException", 400): PAUSED,
        ("SendingPausedException", 400): PAUSED,
        ("AccountSuspendedException", 400): PAUSED,
        ("LimitExceededException", 400): PAUSED,
        ("AccessDeniedException", 403): PAUSED,
        ("UnrecognizedClientException", 403): PAUSED,
        ("InvalidSignatureException", 403): PAUSED,
        ("MissingAuthenticationTokenException", 403): PAUSED,
        ("ExpiredTokenException", 403): PAUSED,
        ("InternalServiceErrorException", 500): UNKNOWN,
        ("Unheard", 400): (Result.FAILED, Scope.CALL),
    },
}


@contextmanager
def opened(name: str, output: Path, patch: pytest.MonkeyPatch) -> Iterator[tuple[InboxServer, Transport]]:
    with InboxServer(inbox=with_templates(Inbox())) as server:
        for variable, value in aws(server.url).items():
            patch.setenv(variable, value)
        transport = open_transport(settings(output, TRANSPORT=name))
        yield server, transport
        transport.close()


def classes(answers: list[Answer]) -> list[tuple[Result, Scope]]:
    return [(answer.result, answer.scope) for answer in answers]


@pytest.mark.parametrize("transport", ["ses", "sesv2"])
def test_each_status_of_a_recipient_has_its_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    with opened(transport, tmp_path, monkeypatch) as (server, sender):
        for place, status in enumerate(OF_RECIPIENTS):
            server.inbox.faults.clear()
            server.inbox.faults.add(Fault("status", status=status, recipient=TEN[place % 10].email))
            answers = sender.send(TEN)
            expected = [SENT] * 10
            expected[place % 10] = OF_RECIPIENTS[status]
            assert expected == classes(answers), status
            word = status if transport == "ses" else SECOND[status]
            assert answers[place % 10].detail.startswith(word)


@pytest.mark.parametrize("transport", ["ses", "sesv2"])
def test_one_call_may_have_every_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    everybody = [message(number) for number in range(2 * len(OF_RECIPIENTS))]
    with opened(transport, tmp_path, monkeypatch) as (server, sender):
        for one, status in zip(everybody[::2], OF_RECIPIENTS, strict=True):
            server.inbox.faults.add(Fault("status", status=status, recipient=one.email))
        answers = sender.send(everybody)
        expected = [kind for status in OF_RECIPIENTS.values() for kind in (status, SENT)]
        assert expected == classes(answers)
        assert len(OF_RECIPIENTS) == len({one.message_id for one in answers if one.message_id})
        assert {one.email: 1 for one in everybody[1::2]} == server.inbox.counts.by_recipient


@pytest.mark.parametrize("transport", ["ses", "sesv2"])
def test_each_error_of_a_call_has_its_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    with opened(transport, tmp_path, monkeypatch) as (server, sender):
        for (code, status), expected in OF_CALLS[transport].items():
            server.inbox.faults.clear()
            server.inbox.faults.add(Fault("error", code=code, http_status=status, message="why"))
            answers = sender.send(TEN)
            assert [expected] * 10 == classes(answers), code
            assert answers[0].detail.startswith(f"{code}: why")
        assert not server.inbox.counts.by_recipient


@pytest.mark.parametrize("transport", ["ses", "sesv2"])
@pytest.mark.parametrize(
    ("code", "words", "expected"),
    [
        (
            "MessageRejected",
            "Email address is not verified. … region US-EAST-1: noreply@acme.example",
            PAUSED,
        ),
        ("MessageRejected", "Sending paused for this account", PAUSED),
        (
            "MessageRejected",
            "Email address is not verified. … US-EAST-1: person1@example.com",
            ONE_OF_THE_CALL,
        ),
        ("Throttling", "Daily message quota exceeded.", PAUSED),
        ("Throttling", "Maximum sending rate exceeded.", THROTTLED),
        ("InvalidParameterValue", "Template contains unsupported operations.", NO_TEMPLATE),
    ],
)
def test_the_words_of_an_error_may_change_its_class(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    transport: str,
    code: str,
    words: str,
    expected: tuple[Result, Scope],
) -> None:
    with opened(transport, tmp_path, monkeypatch) as (server, sender):
        server.inbox.faults.add(Fault("error", code=code, message=words))
        assert [expected] * 10 == classes(sender.send(TEN))


def model(service: str) -> Any:
    return botocore.session.Session().get_service_model(service)


@pytest.mark.parametrize(("service", "call"), [("ses", "SendBulkTemplatedEmail"), ("sesv2", "SendBulkEmail")])
def test_the_tables_have_every_error_and_status_of_the_model(service: str, call: str) -> None:
    statuses = model(service).shape_for("BulkEmailStatus").enum
    assert set(statuses) <= ses_answers.STATUSES.keys()
    errors = [
        shape.metadata.get("error", {}).get("code", shape.name)
        for shape in model(service).operation_model(call).error_shapes
    ]
    assert errors
    assert set(errors) <= ses_answers.CODES.keys()


def test_the_same_status_has_the_same_class_in_both_versions() -> None:
    for first, second in SECOND.items():
        assert ses_answers.STATUSES[first] == ses_answers.STATUSES[second]
    assert OF_RECIPIENTS.keys() | {"Success"} == SECOND.keys()
    assert set(model("sesv2").shape_for("BulkEmailStatus").enum) == set(SECOND.values())
