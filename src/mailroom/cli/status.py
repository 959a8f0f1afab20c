"""``mailroom status``."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Final, NoReturn

import click

from mailroom.cli.common import ANSWER_LIMIT_S, as_json_text, connected, environment_help, json_option
from mailroom.settings.collector import DatabaseSettings

WATCH_INTERVAL_S: Final = 2.0


@click.command(epilog=environment_help(DatabaseSettings))
@json_option
@click.option("--watch", is_flag=True, help="Refresh every 2 seconds until interrupted; needs a terminal.")
def status(as_json: bool, watch: bool) -> None:
    """Show what waits, what is in flight, outcomes and workers.

    Waiting tokens are not claimed yet, tokens in flight are claimed by a worker, and retrying tokens are
    due again later. Outcomes, dead letters and workers are those of `mailroom run`: a pipe's sender keeps
    its own record, and a pipe's collector does not report that it is alive.

    A worker is alive if it reported in the last 15 seconds. One that stopped reporting is shown for an
    hour. Dead letters are counted among the newest 10000 rejections.
    """
    if watch and (as_json or not sys.stdout.isatty()):
        raise click.UsageError("--watch needs a terminal, and does not go with --json")
    from mailroom.operations.reports import overview

    if watch:
        try:
            _watch()
        except KeyboardInterrupt:
            sys.exit(0)
    with connected(ANSWER_LIMIT_S) as connection:
        found = overview(connection)
    click.echo(as_json_text(asdict(found)) if as_json else found.text())


def _watch() -> NoReturn:
    """Refresh until interrupted. While the connection is lost, show the last state and the error."""
    from mailroom.database.sync import answering_within
    from mailroom.errors import DatabaseUnavailable
    from mailroom.operations.mail_state import utc
    from mailroom.operations.reports import overview

    text, lost_at = "", None
    while True:
        try:
            with connected(ANSWER_LIMIT_S) as connection:
                while True:
                    with answering_within(connection, ANSWER_LIMIT_S):
                        text = overview(connection).text()
                    lost_at = None
                    click.clear()
                    click.echo(text)
                    time.sleep(WATCH_INTERVAL_S)
        except DatabaseUnavailable as error:
            if not text:  # it never answered
                raise
            lost_at = lost_at or datetime.now(UTC)
            click.clear()
            click.echo(f"{text}\n\nthis was the state until {utc(lost_at)}: {error}; trying again")
            time.sleep(WATCH_INTERVAL_S)
