"""Checks, their findings, and the report that gathers them.

A check is a function that looks at one thing and gives back a ``Finding``. Errors of Mailroom's are
findings too: what happened is the detail, the hint is the remedy. Any other exception is a bug in the
check, and told as one.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, Generic, TypeVar

from mailroom.errors import MailroomError

Subject = TypeVar("Subject")

MAX_DETAIL: Final = 500


class State(enum.StrEnum):
    """How a thing is; SKIPPED is not looked at, for what it needs is not there."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found.

    Attributes:
        detail: one line, without secrets.
        remedy: what to do; of warnings and faults.
        name: the check's, which the report puts in.
    """

    state: State
    detail: str
    remedy: str = ""
    name: str = ""


class NotKnown(Exception):
    """A check was not allowed to look, which is a warning: what it looks for may be right."""

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(detail)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Check(Generic[Subject]):
    """One look at a subject.

    Attributes:
        needs: the checks before it, and the variables, without which it makes no sense.
    """

    name: str
    look: Callable[[Subject], Finding]
    needs: tuple[str, ...] = ()


class Report:
    """The findings, in the order of the checks."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self._unusable: set[str] = set()
        self._due: list[str] = []

    def count(self, state: State) -> int:
        """How many findings are of a state."""
        return sum(finding.state is state for finding in self.findings)

    def add(self, name: str, finding: Finding) -> None:
        """Take a finding in; those that need a thing which is at fault are skipped later."""
        self.findings.append(_told(name, finding))
        if finding.state in (State.FAULT, State.SKIPPED):
            self._unusable.add(name)

    def run(self, checks: Sequence[Check[Subject]], subject: Subject) -> None:
        """Make the checks in their order."""
        self._due = [check.name for check in checks]
        for check in checks:
            missing = [name for name in check.needs if name in self._unusable]
            if missing:
                self.add(check.name, skipped(f"needs {missing[0]}"))
            else:
                self.attempt(check.name, partial(check.look, subject))
            self._due = self._due[1:]

    def attempt(self, name: str, look: Callable[[], Finding | None]) -> None:
        """Take in what a function finds, or what kept it from it."""
        try:
            finding = look()
        except NotKnown as error:
            finding = warning(str(error), error.remedy)
        except MailroomError as error:
            finding = fault(str(error), error.hint)
        except Exception as error:  # noqa: BLE001 - a bug in one check must not hide what the others find
            finding = fault(_bug(error), "this is a bug in the doctor: report it with this line")
        if finding:
            self.add(name, finding)

    def ended(self, patience_s: float) -> list[Finding]:
        """The findings, when there is no more time: what is under way is at fault, the rest is skipped."""
        findings, due = list(self.findings), self._due or ["settings"]
        late = fault(
            f"no answer within {patience_s:g} s",
            "see whether names are resolved and the network lets this machine through",
        )
        rest = [_told(name, skipped("no time was left")) for name in due[1:]]
        return [*findings, _told(due[0], late), *rest]


def ok(detail: str) -> Finding:
    """All is well."""
    return Finding(State.OK, detail)


def warning(detail: str, remedy: str) -> Finding:
    """It works, and something should be looked at."""
    return Finding(State.WARNING, detail, remedy)


def fault(detail: str, remedy: str) -> Finding:
    """Mail does not go out like this."""
    return Finding(State.FAULT, detail, remedy)


def skipped(detail: str) -> Finding:
    """It was not looked at."""
    return Finding(State.SKIPPED, detail)


def _told(name: str, finding: Finding) -> Finding:
    return replace(finding, name=name, detail=_line(finding.detail), remedy=_line(finding.remedy))


def _line(text: str) -> str:
    """One line; a server's words may hold what speaks to a terminal."""
    text = " ".join(text.split())
    text = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return text if len(text) <= MAX_DETAIL else text[: MAX_DETAIL - 1] + "…"


def _bug(error: Exception) -> str:
    """An exception by its type and place; its text may hold anything."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    place = f" at {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""
    return f"{type(error).__name__}{place}"
