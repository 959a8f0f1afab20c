"""``mailroom collector``."""

from __future__ import annotations

import os

import click

from mailroom.cli.common import collect_garbage_rarely, environment_help, stop_on_signals
from mailroom.settings.collector import COLLECTOR_VARIABLES


@click.command(epilog=environment_help(COLLECTOR_VARIABLES))
def collector() -> None:
    """Print signed batches of tokens as they are committed, one line each.

    A line is action,email,username,secret,code for each token of the batch. Standard output holds
    lines and nothing else; logs go to standard error. It runs until SIGTERM or SIGINT, then
    finishes the line in hand, gives back what else it had claimed, and exits 0.
    """
    import asyncio

    from mailroom.collector.program import Collector
    from mailroom.collector.stdout import standard_output
    from mailroom.settings import misspelt
    from mailroom.settings.collector import collector_settings

    misspelt.tell(os.environ)
    settings = collector_settings(os.environ)

    async def run() -> None:
        await Collector(settings, standard_output()).run(stop_on_signals())

    collect_garbage_rarely()
    asyncio.run(run())
