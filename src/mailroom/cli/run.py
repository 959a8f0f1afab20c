"""``mailroom run``."""

from __future__ import annotations

import os

import click

from mailroom.cli.common import collect_garbage_rarely, environment_help, from_environment, stop_on_signals
from mailroom.settings.worker import RunSettings


@click.command(epilog=environment_help(RunSettings))
def run() -> None:
    """Claim, send and settle in one process.

    It records the outcome of every mail in the database.
    It does what `mailroom collector | mailroom sender` does, with acknowledged delivery: a lease is settled
    when the provider has answered. After a crash, mails in flight may be sent twice, and none is lost. Any
    number of workers can run on any number of machines; they share the queue and the send rate. With two
    transports in MAILROOM_TRANSPORT, the second sends while the first cannot.

    MAILROOM_HTTP serves Prometheus's /metrics, and /livez and /readyz, which report why mail does not
    go out.

    The ledger is the table mailroom.deliveries.

    It runs until SIGTERM or SIGINT. Then it finishes the mails in hand within MAILROOM_SHUTDOWN_TIMEOUT,
    releases its other leases, and exits with 0.
    """
    import asyncio

    from mailroom.runner.program import Runner
    from mailroom.settings import misspelt
    from mailroom.transports.transport import open_transports

    misspelt.warn(os.environ)
    settings = from_environment(RunSettings)

    async def work() -> None:
        await Runner(settings, open_transports(settings.sender)).run(stop_on_signals())

    collect_garbage_rarely()
    asyncio.run(work())
