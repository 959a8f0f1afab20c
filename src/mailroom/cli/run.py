"""``mailroom run``."""

from __future__ import annotations

import os

import click

from mailroom.cli.common import collect_garbage_rarely, environment_help, stop_on_signals
from mailroom.settings.collector import COLLECTOR_VARIABLES
from mailroom.settings.sender import RETRY_FOR, SENDER_VARIABLES
from mailroom.settings.worker import HEALTH_VARIABLES

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

    from mailroom.settings import misspelt
    from mailroom.settings.worker import run_settings
    from mailroom.transports.transport import open_transport
    from mailroom.worker.program import Runner

    misspelt.tell(os.environ)
    settings = run_settings(os.environ)

    async def work() -> None:
        await Runner(settings, open_transport(settings.sender)).run(stop_on_signals())

    collect_garbage_rarely()
    asyncio.run(work())
