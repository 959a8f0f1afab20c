"""``mailroom pause`` and ``mailroom resume``."""

from __future__ import annotations

import os

import click

from mailroom.cli.common import environment_help
from mailroom.settings.collector import CHANNEL_NAME, DATABASE_URL


@click.command(epilog=environment_help([DATABASE_URL]))
@click.option("--reason", required=True, help="Why, for whoever asks later.")
def pause(reason: str) -> None:
    """Stop handing out mail, to all workers; what they have in hand goes out.

    What is committed meanwhile waits in the queue. `mailroom resume` goes on.
    """
    from mailroom.database import sync
    from mailroom.operations.pause import pause as pause_queue
    from mailroom.settings.collector import database_url

    with sync.connected(database_url(os.environ)) as connection:
        pause_queue(connection, reason)
    click.echo("paused")


@click.command(epilog=environment_help([DATABASE_URL, CHANNEL_NAME]))
def resume() -> None:
    """Hand out mail again, after `mailroom pause`."""
    from mailroom.database import sync
    from mailroom.operations.pause import resume as resume_queue
    from mailroom.settings.collector import queue_settings

    settings = queue_settings(os.environ)
    with sync.connected(settings.database_url) as connection:
        was_paused = resume_queue(connection, settings.channel_name)
    click.echo("resumed" if was_paused else "it was not paused")
