"""A mail server: whether it can be reached, is safe, and knows us. No mail is sent.

The steps are those of ``transports.smtp``, one check each.
"""

from __future__ import annotations

import re
import smtplib
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parseaddr
from typing import Final, Self

from mailroom.doctor.report import Check, Finding, fault, ok, warning
from mailroom.errors import TransportError
from mailroom.settings.sender import DEFAULT_SOURCE, SenderSettings, SmtpServer
from mailroom.templates import checks, sources
from mailroom.transports.smtp import SmtpTransport

LIMIT_S: Final = 4.0


class Session:
    """A connection that one check opens and the others use; it is closed with the context."""

    def __init__(self, settings: SenderSettings, server: SmtpServer) -> None:
        self.settings = settings
        self.server = server
        self.smtp = smtplib.SMTP(timeout=LIMIT_S)
        self.tls = ssl.create_default_context()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.smtp.close()

    @contextmanager
    def told(self, what: str, hint: str) -> Iterator[None]:
        """Turns what the server or the network does into an error of ours.

        Raises:
            TransportError: it did something.
        """
        try:
            yield
        except smtplib.SMTPResponseException as error:
            words = error.smtp_error
            words = words.decode(errors="replace") if isinstance(words, bytes) else words
            raise self._error(what, f"{error.smtp_code} {words}", hint) from None
        except ssl.SSLCertVerificationError as error:
            raise self._error(
                what, str(error), "SSL_CERT_FILE may name a file of other authorities"
            ) from None
        except (OSError, UnicodeEncodeError) as error:
            text = "user and password have to be ASCII" if isinstance(error, ValueError) else str(error)
            raise self._error(what, text or type(error).__name__, hint) from None

    def _error(self, what: str, words: str, hint: str) -> TransportError:
        # A server may quote what it was given.
        if self.server.password:
            words = re.sub(rf"(?<!\w){re.escape(self.server.password)}(?!\w)", "…", words)
        return TransportError(f"{what}: {words}", hint=hint)


def connection(session: Session) -> Finding:
    """The server answers."""
    host, port = session.server.host, session.server.port
    name = parseaddr(session.settings.source)[1].rpartition("@")[2]
    with session.told(
        f"{host}:{port} cannot be used",
        "see that this machine reaches it, and that MAILROOM_TRANSPORT has the right scheme, host and port",
    ):
        if session.server.tls:
            session.smtp = smtplib.SMTP_SSL(host, port, name, timeout=LIMIT_S, context=session.tls)
        else:
            session.smtp = smtplib.SMTP(host, port, name, timeout=LIMIT_S)
        session.smtp.ehlo_or_helo_if_needed()
    return ok(f"{host}:{port} answers")


def encryption(session: Session) -> Finding:
    """What is sent cannot be read on its way."""
    server = session.server
    if not server.tls and session.smtp.has_extn("starttls"):
        with session.told(
            "STARTTLS failed", "see the server's certificate, and the host in MAILROOM_TRANSPORT"
        ):
            session.smtp.starttls(context=session.tls)
            session.smtp.ehlo_or_helo_if_needed()
    if isinstance(session.smtp.sock, ssl.SSLSocket):
        return ok(f"{session.smtp.sock.version()}{'' if server.tls else ', by STARTTLS'}")
    remedy = "use smtps:// in MAILROOM_TRANSPORT, or a server that offers STARTTLS"
    if server.require_tls:
        return fault("TLS is required, and the server offers none", remedy)
    if server.host == "localhost" or server.host == "::1" or server.host.startswith("127."):
        return ok("none, and the server is this machine")
    return warning("the server offers no TLS: mails and their links can be read on the way", remedy)


def login(session: Session) -> Finding:
    """The server knows us."""
    server = session.server
    if not server.user:
        return ok("no user is named in MAILROOM_TRANSPORT")
    with session.told(
        "the server does not let this user in", "correct the user and the password in MAILROOM_TRANSPORT"
    ):
        session.smtp.login(server.user, server.password)
    return ok("the server takes the user and the password")


def files(session: Session) -> Finding:
    """The templates show what their mails have."""
    settings = session.settings.templates
    where = str(settings.folder or "those of Mailroom")
    loaded = sources.load(settings.folder, settings.constants)
    told = [f"{name}: {text}" for name, template in loaded.items() for text in checks.check(template)]
    if told:
        return fault(f"{where}: {'; '.join(told)}", "mend it; `mailroom templates check` looks again")
    return ok(f"{where} can be used")


def sender(session: Session) -> Finding:
    """The sender's address can be one."""
    SmtpTransport(session.settings, session.server).close()
    address = parseaddr(session.settings.source)[1]
    if session.settings.source == DEFAULT_SOURCE:
        return warning(
            f"{address} is the default: most servers refuse it",
            "set MAILROOM_SES_SOURCE to an address of yours",
        )
    return ok(address)


CHECKS: Final[tuple[Check[Session], ...]] = (
    Check("mail-server", connection, ("MAILROOM_SES_SOURCE",)),
    Check("encryption", encryption, ("mail-server",)),
    Check("login", login, ("encryption",)),
    Check("templates", files, ("MAILROOM_TEMPLATES",)),
    Check("sender", sender, ("templates", "MAILROOM_SES_SOURCE")),
)
