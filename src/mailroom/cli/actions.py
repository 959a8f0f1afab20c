"""``mailroom actions``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mailroom.cli.common import (
    EXIT_CONFIGURATION,
    EXIT_FOUND,
    action_argument,
    as_table,
    confirm,
    connected_as_owner,
    environment_help,
    from_environment,
    json_option,
)
from mailroom.settings.actions import ActionsSettings
from mailroom.settings.sender import FolderSettings, TemplateSettings

if TYPE_CHECKING:
    import psycopg

    from mailroom.actions import Action
    from mailroom.operations.actions import Comparison

HEADER = ("action", "number", "prefix", "for", "mail", "lifetime", "lane", "limit", "expired unsent")
NO_TERMINAL = "applying actions without a terminal needs --yes"

yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


@click.group()
def actions() -> None:
    """List, check and add actions, the kinds of mail.

    The file actions.toml in the folder that MAILROOM_TEMPLATES names has a table for each, beside its
    templates. The folder that comes with Mailroom is a catalogue of ready ones. `apply` writes a folder's
    actions into the database, where the workers read them.
    """


@actions.command("list", epilog=environment_help(FolderSettings))
@json_option
def actions_list(as_json: bool) -> None:
    """List the folder's actions. This needs no database."""
    from mailroom.actions import load_actions

    found = load_actions(from_environment(FolderSettings).folder)
    if as_json:
        click.echo(json.dumps([_as_dict(action) for action in found.values()]))
    else:
        click.echo(as_table([HEADER, *map(_row, found.values())]))


@actions.command("show", epilog=environment_help(FolderSettings))
@click.argument("action")
@json_option
def actions_show(action: str, as_json: bool) -> None:
    """Show the table of ACTION, with all keys, and what its templates may show."""
    from mailroom.action_text import described

    found = action_argument(action, from_environment(FolderSettings).folder)
    if as_json:
        click.echo(json.dumps(_as_dict(found)))
        return
    click.echo(f"[{found.name}]")
    for key, value in described(found).items():
        click.echo(f"{key} = {value}" if value else f"# {key}: none")
    click.echo(f"\n# {found.template} in SES; its templates may show: {', '.join(found.shown)}")


@actions.command("check", epilog=environment_help(TemplateSettings))
@json_option
def actions_check(as_json: bool) -> None:
    """Print what is wrong with the folder's actions and their templates. This needs no database.

    Exits with 0 if they can be used, else with 78.
    """
    from mailroom.actions import load_actions
    from mailroom.errors import ActionsError
    from mailroom.templates.checks import check_action
    from mailroom.templates.sources import TemplateFolder

    settings = from_environment(TemplateSettings)
    try:
        folder = TemplateFolder(settings.folder, settings.constants)
        actions = load_actions(settings.folder).values()
        faults = {action.name: check_action(folder, action) for action in actions}
    except ActionsError as error:
        if not as_json:
            raise
        click.echo(json.dumps({"ok": False, "faults": {"actions.toml": str(error).splitlines()}}))
        sys.exit(EXIT_CONFIGURATION)
    if as_json:
        click.echo(json.dumps({"ok": not any(faults.values()), "faults": faults}))
    else:
        for name, found in faults.items():
            click.echo("\n  ".join([f"{name}:" if found else f"{name}: ok", *found]))
    sys.exit(EXIT_CONFIGURATION if any(faults.values()) else 0)


@actions.command("add", epilog=environment_help(ActionsSettings))
@click.argument("action")
@yes_option
def actions_add(action: str, yes: bool) -> None:
    """Add ACTION of the catalogue: copy it into your own folder, and apply it.

    It copies the action's table and its templates in all languages, and overwrites nothing. Without a folder
    of your own it only applies the action. Running workers learn of it without a restart.
    """
    with connected_as_owner() as connection:
        add_of_catalogue(connection, action, yes=yes)


