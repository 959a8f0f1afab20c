"""``mailroom sender``."""

from __future__ import annotations

import os
import sys

import click

from mailroom.cli.common import EXIT_TRY_AGAIN, environment_help, from_environment, stop_on_signals
from mailroom.settings.sender import SenderSettings


@click.command(epilog=environment_help(SenderSettings))
def sender() -> None:
    """Mail the lines on standard input.

    For the pipe: mailroom collector | mailroom sender. Mails go through AWS SES, with AWS's own settings
    (AWS_DEFAULT_REGION, AWS_PROFILE, AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL_SES, roles and so on), or over
    SMTP. It reads nothing while it cannot send. With two transports in MAILROOM_TRANSPORT, the second
    sends while the first cannot.

    Mails that cannot be sent are appended with the reason to rejected.csv in MAILROOM_SES_OUTPUT_PATH (see
    `mailroom replay --help`). Answers of SES that report an error are saved in the same folder.

    At the end of the input, or after SIGTERM or SIGINT, it finishes the mails in hand; a second SIGINT
    ends it at once. Exits with 0 if every mail was sent, with 75 if one was set aside.
    """
    import asyncio

    from mailroom.sender.program import Pipe
    from mailroom.sender.stdin import standard_input
    from mailroom.settings import misspelt
    from mailroom.transports.transport import open_transports

    misspelt.warn(os.environ)
    settings = from_environment(SenderSettings)

    async def run() -> bool:
        pipe = Pipe(settings, standard_input(), open_transports(settings))
        return await pipe.run(stop_on_signals())

    sys.exit(0 if asyncio.run(run()) else EXIT_TRY_AGAIN)
