"""``mailroom run``, ``mailroom pause`` and ``mailroom resume``."""

from __future__ import annotations

import os

import click

from mailroom.cli.common import collect_garbage_rarely, environment_help, stop_on_signals
from mailroom.run_settings import HEALTH_VARIABLES
from mailroom.sender_settings import RETRY_FOR, SENDER_VARIABLES
from mailroom.settings import CHANNEL_NAME, COLLECTOR_VARIABLES, DATABASE_URL, QUEUE_NAME

RUN_VARIABLES = tuple(
    variable
    for variable in (*COLLECTOR_VARIABLES, *SENDER_VARIABLES, *HEALTH_VARIABLES)
    if variable is not RETRY_FOR
)


@click.command(epilog=environment_help(RUN_VARIABLES))
def run() -> None:
    """Collect, send and settle in one process, with the outcome of every mail in the database.

    What `mailroom collector | mailroom sender` does, with delivery acknowledged: a lease is settled when
    SES has answered, and a crash in between repeats what was in flight and loses nothing. Any number may
    run on any number of machines; they share the queue and SES's rate.

    MAILROOM_HTTP serves Prometheus's /metrics, and /livez and /readyz, which say what is in the way.

    The ledger is the table mailroom.deliveries. It runs until SIGTERM or SIGINT, finishes what is in hand
    within MAILROOM_SHUTDOWN_TIMEOUT, gives back the rest, and exits 0.
    """
    import asyncio

    from mailroom import spelling
    from mailroom.run import Runner
    from mailroom.run_settings import run_settings
    from mailroom.transports import open_transport

    spelling.tell(os.environ)
    settings = run_settings(os.environ)

    async def work() -> None:
        await Runner(settings, open_transport(settings.sender)).run(stop_on_signals())

    collect_garbage_rarely()
    asyncio.run(work())


@click.command(epilog=environment_help([DATABASE_URL, QUEUE_NAME]))
@click.option("--reason", required=True, help="Why, for whoever asks later.")
def pause(reason: str) -> None:
    """Stop handing out mail, to all workers; what they have in hand goes out.

    What is committed meanwhile waits in the queue. `mailroom resume` goes on.
    """
    from mailroom import migrate
    from mailroom.errors import DatabaseError
    from mailroom.oncall import one
    from mailroom.queue import PAUSE
    from mailroom.settings import queue_settings

    settings = queue_settings(os.environ)
    with migrate.connected(settings.database_url) as connection:
        if one(connection, PAUSE, [settings.queue_name, reason]) != (True,):
            raise DatabaseError(
                f"there is no queue {settings.queue_name!r}", hint="correct MAILROOM_QUEUE_NAME"
            )
    click.echo("paused")


@click.command(epilog=environment_help([DATABASE_URL, QUEUE_NAME, CHANNEL_NAME]))
def resume() -> None:
    """Hand out mail again, after `mailroom pause`."""
    from mailroom import migrate
    from mailroom.oncall import one
    from mailroom.queue import RESUME
    from mailroom.settings import queue_settings

    settings = queue_settings(os.environ)
    with migrate.connected(settings.database_url) as connection:
        was_paused = one(connection, RESUME, [settings.queue_name, settings.channel_name]) == (True,)
    click.echo("resumed" if was_paused else "it was not paused")
