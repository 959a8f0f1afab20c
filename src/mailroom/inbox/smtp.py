"""The inbox over SMTP: a mail that comes whole goes the way of a call with as many destinations.

It takes any user and password, so that a client which wants to sign in can. Limits, a paused account
and faults hold here as for SES, in SMTP's words; the client sees one answer for all its recipients,
the worst. Whatever it sends, it gets an answer or a closed connection, never a traceback.
"""

from __future__ import annotations

import asyncio
import re
import weakref
from collections.abc import Callable
from typing import Any, Final

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session

from mailroom.inbox.calls import Answer, Destination, Request
from mailroom.inbox.faults import Fault
from mailroom.inbox.inbox import THROTTLES, Inbox
from mailroom.inbox.messages import read_header

LARGEST_MAIL: Final = 10_000_000
MAX_RECIPIENTS: Final = 50
NAME: Final = "inbox.mailroom"
# Where SES's API has a code, its SMTP has words.
WORDS: Final = {
    "Throttling": "454 Throttling failure: Maximum sending rate exceeded.",
    "AccountDailyQuotaExceeded": "454 Throttling failure: Daily message quota exceeded.",
    "AccountThrottled": "454 Throttling failure: Maximum sending rate exceeded.",
}
PASSING: Final = (
    "TransientFailure",
    "ServiceUnavailable",
    "InternalFailure",
    "AccountSendingPausedException",
)


class SmtpInbox:
    """Makes a protocol for each connection; ``told`` is called after each mail, before its answer."""

    def __init__(self, inbox: Inbox, told: Callable[[], None]) -> None:
        self._inbox = inbox
        self._told = told
        self._open: weakref.WeakSet[_Protocol] = weakref.WeakSet()

    def connection(self) -> SMTP:
        """The protocol of a new connection."""
        protocol = _Protocol(
            self,
            hostname=NAME,
            ident="Mailroom's inbox",
            data_size_limit=LARGEST_MAIL,
            enable_SMTPUTF8=True,
            auth_require_tls=False,
            authenticator=_anybody,
            loop=asyncio.get_running_loop(),
        )
        self._open.add(protocol)
        return protocol

    def abort(self) -> None:
        """Cut all connections."""
        for protocol in list(self._open):
            protocol.abort()

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's
        self, _: SMTP, __: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Take a recipient."""
        if len(envelope.rcpt_tos) >= MAX_RECIPIENTS:
            return f"452 A mail has at most {MAX_RECIPIENTS} recipients"
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 OK"

    async def handle_DATA(  # noqa: N802 - aiosmtpd's
        self, server: SMTP, _: Session, envelope: Envelope
    ) -> str:
        """Take a mail."""
        content = envelope.content if isinstance(envelope.content, bytes) else b""
        answer = self._inbox.send_bulk(_request(envelope, content or b"\r\n"))
        self._told()
        if answer.fault and answer.fault.kind in ("hang", "cut", "cut_body"):
            if answer.fault.kind == "hang":
                await asyncio.sleep(answer.fault.seconds)
            if isinstance(server, _Protocol):
                server.abort()
            await asyncio.Event().wait()  # until the connection is lost
        return _line(_reply(answer))


class _Protocol(SMTP):
    def abort(self) -> None:
        """Cut the connection."""
        if isinstance(self.transport, asyncio.Transport) and not self.transport.is_closing():
            self.transport.abort()


def _anybody(*_: Any) -> AuthResult:
    return AuthResult(success=True)


def _request(envelope: Envelope, content: bytes) -> Request:
    sender = envelope.mail_from or ""
    commands = [f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{address}>" for address in envelope.rcpt_tos), "DATA"]
    raw = "\r\n".join(commands).encode("utf-8", "replace") + b"\r\n" + content
    author = read_header(content, "From")
    destinations = [Destination((address,), "") for address in envelope.rcpt_tos]
    return Request(author if "@" in author else sender, "", "", "", destinations, raw, content)


def _reply(answer: Answer) -> str:
    if answer.fault:
        return _garbled(answer.fault)
    if answer.refusal:
        return _refusal(answer.refusal.code, answer.refusal.message, answer.refusal.status)
    for status in answer.statuses:
        if not status.message_id:
            return _refusal(status.status, status.error, 400)
    return f"250 Ok {answer.statuses[-1].message_id}"


def _refusal(code: str, message: str, status: int) -> str:
    if code in THROTTLES:
        code = "Throttling"
    passing = code in PASSING or status >= 500
    return WORDS.get(code) or f"{451 if passing else 554} {code}: {message}"


def _garbled(fault: Fault) -> str:
    """What goes out instead of an answer."""
    return f"{451 if fault.http_status != 400 else 554} {fault.body}" if fault.kind == "http" else fault.body


def _line(text: str) -> str:
    """One line of ASCII, as long as SMTP has them."""
    return re.sub(r"[^\x20-\x7e]+", " ", text)[:500] or " "
