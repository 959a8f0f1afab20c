"""``mailroom status``, ``mailroom why`` and ``mailroom prune``."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NoReturn

import click

from mailroom.cli.common import as_json_text, duration, environment_help
from mailroom.settings import DATABASE_URL, QUEUE_NAME

if TYPE_CHECKING:
    from mailroom.settings import QueueSettings

WATCH_INTERVAL_S: Final = 2.0
TELL_INTERVAL_S: Final = 1.0
LEAST_AGE: Final = timedelta(hours=1)
ANSWER_LIMIT_S: Final = 30.0


@click.command(epilog=environment_help([DATABASE_URL, QUEUE_NAME]))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--watch", is_flag=True, help="Show it anew every 2 seconds, on a terminal, until interrupted.")
def status(as_json: bool, watch: bool) -> None:
    """Show how the queue is: what waits, what is sent, what became of the last mails, and who works.

    Waiting is what no worker has yet; in flight is what one has in hand; retrying is what is tried again
    later. Outcomes, dead letters and workers are those of `mailroom run`: a pipe's sender keeps its own
    record, and a pipe's collector does not say that it lives.

    A worker is alive that said so in the last 15 seconds; one that stopped without leaving is shown for an
    hour. Dead letters are counted among the newest 10000 rejections.
    """
    if watch and (as_json or not sys.stdout.isatty()):
        raise click.UsageError("--watch is for a terminal, and without --json")
    from mailroom import migrate
    from mailroom.oncall import overview
    from mailroom.settings import queue_settings

    settings = queue_settings(os.environ)
    if watch:
        try:
            _watch(settings)
        except KeyboardInterrupt:
            sys.exit(0)
    with migrate.connected(settings.database_url) as connection:
        found = overview(connection, settings.queue_name)
    click.echo(as_json_text(asdict(found)) if as_json else found.text())


def _watch(settings: QueueSettings) -> NoReturn:
    """Show it anew for ever; a connection that is lost is made again, and that is said meanwhile."""
    from mailroom import migrate
    from mailroom.errors import DatabaseUnavailable
    from mailroom.oncall import answering_within, overview
    from mailroom.story import utc

    text, lost_at = "", None
    while True:
        try:
            with migrate.connected(settings.database_url) as connection:
                while True:
                    with answering_within(connection, ANSWER_LIMIT_S):
                        text = overview(connection, settings.queue_name).text()
                    lost_at = None
                    click.clear()
                    click.echo(text)
                    time.sleep(WATCH_INTERVAL_S)
        except DatabaseUnavailable as error:
            if not text:  # there never was an answer
                raise
            lost_at = lost_at or datetime.now(UTC)
            click.clear()
            click.echo(f"{text}\n\nthis is how it was until {utc(lost_at)}: {error}; trying again")
            time.sleep(WATCH_INTERVAL_S)


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
        click.echo(as_json_text([story.as_dict() for story in told]))
    else:
        click.echo("\n\n".join(story.text() for story in told))


def _age(context: click.Context, parameter: click.Parameter, text: str) -> timedelta | None:
    age = duration(context, parameter, text)
    if age is not None and age < LEAST_AGE:
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
