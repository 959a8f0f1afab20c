"""Finds the variables named ``MAILROOM_…`` that no command reads, such as misspelt ones.

Promises: no value of a variable is returned or logged.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from mailroom.logs import EventLogger
from mailroom.settings.variables import variables
from mailroom.settings.worker import RunSettings

PREFIX: Final = "MAILROOM_"
LOG_VARIABLES: Final = ("MAILROOM_LOG_FORMAT", "MAILROOM_LOG_LEVEL")
# Variables of the tests, and those that Kubernetes sets for a Service whose name begins with mailroom.
_FOREIGN: Final = re.compile(
    r"MAILROOM_(TEST_.*|(.*_)?(SERVICE_(HOST|PORT(_.*)?)|PORT_[0-9]+_(TCP|UDP|SCTP)(_.*)?))"
)
# Kubernetes sets MAILROOM_PORT to such an address; a number was meant for another variable.
_ADDRESS: Final = re.compile(r"(tcp|udp|sctp)://.*")

log = EventLogger("settings")


class UnknownVariable(NamedTuple):
    """A variable that no command reads, and the name that may be meant; empty if none is similar."""

    name: str
    meant: str


def known() -> set[str]:
    """The name of every variable that a command reads."""
    found = list(variables(RunSettings))
    files = (f"{variable.name}_FILE" for variable in found if variable.secret)
    return {*(variable.name for variable in found), *files, *LOG_VARIABLES}


def unknown(environment: Mapping[str, str]) -> list[UnknownVariable]:
    """The variables of an environment that no command reads, sorted by name."""
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
        UnknownVariable(name, "".join(difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.8)))
        for name in sorted(found)
    ]


def warn(environment: Mapping[str, str]) -> None:
    """Log a warning for each variable that no command reads."""
    for name, meant in unknown(environment):
        log.warning("unknown", name=name, **({"did_you_mean": meant} if meant else {}))
