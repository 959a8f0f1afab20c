"""``mailroom prune``."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Final

import click

from mailroom.cli.common import connected, duration, environment_help
from mailroom.settings.collector import DatabaseSettings
from mailroom.wording import counted

PROGRESS_INTERVAL_S: Final = 1.0
MIN_AGE: Final = timedelta(hours=1)


def _age(context: click.Context, parameter: click.Parameter, text: str) -> timedelta | None:
    age = duration(context, parameter, text)
    if age is not None and age < MIN_AGE:
        raise click.BadParameter(f"{text} is less than 1h; rows that young may still be needed")
    return age


@click.command(epilog=environment_help(DatabaseSettings))
@click.option("--older-than", required=True, callback=_age, help="Such as 12h, 30d or 8w; at least 1h.")
@click.option(
    "--batch",
    type=click.IntRange(1, 100_000),
    default=1000,
    show_default=True,
    help="The number of rows to check in one transaction.",
)
def prune(older_than: timedelta, batch: int) -> None:
    """Delete old rows of the ledger, old events and old tokens.

    A token is old if it expired or was consumed that long ago. Tokens in a lease are
    kept. It works in small transactions and prints its progress on standard error. You can interrupt it
    and run it again at any time. `mailroom why` no longer shows what was deleted.
    """
    from mailroom.operations.prune import prune as prune_rows

    printed_at = float("-inf")

    def show_progress(what: str, count: int) -> None:
        nonlocal printed_at
        if time.monotonic() >= printed_at + PROGRESS_INTERVAL_S:
            printed_at = time.monotonic()
            click.echo(f"{what}: {count} deleted so far", err=True)

    with connected() as connection:
        deliveries, events, tokens = prune_rows(connection, older_than, batch, show_progress)
    of_ledger = counted(deliveries, "delivery", "deliveries")
    click.echo(f"deleted {of_ledger}, {counted(events, 'event')} and {counted(tokens, 'token')}")
