"""What the sender, its transports and its templates run on: the environment as frozen dataclasses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

from mailroom.actions import ACTIONS
from mailroom.settings.variables import MAX_MS, Reader, Variable, boolean

MAX_RATE: Final = 1_000_000.0
SMTP_PORTS: Final = {"smtp": 587, "smtps": 465}

TRANSPORT: Final = Variable(
    "MAILROOM_TRANSPORT",
    "ses",
    "what sends: ses, debug, smtp://user:password@host:587 (STARTTLS where offered) or smtps://… (TLS)",
    secret=True,
)
DEBUG: Final = Variable(
    "MAILROOM_DEBUG",
    "false",
    "true prints the calls, with live tokens, instead of making them, as MAILROOM_TRANSPORT=debug does",
)
SES_CONFIG_SET: Final = Variable(
    "MAILROOM_SES_CONFIG_SET", "default", "SES's configuration set; none names none"
)
SES_SOURCE: Final = Variable(
    "MAILROOM_SES_SOURCE",
    "noreply@localhost",
    "the sender's address, name@domain or Name <name@domain>, for every transport",
)
SES_OUTPUT_PATH: Final = Variable(
    "MAILROOM_SES_OUTPUT_PATH",
    "./output",
    "the folder for rejected.csv and for SES's answers that tell of trouble",
)
TEMPLATE_NAMES: Final = {
    action.name: Variable(
        f"MAILROOM_TEMPLATE_{action.name.upper()}",
        action.template,
        f"the name in SES of the template for {action.name}",
    )
    for action in ACTIONS
}
TEMPLATES: Final = Variable(
    "MAILROOM_TEMPLATES", "built-in", "a folder with templates of your own (see `mailroom templates`)"
)
APP_NAME: Final = Variable("MAILROOM_APP_NAME", "", "what templates show for {{app_name}}")
APP_URL: Final = Variable("MAILROOM_APP_URL", "", "what templates show for {{app_url}}, where links begin")
SEND_RATE: Final = Variable(
    "MAILROOM_SEND_RATE",
    "auto",
    f"the most recipients a second, up to {MAX_RATE:,.0f}; auto is SES's quota, or 14 where none is told",
)
SEND_CONCURRENCY: Final = Variable(
    "MAILROOM_SEND_CONCURRENCY", "4", "the most calls at a time", bounds=(1, 100)
)
CONNECT_TIMEOUT: Final = Variable(
    "MAILROOM_CONNECT_TIMEOUT",
    "5000",
    "a connection is given up after so many milliseconds",
    bounds=(1, MAX_MS),
)
SEND_TIMEOUT: Final = Variable(
    "MAILROOM_SEND_TIMEOUT",
    "10000",
    "an answer counts as lost after so many milliseconds of silence, or four times as many altogether",
    bounds=(1, MAX_MS),
)
RETRY_LIMIT: Final = Variable(
    "MAILROOM_RETRY_LIMIT",
    "10",
    "a recipient that fails for no stated reason, or whose answer is lost, is tried so many times",
    bounds=(1, 1000),
)
RETRY_FOR: Final = Variable(
    "MAILROOM_RETRY_FOR",
    "900000",
    "a mail is given up so many milliseconds after it was read; a token lives as long",
    bounds=(1, MAX_MS),
)
SHUTDOWN_TIMEOUT: Final = Variable(
    "MAILROOM_SHUTDOWN_TIMEOUT",
    "10000",
    "after SIGTERM, what is in hand has so many milliseconds",
    bounds=(0, MAX_MS),
)

TEMPLATE_VARIABLES: Final = (TEMPLATES, APP_NAME, APP_URL, *TEMPLATE_NAMES.values())
SENDER_VARIABLES: Final = (
    TRANSPORT,
    DEBUG,
    SES_CONFIG_SET,
    SES_SOURCE,
    SES_OUTPUT_PATH,
    *TEMPLATE_VARIABLES,
    SEND_RATE,
    SEND_CONCURRENCY,
    CONNECT_TIMEOUT,
    SEND_TIMEOUT,
    RETRY_LIMIT,
    RETRY_FOR,
    SHUTDOWN_TIMEOUT,
)


@dataclass(frozen=True, slots=True)
class SmtpServer:
    """A mail server: ``tls`` speaks TLS from the first byte, else STARTTLS is used where offered.

    Attributes:
        require_tls: not to be sent to without TLS; so it is wherever a password is, off loopback.
    """

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    tls: bool
    require_tls: bool


TransportAddress = SmtpServer | Literal["ses", "debug"]
SES: Final[TransportAddress] = "ses"


@dataclass(frozen=True, slots=True)
class TemplateSettings:
    """Where templates are, what they show besides a mail's own fields, and what SES calls them.

    Attributes:
        folder: None for those that come with Mailroom.
        constants: what ``{{app_name}}`` and ``{{app_url}}`` stand for; those that are set.
        names: each action's template in SES.
    """

    folder: Path | None
    constants: Mapping[str, str]
    names: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SenderSettings:
    """What ``mailroom sender`` runs on. Durations are in milliseconds, as in the environment.

    Attributes:
        config_set: SES's configuration set, or empty for none.
        send_rate: recipients a second; None is to ask the provider.
    """

    transport: TransportAddress
    config_set: str
    source: str
    output_path: Path
    templates: TemplateSettings
    send_rate: float | None
    send_concurrency: int
    connect_timeout_ms: int
    send_timeout_ms: int
    retry_limit: int
    retry_for_ms: int
    shutdown_timeout_ms: int


def sender_settings(environment: Mapping[str, str]) -> SenderSettings:
    """Read the sender's settings.

    Raises:
        SettingsError: with every fault there is.
    """
    reader = Reader(environment)
    transport = reader.read(TRANSPORT, _transport, SES)
    settings = SenderSettings(
        transport="debug" if reader.read(DEBUG, boolean, False) else transport,
        config_set=reader.read(SES_CONFIG_SET, _config_set, ""),
        source=reader.read(SES_SOURCE, _address, ""),
        output_path=reader.read(SES_OUTPUT_PATH, Path, Path()),
        templates=_read_templates(reader),
        send_rate=reader.read(SEND_RATE, _rate, None),
        send_concurrency=reader.whole(SEND_CONCURRENCY),
        connect_timeout_ms=reader.whole(CONNECT_TIMEOUT),
        send_timeout_ms=reader.whole(SEND_TIMEOUT),
        retry_limit=reader.whole(RETRY_LIMIT),
        retry_for_ms=reader.whole(RETRY_FOR),
        shutdown_timeout_ms=reader.whole(SHUTDOWN_TIMEOUT),
    )
    reader.finish()
    return settings


def template_settings(environment: Mapping[str, str]) -> TemplateSettings:
    """Read the templates' settings alone.

    Raises:
        SettingsError: with every fault there is.
    """
    reader = Reader(environment)
    settings = _read_templates(reader)
    reader.finish()
    return settings


def _read_templates(reader: Reader) -> TemplateSettings:
    constants = {
        "app_name": reader.read(APP_NAME, str, ""),
        "app_url": reader.read(APP_URL, _web_address, ""),
    }
    return TemplateSettings(
        folder=reader.read(TEMPLATES, _template_folder, None),
        constants={name: value for name, value in constants.items() if value},
        names={name: reader.read(variable, str, "") for name, variable in TEMPLATE_NAMES.items()},
    )


def _rate(text: str) -> float | None:
    if text == "auto":
        return None
    number = float(text) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text) else 0.0
    if not 0 < number <= MAX_RATE:
        raise ValueError(
            f"{text!r} is neither auto nor recipients a second, above 0 and up to {MAX_RATE:,.0f}"
        )
    return number


def _config_set(text: str) -> str:
    return "" if text == "none" else text


def _address(text: str) -> str:
    from email.utils import parseaddr

    if not re.fullmatch("[^@\\s]+@[^@\\s]+", parseaddr(text)[1]) or not text.isprintable():
        raise ValueError(f"{text!r} is no address; write name@domain, or Name <name@domain>")
    return text


def _web_address(text: str) -> str:
    parts = urlsplit(text)
    if text and not (parts.scheme in {"http", "https"} and parts.netloc and text.isprintable()):
        raise ValueError(f"{text!r} is no web address; write https://…")
    return text.rstrip("/")


def _template_folder(text: str) -> Path | None:
    if text == TEMPLATES.default:
        return None
    folder = Path(text)
    if not folder.is_dir():
        raise ValueError(f"{text!r} is no folder; `mailroom templates init FOLDER` makes one to start from")
    return folder


def _transport(text: str) -> TransportAddress:
    """The words are kept out of the message: they may hold a password."""
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
        raise ValueError("the only option of an smtp:// address is ?tls=required or ?tls=optional")
    password = unquote(parts.password or "")
    local = host == "localhost" or host == "::1" or host.startswith("127.")
    return SmtpServer(
        host=host,
        port=port or SMTP_PORTS[parts.scheme],
        user=unquote(parts.username or ""),
        password=password,
        tls=parts.scheme == "smtps",
        require_tls=parts.query == "tls=required"
        or (parts.query != "tls=optional" and bool(password) and not local),
    )
