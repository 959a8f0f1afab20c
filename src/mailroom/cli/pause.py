"""``mailroom pause`` and ``mailroom resume``."""

from __future__ import annotations

import os

import click

from mailroom.cli.common import environment_help
from mailroom.settings.collector import CHANNEL_NAME, DATABASE_URL, QUEUE_NAME


@click.command(epilog=environment_help([DATABASE_URL, QUEUE_NAME]))
@click.option("--reason", required=True, help="Why, for whoever asks later.")
def pause(reason: str) -> None:
    """Stop handing out mail, to all workers; what they have in hand goes out.

    What is committed meanwhile waits in the queue. `mailroom resume` goes on.
    """
    from mailroom.database import sync
    from mailroom.database.sync import one
    from mailroom.errors import DatabaseError
    from mailroom.queue.client import PAUSE
    from mailroom.settings.collector import queue_settings

    settings = queue_settings(os.environ)
    with sync.connected(settings.database_url) as connection:
        if one(connection, PAUSE, [settings.queue_name, reason]) != (True,):
            raise DatabaseError(
                f"there is no queue {settings.queue_name!r}", hint="correct MAILROOM_QUEUE_NAME"
            )
    click.echo("paused")


@click.command(epilog=environment_help([DATABASE_URL, QUEUE_NAME, CHANNEL_NAME]))
def resume() -> None:
    """Hand out mail again, after `mailroom pause`."""
    from mailroom.database import sync
    from mailroom.database.sync import one
    from mailroom.queue.client import RESUME
    from mailroom.settings.collector import queue_settings

    settings = queue_settings(os.environ)
    with sync.connected(settings.database_url) as connection:
        was_paused = one(connection, RESUME, [settings.queue_name, settings.channel_name]) == (True,)
    click.echo("resumed" if was_paused else "it was not paused")
