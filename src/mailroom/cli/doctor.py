"""``mailroom doctor``."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import click

from mailroom.cli.common import EXIT_FOUND, json_option
from mailroom.wording import counted

if TYPE_CHECKING:
    from mailroom.doctor.report import Finding, Report

COLOURS = {"ok": "green", "warning": "yellow", "fault": "red", "skipped": "bright_black"}


@click.command()
@click.option(
    "--only",
    type=click.Choice(["database", "sending", "events"]),
    help="Check only what the collector needs, what the sender needs, or what the reader of events needs.",
)
@json_option
def doctor(only: str | None, as_json: bool) -> None:
    """Check all that mail depends on, and say how to fix faults.

    \b
    database: server, encoding, clock, migrations, functions, queue, pause, triggers,
              notifications, backlog, workers
    sending:  credentials, region, quota, sandbox, sender's address, configuration set, templates;
              or the mail server; and the folder for mails that were not sent
    events:   the queue of SES's events, and what SES publishes to it

    Each line is ok, warning, fault or skipped (a check that it needs has failed). It reads the variables
    of `mailroom collector`, `mailroom sender` and `mailroom events`. It changes nothing, sends no mail, and
    ends within 15 seconds.

    Exits with 1 if there are faults, else with 0; warnings do not count.
    """
    from mailroom.doctor.diagnosis import diagnose
    from mailroom.doctor.report import Status

    report = diagnose(os.environ, only)
    click.echo(as_json_text(report) if as_json else as_table(report))
    sys.exit(EXIT_FOUND if report.count(Status.FAULT) else 0)


def as_json_text(report: Report) -> str:
    """The report as one JSON object."""
    from mailroom.doctor.report import Status

    checks = [
        {
            "name": finding.name,
            "state": finding.state.value,
            "detail": finding.detail,
            "remedy": finding.remedy,
        }
        for finding in report.findings
    ]
    faults, warnings = report.count(Status.FAULT), report.count(Status.WARNING)
    return json.dumps({"faults": faults, "warnings": warnings, "checks": checks}, ensure_ascii=False)


def as_table(report: Report) -> str:
    """The report as one line for each check, with remedies, and a summary."""
    from mailroom.doctor.report import Status

    width = max(len(finding.name) for finding in report.findings)
    lines = [_line(finding, width) for finding in report.findings]
    faults, warnings = report.count(Status.FAULT), report.count(Status.WARNING)
    summary = [
        counted(faults, "fault"),
        counted(warnings, "warning"),
        f"{report.count(Status.OK)} ok",
    ]
    if number := report.count(Status.SKIPPED):
        summary.append(f"{number} skipped")
    return "\n".join([*lines, "", ", ".join(summary)])


def _line(finding: Finding, width: int) -> str:
    state = click.style(f"{finding.state.value:<7}", fg=COLOURS[finding.state])
    line = f"{state}  {finding.name:<{width}}  {finding.detail}"
    return f"{line}\n         try: {finding.remedy}" if finding.remedy else line
