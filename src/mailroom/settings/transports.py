"""The transports that ``MAILROOM_TRANSPORT`` names: their addresses, and how each is read.

Promises: no message quotes a text, since it may hold a password.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import SplitResult, unquote, urlsplit

from mailroom.addresses import ascii_host

SMTP_PORTS: Final = {"smtp": 587, "smtps": 465}
# The transports that call SES, each by another version of its API.
SES_TRANSPORTS: Final = ("ses", "sesv2")
# A part of the list: an address with a login, up to whose @ a comma is a part of the password, or any other.
_PART: Final = re.compile(r"\s*smtps?://[^/?#]*@[^,]*|[^,]*")


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


TransportAddress = SmtpServer | Literal["ses", "sesv2", "debug"]


def transports(text: str) -> tuple[TransportAddress, ...]:
    """The transport that a text names, or the two.

    Raises:
        ValueError: says which of them is wrong, and how.
    """
    if text.strip() == "debug":
        return ("debug",)
    parts = _parts(text)
    if len(parts) == 1:
        return (_transport(text),)
    if len(parts) > 2:
        raise ValueError(
            f"{len(parts)} transports; write one, or two with a comma between them: the second sends while"
            " the first cannot. A comma in a password is %2C"
        )
    first, second = (_numbered(part, place) for place, part in zip(("first", "second"), parts, strict=True))
    if _place(first) == _place(second):
        raise ValueError("the second transport is the first again; name another one, or leave it out")
    return first, second


def _parts(text: str) -> list[str]:
    parts, at = [], 0
    while at <= len(text):
        part = _PART.match(text, at)
        assert part  # noqa: S101 - it matches the empty text too
        parts.append(part.group().strip())
        at = part.end() + 1
    return parts


def _numbered(text: str, place: str) -> TransportAddress:
    if not text:
        raise ValueError(f"the {place} transport is empty; remove the comma, or name a transport")
    if text == "debug":
        raise ValueError("debug sends nothing, so it is no second transport and has none; write it alone")
    try:
        return _transport(text)
    except ValueError as error:
        raise ValueError(f"the {place} transport: {error}") from None


def _place(address: TransportAddress) -> object:
    return (address.host, address.port) if isinstance(address, SmtpServer) else address


def is_loopback(host: str) -> bool:
    """Whether a mail server's host is this machine."""
    return host in {"localhost", "::1"} or host.startswith("127.")


def _transport(text: str) -> TransportAddress:
    if text == "ses":
        return "ses"
    if text == "sesv2":
        return "sesv2"
    parts, host = _server_parts(text)
    if parts.query not in {"", "tls=required", "tls=optional"}:
        raise ValueError("an smtp:// address has an option other than ?tls=required or ?tls=optional")
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if bool(user) != bool(password):
        raise ValueError(
            "a user without a password, or a password without a user; write smtp://user:password@host:port,"
            " or smtp://host:port to send without a login"
        )
    if not (user + password).isascii():
        raise ValueError("the user or the password is not ASCII, which SMTP cannot log in with; use others")
    return SmtpServer(
        host=host,
        port=parts.port or SMTP_PORTS[parts.scheme],
        user=user,
        password=password,
        tls=parts.scheme == "smtps",
        require_tls=parts.query == "tls=required"
        or (parts.query != "tls=optional" and bool(password) and not is_loopback(host)),
    )


def _server_parts(text: str) -> tuple[SplitResult, str]:
    """The parts of an smtp:// address with a valid port, and its host in ASCII."""
    if re.search(r"\s", text):
        raise ValueError("the value contains a blank; in a password, write %20 for it")
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise ValueError("a % is not followed by two hexadecimal digits; in a password, write %25 for %")
    try:
        parts = urlsplit(text)
        if parts.scheme in SMTP_PORTS and parts.port != 0 and not (parts.path.strip("/") or parts.fragment):
            # In DNS a final dot says that the name is complete; certificates and TLS have none.
            return parts, ascii_host((parts.hostname or "").removesuffix("."))
    except ValueError:
        pass
    raise ValueError(
        "neither ses, sesv2, debug nor smtp://user:password@host:port (or smtps://…); percent-encode special"
        " characters: %40 for @, %2F for /, %23 for #, %3A for :, %3F for ?"
    )
