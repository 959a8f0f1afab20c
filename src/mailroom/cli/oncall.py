"""``mailroom status``, ``mailroom why`` and ``mailroom prune``."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Final

import click

from mailroom.cli.common import environment_help
from mailroom.settings import DATABASE_URL, QUEUE_NAME

WATCH_INTERVAL_S: Final = 2.0
TELL_INTERVAL_S: Final = 1.0
LEAST_AGE: Final = timedelta(hours=1)
UNITS: Final = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@click.command(epilog=environment_help([DATABASE_URL, QUEUE_NAME]))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--watch", is_flag=True, help="Show it anew every 2 seconds, on a terminal, until interrupted.")
def status(as_json: bool, watch: bool) -> None:
    """Show how the queue is: what waits, what is being sent, and what became of the last mails.

    Waiting is what no worker has yet; in flight is what one has in hand; retrying is what is tried again
    later. The outcomes are those of `mailroom run`; a pipe's sender keeps its own.
    """
    if watch and (as_json or not sys.stdout.isatty()):
        raise click.UsageError("--watch is for a terminal, and without --json")
    from mailroom import migrate
    from mailroom.oncall import overview
    from mailroom.settings import queue_settings

    settings = queue_settings(os.environ)
    with migrate.connected(settings.database_url) as connection:
        if not watch:
            found = overview(connection, settings.queue_name)
            click.echo(_json(asdict(found)) if as_json else found.text())
            return
        try:
            while True:
                text = overview(connection, settings.queue_name).text()
                click.clear()
                click.echo(text)
                time.sleep(WATCH_INTERVAL_S)
        except KeyboardInterrupt:
            sys.exit(0)


@click.command(epilog=environment_help([DATABASE_URL, QUEUE_NAME]))
@click.argument("who")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def why(who: str, as_json: bool) -> None:
    """Tell what became of the mails of WHO: an e-mail address, a login, or a token's id.

    The last five tokens of a person, oldest first: for each the conclusion, then what happened when, up
    to the provider's message id or to the reason why it was not sent. Addresses are masked, and no token
    and no code is shown. Exits with 65 when nobody is known as WHO.
    """
    from mailroom import migrate
    from mailroom.oncall import stories
    from mailroom.settings import queue_settings

    settings = queue_settings(os.environ)
    name = os.fsencode(who).decode("utf-8", "replace")  # bytes that are no text are nobody's name
    with migrate.connected(settings.database_url) as connection:
        told = stories(connection, settings.queue_name, name.strip().replace("\0", ""))
    if as_json:
        click.echo(_json([story.as_dict() for story in told]))
    else:
        click.echo("\n\n".join(story.text() for story in told))


def _age(_context: click.Context, _parameter: click.Parameter, text: str) -> timedelta:
    found = re.fullmatch(r"([0-9]{1,5})([mhdw])", text, re.ASCII)
    if not found:
        raise click.BadParameter(f"{text!r} is not a duration such as 12h, 30d or 8w")
    age = timedelta(**{UNITS[found[2]]: int(found[1])})
    if age < LEAST_AGE:
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
    from mailroom import migrate
    from mailroom.oncall import prune as prune_rows
    from mailroom.settings import database_url

    told_at = float("-inf")

    def tell(what: str, count: int) -> None:
        nonlocal told_at
        if time.monotonic() >= told_at + TELL_INTERVAL_S:
            told_at = time.monotonic()
            click.echo(f"{what}: {count} deleted so far", err=True)

    with migrate.connected(database_url(os.environ)) as connection:
        deliveries, tokens = prune_rows(connection, older_than, batch, tell)
    click.echo(f"deleted {deliveries} deliveries and {tokens} tokens")


def _json(value: object) -> str:
    def plain(time_or_other: object) -> str:
        if isinstance(time_or_other, datetime):
            return time_or_other.astimezone(UTC).isoformat()
        raise TypeError(type(time_or_other).__name__)

    return json.dumps(value, default=plain, ensure_ascii=False)
