"""The sending side: what the sender needs of this machine, and of the provider that its transport names."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from typing import Final

from mailroom.doctor import environment as variables
from mailroom.doctor.report import Check, Finding, Report, fault, ok, warning
from mailroom.errors import ReplayError
from mailroom.sender.rejected import FILE_NAME, read
from mailroom.settings.sender import SenderSettings, SmtpServer

NOTHING_IS_SENT: Final = warning(
    "debug: mails are printed and not sent",
    "for users' mail, set MAILROOM_TRANSPORT to ses or smtp://… and MAILROOM_DEBUG to false",
)


def examine(environment: Mapping[str, str], report: Report) -> None:
    """Make the checks of this machine, and those of the transport that the settings name."""
    settings = variables.read(SenderSettings, environment, report, "mailroom sender")
    told = {finding.name for finding in report.findings}
    report.run(CHECKS, settings)
    if "MAILROOM_TRANSPORT" in told or "MAILROOM_DEBUG" in told:
        return  # nobody can tell which transport was meant
    if settings.transport == "debug":
        report.add("transport", NOTHING_IS_SENT)
    elif isinstance(settings.transport, SmtpServer):
        from mailroom.doctor import smtp

        with smtp.Session(settings, settings.transport) as session:
            report.run(smtp.CHECKS, session)
    else:
        from mailroom.doctor import ses
        from mailroom.doctor.account import Account

        with Account(settings) as account:
            report.run(ses.CHECKS, account)


def output_folder(settings: SenderSettings) -> Finding:
    """What cannot be mailed can be set aside."""
    folder = settings.output_path.absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(bytes(4096))
            file.flush()
    except OSError as error:
        return fault(
            f"{str(nearest)!r} cannot be written: {error.strerror}",
            "make room, or let MAILROOM_SES_OUTPUT_PATH name a folder that this user can write",
        )
    if nearest != folder:
        return ok(f"{str(folder)!r} is not there yet, and the sender can make it")
    return ok(f"{str(folder)!r} can be written")


def rejected(settings: SenderSettings) -> Finding:
    """What was not mailed."""
    path = settings.output_path / FILE_NAME
    if not path.exists():
        return ok("nothing was set aside")
    try:
        outcomes = Counter(row.outcome for _, row, _ in read(path))
    except ReplayError as error:
        return warning(str(error), error.hint or "let the sender's user run the doctor")
    if not outcomes:
        return ok("nothing was set aside")
    told = ", ".join(f"{number} {outcome}" for outcome, number in outcomes.most_common())
    return warning(
        f"{path} has {outcomes.total()} mails that were not sent: {told}",
        "see the reasons in it; `mailroom replay --help` says how to send them again",
    )


CHECKS: Final[tuple[Check[SenderSettings], ...]] = (
    Check("output-folder", output_folder, ("MAILROOM_SES_OUTPUT_PATH",)),
    Check("set-aside", rejected, ("MAILROOM_SES_OUTPUT_PATH",)),
)
