"""Sends over SMTP: renders one mail for each recipient, and keeps a few connections open.

Each step of the protocol is separate, so that each failure is classified by its step. Nothing is retried
here, except that a session which has taken mail and then refuses is replaced at once, and the refused mail
is tried in the new session: many servers limit the mails of a session. After a trouble that affects every
mail, the rest of a call gets the same answer without a try; mails sent before it keep their answers.

A mail is UNKNOWN when the connection is lost between its last byte and the server's reply, since the server
may have accepted it.
"""

from __future__ import annotations

import contextlib
import re
import smtplib
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from email.headerregistry import Address
from email.utils import parseaddr
from functools import partial
from typing import Final
from uuid import uuid4

from mailroom.actions import load_actions
from mailroom.addresses import wire_address
from mailroom.answers import Answer, Result, Scope
from mailroom.errors import TemplateError
from mailroom.logs import EventLogger
from mailroom.settings.sender import SenderSettings
from mailroom.settings.transports import SmtpServer
from mailroom.templates import checks, mails, sources
from mailroom.transports import smtp_answers
from mailroom.transports.mime import compose
from mailroom.transports.preparing import no_template, prepare
from mailroom.transports.redaction import MAX_DETAIL, shortened
from mailroom.transports.refusals import about_recipient, about_sender, is_unverified
from mailroom.transports.transport import CONNECT_TIMEOUT_S, DEFAULT_RATE
from mailroom.wire import Message

# Servers close connections that are idle or in use for long; this closes them first.
MAX_IDLE_S: Final = 30.0
MAILS_PER_CONNECTION: Final = 100
# A session that has taken mail and then refuses this many for a while is replaced: it may be at its limit.
MAX_REFUSED_IN_A_ROW: Final = 2
MAX_WAITS: Final = 2

log = EventLogger("smtp")


class _Trouble(Exception):
    """Why nothing more can be sent in this call; ``own`` is the current mail's answer, if that differs."""

    def __init__(
        self, result: Result, detail: str, scope: Scope = Scope.ACCOUNT, own: Answer | None = None
    ) -> None:
        super().__init__(detail)
        self.others = Answer(result, detail, scope=scope)
        self.own = own or self.others


class _SessionOver(Exception):
    """A session in use refuses what the server may accept in a new one."""


class _Connection:
    """A connection to the server, with its last use, and how many mails it tried and took.

    Attributes:
        is_over: it is to be replaced before the next mail.
    """

    def __init__(self, smtp: smtplib.SMTP) -> None:
        self._begin(smtp)
        self.used_at = time.monotonic()

    def _begin(self, smtp: smtplib.SMTP) -> None:
        self.smtp = smtp
        self.mails = self.taken = self.refused_in_a_row = 0
        self.is_over = False

    def replace(self, opened: Callable[[], smtplib.SMTP]) -> None:
        """Quit this session, and go on in another one; the server may allow no more at a time."""
        self.quit()
        self._begin(opened())

    @property
    def is_stuck(self) -> bool:
        """Whether it has taken mail, and takes no more."""
        return self.taken > 0 and self.refused_in_a_row >= MAX_REFUSED_IN_A_ROW

    def fit(self) -> bool:
        """Whether it can be used for another mail."""
        if time.monotonic() - self.used_at > MAX_IDLE_S or self.mails >= MAILS_PER_CONNECTION:
            return False
        return not self.is_over and self.reset()

    def reset(self) -> bool:
        """Abort the current mail, if there is one; False if the session is over."""
        with contextlib.suppress(OSError):
            return self.smtp.rset()[0] == 250
        return False

    def quit(self) -> None:
        """Quit and close; a connection that is already lost is not an error."""
        with contextlib.suppress(OSError):
            self.smtp.docmd("QUIT")
        self.smtp.close()


