"""``mailroom why``."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Final

import click

from mailroom.cli.common import as_json_text, environment_help
from mailroom.settings.collector import DATABASE_URL

WATCH_INTERVAL_S: Final = 2.0
TELL_INTERVAL_S: Final = 1.0
MIN_AGE: Final = timedelta(hours=1)
ANSWER_LIMIT_S: Final = 30.0


@click.command(epilog=environment_help([DATABASE_URL]))
@click.argument("who")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def why(who: str, as_json: bool) -> None:
    """Tell what became of the mails of WHO: an e-mail address, a login, or a token's id.

    The last five tokens of a person, oldest first: for each the conclusion, then what happened when, up
    to the provider's message id or to the reason why it was not sent. Addresses are masked, and no token
    and no code is shown. Exits with 65 when nobody is known as WHO.
    """
    from mailroom.database import sync
    from mailroom.operations.reports import stories
    from mailroom.settings.collector import database_url

    name = os.fsencode(who).decode("utf-8", "replace")  # bytes that are no text are nobody's name
    with sync.connected(database_url(os.environ)) as connection:
        told = stories(connection, name.strip().replace("\0", ""))
    if as_json:
        click.echo(as_json_text([story.as_dict() for story in told]))
    else:
        click.echo("\n\n".join(story.text() for story in told))
