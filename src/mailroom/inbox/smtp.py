"""Receives mail over SMTP, as a call with one destination a recipient.

It accepts any user and password. Limits, a paused account and faults apply as for SES, and are reported
in SMTP's words. SMTP has one answer for all recipients: the first failure, if there is one.
"""

from __future__ import annotations

import asyncio
import re
import weakref
from collections.abc import Callable
from typing import Any, Final

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session

from mailroom.inbox.calls import BulkCall, CallAnswer, Destination
from mailroom.inbox.faults import Fault
from mailroom.inbox.inbox import THROTTLES, Inbox
from mailroom.inbox.messages import read_header

MAX_MAIL: Final = 10_000_000
MAX_RECIPIENTS: Final = 50
NAME: Final = "inbox.mailroom"
# SES's replies over SMTP, by the codes of its API.
WORDS: Final = {
    "Throttling": "454 Throttling failure: Maximum sending rate exceeded.",
    "AccountDailyQuotaExceeded": "454 Throttling failure: Daily message quota exceeded.",
    "AccountThrottled": "454 Throttling failure: Maximum sending rate exceeded.",
}
TEMPORARY: Final = (
    "TransientFailure",
    "ServiceUnavailable",
    "InternalFailure",
    "AccountSendingPausedException",
)


class SmtpInbox:
    """Makes a protocol for each connection; ``on_call`` is called after each mail, before its answer."""

    def __init__(self, inbox: Inbox, on_call: Callable[[], None]) -> None:
        self._inbox = inbox
        self._on_call = on_call
        self._open: weakref.WeakSet[_SmtpProtocol] = weakref.WeakSet()

    def connection(self) -> SMTP:
        """Return the protocol of a new connection."""
        protocol = _SmtpProtocol(
            self,
            hostname=NAME,
            ident="Mailroom's inbox",
            data_size_limit=MAX_MAIL,
            enable_SMTPUTF8=True,
            auth_require_tls=False,
            authenticator=_accept_any,
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
        """Add a recipient."""
        if len(envelope.rcpt_tos) >= MAX_RECIPIENTS:
            return f"452 A mail has at most {MAX_RECIPIENTS} recipients"
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 OK"

    async def handle_DATA(  # noqa: N802 - aiosmtpd's
        self, server: SMTP, _: Session, envelope: Envelope
    ) -> str:
        """Accept a mail, and return the answer."""
        content = envelope.content if isinstance(envelope.content, bytes) else b""
        answer = self._inbox.send_bulk(_call(envelope, content or b"\r\n"))
        self._on_call()
        if answer.fault and answer.fault.kind in ("hang", "cut", "cut_body"):
            if answer.fault.kind == "hang":
                await asyncio.sleep(answer.fault.seconds)
            if isinstance(server, _SmtpProtocol):
                server.abort()
            await asyncio.Event().wait()  # until the connection is lost
        return _line(_reply(answer))


class _SmtpProtocol(SMTP):
    def abort(self) -> None:
        """Cut the connection."""
        if isinstance(self.transport, asyncio.Transport) and not self.transport.is_closing():
            self.transport.abort()


def _accept_any(*_: Any) -> AuthResult:
    return AuthResult(success=True)


def _call(envelope: Envelope, content: bytes) -> BulkCall:
    sender = envelope.mail_from or ""
    commands = [f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{address}>" for address in envelope.rcpt_tos), "DATA"]
    raw = "\r\n".join(commands).encode("utf-8", "replace") + b"\r\n" + content
    author = read_header(content, "From")
    destinations = [Destination((address,), "") for address in envelope.rcpt_tos]
    return BulkCall(author if "@" in author else sender, "", "", "", destinations, raw, content)


def _reply(answer: CallAnswer) -> str:
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
    temporary = code in TEMPORARY or status >= 500
    return WORDS.get(code) or f"{451 if temporary else 554} {code}: {message}"


def _garbled(fault: Fault) -> str:
    """Return what is sent in place of an answer."""
    return f"{451 if fault.http_status != 400 else 554} {fault.body}" if fault.kind == "http" else fault.body


def _line(text: str) -> str:
    """Return the text as one line of ASCII, within SMTP's length."""
    return re.sub(r"[^\x20-\x7e]+", " ", text)[:500] or " "
