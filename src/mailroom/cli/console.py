"""``mailroom console``."""

from __future__ import annotations

import click

from mailroom.cli.common import environment_help, from_environment, stop_on_signals
from mailroom.settings.collector import QueueSettings


@click.command(epilog=environment_help(QueueSettings))
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8026,
    show_default=True,
    help="The port; 0 takes any free one.",
)
@click.option("--read-only", is_flag=True, help="Refuse to pause, resume, retry or drop anything.")
def console(host: str, port: int, read_only: bool) -> None:
    """Show the queue in a browser.

    The page shows live what `mailroom status`, `why` and `dead` print, and does what `pause`, `resume`
    and `dead` do. Addresses are masked unless the viewer asks for them; tokens and codes are never shown.
    Outcomes are those of `mailroom run`: a pipe's sender keeps its own record.

    It has no password: keep it on loopback, or behind a proxy that asks for one. It runs until SIGTERM or
    SIGINT and exits with 0.

    \b
    It needs the extra http: pip install 'mailroom-postgresql[http]'
    """
    import asyncio

    from mailroom.console.server import ConsoleServer

    settings = from_environment(QueueSettings)

    async def run() -> None:
        stop = stop_on_signals()
        with ConsoleServer(settings, host, port, read_only=read_only) as server:
            click.echo(f"The queue is shown at {server.url}")
            await stop.wait()

    asyncio.run(run())
