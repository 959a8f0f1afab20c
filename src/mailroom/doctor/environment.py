"""Settings as far as they are right: a fault in one variable keeps only those checks that need it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeVar

from mailroom.doctor.report import Report, fault, ok, warning
from mailroom.errors import SettingsError
from mailroom.settings import misspelt
from mailroom.settings.variables import read_settings

Settings = TypeVar("Settings")

# For required variables that are at fault. No check uses them: each names the variables it needs.
STAND_INS: Final = {"MAILROOM_DATABASE_URL": "dbname=unknown", "MAILROOM_SECRET_KEY": "00" * 32}


def read(
    settings: type[Settings],
    environment: Mapping[str, str],
    report: Report,
    command: str,
) -> Settings:
    """The settings, with a finding for each variable at fault; such a one has its default here.

    Args:
        settings: their type.
        environment: from where.
        report: takes the findings.
        command: whose settings they are.
    """
    try:
        all_right = read_settings(settings, environment)
    except SettingsError as error:
        faults = [text.partition(": ") for text in error.faults]
        for variable, _, text in faults:
            remedy = f"set {variable} right; `{command} --help` says what it may be"
            if variable == "MAILROOM_SECRET_KEY":
                remedy += ", and `mailroom key new` makes a key"
            report.add(variable, fault(text, remedy))
        wrong = {variable for variable, _, _ in faults}
        rest = {key: value for key, value in environment.items() if key.removesuffix("_FILE") not in wrong}
        return read_settings(settings, rest | {key: text for key, text in STAND_INS.items() if key in wrong})
    report.add(f"{command.removeprefix('mailroom ')}-settings", ok("every variable is right"))
    return all_right


def examine(environment: Mapping[str, str], report: Report) -> None:
    """Warn of each variable that looks like one of ours, and that no command reads."""
    for name, meant in misspelt.unknown(environment):
        remedy = (
            f"did you mean {meant}?" if meant else "unset it, or see a command's --help for its variables"
        )
        report.add(name, warning("no command reads this variable", remedy))
