"""The settings of the sender, its transports and its templates."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

from mailroom.actions import ACTIONS
from mailroom.settings.variables import Variable, boolean, by_key, group, variable, whole

MAX_RATE: Final = 1_000_000.0
SMTP_PORTS: Final = {"smtp": 587, "smtps": 465}
DEFAULT_SOURCE: Final = "noreply@localhost"
BUILT_IN: Final = "built-in"


@dataclass(frozen=True, slots=True)
class SmtpServer:
    """A mail server.

    Attributes:
        tls: whether TLS starts with the first byte; otherwise STARTTLS is used where the server offers it.
        require_tls: whether to refuse a connection without TLS; the default for a password, except on
            loopback.
    """

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    tls: bool
    require_tls: bool


TransportAddress = SmtpServer | Literal["ses", "debug"]


def is_loopback(host: str) -> bool:
    """Whether a mail server's host is this machine."""
    return host in {"localhost", "::1"} or host.startswith("127.")


def _rate(text: str) -> float | None:
    if text == "auto":
        return None
    number = float(text) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text) else 0.0
    if not 0 < number <= MAX_RATE:
        raise ValueError(
            f"{text!r} is neither auto nor a number of recipients a second, above 0 and up to {MAX_RATE:,.0f}"
        )
    return number


def _config_set(text: str) -> str:
    return "" if text == "none" else text


def _address(text: str) -> str:
    from email.utils import parseaddr

    if not re.fullmatch("[^@\\s]+@[^@\\s]+", parseaddr(text)[1]) or not text.isprintable():
        raise ValueError(f"{text!r} is not an address; write name@domain, or Name <name@domain>")
    return text


def _web_address(text: str) -> str:
    parts = urlsplit(text)
    if text and not (parts.scheme in {"http", "https"} and parts.netloc and text.isprintable()):
        raise ValueError(f"{text!r} is not a web address; write https://…")
    return text.rstrip("/")


def _folder(text: str) -> Path | None:
    if text == BUILT_IN:
        return None
    folder = Path(text)
    if not folder.is_dir():
        raise ValueError(
            f"{text!r} is not a folder; `mailroom templates init FOLDER` writes one to start from"
        )
    return folder


def _transport(text: str) -> TransportAddress:
    # No message quotes the text: it may hold a password.
    if text == "ses":
        return "ses"
    if text == "debug":
        return "debug"
    fault = ValueError(
        "neither ses, debug nor smtp://user:password@host:port (or smtps://…, percent-encoded)"
    )
    try:
        parts = urlsplit(text)
        port, host = parts.port, parts.hostname
    except ValueError:
        raise fault from None
    if parts.scheme not in SMTP_PORTS or not host or parts.path.strip("/") or parts.fragment:
        raise fault
    if parts.query not in {"", "tls=required", "tls=optional"}:
        raise ValueError("an smtp:// address takes no option but ?tls=required or ?tls=optional")
    password = unquote(parts.password or "")
    return SmtpServer(
        host=host,
        port=port or SMTP_PORTS[parts.scheme],
        user=unquote(parts.username or ""),
        password=password,
        tls=parts.scheme == "smtps",
        require_tls=parts.query == "tls=required"
        or (parts.query != "tls=optional" and bool(password) and not is_loopback(host)),
    )


@dataclass(frozen=True)
class TemplateSettings:
    """The templates: their folder, the texts that they show in every mail, and their names in SES.

    Attributes:
        folder: None for the built-in templates.
        names: by action.
    """

    folder: Path | None = variable(
        "MAILROOM_TEMPLATES", BUILT_IN, "a folder with your own templates (see `mailroom templates`)", _folder
    )
    app_name: str = variable("MAILROOM_APP_NAME", "", "what templates show for {{app_name}}", str)
    app_url: str = variable(
        "MAILROOM_APP_URL", "", "what templates show for {{app_url}}, the beginning of links", _web_address
    )
    names: Mapping[str, str] = by_key(
        {
            action.name: Variable(
                f"MAILROOM_TEMPLATE_{action.name.upper()}",
                action.template,
                f"the name in SES of the template for {action.name}",
                str,
            )
            for action in ACTIONS
        }
    )

    @property
    def constants(self) -> Mapping[str, str]:
        """The values of ``{{app_name}}`` and ``{{app_url}}``, without those that are not set."""
        values = {"app_name": self.app_name, "app_url": self.app_url}
        return {name: value for name, value in values.items() if value}


@dataclass(frozen=True)
class SenderSettings:
    """The settings of ``mailroom sender``. Durations are in milliseconds, as in the environment.

    Attributes:
        config_set: SES's configuration set; empty for none.
        send_rate: recipients a second; None to ask the provider.
    """

    transport_address: TransportAddress = variable(
        "MAILROOM_TRANSPORT",
        "ses",
        "the transport: ses, debug, smtp://user:password@host:587 (STARTTLS if offered) or smtps://… (TLS)",
        _transport,
        secret=True,
    )
    debug: bool = variable(
        "MAILROOM_DEBUG",
        "false",
        "true prints the calls, with live tokens, instead of making them, as MAILROOM_TRANSPORT=debug does",
        boolean,
    )
    config_set: str = variable(
        "MAILROOM_SES_CONFIG_SET",
        "default",
        "SES's configuration set; none sends without one",
        _config_set,
    )
    source: str = variable(
        "MAILROOM_SES_SOURCE",
        DEFAULT_SOURCE,
        "the sender's address for every transport: name@domain or Name <name@domain>",
        _address,
    )
    output_path: Path = variable(
        "MAILROOM_SES_OUTPUT_PATH",
        "./output",
        "the folder for rejected.csv and for the answers of SES that report an error",
        Path,
    )
    templates: TemplateSettings = group(TemplateSettings)
    send_rate: float | None = variable(
        "MAILROOM_SEND_RATE",
        "auto",
        f"the maximum recipients a second, up to {MAX_RATE:,.0f}; auto uses SES's quota, or 14 without one",
        _rate,
    )
    send_concurrency: int = whole(
        "MAILROOM_SEND_CONCURRENCY", 4, "the maximum number of calls at a time", least=1, most=100
    )
    send_timeout_ms: int = whole(
        "MAILROOM_SEND_TIMEOUT",
        10_000,
        "an answer counts as lost after this many milliseconds of silence, or four times as many in total",
        least=1,
    )
    shutdown_timeout_ms: int = whole(
        "MAILROOM_SHUTDOWN_TIMEOUT",
        10_000,
        "after SIGTERM, mails in hand are still sent for this many milliseconds",
        least=0,
    )

    @property
    def transport(self) -> TransportAddress:
        """The transport to send with."""
        return "debug" if self.debug else self.transport_address
