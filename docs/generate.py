"""Writes the pages of the reference that are made from the code: commands, and the Python API.

``python docs/generate.py`` writes them; ``--check`` exits 1 when one is not what the code says.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

import mailroom
from mailroom import actions, consumption, errors, tokens
from mailroom.cli import cli

FOLDER: Final = Path(__file__).parent / "reference"
MADE: Final = "<!-- Made by docs/generate.py; change the code, then run `python docs/generate.py`. -->\n\n"


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """A command and those below it, each by what one types."""
    yield path, command
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(child, f"{path} {name}")


def command_page() -> str:
    """Every command's ``--help``."""
    page = f"{MADE}# Commands\n\nWhat `--help` says. [The reference](../reference.md) has them in a table.\n"
    for path, command in commands(cli, "mailroom"):
        *parents, name = path.split()
        # The width is the page's, whatever the terminal's is. Commands inherit --help's names from above.
        context = None
        for parent in parents:
            context = click.Context(command, parent=context, info_name=parent)
        context = click.Context(
            command, context, name, terminal_width=100, help_option_names=["-h", "--help"]
        )
        page += f"\n## `{path}`\n\n```text\n{command.get_help(context).rstrip()}\n```\n"
    return page


def python_page() -> str:
    """The public functions, the errors and the actions, with their docstrings."""
    page = MADE + (
        "# Python\n\n`import mailroom` is all that an application needs. `keys` is what `MAILROOM_SECRET_KEY`"
        " holds, as text or as a list of bytes.\n"
    )
    for function in (tokens.verify, consumption.consume, tokens.sign):
        given = [
            part.replace(annotation=part.empty) for part in inspect.signature(function).parameters.values()
        ]
        signature = inspect.Signature(given)
        page += f"\n## `mailroom.{function.__name__}{signature}`\n\n{_prose(function)}"
    page += (
        "\n## Errors\n\nEach is a `mailroom.MailroomError`: its text says what happened, its `hint` what to"
        " do. The command line ends with its exit code.\n\n"
    )
    page += _row("error", "exit code", "reason", "meaning") + _row(*["---"] * 4)
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, errors.MailroomError):
            reason = error.reason if issubclass(error, errors.TokenError) else ""
            where = "mailroom" if error.__name__ in mailroom.__all__ else "mailroom.errors"
            meaning = " ".join((inspect.getdoc(error) or "").replace("``", "`").split())
            page += _row(f"`{where}.{error.__name__}`", str(error.exit_code), reason, meaning)
    page += "\n## Actions\n\n"
    page += _row("action", "number on the line", "signed first", "code", "template in SES", "fields")
    page += _row(*["---"] * 6)
    for action in actions.ACTIONS:
        page += _row(
            f"`{action.name}`",
            str(action.number),
            f"`{action.prefix.decode()}`",
            "yes" if action.needs_code else "no",
            f"`{action.template}`",
            ", ".join(f"`{field}`" for field in action.fields),
        )
    return page


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def _prose(function: object) -> str:
    """A docstring in Google's style, as Markdown."""
    text = (inspect.getdoc(function) or "").replace("``", "`")
    page, inside = "", False
    for line in text.splitlines():
        if line in {"Args:", "Raises:", "Returns:"}:
            inside = True
            page += f"**{line[:-1].replace('Args', 'Arguments')}**\n\n"
        elif inside and (found := re.match(r" {4}([\w, ]+): (.*)", line)):
            page += f"- `{found[1].replace(', ', '`, `')}`: {found[2]}\n"
        else:
            page += f"{line.strip() if not inside or not line.strip() else '  ' + line.strip()}\n"
    return page


PAGES: Final = {"commands.md": command_page, "python.md": python_page}


def main() -> int:
    """Write the pages, or check them."""
    stale = []
    for name, make in PAGES.items():
        path, page = FOLDER / name, make()
        if path.exists() and path.read_text() == page:
            continue
        stale.append(name)
        if "--check" not in sys.argv:
            path.write_text(page)
    for name in stale:
        click.echo(
            f"docs/reference/{name}: {'differs from the code' if '--check' in sys.argv else 'written'}"
        )
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
