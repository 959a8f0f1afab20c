"""Checks addresses of mail and of hosts, and writes them in ASCII: domains by IDNA 2008.

Python's own codec implements IDNA 2003, which maps faß.de to fass.de, a different domain.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import unicodedata
from typing import Final

_LOCAL_PART: Final = re.compile(r'[^\s\x00-\x20\x7f-\x9f"(),:;<>@\[\\\]]{1,64}')
_DOMAIN: Final = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")
_NUMBERS: Final = re.compile(r"(.*\.)?[0-9]+")


def wire_address(address: str) -> tuple[str, str]:
    """An address's local part as it is, and its domain in ASCII.

    Raises:
        ValueError: the address cannot be written into a command and a header as it is.
    """
    local, _, domain = address.rpartition("@")
    # An encoded word (RFC 2047) would be decoded, and could hold another address or a line break.
    if not _LOCAL_PART.fullmatch(local) or "=?" in local:
        raise ValueError("the address's local part is not a plain name")
    name = _ascii(domain)
    if not _DOMAIN.fullmatch(name):
        raise ValueError("the address's domain is not a valid DNS name")
    return local, name


def spellings(address: str) -> list[str]:
    """An address as it is, and with its domain in ASCII and in Unicode; each spelling once."""
    local, _, domain = address.rstrip(".").rpartition("@")
    domains = [domain, _ascii(domain.lower())]
    if "xn--" in domain.lower():
        import idna

        with contextlib.suppress(idna.IDNAError):
            domains.append(idna.decode(domain.lower()))
    return list(dict.fromkeys(f"{local}@{each}" for each in domains if each))


def ascii_host(host: str) -> str:
    """A host, which is a DNS name or an IP address without brackets, in ASCII.

    Raises:
        ValueError: it is neither.
    """
    if ":" in host or _NUMBERS.fullmatch(host):
        return str(ipaddress.ip_address(host))
    name = _ascii(host)
    labels = name.split(".")
    if not _DOMAIN.fullmatch(name) or any(label.startswith("-") or label.endswith("-") for label in labels):
        raise ValueError(f"{host!r} is not a valid DNS name")
    return name


def _ascii(domain: str) -> str:
    """A domain in ASCII; empty if it has no such name."""
    if domain.isascii():
        return domain
    # Imported when needed: few domains need it, and its tables are large.
    import idna

    try:
        ascii_domain = idna.encode(domain, uts46=True).decode()
        name = idna.decode(ascii_domain)
    except idna.IDNAError:
        return ""
    # UTS 46 drops invisible letters and spells some differently, which mailroom.normal_address does not:
    # such a spelling would evade the suppressions and limits of the address. Unicode 3.2 has the letters that
    # every PostgreSQL normalises: 14 does not know those of newer versions.
    plain = unicodedata.ucd_3_2_0.normalize("NFKC", domain).replace("\u3002", ".")
    return ascii_domain if name == "".join(letter.lower() for letter in plain) else ""
