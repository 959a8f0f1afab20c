"""``mailroom forget``."""

from __future__ import annotations

import click

from mailroom.cli.common import (
    AnyTextCommand,
    as_text,
    confirm,
    connected,
    environment_help,
    from_environment,
)
from mailroom.settings.collector import DatabaseSettings
from mailroom.settings.sender import OutputSettings


@click.command(cls=AnyTextCommand, epilog=environment_help(DatabaseSettings, OutputSettings))
@click.argument("address")
@click.option("--yes", is_flag=True, help="Do not ask first.")
def forget(address: str, yes: bool) -> None:
    """Erase ADDRESS from Mailroom's tables and this machine's files.

    It erases every spelling. Delete the account first. Its tokens are deleted; the ledger and the events
    keep what happened, without saying to whom. A suppressed address stays suppressed: a hash of it is
    kept, with a key that only the schema's owner can read. The files are rejected.csv and SES's saved
    answers in MAILROOM_SES_OUTPUT_PATH; run it on each machine that has such files. Backups, and the logs
    of other programs, keep what they have.

    Prints how many rows of each table changed. Exits with 65 if an account has the address. It asks first
    on a terminal, and needs --yes elsewhere.
    """
    from mailroom.operations.forgetting import forget as forget_in_tables
    from mailroom.sender.forgetting import forget_in_files

    named = as_text(address).strip()
    folder = from_environment(OutputSettings).output_path
    if not yes:
        confirm(f"Erase {named}? This cannot be undone.", "without a terminal it needs --yes")
    with connected() as connection:
        erased = forget_in_tables(connection, named)
    for place, count in (*erased.items(), *forget_in_files(folder, named).items()):
        click.echo(f"{place.replace('_', ' ')}: {count}")
