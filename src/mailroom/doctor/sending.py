"""Checks the sending side: this machine's folder, and the provider of each transport that is set."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar

from mailroom.doctor import environment as variables
from mailroom.doctor.actions import in_use
from mailroom.doctor.report import Check, Finding, Report, fault, ok, warning
from mailroom.errors import ReplayError
from mailroom.sender.rejected import FILE_NAME, read
from mailroom.settings.sender import SenderSettings
from mailroom.settings.transports import SmtpServer
from mailroom.wording import counted

Subject = TypeVar("Subject")

# Before the names of the checks of the second transport.
SECOND: Final = "second-"
NOTHING_IS_SENT: Final = warning(
    "debug: mails are printed, not sent",
    "to send mail, set MAILROOM_TRANSPORT to ses, sesv2 or smtp://… and MAILROOM_DEBUG to false",
)


def examine(environment: Mapping[str, str], report: Report) -> None:
    """Run the checks of this machine and of the transports."""
    settings = variables.read(SenderSettings, environment, report, "mailroom sender")
    faulty = {finding.name for finding in report.findings}
    report.run(CHECKS, settings)
    if "MAILROOM_TRANSPORT" in faulty or "MAILROOM_DEBUG" in faulty:
        return  # it is unknown which transport was meant
    report.attempt("MAILROOM_SEND_RATE", settings.check_rates)
    for each, prefix in zip(settings.each, ("", SECOND), strict=False):
        _examine_transport(each, prefix, environment, report)


def _examine_transport(
    settings: SenderSettings, prefix: str, environment: Mapping[str, str], report: Report
) -> None:
    if settings.transport == "debug":
        report.add("transport", NOTHING_IS_SENT)
    elif isinstance(settings.transport, SmtpServer):
        from mailroom.doctor import smtp

        with smtp.SmtpProbe(settings, settings.transport) as probe:
            report.run(_named(prefix, smtp.CHECKS), probe)
    else:
        from mailroom.doctor import ses
        from mailroom.doctor.ses_probe import SesProbe

        mailed = partial(in_use, environment, settings.templates.folder)
        with SesProbe(settings) as probe:
            report.run(_named(prefix, (*ses.CHECKS, ses.template_check(probe, mailed))), probe)


def _named(prefix: str, checks: Sequence[Check[Subject]]) -> list[Check[Subject]]:
    """The checks with this before their names, also where one needs another of them."""
    names = {check.name: prefix + check.name for check in checks}
    return [
        replace(check, name=names[check.name], needs=tuple(names.get(need, need) for need in check.needs))
        for check in checks
    ]


def output_folder(settings: SenderSettings) -> Finding:
    """The folder for rejected mail can be written."""
    folder = settings.output_path.absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(bytes(4096))
            file.flush()
    except OSError as error:
        return fault(
            f"{str(nearest)!r} cannot be written: {error.strerror}",
            "free some space, or set MAILROOM_SES_OUTPUT_PATH to a folder that this user can write",
        )
    if nearest != folder:
        return ok(f"{str(folder)!r} does not exist yet; the sender can create it")
    return ok(f"{str(folder)!r} can be written")


def rejected(settings: SenderSettings) -> Finding:
    """No mail was set aside."""
    path = settings.output_path / FILE_NAME
    if not path.exists():
        return ok("nothing was set aside")
    try:
        outcomes = Counter(row.outcome for _, row in read(path))
    except ReplayError as error:
        return warning(str(error), error.hint or "run the doctor as the sender's user")
    if not outcomes:
        return ok("nothing was set aside")
    counts = ", ".join(f"{number} {outcome}" for outcome, number in outcomes.most_common())
    return warning(
        f"{path} has {counted(outcomes.total(), 'mail')} not sent: {counts}",
        "read the reasons in it; `mailroom replay --help` explains how to send them again",
    )


CHECKS: Final[tuple[Check[SenderSettings], ...]] = (
    Check("output-folder", output_folder, ("MAILROOM_SES_OUTPUT_PATH",)),
    Check("set-aside", rejected, ("MAILROOM_SES_OUTPUT_PATH",)),
)
