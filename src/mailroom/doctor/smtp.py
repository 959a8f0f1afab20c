"""Checks the mail server: the connection, encryption, and login. No mail is sent.

The checks are the steps of ``transports.smtp``.
"""

from __future__ import annotations

import re
import smtplib
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parseaddr
from typing import Final, Self

from mailroom.doctor.files import local_templates
from mailroom.doctor.report import Check, Finding, fault, ok, warning
from mailroom.errors import TransportError
from mailroom.settings.sender import DEFAULT_SOURCE, SenderSettings
from mailroom.settings.transports import SmtpServer, is_loopback
from mailroom.transports.smtp import SmtpTransport

LIMIT_S: Final = 4.0


class SmtpProbe:
    """What the checks share: a connection that the first one opens and the context closes."""

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
    def explained(self, what: str, hint: str) -> Iterator[None]:
        """Turns an error of the server or the network into a Mailroom error.

        Raises:
            TransportError: there was one.
        """
        try:
            yield
        except smtplib.SMTPResponseException as error:
            words = error.smtp_error
            words = words.decode(errors="replace") if isinstance(words, bytes) else words
            raise self._error(what, f"{error.smtp_code} {words}", hint) from None
        except ssl.SSLCertVerificationError as error:
            raise self._error(
                what, str(error), "for a private authority, set SSL_CERT_FILE to a file with its certificate"
            ) from None
        except OSError as error:
            raise self._error(what, str(error) or type(error).__name__, hint) from None

    def _error(self, what: str, words: str, hint: str) -> TransportError:
        # A server may quote the password.
        if self.server.password:
            words = re.sub(rf"(?<!\w){re.escape(self.server.password)}(?!\w)", "…", words)
        return TransportError(f"{what}: {words}", hint=hint)


def connection(probe: SmtpProbe) -> Finding:
    """The server answers."""
    host, port = probe.server.host, probe.server.port
    name = parseaddr(probe.settings.source)[1].rpartition("@")[2]
    with probe.explained(
        f"{host}:{port} cannot be used",
        "check that this machine can reach it, and the scheme, host and port in MAILROOM_TRANSPORT",
    ):
        if probe.server.tls:
            probe.smtp = smtplib.SMTP_SSL(host, port, name, timeout=LIMIT_S, context=probe.tls)
        else:
            probe.smtp = smtplib.SMTP(host, port, name, timeout=LIMIT_S)
        probe.smtp.ehlo_or_helo_if_needed()
    return ok(f"{host}:{port} answers")


def encryption(probe: SmtpProbe) -> Finding:
    """The connection is encrypted, or stays on this machine."""
    server = probe.server
    if not server.tls and probe.smtp.has_extn("starttls"):
        with probe.explained(
            "STARTTLS failed", "check the server's certificate, and the host in MAILROOM_TRANSPORT"
        ):
            probe.smtp.starttls(context=probe.tls)
            probe.smtp.ehlo_or_helo_if_needed()
    if isinstance(probe.smtp.sock, ssl.SSLSocket):
        return ok(f"{probe.smtp.sock.version()}{'' if server.tls else ', by STARTTLS'}")
    remedy = "use smtps:// in MAILROOM_TRANSPORT, or a server that offers STARTTLS"
    if server.require_tls:
        return fault("TLS is required, and the server does not offer it", remedy)
    if is_loopback(server.host):
        return ok("none needed: the server is on this machine")
    return warning("the server does not offer TLS: mails and their links can be read in transit", remedy)


def login(probe: SmtpProbe) -> Finding:
    """The server accepts the user and the password."""
    server = probe.server
    if not server.user:
        return ok("MAILROOM_TRANSPORT has no user")
    with probe.explained(
        "the server refuses this user", "correct the user and the password in MAILROOM_TRANSPORT"
    ):
        probe.smtp.login(server.user, server.password)
    return ok("the server accepts the user and the password")


def files(probe: SmtpProbe) -> Finding:
    """The templates are valid."""
    return local_templates(probe.settings.templates)


def sender(probe: SmtpProbe) -> Finding:
    """The sender's address is valid."""
    SmtpTransport(probe.settings, probe.server).close()
    address = parseaddr(probe.settings.source)[1]
    if probe.settings.source == DEFAULT_SOURCE:
        return warning(
            f"{address} is the default: most servers refuse it",
            "set MAILROOM_SES_SOURCE to an address of yours",
        )
    return ok(address)


CHECKS: Final[tuple[Check[SmtpProbe], ...]] = (
    Check("mail-server", connection, ("MAILROOM_SES_SOURCE",)),
    Check("encryption", encryption, ("mail-server",)),
    Check("login", login, ("encryption",)),
    Check("templates", files, ("MAILROOM_TEMPLATES",)),
    Check("sender", sender, ("templates", "MAILROOM_SES_SOURCE")),
)
