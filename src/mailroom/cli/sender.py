"""``mailroom sender`` and ``mailroom replay``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from mailroom.cli.common import EXIT_DATA, EXIT_TRY_AGAIN, environment_help, stop_on_signals
from mailroom.settings.sender import SENDER_VARIABLES


@click.command(epilog=environment_help(SENDER_VARIABLES))
def sender() -> None:
    """Mail the lines on standard input: mailroom collector | mailroom sender.

    Mails go through AWS SES, with AWS's own settings (AWS_DEFAULT_REGION, AWS_PROFILE, AWS_ACCESS_KEY_ID,
    AWS_ENDPOINT_URL_SES, roles and the rest), or over SMTP. While nothing can be sent nothing is read.

    What cannot be mailed is set aside in rejected.csv below MAILROOM_SES_OUTPUT_PATH, with the reason
    (see `mailroom replay --help`). SES's answers that tell of trouble are saved beside it.

    At the end of the input, or after SIGTERM or SIGINT, it finishes what is in hand; a second SIGINT ends
    that too. Exits 0 when every mail went out, 75 when something was set aside.
    """
    import asyncio

    from mailroom.sender.program import Pipe
    from mailroom.sender.stdin import standard_input
    from mailroom.settings import misspelt
    from mailroom.settings.sender import sender_settings
    from mailroom.transports.transport import open_transport

    misspelt.tell(os.environ)
    settings = sender_settings(os.environ)

    async def run() -> bool:
        pipe = Pipe(settings, standard_input(), open_transport(settings))
        return await pipe.run(stop_on_signals())

    sys.exit(0 if asyncio.run(run()) else EXIT_TRY_AGAIN)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--outcome",
    "outcomes",
    multiple=True,
    type=click.Choice(["rejected", "expired", "unsent", "unknown", "malformed"]),
    help="Only rows of this outcome; may be given several times.",
)
@click.option(
    "--batch",
    type=click.IntRange(1, 10_000),
    default=50,
    show_default=True,
    help="The most recipients on one line.",
)
def replay(file: Path, outcomes: tuple[str, ...], batch: int) -> None:
    """Turn FILE, a rejected.csv, into lines for `mailroom sender`.

    \b
    Move it away first, so that nothing is replayed twice:
      mv output/rejected.csv again.csv
      mailroom replay again.csv | mailroom sender

    Rows that are no messages (lines that could not be read) are told and left out; mend them in
    FILE. Exits 65 when there were any. Tokens may have expired meanwhile: their links are dead.
    """
    from mailroom.errors import WireError
    from mailroom.sender.rejected import read
    from mailroom.wire import Message, encode

    waiting: list[Message] = []
    left_out = 0
    for number, row, content in read(file):
        if outcomes and row.outcome not in outcomes:
            continue
        if isinstance(content, WireError):
            left_out += 1
            click.echo(f"row {number} is left out: {content}", err=True)
            continue
        waiting += content
        while len(waiting) >= batch:
            click.echo(encode(waiting[:batch]), nl=False)
            del waiting[:batch]
    if waiting:
        click.echo(encode(waiting), nl=False)
    if left_out:
        sys.exit(EXIT_DATA)
