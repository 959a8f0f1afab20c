"""Runs checks and collects their findings in a report.

A check is a function that checks one thing and returns a ``Finding``. A Mailroom error becomes a finding
too: its message is the detail, its hint the remedy. Any other exception is reported as a bug in the check.
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


class Status(enum.StrEnum):
    """The result of a check; SKIPPED means that it did not run, because it needs another that failed."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check, in words.

    Attributes:
        detail: one line, without secrets.
        remedy: what to do, for warnings and faults.
        name: the check's name, set by the report.
    """

    state: Status
    detail: str
    remedy: str = ""
    name: str = ""


class NotKnown(Exception):
    """A check lacks a permission, which is a warning: what it checks may be in order."""

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(detail)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Check(Generic[Subject]):
    """A check of a subject.

    Attributes:
        needs: the names of the checks and variables that it needs.
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

    def count(self, state: Status) -> int:
        """The number of findings in a state."""
        return sum(finding.state is state for finding in self.findings)

    def add(self, name: str, finding: Finding) -> None:
        """Add a finding. Checks that need a faulty or skipped one are skipped later."""
        self.findings.append(_cleaned(name, finding))
        if finding.state in (Status.FAULT, Status.SKIPPED):
            self._unusable.add(name)

    def run(self, checks: Sequence[Check[Subject]], subject: Subject) -> None:
        """Run the checks in their order."""
        self._due = [check.name for check in checks]
        for check in checks:
            missing = [name for name in check.needs if name in self._unusable]
            if missing:
                self.add(check.name, skipped(f"needs {missing[0]}"))
            else:
                self.attempt(check.name, partial(check.look, subject))
            self._due = self._due[1:]

    def attempt(self, name: str, look: Callable[[], Finding | None]) -> None:
        """Add the finding of a function, or of the error that it raises."""
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
        """The findings when time is up: the check that is running is a fault, the rest are skipped."""
        findings, due = list(self.findings), self._due or ["settings"]
        late = fault(
            f"no answer within {patience_s:g} s",
            "check that DNS answers and that no firewall is in the way",
        )
        rest = [_cleaned(name, skipped("time was up")) for name in due[1:]]
        return [*findings, _cleaned(due[0], late), *rest]


def ok(detail: str) -> Finding:
    """A finding: nothing is wrong."""
    return Finding(Status.OK, detail)


def warning(detail: str, remedy: str) -> Finding:
    """A finding: it works, but somebody should check it."""
    return Finding(Status.WARNING, detail, remedy)


def fault(detail: str, remedy: str) -> Finding:
    """A finding: mail is not sent until this is fixed."""
    return Finding(Status.FAULT, detail, remedy)


def skipped(detail: str) -> Finding:
    """A finding: it was not checked."""
    return Finding(Status.SKIPPED, detail)


def _cleaned(name: str, finding: Finding) -> Finding:
    return replace(finding, name=name, detail=_line(finding.detail), remedy=_line(finding.remedy))


def _line(text: str) -> str:
    """A text on one line, without control characters, which a server's text may have."""
    text = " ".join(text.split())
    text = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return text if len(text) <= MAX_DETAIL else text[: MAX_DETAIL - 1] + "…"


def _bug(error: Exception) -> str:
    """An exception by its type and place. Its text is left out, since it may have secrets."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    place = f" at {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""
    return f"{type(error).__name__}{place}"
