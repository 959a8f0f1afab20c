"""Reads the addresses in settings: where links begin, and who sends.

What breaks every link or every call is refused here, whichever transport is used.
"""

from __future__ import annotations

import re
from email.utils import formataddr, parseaddr
from typing import Final
from urllib.parse import urlsplit

from mailroom.addresses import ascii_host, wire_address
from mailroom.settings.variables import is_printable

MAX_SENDER: Final = 320  # SES's limit, as written in a header

# RFC 3986, without ? and #.
_PATH: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*")
_SENDER: Final = re.compile(
    r"""(?P<name>"(?:[^"\\]|\\.)*"|[^<>]*?)\s*<(?P<address>[^<>]*)>|(?P<bare>[^<>]*)"""
)
_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*"')
_LOCAL_PART: Final = re.compile(r"[^.]+(\.[^.]+)*")


def web_address(text: str) -> str:
    """The address where links begin, without a slash at its end; empty if it is not set.

    Raises:
        ValueError: a link that begins so would not open the application's page.
    """
    if not text:
        return ""
    if fault := _web_fault(text):
        without_login = re.sub(r"//[^/]*@", "//…@", text)
        raise ValueError(f"{without_login!r} {fault}")
    return text.rstrip("/")


def _web_fault(text: str) -> str:
    """What is wrong with a web address, as the end of a sentence; empty if nothing is."""
    if re.search(r"\s", text):
        return "contains a blank; write one address, such as https://acme.example"
    if not re.match(r"https?://", text, re.IGNORECASE):
        return "does not begin with https:// or http://; write https://acme.example"
    if "?" in text or "#" in text:
        return "has a query string or a fragment; write only the beginning of links: https://acme.example"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
        ascii_host(host)
    except ValueError:
        return "has no valid host or port; write one address, such as https://acme.example:8443"
    if port == 0:
        return "has the port 0; write a port from 1 to 65535, or none"
    if "@" in parts.netloc:
        return "contains a user; remove what is before the @"
    if "//" in parts.path.rstrip("/"):
        return "has // in its path; write one address, such as https://acme.example"
    if not _PATH.fullmatch(parts.path):
        return "has a path with characters that a link cannot contain; percent-encode them"
    return ""


def sender_address(text: str) -> str:
    """The sender's address: ``name@domain`` or ``Name <name@domain>``.

    Raises:
        ValueError: a provider would refuse every mail of this sender.
    """
    if not is_printable(text):
        raise ValueError(f"{text!r} is not on one line; write name@domain, or Name <name@domain>")
    found = _SENDER.fullmatch(text)
    name, address = (found["name"] or "", found["address"] or found["bare"] or "") if found else ("", "")
    if not re.fullmatch(r"[^@\s,;]+@[^@\s,;]+", address):
        raise ValueError(f"{text!r} is not one address; write name@domain, or Name <name@domain>")
    if re.search(r'[",:;@()\[\]\\]', name) and not _QUOTED.fullmatch(name):
        raise ValueError(
            f'the name in {text!r} has punctuation; put the name in double quotes: "Acme, Inc." <name@domain>'
        )
    local, _, domain = address.partition("@")
    if not local.isascii():
        raise ValueError(
            f"the part of {address!r} before the @ is not ASCII, which SES and most mail servers refuse;"
            " write name@domain in ASCII"
        )
    try:
        written = "@".join(wire_address(f"{local}@{ascii_host(domain)}"))
    except ValueError:
        written = ""
    if not written or not _LOCAL_PART.fullmatch(local):
        raise ValueError(
            f"{address!r} is not a valid address: a part of it is empty, ends with a dot, or has characters"
            " that mail servers refuse; write name@domain"
        )
    if len(formataddr((parseaddr(text)[0], written))) > MAX_SENDER:
        raise ValueError(
            f"{text!r} is longer than {MAX_SENDER} characters in a header; write a shorter name or address"
        )
    return text
