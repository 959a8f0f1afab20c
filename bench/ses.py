"""A local SES that answers after 30 ms and allows 1,000 recipients a second, for a call per mail.

A call costs it a tenth of what it costs `mailroom inbox`. It keeps counts and templates. It renders nothing
and checks no signature.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import parse_qsl, unquote_plus
from xml.sax.saxutils import escape

ANSWER_S: Final = 0.03
PER_S: Final = 1000

_ACTION: Final = re.compile(rb"(?:^|&)Action=(\w+)")
_RECIPIENT: Final = re.compile(rb"ToAddresses\.member\.1=([^&]+)")
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_NAMESPACE: Final = 'xmlns="http://ses.amazonaws.com/doc/2010-12-01/"'
_PARTS: Final = ("TemplateName", "SubjectPart", "TextPart", "HtmlPart")
_QUOTA: Final = (
    f"<Max24HourSend>100000000</Max24HourSend><MaxSendRate>{PER_S}</MaxSendRate>"
    "<SentLast24Hours>0</SentLast24Hours>"
)


class LocalSes:
    """Its counts.

    Attributes:
        url: its address.
        accepted: how many mails each address got.
        calls: calls that send mail, those that were throttled too.
        throttled: calls beyond the rate.
    """

    def __init__(self) -> None:
        self.url = ""
        self.accepted: Counter[str] = Counter()
        self.calls = 0
        self.throttled = 0
        self._mails = 0
        self._templates: dict[str, dict[str, str]] = {}
        self._allowed = float(PER_S)
        self._at = time.monotonic()

    @property
    def mails(self) -> int:
        """How many mails were accepted."""
        return self._mails

    @property
    def duplicates(self) -> int:
        """How many of them an address got beyond its first."""
        return self._mails - len(self.accepted)

    def answer(self, body: bytes) -> tuple[int, str]:
        """The status and the XML of a call."""
        found = _ACTION.search(body)
        action = found[1].decode() if found else ""
        if action == "GetSendQuota":
            return 200, _answer(action, _QUOTA)
        if action in ("CreateTemplate", "UpdateTemplate"):
            fields = dict(parse_qsl(body.decode()))
            parts = {part: fields.get(f"Template.{part}", "") for part in _PARTS}
            self._templates[parts["TemplateName"]] = parts
        if action == "GetTemplate":
            return self._template(dict(parse_qsl(body.decode())).get("TemplateName", ""))
        if action not in ("SendEmail", "SendTemplatedEmail", "SendBulkTemplatedEmail"):
            return 200, _answer(action, "")
        self.calls += 1
        recipients = [unquote_plus(one.decode()) for one in _RECIPIENT.findall(body)]
        now = time.monotonic()
        self._allowed = min(PER_S, self._allowed + (now - self._at) * PER_S)
        self._at = now
        if len(recipients) > self._allowed:
            self.throttled += 1
            return 400, _error("Throttling", "Maximum sending rate exceeded.")
        self._allowed -= len(recipients)
        first = self._mails
        self._mails += len(recipients)
        self.accepted.update(recipients)
        if action != "SendBulkTemplatedEmail":
            return 200, _answer(action, f"<MessageId>{first}</MessageId>")
        members = "".join(
            f"<member><Status>Success</Status><MessageId>{first + number}</MessageId></member>"
            for number in range(len(recipients))
        )
        return 200, _answer(action, f"<Status>{members}</Status>")

    def _template(self, name: str) -> tuple[int, str]:
        if name not in self._templates:
            return 400, _error("TemplateDoesNotExist", f"Template {name} does not exist.")
        parts = "".join(f"<{part}>{escape(text)}</{part}>" for part, text in self._templates[name].items())
        return 200, _answer("GetTemplate", f"<Template>{parts}</Template>")


def _error(code: str, message: str) -> str:
    return (
        f"<ErrorResponse {_NAMESPACE}><Error><Type>Sender</Type><Code>{code}</Code>"
        f"<Message>{escape(message)}</Message></Error><RequestId>0</RequestId></ErrorResponse>"
    )


def _answer(action: str, content: str) -> str:
    return (
        f"<{action}Response {_NAMESPACE}><{action}Result>{content}</{action}Result>"
        f"<ResponseMetadata><RequestId>0</RequestId></ResponseMetadata></{action}Response>"
    )


class _Connection(asyncio.Protocol):
    def __init__(self, ses: LocalSes) -> None:
        self._ses = ses
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = self._received[:end]
            if b"100-continue" in head.lower() and len(self._received) == end + 4:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            length = _LENGTH.search(head)
            whole = end + 4 + int(length[1] if length else 0)
            if len(self._received) < whole:
                return
            status, text = self._ses.answer(self._received[end + 4 : whole])
            self._received = self._received[whole:]
            content = text.encode()
            answer = (
                f"HTTP/1.1 {status} OK\r\nContent-Type: text/xml\r\nContent-Length: {len(content)}\r\n\r\n"
            )
            asyncio.get_running_loop().call_later(ANSWER_S, self._write, answer.encode() + content)

    def _write(self, answer: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(answer)


@contextmanager
def local_ses() -> Iterator[LocalSes]:
    """Run it in a thread."""
    ses = LocalSes()
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(loop.create_server(lambda: _Connection(ses), "127.0.0.1", 0))
    ses.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield ses
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.close()
