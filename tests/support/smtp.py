"""A mail server (aiosmtpd) in a thread; a test sets its answer at each step."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any, Final

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from mailroom.web.server import stop_accepting

DROP: Final = "(drop the connection)"
HANG: Final = "(say nothing)"
BAD_TOKEN: Final = "gibberish"


@dataclass(frozen=True)
class Received:
    """A mail that the server was given."""

    sender: str
    recipient: str
    content: bytes

    @property
    def message(self) -> EmailMessage:
        message = message_from_bytes(self.content, policy=policy.default)
        assert isinstance(message, EmailMessage)
        return message

    @property
    def parts(self) -> list[str]:
        return [part.get_content().replace("\r\n", "\n") for part in self.message.iter_parts()]


class MailServer:
    """What it was given and asked, and what it is to answer."""

    def __init__(self, *, password: str, starttls: ssl.SSLContext | None, smtputf8: bool) -> None:
        self.port = 0
        self.mails: list[Received] = []
        self.commands: list[str] = []
        self.connections = 0
        self.hanging = threading.Event()
        self.protocols: list[_Scripted] = []
        self._password = password
        self._starttls = starttls
        self._smtputf8 = smtputf8
        self._answers: list[tuple[str, str, str]] = []
        self.session_limit: tuple[int, str, str] | None = None

    def answer(self, step: str, reply: str, recipient: str = "") -> None:
        """Answer a step so: banner, EHLO, STARTTLS, AUTH, MAIL, RCPT, DATA, RSET, or message (its last dot).

        Args:
            step: the one.
            reply: a line, or DROP or HANG.
            recipient: only when it is this one's turn.
        """
        self._answers.append((step, reply, recipient))

    def limit_sessions(self, mails: int, step: str, reply: str) -> None:
        """Answer a step so in a session that has taken this number of mails."""
        self.session_limit = (mails, step, reply)

    def forget_answers(self) -> None:
        """Answer as a server should."""
        self._answers.clear()

    def planned(self, step: str, recipient: str) -> str:
        return next((text for at, text, whose in self._answers if at == step and whose in recipient), "")

    def connection(self) -> SMTP:
        """The protocol of a new connection."""
        options = {"tls_context": self._starttls} if self._starttls else {}
        return _Scripted(
            self,
            enable_SMTPUTF8=self._smtputf8,
            hostname="mail.test",
            auth_require_tls=False,
            auth_exclude_mechanism=() if self._password else ("LOGIN", "PLAIN"),
            authenticator=self._authenticate,
            **options,
        )

    def _authenticate(self, *called_with: Any) -> AuthResult:
        login = called_with[-1]
        assert isinstance(login, LoginPassword)
        return AuthResult(success=login.password.decode() == self._password, handled=False)


class _Scripted(SMTP):
    def __init__(self, owner: MailServer, **options: Any) -> None:
        super().__init__(self, **options)
        self._owner = owner
        self._greeted = False
        self._taken = 0
        owner.protocols.append(self)

    async def handle_DATA(self, _: SMTP, __: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's
        (recipient,) = envelope.rcpt_tos
        if planned := await self._planned("message", recipient):
            return planned
        assert isinstance(envelope.content, bytes)
        self._taken += 1
        self._owner.mails.append(Received(str(envelope.mail_from), recipient, envelope.content))
        return "250 OK"

    async def push(self, status: Any) -> None:
        if not self._greeted:
            self._greeted = True
            self._owner.connections += 1
            status = await self._planned("banner", "") or status
        await super().push(status)

    def abort(self) -> None:
        """Drop the connection."""
        # Of a TLS connection that is closed already, Python 3.11.2 cannot abort what is not there.
        if isinstance(self.transport, asyncio.Transport) and not self.transport.is_closing():
            self.transport.abort()

    async def _step(self, step: str, argument: str) -> bool:
        """Whether the step is over."""
        self._owner.commands.append(f"{step} {argument}".rstrip())
        recipients = [argument] if step == "RCPT" else self.envelope.rcpt_tos if self.envelope else []
        planned = await self._planned(step, "".join(recipients))
        if planned:
            await self.push(planned)
        return bool(planned)

    async def _planned(self, step: str, recipient: str) -> str:
        planned = self._owner.planned(step, recipient)
        if (limit := self._owner.session_limit) and self._taken >= limit[0] and step == limit[1]:
            planned = limit[2]
        if planned == DROP:
            self.abort()
        if planned in (DROP, HANG):
            self._owner.hanging.set()
            await asyncio.Event().wait()  # until the connection is lost
        return planned


def _scripted(step: str) -> Any:
    async def command(self: _Scripted, argument: str = "") -> None:
        if not await self._step(step, argument or ""):
            await getattr(SMTP, f"smtp_{step}")(self, argument)

    return command


for _name in ("EHLO", "HELO", "STARTTLS", "AUTH", "MAIL", "RCPT", "DATA", "RSET", "QUIT"):
    setattr(_Scripted, f"smtp_{_name}", _scripted(_name))


@contextmanager
def mail_server(
    *,
    password: str = "",
    tls: ssl.SSLContext | None = None,
    starttls: ssl.SSLContext | None = None,
    smtputf8: bool = True,
) -> Iterator[MailServer]:
    """A server on a port of loopback's."""
    owner = MailServer(password=password, starttls=starttls, smtputf8=smtputf8)
    started = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        server = await loop.create_server(owner.connection, "127.0.0.1", 0, ssl=tls)
        owner.port = server.sockets[0].getsockname()[1]
        started.set()
        await stop.wait()
        await stop_accepting([server])
        for protocol in owner.protocols:
            protocol.abort()
        await asyncio.sleep(0)  # lets the transports close
        for task in (others := asyncio.all_tasks() - {asyncio.current_task()}):
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=[serve()], daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield owner
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
