"""``mailroom inbox``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mailroom.cli.common import environment_help, from_environment, stop_on_signals
from mailroom.settings.sender import FolderSettings

if TYPE_CHECKING:
    from mailroom.inbox.mails import KeptMail
    from mailroom.templates.mails import RenderedMail


@click.command(epilog=environment_help(FolderSettings))
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8025,
    show_default=True,
    help="The port; 0 takes any free one.",
)
@click.option(
    "--smtp-port",
    type=click.IntRange(0, 65535),
    help="Also take mail over SMTP, on this port; 0 takes any free one.",
)
@click.option(
    "--rate",
    type=click.FloatRange(0, 1_000_000, min_open=True),
    default=1_000_000,
    help="Throttle calls above this many recipients a second, as SES does.  [default: no limit]",
)
@click.option(
    "--keep",
    type=click.IntRange(1, 1_000_000),
    default=5000,
    show_default=True,
    help="The maximum number of mails to keep; the oldest are deleted first.",
)
@click.option(
    "--print/--no-print", "printing", default=True, show_default=True, help="Print a line for each mail."
)
def inbox(host: str, port: int, smtp_port: int | None, rate: float, keep: int, printing: bool) -> None:
    """Receive mail in place of SES, and keep it.

    Point Mailroom, or any client of SES, to it. As in SES, templates must exist before mail can use them.
    It prints one line for each mail. Browsers open the same address; programs use the API:

    \b
      mailroom inbox &
      export AWS_ENDPOINT_URL_SES=http://127.0.0.1:8025 AWS_DEFAULT_REGION=us-east-1
      export AWS_ACCESS_KEY_ID=any AWS_SECRET_ACCESS_KEY=any
      export MAILROOM_APP_NAME=Acme MAILROOM_APP_URL=https://acme.example
      mailroom templates push
      curl $AWS_ENDPOINT_URL_SES/api/mails

    \b
    GET /api/mails, /api/mails/ID, /api/counts, /api/calls  what happened
    GET /api/mails/wait?recipient=&action=                  wait for a mail
    POST /api/faults, PATCH /api/settings                   inject faults

    It checks no credentials: keep it on loopback. It runs until SIGTERM or SIGINT and exits with 0.

    \b
    It needs the extra inbox: pip install 'mailroom-postgresql[inbox]'
    """
    import asyncio

    from mailroom.actions import load_actions
    from mailroom.errors import OutputClosed
    from mailroom.inbox.inbox import Inbox
    from mailroom.inbox.server import InboxServer

    actions = load_actions(from_environment(FolderSettings).folder).values()

    async def run() -> bool:
        stop = stop_on_signals()
        loop = asyncio.get_running_loop()
        closed = False

        def show(mail: KeptMail) -> None:
            nonlocal closed
            if closed:
                return
            try:
                click.echo(_line(mail, box.render(mail)).encode())
            except OSError:
                closed = True
                loop.call_soon_threadsafe(stop.set)

        box = Inbox(rate=rate, keep=keep, actions=actions, on_mail=show if printing else None)
        with InboxServer(host, port, inbox=box, smtp_port=smtp_port) as server:
            click.echo(_directions(server.url, server.smtp_url), err=True)
            await stop.wait()
        return closed

    if asyncio.run(run()):
        raise OutputClosed("the reader of standard output is gone", hint="use --no-print to run without it")


def _line(mail: KeptMail, rendered: RenderedMail | None) -> str:
    import json

    what = rendered.subject if rendered else f"dropped, {mail.failure}"
    # Unprintable characters could control the terminal.
    quoted = json.dumps(what, ensure_ascii=not what.isprintable())
    recipient = mail.recipient if mail.recipient.isprintable() else ascii(mail.recipient)
    return f"{mail.time:%H:%M:%S} to {recipient}  {quoted}"


def _directions(url: str, smtp_url: str) -> str:
    smtp = f"\nor, over SMTP, with\n\n  export MAILROOM_TRANSPORT={smtp_url}\n" if smtp_url else ""
    return f"""\
The inbox is at {url}. Point Mailroom to it with

  export AWS_ENDPOINT_URL_SES={url} AWS_ENDPOINT_URL_SESV2={url}
  export AWS_DEFAULT_REGION=us-east-1 AWS_ACCESS_KEY_ID=any AWS_SECRET_ACCESS_KEY=any
  export MAILROOM_APP_NAME=Acme MAILROOM_APP_URL=https://acme.example
  mailroom templates push
{smtp}"""
