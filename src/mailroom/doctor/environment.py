"""Reads the settings for the checks. A faulty variable only skips the checks that need it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeVar

from mailroom.doctor.report import Report, fault, ok, warning
from mailroom.errors import SettingsError
from mailroom.settings import misspelt
from mailroom.settings.variables import read_settings

Settings = TypeVar("Settings")

# Values for required variables that are faulty. No check uses them: a check that needs one is skipped.
STAND_INS: Final = {"MAILROOM_DATABASE_URL": "dbname=unknown", "MAILROOM_SECRET_KEY": "00" * 32}


def read(
    settings: type[Settings],
    environment: Mapping[str, str],
    report: Report,
    command: str,
) -> Settings:
    """The settings, with defaults for faulty variables; each of them becomes a finding.

    Args:
        settings: their type.
        environment: the variables.
        report: where the findings go.
        command: the command that has these settings.
    """
    try:
        all_right = read_settings(settings, environment)
    except SettingsError as error:
        faults = [text.partition(": ") for text in error.faults]
        for variable, _, text in faults:
            remedy = f"correct {variable}; `{command} --help` describes it"
            if variable == "MAILROOM_SECRET_KEY":
                remedy += ", and `mailroom key new` makes a key"
            report.add(variable, fault(text, remedy))
        wrong = {variable for variable, _, _ in faults}
        rest = {key: value for key, value in environment.items() if key.removesuffix("_FILE") not in wrong}
        return read_settings(settings, rest | {key: text for key, text in STAND_INS.items() if key in wrong})
    report.add(f"{command.removeprefix('mailroom ')}-settings", ok("every variable is valid"))
    return all_right


def examine(environment: Mapping[str, str], report: Report) -> None:
    """Add a warning for each variable that looks like one of Mailroom's and that no command reads."""
    for name, meant in misspelt.unknown(environment):
        remedy = f"did you mean {meant}?" if meant else "unset it, or find its name in a command's --help"
        report.add(name, warning("no command reads this variable", remedy))
