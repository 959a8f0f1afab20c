"""Checks that the folder's actions fit the database's, and finds the actions whose templates SES needs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from mailroom.actions import Action, load_actions
from mailroom.doctor.probe import Probe, connect
from mailroom.doctor.report import Finding, ok, warning
from mailroom.errors import MailroomError
from mailroom.operations.actions import compare, in_database
from mailroom.settings.collector import DatabaseSettings
from mailroom.settings.sender import FolderSettings
from mailroom.settings.variables import read_settings


def compared(environment: Mapping[str, str], probe: Probe) -> Finding:
    """The folder and the database have the same actions."""
    folder = read_settings(FolderSettings, environment).folder
    with probe.transaction() as connection:
        there = in_database(connection)
        wanted = load_actions(folder)
        if folder is None:  # a catalogue, of which the database need not have all
            wanted = {name: action for name, action in wanted.items() if name in there}
        found = compare(connection, wanted)
    where = str(folder or "Mailroom's own folder")
    if refused := found.refusals:
        return warning(
            f"{where} has actions that the database cannot take: {'; '.join(refused)}",
            "correct actions.toml; until then links of its applications and of the workers may differ",
        )
    if found.differences:
        names = ", ".join(one.action.name for one in found.differences)
        return warning(
            f"{where} differs from the database: {names}",
            "see `mailroom actions diff`; `mailroom actions apply` writes the folder's into the database",
        )
    if found.without_row:
        return warning(
            f"values of token_action without a row in mailroom.actions: {', '.join(found.without_row)}",
            "define them in actions.toml and run `mailroom actions apply`; their tokens are refused",
        )
    if found.only_there:
        return warning(
            f"{where} does not have actions of the database: {', '.join(found.only_there)}",
            "where mails are sent or tokens verified, set MAILROOM_TEMPLATES to the folder that has them",
        )
    return ok(f"{where} and the database have the same: {', '.join(there)}")


def in_use(environment: Mapping[str, str], folder: Path | None) -> list[Action] | None:
    """The actions that are mailed: the database's, or those of a folder of one's own.

    None if neither is known: the catalogue has more than are mailed.
    """
    try:
        url = read_settings(DatabaseSettings, environment).database_url
        with closing(connect(url)) as connection:
            return list(in_database(connection).values())
    except MailroomError:
        return list(load_actions(folder).values()) if folder else None