def add_of_catalogue(connection: psycopg.Connection, name: str, *, yes: bool) -> None:
    """Copy an action of the catalogue into the folder, if there is one, and apply it."""
    from mailroom.operations.action_files import copy

    folder = from_environment(ActionsSettings).folder
    chosen = action_argument(name, None)
    if folder:
        for path in copy(chosen, folder):
            click.echo(f"{path} written")
        chosen = action_argument(name, folder)
    _apply(connection, {chosen.name: chosen}, yes=yes)


@actions.command("apply", epilog=environment_help(ActionsSettings))
@click.argument("actions", metavar="[ACTION]...", nargs=-1)
@yes_option
def actions_apply(actions: tuple[str, ...], yes: bool) -> None:
    """Write the folder's ACTIONs (all by default) into the database.

    It shows what it will do, and asks on a terminal; it needs --yes elsewhere. A number, a prefix or a code
    that would change is refused, since links that were mailed depend on it. No action is removed. Without a
    folder of your own, and without ACTION, it changes only actions that the database has. It needs the owner
    of the schema.
    """
    folder = from_environment(ActionsSettings).folder
    with connected_as_owner() as connection:
        _apply(connection, _wanted(connection, folder, actions), yes=yes)


@actions.command("diff", epilog=environment_help(ActionsSettings))
@json_option
def actions_diff(as_json: bool) -> None:
    """Show what `apply` would change in the database.

    Exits with 0 if nothing differs, else with 1.
    """
    from mailroom.operations.actions import compare

    folder = from_environment(ActionsSettings).folder
    with connected_as_owner() as connection:
        found = compare(connection, _wanted(connection, folder, ()))
    if as_json:
        listed = [one.as_dict() for one in found.differences]
        only = {"only_in_database": found.only_there, "without_row": found.without_row}
        click.echo(json.dumps({"ok": not listed, "differences": listed, **only}))
    else:
        _print(found)
        if not found.differences:
            click.echo("nothing to apply: the database has these actions")
        if found.only_there:
            click.echo(f"only in the database: {', '.join(found.only_there)}")
    sys.exit(EXIT_FOUND if found.differences else 0)


def _apply(connection: psycopg.Connection, wanted: dict[str, Action], *, yes: bool) -> None:
    from mailroom.operations.actions import apply, check_applicable, compare

    found = compare(connection, wanted)
    if not found.differences:
        click.echo("nothing to apply: the database has " + (", ".join(wanted) or "no action of this folder"))
        return
    _print(found)
    check_applicable(found)
    if not yes:
        confirm("Apply this?", NO_TERMINAL)
    apply(connection, wanted)
    click.echo("applied: " + ", ".join(one.action.name for one in found.differences))


def _wanted(connection: psycopg.Connection, folder: Path | None, names: tuple[str, ...]) -> dict[str, Action]:
    """The folder's actions with these names; for none all, of the catalogue those in the database."""
    from mailroom.actions import load_actions
    from mailroom.operations.actions import in_database

    if names:
        return {name: action_argument(name, folder) for name in names}
    every = load_actions(folder)
    if folder:
        return every
    there = in_database(connection)
    return {name: action for name, action in every.items() if name in there}


def _print(found: Comparison) -> None:
    for one in found.differences:
        click.echo(one.text())
    for name in found.without_row:
        click.echo(
            f"? {name}: a value of token_action without a row in mailroom.actions; define it and apply"
        )


def _row(action: Action) -> tuple[str, ...]:
    from mailroom.action_text import described

    text = {key: value.strip('"') for key, value in described(action).items()}
    mail = " and ".join(["link"] * action.has_link + ["code"] * action.needs_code) or "notice"
    return (
        action.name,
        text["number"],
        text["prefix"],
        f"{action.account} accounts" if action.account else "anybody",
        mail,
        text["lifetime"],
        text["lane"],
        text["limit"] or "-",
        text["when_expired"],
    )


def _as_dict(action: Action) -> dict[str, object]:
    from mailroom.action_text import described

    values = {key: json.loads(value) if value else None for key, value in described(action).items()}
    return {"action": action.name, **values, "template": action.template, "shown": list(action.shown)}
