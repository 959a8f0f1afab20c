"""``mailroom pause`` and ``mailroom resume``."""

from __future__ import annotations

import click

from mailroom.cli.common import ANSWER_LIMIT_S, connected, environment_help, from_environment, text_argument
from mailroom.settings.collector import DatabaseSettings, QueueSettings


@click.command(epilog=environment_help(DatabaseSettings))
@click.option(
    "--reason", required=True, callback=text_argument, help="The reason, which `mailroom status` shows."
)
def pause(reason: str) -> None:
    """Stop all workers from claiming mail.

    Mail that they have claimed is still sent. New tokens wait in the queue until `mailroom resume`.
    """
    from mailroom.operations.pause import pause as pause_queue

    with connected(ANSWER_LIMIT_S) as connection:
        pause_queue(connection, reason)
    click.echo("paused")


@click.command(epilog=environment_help(QueueSettings))
def resume() -> None:
    """Let workers claim mail again, after `mailroom pause`."""
    from mailroom.operations.pause import resume as resume_queue

    channel = from_environment(QueueSettings).channel_name
    with connected(ANSWER_LIMIT_S) as connection:
        was_paused = resume_queue(connection, channel)
    click.echo("resumed" if was_paused else "it was not paused")
