"""``mailroom templates``."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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
    from mailroom.templates.sources import Template

ANSWER_TIMEOUT_MS = 10_000
SAMPLE_TOKEN = ("this-is-a-sample-and-no-token-" * 3)[:86]
SAMPLE_CODE = "12345"
PARTS = ("subject", "text", "html")

HELP = environment_help(TemplateSettings)


@click.group()
def templates() -> None:
    """Check, preview and publish the templates of mails.

    Each action has three template files in the folder that MAILROOM_TEMPLATES names:
    activation.subject.txt, activation.txt, activation.html, and the same for password_recovery.
    `mailroom templates init FOLDER` writes copies of the built-in ones to start from.
    """


@templates.command("check", epilog=HELP)
@json_option
def templates_check(as_json: bool) -> None:
    """Print what is wrong with the templates.

    Exits with 0 if they can be used, else with 78.
    """
    from mailroom.templates.checks import check

    _, loaded = _loaded()
    faults = {name: check(template) for name, template in loaded.items()}
    if as_json:
        click.echo(json.dumps({"ok": not any(faults.values()), "faults": faults}))
    else:
        for name, found in faults.items():
            click.echo("\n  ".join([f"{name}:" if found else f"{name}: ok", *found]))
    sys.exit(EXIT_CONFIGURATION if any(faults.values()) else 0)


@templates.command("render", epilog=HELP)
@click.argument("action")
@click.option(
    "--part", type=click.Choice([*PARTS, "all"]), default="all", show_default=True, help="The part to print."
)
@click.option("--login", default="peter.pan", show_default=True, help="The recipient's login.")
@json_option
def templates_render(action: str, part: str, login: str, as_json: bool) -> None:
    """Print the mail for ACTION as a recipient gets it, with a sample token and code.

    To view it in a browser: mailroom templates render activation --part html > mail.html
    """
    from mailroom.templates.mails import render
    from mailroom.wire import Message, encode

    _, loaded = _loaded()
    ((_, template),) = _fit(loaded, (action,)).items()
    message = Message(template.action, "peter.pan@example.com", login, SAMPLE_TOKEN, SAMPLE_CODE)
    encode([message])  # refuses a login that a message cannot hold
    mail = render(template, message)._asdict()
    shown = mail if part == "all" else {part: mail[part]}
    if as_json:
        click.echo(json.dumps(shown, ensure_ascii=False))
    elif part == "all":
        click.echo("\n".join(f"--- {name}\n{text.rstrip()}\n" for name, text in shown.items()), nl=False)
    else:
        click.echo(shown[part].rstrip())


@templates.command("init")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def templates_init(folder: Path) -> None:
    """Write copies of the built-in templates into FOLDER, to start from.

    It overwrites no file.
    """
    from mailroom.templates.sources import write_built_in

    for path in write_built_in(folder):
        click.echo(path)


@templates.command("push", epilog=HELP)
@click.argument("actions", metavar="[ACTION]...", nargs=-1)
@click.option("--dry-run", is_flag=True, help="Print what would change, and change nothing.")
def templates_push(actions: tuple[str, ...], dry_run: bool) -> None:
    """Write the templates of ACTIONs (all by default) to SES, after checking them.

    Region and credentials come from AWS's own settings. It needs the permissions ses:GetTemplate,
    ses:CreateTemplate and ses:UpdateTemplate.
    """
    from mailroom.templates.remote import due_change, push

    settings, loaded = _loaded()
    with _ses() as client:
        for template in _fit(loaded, actions).values():
            name = settings.name_of(template.action)
            change = due_change(client, template, name) if dry_run else push(client, template, name)
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

    settings, loaded = _loaded()
    different = False
    with _ses() as client:
        for template in _named(loaded, actions).values():
            name = settings.name_of(template.action)
            present = fetch(client, name) or {}
            for part, ours in for_ses(template, name).items():
                if part != "TemplateName" and ours != present.get(part):
                    different = True
                    click.echo(_difference(name, part, present.get(part, ""), ours), nl=False)
    sys.exit(EXIT_FOUND if different else 0)


def _loaded() -> tuple[TemplateSettings, dict[str, Template]]:
    from mailroom.templates.sources import load

    settings = from_environment(TemplateSettings)
    return settings, load(settings.folder, settings.constants)


def _named(loaded: dict[str, Template], names: tuple[str, ...]) -> dict[str, Template]:
    """The templates of these actions; all for none."""
    for name in names:
        if name not in loaded:
            raise click.UsageError(f"{name!r} is not one of {', '.join(loaded)}")
    return {name: template for name, template in loaded.items() if name in (names or loaded)}


def _fit(loaded: dict[str, Template], names: tuple[str, ...]) -> dict[str, Template]:
    """The templates of these actions (all for none), if they can be used.

    Raises:
        TemplateError: one has a fault.
    """
    from mailroom.errors import TemplateError
    from mailroom.templates.checks import check

    wanted = _named(loaded, names)
    faults = [f"{name}: {fault}" for name, template in wanted.items() for fault in check(template)]
    if faults:
        raise TemplateError(
            "\n  ".join(["the templates cannot be used:", *faults]),
            hint="correct them and run `mailroom templates check`",
        )
    return wanted


def _difference(name: str, part: str, theirs: str, ours: str) -> str:
    lines = difflib.unified_diff(
        theirs.splitlines(), ours.splitlines(), f"SES/{name}/{part}", f"Mailroom/{name}/{part}", lineterm=""
    )
    shown = "".join(f"{line}\n" for line in lines)
    return shown or f"{name}/{part} differs only in line ends\n"


@contextmanager
def _ses() -> Iterator[Any]:
    """An SES client whose exceptions are raised as Mailroom's."""
    from mailroom.transports.ses_client import ERRORS, explain, open_client

    client = open_client(send_timeout_ms=ANSWER_TIMEOUT_MS, connections=1)
    try:
        yield client
    except ERRORS as error:
        raise explain(error) from error
    finally:
        client.close()
