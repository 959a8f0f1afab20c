"""``mailroom console``."""

from __future__ import annotations

import os

import click

from mailroom.cli.common import environment_help, stop_on_signals
from mailroom.settings.collector import CHANNEL_NAME, DATABASE_URL


@click.command(epilog=environment_help([DATABASE_URL, CHANNEL_NAME]))
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8026,
    show_default=True,
    help="The port; 0 takes any that is free.",
)
@click.option("--read-only", is_flag=True, help="Let nobody pause, resume, retry or drop anything.")
def console(host: str, port: int, read_only: bool) -> None:
    """Show the queue in a browser: what waits, what becomes of mails, who works; pause it, and go on.

    What `mailroom status`, `why`, `dead`, `pause` and `resume` tell and do, live. Addresses are masked
    unless the viewer asks for them, and no token and no code is shown. Outcomes are those of `mailroom
    run`: a pipe's sender keeps its own record.

    It asks for no password: keep it on loopback, or behind something that does. It runs until SIGTERM or
    SIGINT and exits 0.

    \b
    It needs the extra http: pip install 'mailroom-postgresql[http]'
    """
    import asyncio

    from mailroom.console.server import ConsoleServer
    from mailroom.settings.collector import queue_settings

    settings = queue_settings(os.environ)

    async def run() -> None:
        stop = stop_on_signals()
        with ConsoleServer(settings, host, port, read_only=read_only) as server:
            click.echo(f"The queue is shown at {server.url}")
            await stop.wait()

    asyncio.run(run())