class SmtpTransport:
    """Sends through a mail server; a ``Transport``.

    Raises:
        ActionsError: the actions cannot be read.
    """

    name = "smtp"
    recipients_per_call = 50

    def __init__(self, settings: SenderSettings, server: SmtpServer) -> None:
        self._server = server
        self._send_timeout_s = settings.send_timeout_ms / 1000
        self._folder = sources.TemplateFolder(settings.templates.folder, settings.templates.constants)
        self._settings = settings.templates
        self._sender = _address(settings.source)
        self._domain = self._sender.domain
        self._reply_to = _address(settings.reply_to) if settings.reply_to else None
        self._tls = ssl.create_default_context()
        self._slots = threading.BoundedSemaphore(settings.send_concurrency)
        self._idle: list[_Connection] = []  # pop and append are atomic
        self._closed = False

    def check(self) -> None:
        """Check the templates, and log each action that has a template which cannot be used.

        Raises:
            TemplateError: no action has one that can be used.
        """
        actions = load_actions(self._settings.folder)
        checks.check_folder(self._folder, actions, lambda **why: log.error("template_unusable", **why))

    def quota(self) -> float | None:
        """The default rate: SMTP has no reply that tells a quota, so asking again would tell no more."""
        return DEFAULT_RATE

    def send(self, messages: Sequence[Message]) -> list[Answer]:
        """See ``Transport.send``."""
        answers: list[Answer] = []
        # The caller gives up after some time, and nothing may be sent after that.
        last = time.monotonic() + MAX_WAITS * self._send_timeout_s
        try:
            with self._slots, self._connection() as connection:
                for message in messages:
                    if time.monotonic() >= last:
                        slow = Answer(Result.TRANSIENT, "not begun: the server is slow")
                        answers += [slow] * (len(messages) - len(answers))
                        break
                    if connection.is_over:
                        connection.replace(self._open)
                    try:
                        answers.append(self._deliver(connection, message))
                    except _SessionOver:
                        connection.replace(self._open)
                        answers.append(self._deliver(connection, message))
                    connection.mails += 1
                    if answers[-1].result is Result.SENT:
                        connection.taken += 1
                        connection.refused_in_a_row = 0
                    else:
                        is_later = answers[-1].result is Result.TRANSIENT
                        connection.refused_in_a_row += is_later and not about_recipient(answers[-1].detail)
                        connection.is_over = not connection.reset() or connection.is_stuck
        except _Trouble as trouble:
            rest = len(messages) - len(answers)
            answers += [trouble.own, *[trouble.others] * rest][:rest]
        return answers

    def close(self) -> None:
        """Close the connections; one in use is closed after its call."""
        self._closed = True
        while (connection := self._pop()) is not None:
            connection.quit()

    @contextlib.contextmanager
    def _connection(self) -> Iterator[_Connection]:
        """A connection for one call: an idle one that still answers, or a new one."""
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
            _Trouble: none can be opened.
        """
        try:
            return self._handshake()
        except smtplib.SMTPResponseException as error:
            words = shortened(self._hidden(error.smtp_code, error.smtp_error), ())
            is_login = isinstance(error, smtplib.SMTPAuthenticationError)
            result, _ = smtp_answers.of_opening(error.smtp_code, words, is_login=is_login)
            raise _Trouble(result, words) from None
        except (smtplib.SMTPServerDisconnected, ssl.SSLEOFError) as error:
            raise _Trouble(Result.TRANSIENT, self._text(error)) from None
        except ssl.SSLCertVerificationError as error:
            hint = "SSL_CERT_FILE may name a file of other authorities"
            raise _Trouble(Result.PAUSED, f"{self._text(error)} ({hint})") from None
        except (smtplib.SMTPException, ssl.SSLError) as error:  # no TLS or no way to authenticate
            raise _Trouble(Result.PAUSED, self._text(error)) from None
        except OSError as error:
            raise _Trouble(Result.TRANSIENT, self._text(error)) from None

    def _handshake(self) -> smtplib.SMTP:
        server = self._server
        # With this name smtplib need not ask DNS for the machine's name, which may block.
        name = self._domain
        smtp = (
            smtplib.SMTP_SSL(server.host, server.port, name, timeout=CONNECT_TIMEOUT_S, context=self._tls)
            if server.tls
            else smtplib.SMTP(server.host, server.port, name, timeout=CONNECT_TIMEOUT_S)
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

    def _prepare(self, message: Message) -> tuple[str, str, Answer, bytes]:
        """The two parts of the address, the answer if the mail is accepted, and its content.

        Raises:
            TemplateError: the template cannot be used.
            Exception: the message cannot be mailed.
        """
        local, domain = wire_address(message.email)
        template = checks.usable(self._folder, message.action, message.locale)
        mail, to = mails.render(template, message), Address("", local, domain)
        message_id = f"{uuid4()}@{self._domain}"
        sent = Answer(Result.SENT, message_id=message_id, template=template.name, language=template.language)
        content = compose(mail, template.language, self._sender, to, message_id, self._reply_to)
        return local, domain, sent, content

    def _deliver(self, connection: _Connection, message: Message) -> Answer:
        """Send one mail.

        Raises:
            _SessionOver: it can be tried in a new session.
            _Trouble: the rest of the call would get the same answer.
        """
        smtp = connection.smtp
        try:
            prepared = prepare(partial(self._prepare, message), message)
        except TemplateError as error:
            answer = no_template(error)
            raise _Trouble(answer.result, answer.detail, answer.scope) from None
        if isinstance(prepared, Answer):
            return prepared
        local, domain, sent, content = prepared
        extensions = [] if local.isascii() else ["SMTPUTF8", "BODY=8BITMIME"]
        if extensions and not smtp.has_extn("smtputf8"):
            return Answer(
                Result.REJECTED,
                "the address is not ASCII, and the server does not support SMTPUTF8",
                is_ours=True,
            )
        is_sender = False
        try:
            code, reply = smtp.mail(self._sender.addr_spec, extensions)
            if code != 250:
                is_sender = True
            else:
                code, reply = smtp.rcpt(f"<{local}@{domain}>")
                if code in (250, 251):
                    code, reply = smtp.docmd("DATA")
                    if code == 354:
                        smtp.send(re.sub(rb"(?m)^\.", b"..", content) + b".\r\n")
                        code, reply = self._final_reply(smtp)
                        if 200 <= code < 300:
                            return sent
        except OSError as error:
            if connection.mails and not _timed_out(error):
                raise _SessionOver from None
            raise _Trouble(Result.TRANSIENT, self._text(error)) from None
        return self._refused(connection, code, reply, message, is_sender=is_sender)

    def _refused(
        self, connection: _Connection, code: int, reply: bytes, message: Message, *, is_sender: bool
    ) -> Answer:
        """The answer to a refused mail; raises what ``_deliver`` does."""
        local, domain = wire_address(message.email)
        words = self._hidden(code, reply, message, domain)
        detail = shortened(words, [message.code])
        # The recipient chooses its address, which may hold any words.
        for part in {local.lower(), domain.lower()} - {self._domain.lower()}:
            words = re.sub(
                rf"(?<![\w.-]){re.escape(part)}(?![\w-])", "<recipient>", words, flags=re.IGNORECASE
            )
        is_used = connection.taken or (connection.mails and code == 421)
        if is_used and smtp_answers.ends_session(code, words, is_sender=is_sender):
            raise _SessionOver
        if is_sender and code >= 500 and not local.isascii() and not about_sender(words):
            return Answer(Result.REJECTED, detail)  # for the extension that this address needs
        result, scope = (smtp_answers.of_sender if is_sender else smtp_answers.of_mail)(code, words)
        said, source = reply.decode(errors="replace"), self._sender.addr_spec
        if result is Result.REJECTED and is_unverified(said, source):
            result, scope = smtp_answers.PAUSED
        if scope is Scope.RECIPIENT:
            return Answer(result, detail)
        raise _Trouble(result, detail)

    def _final_reply(self, smtp: smtplib.SMTP) -> tuple[int, bytes]:
        detail, scope = "no readable reply", Scope.RECIPIENT
        try:
            code, words = smtp.getreply()
        except OSError as error:
            code, detail = -1, self._text(error)
            # A server that says nothing says nothing to any mail; one that hangs up may do so for this mail.
            scope = Scope.ACCOUNT if _timed_out(error) else scope
        if code < 0:
            lost = Answer(Result.UNKNOWN, f"the reply to the mail was lost: {detail}", scope=scope)
            raise _Trouble(Result.TRANSIENT, f"connection lost: {detail}", own=lost)
        return code, words

    def _text(self, error: OSError) -> str:
        return f"{self._server.host}: {' '.join(str(error).split())}"[:MAX_DETAIL]

    def _hidden(self, code: int, reply: bytes | str, message: Message | None = None, domain: str = "") -> str:
        """The server's words on one line, without secrets and addresses, which it may quote."""
        text = reply.decode(errors="replace") if isinstance(reply, bytes) else reply
        text = re.sub(r"\n[245]\.\d{1,3}\.\d{1,3} ", " ", text)  # repeated on each line
        hidden = [(self._server.password, "<password>")]
        if message:
            local = message.email.rpartition("@")[0]
            hidden += [(message.token, "<token>"), (message.email, "<recipient>")]
            hidden += [(f"{local}@{domain}", "<recipient>")]
        for word, stand_in in hidden:
            if word:
                text = re.sub(f"<{re.escape(word)}>|{re.escape(word)}", stand_in, text, flags=re.IGNORECASE)
        return " ".join(f"{code} {text}".split())


def _address(text: str) -> Address:
    """An address of the settings."""
    name, address = parseaddr(text)
    return Address(name, *wire_address(address))


def _timed_out(error: OSError) -> bool:
    """Whether the server said nothing; smtplib hides it behind another error."""
    return isinstance(error, TimeoutError) or isinstance(error.__context__, TimeoutError)
