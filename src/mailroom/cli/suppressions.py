"""``mailroom suppressions``."""

from __future__ import annotations

import sys
from typing import IO, Final

import click

from mailroom.cli.common import (
    ANSWER_LIMIT_S,
    EXIT_DATA,
    AnyTextCommand,
    as_json_text,
    as_table,
    as_text,
    connected,
    environment_help,
    json_option,
    text_argument,
)
from mailroom.settings.collector import DatabaseSettings
from mailroom.wording import counted

HEADER: Final = ("address", "reason", "by", "since")

address_argument = click.argument("address")


@click.group()
def suppressions() -> None:
    """Show and change which addresses get no mail.

    A permanent bounce or a complaint that SES reports suppresses an address. Nothing is sent to it, in any
    spelling, until somebody removes it here.
    """


@suppressions.command("list", epilog=environment_help(DatabaseSettings))
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=20, show_default=True, help="The number to list."
)
@json_option
def suppressions_list(limit: int, as_json: bool) -> None:
    """List the suppressed addresses, masked, newest first, with the reason."""
    from mailroom.operations.suppressions import newest

    with connected(ANSWER_LIMIT_S) as connection:
        found = newest(connection, limit + 1)
    listed, more = found[:limit], len(found) > limit
    if as_json:
        click.echo(as_json_text({"suppressions": [one.as_dict() for one in listed], "more": more}))
        return
    if listed:
        click.echo(as_table([HEADER, *(one.cells() for one in listed)]))
    if more:
        click.echo("and more; --limit shows more of them")
    else:
        addresses = counted(len(listed), "suppressed address", "suppressed addresses")
        click.echo(addresses if listed else "no suppressed addresses")


@suppressions.command("show", cls=AnyTextCommand, epilog=environment_help(DatabaseSettings))
@address_argument
@json_option
def suppressions_show(address: str, as_json: bool) -> None:
    """Show why ADDRESS gets no mail, in SES's words.

    Exits with 65 if it is not suppressed.
    """
    from mailroom.operations.suppressions import show

    with connected(ANSWER_LIMIT_S) as connection:
        found = show(connection, as_text(address).strip())
    click.echo(as_json_text(found.as_dict()) if as_json else found.text())


@suppressions.command("add", cls=AnyTextCommand, epilog=environment_help(DatabaseSettings))
@address_argument
@click.option("--reason", required=True, callback=text_argument, help="The reason, which `show` shows later.")
def suppressions_add(address: str, reason: str) -> None:
    """Send no mail to ADDRESS, in any spelling."""
    from mailroom.operations.suppressions import add

    with connected(ANSWER_LIMIT_S) as connection:
        is_new = add(connection, as_text(address).strip(), reason)
    click.echo("suppressed" if is_new else "it was suppressed already, and keeps its reason")


@suppressions.command("remove", cls=AnyTextCommand, epilog=environment_help(DatabaseSettings))
@address_argument
def suppressions_remove(address: str) -> None:
    """Let ADDRESS get mail again, in all its spellings.

    Mails that were not sent meanwhile are not sent now: request them again. SES has a list of its own; see
    `mailroom doctor`. Exits with 65 if it was not suppressed.
    """
    from mailroom.operations.suppressions import remove

    with connected(ANSWER_LIMIT_S) as connection:
        remove(connection, as_text(address).strip())
    click.echo("removed")


@suppressions.command("import", epilog=environment_help(DatabaseSettings))
@click.argument("file", type=click.File("r", encoding="utf-8", errors="replace"))
@click.option(
    "--reason", default="imported", show_default=True, callback=text_argument, help="Of rows without one."
)
def suppressions_import(file: IO[str], reason: str) -> None:
    """Suppress the addresses of FILE, a CSV file whose first line is address,reason; - is standard input.

    The column reason may be missing. Other columns are ignored. Rows with a fault are reported and left
    out; the command then exits with 65.
    """
    from mailroom.operations.suppressions import import_csv

    with connected(ANSWER_LIMIT_S) as connection:
        found = import_csv(connection, file, reason)
    for fault in found.faults:
        click.echo(fault, err=True)
    click.echo(f"{found.added} added, {found.known} suppressed already, {len(found.faults)} left out")
    if found.faults:
        sys.exit(EXIT_DATA)


@suppressions.command("export", epilog=environment_help(DatabaseSettings))
def suppressions_export() -> None:
    """Print all suppressed addresses as CSV, which `import` reads. They are not masked.

    Addresses that were forgotten are left out: only their hash is known.
    """
    from mailroom.operations.suppressions import export_csv

    with connected(ANSWER_LIMIT_S) as connection:
        written, forgotten = export_csv(connection, sys.stdout)
    left_out = f"; {forgotten} forgotten ones left out" if forgotten else ""
    click.echo(f"{counted(written, 'address', 'addresses')}{left_out}", err=True)
