"""``mailroom replay``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mailroom.cli.common import EXIT_DATA, environment_help, from_environment
from mailroom.settings.sender import FolderSettings


@click.command(epilog=environment_help(FolderSettings))
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--outcome",
    "outcomes",
    multiple=True,
    type=click.Choice(["rejected", "expired", "unsent", "unknown", "malformed"]),
    help="Only rows with this outcome; may be given several times.",
)
@click.option(
    "--batch",
    type=click.IntRange(1, 10_000),
    default=50,
    show_default=True,
    help="The maximum number of recipients on one line.",
)
def replay(file: Path, outcomes: tuple[str, ...], batch: int) -> None:
    """Turn FILE, a rejected.csv, into lines for `mailroom sender`.

    \b
    Move the file first, so that no mail is replayed twice:
      mv output/rejected.csv again.csv
      mailroom replay again.csv | mailroom sender

    Rows that hold no message (lines that could not be read) are reported and left out; correct them in
    FILE. Exits with 65 if there were any. Tokens may have expired meanwhile: their links no longer work.
    """
    from mailroom.actions import load_actions
    from mailroom.errors import WireError
    from mailroom.sender.rejected import read
    from mailroom.wire import Message, encode_either

    waiting: list[Message] = []
    left_out = 0
    actions = load_actions(from_environment(FolderSettings).folder)
    for number, row in read(file):
        if outcomes and row.outcome not in outcomes:
            continue
        try:
            waiting += row.messages(actions)
        except WireError as fault:
            left_out += 1
            click.echo(f"row {number} is left out: {fault}", err=True)
            continue
        while len(waiting) >= batch:
            click.echo(encode_either(waiting[:batch]), nl=False)
            del waiting[:batch]
    if waiting:
        click.echo(encode_either(waiting), nl=False)
    if left_out:
        sys.exit(EXIT_DATA)
