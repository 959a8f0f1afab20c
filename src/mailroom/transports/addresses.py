"""Addresses as providers want them: the domain in ASCII, by IDNA 2008.

Python's own codec is IDNA 2003, to which faß.de is fass.de: another's domain.
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
        ValueError: it has none that can go into a command and a header as it is.
    """
    local, domain = ascii_domain(address)
    if not _LOCAL_PART.fullmatch(local):
        raise ValueError("the address's local part is no plain name")
    if not _DOMAIN.fullmatch(domain):
        raise ValueError("the address's domain is no name that DNS could have")
    return local, domain


def ascii_domain(address: str) -> tuple[str, str]:
    """An address in two, its domain in ASCII.

    Raises:
        ValueError: the domain is no name that DNS could have.
    """
    local, _, domain = address.rpartition("@")
    if not domain.isascii():
        try:
            domain = idna.encode(domain, uts46=True).decode()
        except idna.IDNAError:
            raise ValueError("the address's domain is no name that DNS could have") from None
    return local, domain
