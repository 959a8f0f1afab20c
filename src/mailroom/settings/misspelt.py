"""Variables that are called ``MAILROOM_…`` and that no command reads: a misspelt one goes unnoticed else.

Promises: names alone, never a value.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from mailroom.logs import EventLogger
from mailroom.settings.collector import COLLECTOR_VARIABLES
from mailroom.settings.sender import SENDER_VARIABLES
from mailroom.settings.worker import HEALTH_VARIABLES

PREFIX: Final = "MAILROOM_"
LOG_VARIABLES: Final = ("MAILROOM_LOG_FORMAT", "MAILROOM_LOG_LEVEL")
# The tests' own, and what Kubernetes puts in for a Service whose name begins with mailroom.
_FOREIGN: Final = re.compile(
    r"MAILROOM_(TEST_.*|(.*_)?(SERVICE_(HOST|PORT(_.*)?)|PORT_[0-9]+_(TCP|UDP|SCTP)(_.*)?))"
)
# Its MAILROOM_PORT is an address; a number is somebody's who means another variable.
_ADDRESS: Final = re.compile(r"(tcp|udp|sctp)://.*")

log = EventLogger("settings")


class Unknown(NamedTuple):
    """A variable that no command reads, and the one that may be meant; empty where none is near."""

    name: str
    meant: str


def known() -> set[str]:
    """Every variable that a command reads."""
    variables = (*COLLECTOR_VARIABLES, *SENDER_VARIABLES, *HEALTH_VARIABLES)
    files = (f"{variable.name}_FILE" for variable in variables if variable.secret)
    return {variable.name for variable in variables} | {*files, *LOG_VARIABLES}


def unknown(environment: Mapping[str, str]) -> list[Unknown]:
    """The variables of an environment that no command reads, by their names."""
    names = known()
    found = [
        name
        for name, value in environment.items()
        if name.startswith(PREFIX)
        and name not in names
        and not _FOREIGN.fullmatch(name)
        and not (name.endswith("_PORT") and _ADDRESS.fullmatch(value))
    ]
    return [
        Unknown(name, "".join(difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.8)))
        for name in sorted(found)
    ]


def tell(environment: Mapping[str, str]) -> None:
    """Warn of each in the log."""
    for name, meant in unknown(environment):
        log.warning("unknown", name=name, **({"did_you_mean": meant} if meant else {}))
