"""Calls that repeat what botocore prepared, to an HTTP server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

import botocore.session
import pytest
from botocore import xform_name
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from mailroom.transports.aws_calls import AwsCalls, form
from mailroom.transports.aws_client import Client, Service, open_client

BULK: Final = {
    "Source": "Müller & Co <a@acme.example>",
    "Template": "t",
    "DefaultTemplateData": "{}",
    "Destinations": [{"Destination": {"ToAddresses": ["b+c@acme.example"]}, "ReplacementTemplateData": "{}"}],
}
BULK_V2: Final = {
    "DefaultContent": {"Template": {"TemplateName": "t", "TemplateData": "{}"}},
    "BulkEmailEntries": [{"Destination": {"ToAddresses": ["b@acme.example"]}}],
}
SENT: Final = (
    "<SendBulkTemplatedEmailResponse><SendBulkTemplatedEmailResult><Status><member><Status>Success</Status>"
    "</member></Status></SendBulkTemplatedEmailResult></SendBulkTemplatedEmailResponse>"
)
CALLS: Final[list[tuple[Service, str, dict[str, Any], str, str]]] = [
    ("SQS", "ReceiveMessage", {"QueueUrl": "http://q/ü"}, '{"Messages": [{"Body": "ü"}]}', "Messages"),
    (
        "SES",
        "SendBulkTemplatedEmail",
        BULK,
        SENT,
        "Status",
    ),
    ("SESV2", "SendBulkEmail", BULK_V2, '{"BulkEmailEntryResults": [{}]}', "BulkEmailEntryResults"),
]
NAMES: Final = {"SQS": "sqs", "SES": "ses", "SESV2": "ses"}


class Seen(NamedTuple):
    path: str
    headers: dict[str, str]
    body: bytes


class Server(ThreadingHTTPServer):
    """Records the requests, and returns the answer that a test sets."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[Seen] = []
        self.status, self.answer = 200, b""
        self.headers: dict[str, str] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.seen.append(Seen(self.path, headers, body))
        self.send_response(self.server.status)
        for name, value in {**self.server.headers, "Content-Length": str(len(self.server.answer))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.server.answer)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.02])
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def opened(server: Server, service: Service, token: str | None) -> tuple[Client, Credentials]:
    session = botocore.session.Session()
    session.set_credentials("AKID", "secret", token)
    client = open_client(
        service,
        answer_timeout_ms=5000,
        connections=1,
        session=session,
        region="eu-west-3",
        endpoint_url=server.url,
    )
    return client, Credentials("AKID", "secret", token)


def signature_of(seen: Seen, url: str, name: str, credentials: Credentials) -> str:
    """What botocore signs it with: the Authorization header."""
    names = seen.headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    headers = {one: seen.headers[one] for one in names}
    request = AWSRequest("POST", url + seen.path, headers=headers, data=seen.body)
    request.context["timestamp"] = seen.headers["x-amz-date"]
    auth = SigV4Auth(credentials, name, "eu-west-3")
    signature = auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)
    listed = ";".join(names)
    return f"AWS4-HMAC-SHA256 Credential={auth.scope(request)}, SignedHeaders={listed}, Signature={signature}"


@pytest.mark.parametrize("token", [None, "session"])
@pytest.mark.parametrize(
    ("service", "operation", "parameters", "answer", "part"), CALLS, ids=[one[1] for one in CALLS]
)
def test_a_repeated_call_is_botocores(
    server: Server,
    service: Service,
    operation: str,
    parameters: dict[str, Any],
    answer: str,
    part: str,
    token: str | None,
) -> None:
    server.answer = answer.encode()
    client, credentials = opened(server, service, token)
    replies: list[dict[str, Any]] = []
    calls = AwsCalls(client, replies.append)
    found = [calls.call(credentials.get_frozen_credentials(), operation, parameters) for _ in range(3)]
    assert found[0][part]
    assert found[0][part] == found[1][part] == found[2][part]
    assert [server.answer] * 3 == [reply["body"] for reply in replies]
    first, *repeated = server.seen
    own = {"authorization", "x-amz-date", "amz-sdk-invocation-id", "amz-sdk-request"}
    assert "amz-sdk-invocation-id" in first.headers
    for seen in repeated:
        assert "amz-sdk-invocation-id" not in seen.headers  # it is a repeated one
        assert (first.path, first.body) == (seen.path, seen.body)
        kept = {name: value for name, value in first.headers.items() if name not in own}
        assert kept == {name: value for name, value in seen.headers.items() if name not in own}
        assert (token or "") == seen.headers.get("x-amz-security-token", "")
    for seen in server.seen:
        assert signature_of(seen, server.url, NAMES[service], credentials) == seen.headers["authorization"]


