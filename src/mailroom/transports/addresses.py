"""Converts addresses for providers: the domain becomes ASCII, by IDNA 2008.

Python's own codec implements IDNA 2003, which maps faß.de to fass.de, a different domain.
"""

from __future__ import annotations

import re
from typing import Final

import idna

_LOCAL_PART: Final = re.compile(r'[^\s\x00-\x20\x7f-\x9f"(),:;<>@\[\\\]]{1,64}')
_DOMAIN: Final = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")


def wire_address(address: str) -> tuple[str, str]:
    """An address's local part, and its domain in ASCII.

    Raises:
        ValueError: it cannot be written into a command and a header as it is.
    """
    local, domain = ascii_domain(address)
    if not _LOCAL_PART.fullmatch(local):
        raise ValueError("the address's local part is not a plain name")
    if not _DOMAIN.fullmatch(domain):
        raise ValueError("the address's domain is not a valid DNS name")
    return local, domain


def ascii_domain(address: str) -> tuple[str, str]:
    """An address's local part as it is, and its domain in ASCII.

    Raises:
        ValueError: the domain is not a valid DNS name.
    """
    local, _, domain = address.rpartition("@")
    if not domain.isascii():
        try:
            domain = idna.encode(domain, uts46=True).decode()
        except idna.IDNAError:
            raise ValueError("the address's domain is not a valid DNS name") from None
    return local, domain
