"""``mailroom collector``."""

from __future__ import annotations

import os

import click

from mailroom.cli.common import collect_garbage_rarely, environment_help, from_environment, stop_on_signals
from mailroom.settings.collector import CollectorSettings


@click.command(epilog=environment_help(CollectorSettings))
def collector() -> None:
    """Print committed tokens, signed, as one line for each batch.

    A line holds action,email,username,secret,code for each token of the batch. Standard output holds
    lines and nothing else; logs go to standard error.

    It runs until SIGTERM or SIGINT. Then it finishes the current line, releases its other leases, and
    exits with 0.
    """
    import asyncio

    from mailroom.collector.program import Collector
    from mailroom.collector.stdout import standard_output
    from mailroom.settings import misspelt

    misspelt.warn(os.environ)
    settings = from_environment(CollectorSettings)

    async def run() -> None:
        await Collector(settings, standard_output()).run(stop_on_signals())

    collect_garbage_rarely()
    asyncio.run(run())
