"""``mailroom templates``."""

from __future__ import annotations

import difflib
import json
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from mailroom.cli.common import (
    EXIT_CONFIGURATION,
    EXIT_FOUND,
    environment_help,
    from_environment,
    json_option,
)
from mailroom.settings.sender import TemplateSettings

if TYPE_CHECKING:
    from mailroom.actions import Action
    from mailroom.templates.sources import Template, TemplateFolder

ANSWER_TIMEOUT_MS = 10_000
SAMPLE_TOKEN = ("this-is-a-sample-and-no-token-" * 3)[:86]
SAMPLE_CODE = "12345"
PARTS = ("subject", "text", "html")

HELP = environment_help(TemplateSettings)


@click.group()
def templates() -> None:
    """Check, preview and publish the templates of mails.

    Each action has three template files in the folder that MAILROOM_TEMPLATES names:
    activation.subject.txt, activation.txt and activation.html. A translation has its language in the
    names, as in activation.de.html; layout.html is the page around every HTML part.
    `mailroom init` writes copies of the built-in ones to start from.
    """


@templates.command("check", epilog=HELP)
@json_option
def templates_check(as_json: bool) -> None:
    """Print what is wrong with the templates, in all languages.

    Exits with 0 if they can be used, else with 78.
    """
    from mailroom.templates.checks import check_action

    _, folder, actions = _folder()
    faults = {name: check_action(folder, action) for name, action in actions.items()}
    if as_json:
        click.echo(json.dumps({"ok": not any(faults.values()), "faults": faults}))
    else:
        for name, found in faults.items():
            languages = ", ".join([folder.language, *folder.languages(actions[name])])
            click.echo("\n  ".join([f"{name}:" if found else f"{name}: ok ({languages})", *found]))
    sys.exit(EXIT_CONFIGURATION if any(faults.values()) else 0)


@templates.command("render", epilog=HELP)
@click.argument("action")
@click.option(
    "--part", type=click.Choice([*PARTS, "all"]), default="all", show_default=True, help="The part to print."
)
@click.option("--locale", default="", help="The recipient's language, such as de-AT.")
@click.option(
    "--login", default="peter.pan", show_default=True, help="The recipient's login; it may be empty."
)
@click.option(
    "--data",
    metavar="NAME=TEXT",
    multiple=True,
    help="The text of one of the action's own fields; repeat it for others.",
)
@json_option
def templates_render(
    action: str, part: str, locale: str, login: str, data: tuple[str, ...], as_json: bool
) -> None:
    """Print the mail for ACTION as a recipient gets it, with a sample token and code.

    To view it in a browser: mailroom templates render activation --part html > mail.html
    """
    from mailroom.templates.checks import usable
    from mailroom.templates.mails import render
    from mailroom.wire import Message

    _, folder, actions = _folder()
    chosen = _named(actions, (action,))[action]
    texts = {name: f"({name})" for name in chosen.fields} | _texts(data, chosen.fields)
    message = Message(chosen, "peter.pan@example.com", login, SAMPLE_TOKEN, SAMPLE_CODE, locale, texts)
    _refuse_controls({"login": login, **texts})
    mail = render(usable(folder, chosen, locale), message)._asdict()
    shown = mail if part == "all" else {part: mail[part]}
    if as_json:
        click.echo(json.dumps(shown, ensure_ascii=False))
    elif part == "all":
        click.echo("\n".join(f"--- {name}\n{text.rstrip()}\n" for name, text in shown.items()), nl=False)
    else:
        click.echo(shown[part].rstrip())


@templates.command("push", epilog=HELP)
@click.argument("actions", metavar="[ACTION]...", nargs=-1)
@click.option("--dry-run", is_flag=True, help="Print what would change, and change nothing.")
def templates_push(actions: tuple[str, ...], dry_run: bool) -> None:
    """Write the templates of ACTIONs (all by default) to SES in all languages, after checking them.

    A translation has its language behind its name, as in activationv1-de. Region and credentials come from
    AWS's own settings. It needs the permissions ses:GetTemplate, ses:CreateTemplate and ses:UpdateTemplate.
    """
    from mailroom.templates.remote import due_change, push
    from mailroom.transports.aws_client import asked

    chosen = list(_chosen(actions))
    with _ses() as client:
        for name, template in chosen:
            change = asked(partial(due_change if dry_run else push, client, template, name))
            would = "would be " if dry_run and change != "unchanged" else ""
            click.echo(f"{name}: {would}{change}")


