"""The tags of a mail, by which SES's events name the attempt that they are about.

SES takes letters, digits, ``-`` and ``_``, and puts a mail's tags into each of its events.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from mailroom.wire import Reference

ACTION: Final = "mailroom-action"
TOKEN: Final = "mailroom-token"  # noqa: S105 - a tag's name
ATTEMPT: Final = "mailroom-attempt"

_MAX_ID: Final = 2**63 - 1
_MAX_ATTEMPT: Final = 2**31 - 1
_TOKEN: Final = re.compile("([1-9][0-9]{0,18})-([0-9a-f]{16})", re.ASCII)
_ATTEMPT: Final = re.compile("[1-9][0-9]{0,9}", re.ASCII)


def written(reference: Reference) -> dict[str, str]:
    """The values of the tags that name an attempt, by the tags' names."""
    return {
        TOKEN: f"{reference.token}-{reference.fingerprint.hex()}",
        ATTEMPT: str(reference.attempt),
    }


def read(values: Mapping[str, str]) -> Reference | None:
    """The attempt that tags name; None if they name none, as those of a pipe's mail and of others."""
    token = _TOKEN.fullmatch(values.get(TOKEN, ""))
    attempt = _ATTEMPT.fullmatch(values.get(ATTEMPT, ""))
    if not token or not attempt or int(token[1]) > _MAX_ID or int(attempt[0]) > _MAX_ATTEMPT:
        return None
    return Reference(int(token[1]), bytes.fromhex(token[2]), int(attempt[0]))
