"""``mailroom prune``."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import Final

import click

from mailroom.cli.common import duration, environment_help
from mailroom.settings.collector import DATABASE_URL

WATCH_INTERVAL_S: Final = 2.0
TELL_INTERVAL_S: Final = 1.0
MIN_AGE: Final = timedelta(hours=1)
ANSWER_LIMIT_S: Final = 30.0


def _age(context: click.Context, parameter: click.Parameter, text: str) -> timedelta | None:
    age = duration(context, parameter, text)
    if age is not None and age < MIN_AGE:
        raise click.BadParameter(f"{text} is less than 1h, and what is so young may still be needed")
    return age


@click.command(epilog=environment_help([DATABASE_URL]))
@click.option("--older-than", required=True, callback=_age, help="Such as 12h, 30d or 8w; 1h at least.")
@click.option(
    "--batch",
    type=click.IntRange(1, 100_000),
    default=1000,
    show_default=True,
    help="Look at so many rows in one transaction.",
)
def prune(older_than: timedelta, batch: int) -> None:
    """Delete the ledger's old rows, and the tokens that have been expired or consumed for as long.

    A token in a lease stays. It works in small transactions, tells on stderr how far it is, and may be
    interrupted and run again at any time. `mailroom why` knows nothing more of what was deleted.
    """
    from mailroom.database import sync
    from mailroom.operations.prune import prune as prune_rows
    from mailroom.settings.collector import database_url

    told_at = float("-inf")

    def tell(what: str, count: int) -> None:
        nonlocal told_at
        if time.monotonic() >= told_at + TELL_INTERVAL_S:
            told_at = time.monotonic()
            click.echo(f"{what}: {count} deleted so far", err=True)

    with sync.connected(database_url(os.environ)) as connection:
        deliveries, tokens = prune_rows(connection, older_than, batch, tell)
    click.echo(f"deleted {deliveries} deliveries and {tokens} tokens")