@templates.command("diff", epilog=HELP)
@click.argument("actions", metavar="[ACTION]...", nargs=-1)
def templates_diff(actions: tuple[str, ...]) -> None:
    """Show what `push` would change in SES: - marks SES's lines, + marks the local ones.

    Exits with 0 if nothing differs, else with 1.
    """
    from mailroom.templates.mails import for_ses
    from mailroom.templates.remote import fetch
    from mailroom.transports.aws_client import asked

    chosen = list(_chosen(actions, check=False))
    different = False
    with _ses() as client:
        for name, template in chosen:
            present = asked(partial(fetch, client, name)) or {}
            for part, ours in for_ses(template, name).items():
                if part != "TemplateName" and ours != present.get(part):
                    different = True
                    click.echo(_difference(name, part, present.get(part, ""), ours), nl=False)
    sys.exit(EXIT_FOUND if different else 0)


def _folder() -> tuple[TemplateSettings, TemplateFolder, dict[str, Action]]:
    """The settings, the folder that they name, and its actions by name."""
    from mailroom.actions import load_actions
    from mailroom.templates.sources import TemplateFolder

    settings = from_environment(TemplateSettings)
    folder = TemplateFolder(settings.folder, settings.constants)
    return settings, folder, load_actions(settings.folder)


def _named(actions: dict[str, Action], names: tuple[str, ...]) -> dict[str, Action]:
    """The actions with these names; all for none."""
    for name in names:
        if name not in actions:
            raise click.UsageError(f"{name!r} is not one of {', '.join(actions)}")
    return {name: action for name, action in actions.items() if name in (names or actions)}


def _chosen(names: tuple[str, ...], *, check: bool = True) -> Iterator[tuple[str, Template]]:
    """The templates of these actions (all for none) with their names in SES.

    Raises:
        TemplateError: one has a fault.
    """
    from mailroom.errors import TemplateError
    from mailroom.templates.checks import REMEDY, faults_of
    from mailroom.templates.mails import ses_name

    settings, folder, actions = _folder()
    wanted = _named(actions, names).values()
    if check and (faults := [fault for action in wanted for fault in faults_of(folder, action)]):
        raise TemplateError("\n  ".join(["the templates cannot be used:", *faults]), hint=REMEDY)
    for action in wanted:
        for template in folder.templates(action):
            yield ses_name(settings.name_of(action), template.tag), template


def _texts(data: tuple[str, ...], fields: tuple[str, ...]) -> dict[str, str]:
    """The texts of fields that options give as NAME=TEXT."""
    texts = {name: text for name, _, text in (one.partition("=") for one in data)}
    for name in texts:
        if name not in fields:
            raise click.UsageError(
                f"--data {name!r}: the action's own fields are {', '.join(fields) or 'none'}"
            )
    return texts


def _refuse_controls(texts: dict[str, str]) -> None:
    """Refuse what no row can hold.

    Raises:
        WireError: a text has a control character.
    """
    from mailroom.errors import WireError

    for name, text in texts.items():
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
            raise WireError(f"{name}: holds a control character")


def _difference(name: str, part: str, theirs: str, ours: str) -> str:
    lines = difflib.unified_diff(
        theirs.splitlines(), ours.splitlines(), f"SES/{name}/{part}", f"Mailroom/{name}/{part}", lineterm=""
    )
    shown = "".join(f"{line}\n" for line in lines)
    return shown or f"{name}/{part} differs only in line ends\n"


@contextmanager
def _ses() -> Iterator[Any]:
    """An SES client whose exceptions are raised as Mailroom's."""
    from mailroom.transports.aws_client import ERRORS, explain, open_client

    client = open_client(answer_timeout_ms=ANSWER_TIMEOUT_MS, connections=1)
    try:
        yield client
    except ERRORS as error:
        raise explain(error) from error
    finally:
        client.close()
