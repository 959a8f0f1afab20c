"""SMTP: one mail a recipient, rendered here, over a few connections that are kept.

Each step of the protocol is made by itself, so that each failure gets its class. Nothing is repeated
here. After a trouble that every mail would meet, the rest of a call gets that same outcome without
a try, and what was sent before stays sent.

A mail is UNKNOWN when the connection is lost between its last byte and the server's answer: nobody
can tell whether the server took it.
"""

from __future__ import annotations

import contextlib
import re
import smtplib
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from email.headerregistry import Address
from email.utils import parseaddr
from typing import Final
from uuid import uuid4

from mailroom.answers import Answer, Result, Scope
from mailroom.errors import TemplateError, TransportError
from mailroom.settings.sender import SES_SOURCE, SenderSettings, SmtpServer
from mailroom.templates import checks, mails, sources
from mailroom.transports.addresses import wire_address
from mailroom.transports.mime import compose
from mailroom.transports.redaction import DAILY_QUOTA, MAX_DETAIL, as_told
from mailroom.wire import Message

# Servers end connections that are silent or busy for long; no mail should meet that moment.
MAX_IDLE_S: Final = 30.0
MAILS_PER_CONNECTION: Final = 100
MAX_WAITS: Final = 2
# Authentication required, credentials invalid, encryption required (RFC 4954).
NOT_LET_IN: Final = (530, 535, 538)

# SES: "454 Throttling failure: Maximum sending rate exceeded"; elsewhere 4.7.28 is a limit on the rate.
_THROTTLE: Final = re.compile(r"throttl|\brate|\btoo (many|fast)|\b4\.7\.28\b", re.IGNORECASE)


class _Trouble(Exception):
    """Why nothing more can be sent in this call; ``own`` is about the mail in hand, if that differs."""

    def __init__(
        self, result: Result, detail: str, scope: Scope = Scope.ACCOUNT, own: Answer | None = None
    ) -> None:
        super().__init__(detail)
        self.others = Answer(result, detail, scope=scope)
        self.own = own or self.others


class _Connection:
    """A connection to the server, since when it is idle, and how much it has done."""

    def __init__(self, smtp: smtplib.SMTP) -> None:
        self.smtp = smtp
        self.mails = 0
        self.used_at = time.monotonic()

    def fit(self) -> bool:
        """Whether it can take another mail."""
        if time.monotonic() - self.used_at > MAX_IDLE_S or self.mails >= MAILS_PER_CONNECTION:
            return False
        with contextlib.suppress(OSError):
            return self.smtp.rset()[0] == 250
        return False

    def quit(self) -> None:
        """Take leave; that it may be lost already is no matter."""
        with contextlib.suppress(OSError):
            self.smtp.docmd("QUIT")
        self.smtp.close()


