"""``mailroom events``."""

from __future__ import annotations

import os

import click

from mailroom.cli.common import environment_help, from_environment, stop_on_signals
from mailroom.errors import SettingsError
from mailroom.settings.events import ReaderSettings


@click.command(epilog=environment_help(ReaderSettings))
def events() -> None:
    """Read SES's events into the database.

    They say what became of each mail after SES took it. `mailroom run` does this itself when
    MAILROOM_EVENTS is set, and only then waits for an event after a lost answer. This command is for the
    pipe, `mailroom collector | mailroom sender`. Any number may read one queue.

    A message is deleted from the queue when its events are committed. A message that cannot be read is kept
    in the table mailroom.unreadable_events.

    It needs AWS's own settings (AWS_DEFAULT_REGION, AWS_PROFILE, AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL_SQS,
    roles and so on). It runs until SIGTERM or SIGINT, and exits with 0.
    """
    import asyncio

    from mailroom.events.program import read_until
    from mailroom.settings import misspelt

    misspelt.warn(os.environ)
    settings = from_environment(ReaderSettings)
    if not settings.queue:
        raise SettingsError(["MAILROOM_EVENTS: not set; it is the SQS queue of SES's events"])

    async def work() -> None:
        await read_until(stop_on_signals(), settings)

    asyncio.run(work())
