"""``mailroom status``."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Final, NoReturn

import click

from mailroom.cli.common import as_json_text, environment_help
from mailroom.settings.collector import DATABASE_URL

WATCH_INTERVAL_S: Final = 2.0
TELL_INTERVAL_S: Final = 1.0
MIN_AGE: Final = timedelta(hours=1)
ANSWER_LIMIT_S: Final = 30.0


@click.command(epilog=environment_help([DATABASE_URL]))
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
    from mailroom.database import sync
    from mailroom.operations.reports import overview
    from mailroom.settings.collector import database_url

    url = database_url(os.environ)
    if watch:
        try:
            _watch(url)
        except KeyboardInterrupt:
            sys.exit(0)
    with sync.connected(url) as connection:
        found = overview(connection)
    click.echo(as_json_text(asdict(found)) if as_json else found.text())


def _watch(url: str) -> NoReturn:
    """Show it anew for ever; a connection that is lost is made again, and that is said meanwhile."""
    from mailroom.database import sync
    from mailroom.database.sync import answering_within
    from mailroom.errors import DatabaseUnavailable
    from mailroom.operations.reports import overview
    from mailroom.operations.story import utc

    text, lost_at = "", None
    while True:
        try:
            with sync.connected(url) as connection:
                while True:
                    with answering_within(connection, ANSWER_LIMIT_S):
                        text = overview(connection).text()
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