class SmtpTransport:
    """Sends through a mail server; a ``Transport``.

    Raises:
        TransportError: the sender's address cannot be used.
        TemplateError: the templates cannot be read.
    """

    name = "smtp"
    recipients_per_call = 50

    def __init__(self, settings: SenderSettings, server: SmtpServer) -> None:
        self._server = server
        self._connect_timeout_s = settings.connect_timeout_ms / 1000
        self._send_timeout_s = settings.send_timeout_ms / 1000
        self._templates = sources.load(settings.templates.folder, settings.templates.constants)
        name, address = parseaddr(settings.source)
        try:
            local, self._domain = wire_address(address)
            local.encode("ascii")
        except ValueError:
            raise TransportError(
                f"{SES_SOURCE.name}: {address!r} cannot be the sender of mail over SMTP",
                hint="write name@domain, with a name in ASCII",
            ) from None
        self._sender = Address(name, local, self._domain)
        self._tls = ssl.create_default_context()
        self._slots = threading.BoundedSemaphore(settings.send_concurrency)
        self._idle: list[_Connection] = []  # pop and append are atomic
        self._closed = False

    def check(self) -> None:
        """See that the templates show just what the mails have.

        Raises:
            TemplateError: one does not.
        """
        for name, template in self._templates.items():
            if faults := checks.check(template):
                raise TemplateError(
                    f"the template for {name} may not be used: {'; '.join(faults)}",
                    hint="mend it; `mailroom templates check` looks again",
                )

    def quota(self) -> float | None:
        """SMTP does not tell."""
        return None

    def send(self, messages: Sequence[Message]) -> list[Answer]:
        """See ``Transport.send``."""
        outcomes: list[Answer] = []
        # Whoever called does not wait for ever, and must not find us still sending then.
        last = time.monotonic() + MAX_WAITS * self._send_timeout_s
        try:
            with self._slots, self._connection() as connection:
                for message in messages:
                    if time.monotonic() >= last:
                        slow = Answer(Result.TRANSIENT, "not begun: the server is slow")
                        outcomes += [slow] * (len(messages) - len(outcomes))
                        break
                    outcomes.append(self._deliver(connection.smtp, message))
                    connection.mails += 1
                    if outcomes[-1].result is not Result.SENT:
                        self._reset(connection.smtp)
        except _Trouble as trouble:
            rest = len(messages) - len(outcomes)
            outcomes += [trouble.own, *[trouble.others] * rest][:rest]
        return outcomes

    def close(self) -> None:
        """Let go of connections; those in use are ended with their call."""
        self._closed = True
        while (connection := self._pop()) is not None:
            connection.quit()

    @contextlib.contextmanager
    def _connection(self) -> Iterator[_Connection]:
        """A connection of one's own: one that was kept, if it still answers, or a new one."""
        while (connection := self._pop()) is not None and not connection.fit():
            connection.quit()
        connection = connection or _Connection(self._open())
        try:
            yield connection
        except BaseException:
            connection.quit()
            raise
        connection.used_at = time.monotonic()
        self._idle.append(connection)
        if self._closed:
            self.close()

    def _pop(self) -> _Connection | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _open(self) -> smtplib.SMTP:
        """A connection that is ready for mail.

        Raises:
            _Trouble: there is none to be had.
        """
        try:
            return self._handshake()
        except smtplib.SMTPResponseException as error:
            words = self._words(error.smtp_code, error.smtp_error)
            refused = isinstance(error, smtplib.SMTPAuthenticationError) and error.smtp_code >= 500
            raise _Trouble(Result.PAUSED if refused else _passing(words), words) from None
        except (smtplib.SMTPServerDisconnected, ssl.SSLEOFError) as error:
            raise _Trouble(Result.TRANSIENT, self._text(error)) from None
        except ssl.SSLCertVerificationError as error:
            hint = "SSL_CERT_FILE may name a file of other authorities"
            raise _Trouble(Result.PAUSED, f"{self._text(error)} ({hint})") from None
        except (smtplib.SMTPException, ssl.SSLError) as error:  # no TLS or no way to authenticate
            raise _Trouble(Result.PAUSED, self._text(error)) from None
        except UnicodeEncodeError:
            raise _Trouble(Result.PAUSED, "user and password of SMTP have to be ASCII") from None
        except OSError as error:
            raise _Trouble(Result.TRANSIENT, self._text(error)) from None

    def _handshake(self) -> smtplib.SMTP:
        server, connect_timeout_s = self._server, self._connect_timeout_s
        # We give our name, since smtplib would ask DNS for it, which may not answer.
        name = self._domain
        smtp = (
            smtplib.SMTP_SSL(server.host, server.port, name, timeout=connect_timeout_s, context=self._tls)
            if server.tls
            else smtplib.SMTP(server.host, server.port, name, timeout=connect_timeout_s)
        )
        with contextlib.ExitStack() as undo:
            undo.callback(smtp.close)
            if smtp.sock:
                smtp.sock.settimeout(self._send_timeout_s)
            smtp.ehlo_or_helo_if_needed()
            if not server.tls and smtp.has_extn("starttls"):
                smtp.starttls(context=self._tls)
                smtp.ehlo_or_helo_if_needed()
            elif not server.tls and server.require_tls:
                raise smtplib.SMTPNotSupportedError("TLS is required, and the server offers none")
            if server.user:
                smtp.login(server.user, server.password)
            undo.pop_all()
        return smtp

    def _deliver(self, smtp: smtplib.SMTP, message: Message) -> Answer:
        """Send one mail.

        Raises:
            _Trouble: the rest of the call would fare alike.
        """
        try:
            local, domain = wire_address(message.email)
        except ValueError as error:
            return Answer(Result.REJECTED, str(error))
        extensions = [] if local.isascii() else ["SMTPUTF8", "BODY=8BITMIME"]
        if extensions and not smtp.has_extn("smtputf8"):
            return Answer(Result.REJECTED, "the address is not ASCII, and the server does not take SMTPUTF8")
        try:
            mail = mails.render(self._templates[message.action], message)
        except TemplateError as error:
            raise _Trouble(Result.PAUSED, str(error), Scope.ACTION) from None
        message_id = f"{uuid4()}@{self._domain}"
        content = compose(mail, self._sender, Address("", local, domain), message_id)
        try:
            code, words = smtp.mail(self._sender.addr_spec, extensions)
            if code != 250:
                told = self._words(code, words, message, domain)
                if code >= 500 and extensions:  # the address is why, and not the sender's
                    return Answer(Result.REJECTED, told)
                raise _Trouble(Result.PAUSED if code >= 500 else _passing(told), told)
            code, words = smtp.rcpt(f"<{local}@{domain}>")
            if code in (250, 251):
                code, words = smtp.docmd("DATA")
                if code == 354:
                    smtp.send(re.sub(rb"(?m)^\.", b"..", content) + b".\r\n")
                    code, words = self._last_answer(smtp)
                    if 200 <= code < 300:
                        return Answer(Result.SENT, message_id=message_id)
        except OSError as error:
            raise _Trouble(Result.TRANSIENT, self._text(error)) from None
        told = self._words(code, words, message, domain)
        if code in NOT_LET_IN:  # servers may say so only now
            raise _Trouble(Result.PAUSED, told)
        if code >= 500:
            return Answer(Result.REJECTED, told)
        result = _passing(told)
        if result is Result.TRANSIENT and 400 <= code != 421:
            return Answer(result, told)
        raise _Trouble(result, told)

    def _last_answer(self, smtp: smtplib.SMTP) -> tuple[int, bytes]:
        detail = "no readable answer"
        try:
            code, words = smtp.getreply()
        except OSError as error:
            code, detail = -1, self._text(error)
        if code < 0:
            lost = Answer(Result.UNKNOWN, f"the answer to the mail was lost: {detail}")
            raise _Trouble(Result.TRANSIENT, f"connection lost: {detail}", own=lost)
        return code, words

    def _reset(self, smtp: smtplib.SMTP) -> None:
        try:
            code, words = smtp.rset()
        except OSError as error:
            raise _Trouble(Result.TRANSIENT, self._text(error)) from None
        if code != 250:
            raise _Trouble(Result.TRANSIENT, self._words(code, words))

    def _text(self, error: OSError) -> str:
        return f"{self._server.host}: {' '.join(str(error).split())}"[:MAX_DETAIL]

    def _words(self, code: int, words: bytes | str, message: Message | None = None, domain: str = "") -> str:
        """The server's words, without what is nobody's business: it may quote what it got."""
        text = words.decode(errors="replace") if isinstance(words, bytes) else words
        hidden = [(self._server.password, "<password>")]
        if message:
            local = message.email.rpartition("@")[0]
            hidden += [(message.token, "<token>"), (message.email, "<recipient>")]
            hidden += [(f"{local}@{domain}", "<recipient>")]
        for word, stand_in in hidden:
            if word:
                text = re.sub(f"<{re.escape(word)}>|{re.escape(word)}", stand_in, text, flags=re.IGNORECASE)
        return as_told(f"{code} {text}", [message.code] if message else ())


def _passing(words: str) -> Result:
    """The class of a refusal that is not for good."""
    if DAILY_QUOTA in words.lower():
        return Result.PAUSED
    return Result.THROTTLED if _THROTTLE.search(words) else Result.TRANSIENT