def test_new_credentials_sign_at_once(server: Server) -> None:
    server.answer = b"{}"
    client, credentials = opened(server, "SQS", None)
    calls = AwsCalls(client)
    other = Credentials("OTHER", "another secret", "a token")
    for one in (credentials, other, credentials):
        calls.call(one.get_frozen_credentials(), "ReceiveMessage", {"QueueUrl": "q"})
    assert signature_of(server.seen[1], server.url, "sqs", other) == server.seen[1].headers["authorization"]
    assert (
        signature_of(server.seen[2], server.url, "sqs", credentials)
        == server.seen[2].headers["authorization"]
    )


SQS_FAULT: Final = (
    b'{"__type": "com.amazonaws.sqs#QueueDoesNotExist", "message": "The specified queue does not exist."}'
)
SES_FAULT: Final = (
    b"<ErrorResponse><Error><Type>Sender</Type><Code>Throttling</Code>"
    b"<Message>Maximum sending rate exceeded.</Message></Error><RequestId>r</RequestId></ErrorResponse>"
)


@pytest.mark.parametrize(
    ("service", "operation", "parameters", "status", "headers", "fault"),
    [
        (
            "SQS",
            "ReceiveMessage",
            {"QueueUrl": "q"},
            400,
            {"x-amzn-query-error": "AWS.SimpleQueueService.NonExistentQueue;Sender"},
            SQS_FAULT,
        ),
        ("SQS", "ReceiveMessage", {"QueueUrl": "q"}, 400, {}, SQS_FAULT),
        ("SQS", "ReceiveMessage", {"QueueUrl": "q"}, 503, {}, b""),
        ("SES", "SendBulkTemplatedEmail", BULK, 400, {}, SES_FAULT),
        (
            "SESV2",
            "SendBulkEmail",
            BULK_V2,
            429,
            {"x-amzn-ErrorType": "TooManyRequestsException:http://x"},
            b'{"message": "slowly"}',
        ),
        ("SESV2", "SendBulkEmail", BULK_V2, 502, {}, b"<html>Bad gateway</html>"),
        ("SES", "SendBulkTemplatedEmail", BULK, 502, {}, b"<html>Bad gateway</html>"),
    ],
    ids=["sqs-query", "sqs-json", "sqs-empty", "ses", "sesv2", "sesv2-html", "ses-html"],
)
def test_a_fault_is_botocores(
    server: Server,
    service: Service,
    operation: str,
    parameters: dict[str, Any],
    status: int,
    headers: dict[str, str],
    fault: bytes,
) -> None:
    client, credentials = opened(server, service, None)
    calls = AwsCalls(client)
    server.answer = {"SES": SENT.encode()}.get(service, b"{}")
    calls.call(credentials.get_frozen_credentials(), operation, parameters)
    server.status, server.headers, server.answer = status, headers, fault
    with pytest.raises(ClientError) as expected:
        getattr(client, xform_name(operation))(**parameters)
    with pytest.raises(ClientError) as found:
        calls.call(credentials.get_frozen_credentials(), operation, parameters)
    assert expected.type is found.type
    assert str(expected.value).replace(" (reached max retries: 0)", "") == str(found.value)
    assert expected.value.response["Error"] == found.value.response["Error"]


def test_an_unusual_signature_stays_botocores(server: Server) -> None:
    server.answer = b"{}"
    client, credentials = opened(server, "SQS", None)
    calls = AwsCalls(client)
    client.meta.events.register_first(
        "before-send.sqs", lambda request, **_: request.headers.update({"Authorization": "Bearer x"})
    )
    for _ in range(2):
        calls.call(credentials.get_frozen_credentials(), "ReceiveMessage", {"QueueUrl": "q"})
    assert all("amz-sdk-invocation-id" in seen.headers for seen in server.seen)


TEXTS: Final = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("%+ &=Āā~'\"\0"))


@given(st.dictionaries(TEXTS, TEXTS | st.integers() | st.booleans()))
def test_a_form_is_written_as_by_the_standard_library(fields: dict[str, object]) -> None:
    assert urlencode(fields).encode() == form(fields)
