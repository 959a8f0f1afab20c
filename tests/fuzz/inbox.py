"""The inbox's HTTP: whatever request h11 lets through gets an answer below 500, and no exception.

The request goes to the application as uvicorn would hand it over, after which the client leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any, Final
from urllib.parse import unquote

import h11

from mailroom.inbox.app import create_app
from mailroom.inbox.changes import Changes
from mailroom.inbox.inbox import Inbox

HOST: Final = b"Host: 127.0.0.1\r\n"
FORM: Final = b"Content-Type: application/x-www-form-urlencoded\r\n"


def request(line: bytes, body: bytes = b"", headers: bytes = b"") -> bytes:
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    return line + b" HTTP/1.1\r\n" + HOST + headers + length + b"\r\n" + body


SEND: Final = (
    b"Action=SendBulkTemplatedEmail&Version=2010-12-01&Source=a%40b.example&Template=hello"
    b"&DefaultTemplateData=%7B%22login%22%3A%22ada%22%7D"
    b"&Destinations.member.1.Destination.ToAddresses.member.1=c%40d.example"
)
TAGGED: Final = (
    b"&ConfigurationSetName=default&DefaultTags.member.1.Name=a&DefaultTags.member.1.Value=b"
    b"&Destinations.member.1.ReplacementTags.member.1.Name=a"
)
SEND_V2: Final = (
    b'{"FromEmailAddress": "a@b.example", "DefaultContent": {"Template": {"TemplateContent":'
    b' {"Subject": "a", "Text": "{{login}}", "Html": "b"}, "TemplateData": "{}"}}, "BulkEmailEntries":'
    b' [{"Destination": {"ToAddresses": ["c@d.example"]}, "ReplacementTags": [{"Name": "a", "Value": "b"}],'
    b' "ReplacementEmailContent": {"ReplacementTemplate": {"ReplacementTemplateData": "{}"}}}]}'
)
SQS: Final = b"X-Amz-Target: AmazonSQS."
CREATE: Final = (
    b"Action=CreateTemplate&Template.TemplateName=hi&Template.SubjectPart=%7B%7Blogin%7D%7D"
    b"&Template.TextPart=a&Template.HtmlPart=b"
)
SEEDS: Final = (
    request(b"POST /", SEND, FORM),
    request(b"POST /", CREATE, FORM),
    request(b"POST /v2/email/outbound-bulk-emails", SEND_V2),
    request(b"GET /v2/email/account"),
    request(b"GET /v2/email/identities/a%40b.example"),
    request(b"GET /", headers=b"Accept: text/html\r\n"),
    request(b"GET /list?q=ada&before=1"),
    request(b"GET /api/mails?recipient=a%40b&limit=10&after=x"),
    request(b"GET /api/mails/wait?timeout=0&since=2026-01-01T00:00:00Z"),
    request(b"GET /mails/0-0/html?scheme=dark"),
    request(b"POST /api/faults", b'{"kind": "status", "status": 503}'),
    request(b"POST /api/faults", b'{"kind": "event", "event": "delay", "after_s": 1}'),
    request(b"POST /api/mails/0-0/events", b'{"event": "bounce"}'),
    request(b"POST /", SEND + TAGGED, FORM),
    request(
        b"POST /", b'{"QueueUrl": "/mailroom-events", "WaitTimeSeconds": 1}', SQS + b"ReceiveMessage\r\n"
    ),
    request(
        b"POST /",
        b'{"QueueUrl": "/mailroom-events", "Entries": [{"Id": "0"}]}',
        SQS + b"DeleteMessageBatch\r\n",
    ),
    request(b"PATCH /api/settings", b'{"rate": 1, "paused": true}'),
    request(b"POST /switches/paused", b"on=1&back=/", FORM + b"Sec-Fetch-Site: same-origin\r\n"),
)
WORDS: Final = (
    b"%",
    b"%ff",
    b"%00",
    b"&",
    b"=",
    b"{{",
    b"}}",
    b"\\ud800",
    b"\r\n",
    b"[" * 99,
    b"1e999",
    b"\xff",
    b"-1",
)
_LOOP: Final = asyncio.new_event_loop()


def check(content: bytes) -> None:
    """Ask a fresh inbox, which keeps a template and no mails."""
    connection = h11.Connection(h11.SERVER)
    asked: h11.Request | None = None
    body = b""
    try:
        connection.receive_data(content)
        connection.receive_data(b"")
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Request):
                asked = event
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                return
    except h11.RemoteProtocolError:
        return
    if asked is not None and (status := _LOOP.run_until_complete(_answer(asked, body))) >= 500:
        raise AssertionError(f"the inbox answered {status}")


async def _answer(asked: h11.Request, body: bytes) -> int:
    inbox, statuses = Inbox(), [0]
    inbox.account.put_template("hello", ("Hello {{login}}", "{{login}}", "<b>{{login}}</b>"), new=True)
    app = create_app(inbox, lambda: None, Changes(), "127.0.0.1", ())
    path, _, query = asked.target.partition(b"?")
    scope: dict[str, Any] = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
        "scheme": "http", "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 9), "root_path": "",
        "method": asked.method.decode("ascii"), "path": unquote(path.decode("ascii")), "raw_path": path,
        "query_string": query, "headers": [(name.lower(), value) for name, value in asked.headers],
        "state": {"transport": None},
    }  # fmt: skip
    coming: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> MutableMapping[str, Any]:
        return coming.pop() if coming else {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async with asyncio.timeout(30):
        await app(scope, receive, send)
    return statuses[-1]
