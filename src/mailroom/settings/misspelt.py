"""Finds the variables named ``MAILROOM_…`` that no command reads, such as misspelt ones.

Promises: no value of a variable is returned or logged.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, NamedTuple

from mailroom.actions import load_actions
from mailroom.logs import EventLogger
from mailroom.settings.migrations import MigrationSettings
from mailroom.settings.variables import EACH_ACTION, Variable, variables
from mailroom.settings.worker import RunSettings

PREFIX: Final = "MAILROOM_"
SIMILAR: Final = 0.8
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
    read = (*variables(RunSettings), *variables(MigrationSettings))
    found = [one for variable in read for one in _each(variable)]
    files = (f"{variable.name}_FILE" for variable in found if variable.secret)
    return {*(variable.name for variable in found), *files, *LOG_VARIABLES}


def _each(variable: Variable) -> list[Variable]:
    """The variable, or those of the catalogue's actions where there is one for each action."""
    if not variable.name.endswith(EACH_ACTION):
        return [variable]
    name = variable.name.removesuffix(EACH_ACTION)
    return [replace(variable, name=name + action.upper()) for action in load_actions()]


def _is_own(name: str) -> bool:
    """Whether it is a variable of an action that the catalogue does not have, and not a misspelt one."""
    actions = filter(None, (variable.of_action(name) for variable in variables(RunSettings)))
    return any(not difflib.get_close_matches(one, load_actions(), n=1, cutoff=SIMILAR) for one in actions)


def unknown(environment: Mapping[str, str]) -> list[UnknownVariable]:
    """The variables of an environment that no command reads, sorted by name."""
    names = known()
    found = [
        name
        for name, value in environment.items()
        if name.startswith(PREFIX)
        and name not in names
        and not _FOREIGN.fullmatch(name)
        and not _is_own(name)
        and not (name.endswith("_PORT") and _ADDRESS.fullmatch(value))
    ]
    return [
        UnknownVariable(name, "".join(difflib.get_close_matches(name, sorted(names), n=1, cutoff=SIMILAR)))
        for name in sorted(found)
    ]


def warn(environment: Mapping[str, str]) -> None:
    """Log a warning for each variable that no command reads."""
    for name, meant in unknown(environment):
        log.warning("unknown", name=name, **({"did_you_mean": meant} if meant else {}))
