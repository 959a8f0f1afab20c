"""``mailroom demo``."""

from __future__ import annotations

import sys

import click


@click.command()
@click.option(
    "--signups",
    type=click.IntRange(min=1, max=10_000),
    default=42,
    show_default=True,
    help="How many people sign up by SQL.",
)
@click.option(
    "--stay/--no-stay",
    default=None,
    help="Keep all of it running until Ctrl-C, or end after the tour.  [default: stay on a terminal]",
)
def demo(signups: int, stay: bool | None) -> None:
    """See it work: people who sign up at an application, and the mails that they get.

    On loopback it runs a PostgreSQL of its own, `mailroom run`, the inbox, the example application and
    the queue page; where one's usual port is in use it takes another. A tour signs people up: a handful
    through the application's forms, the others by SQL. It prints what happens, and ends with the counts
    of the database, the ledger and the inbox.

    On a terminal all of it then stays, for you to click, until Ctrl-C.

    It leaves nothing behind, and exits 0 when all is well.

    \b
    It needs the extra demo: pip install 'mailroom-postgresql[demo]'
    """
    import signal

    from mailroom.demo.tour import run_tour

    # So that they leave as little behind as an interrupt does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    if stay is None:
        stay = all(stream and stream.isatty() for stream in (sys.stdin, sys.stdout))
    sys.exit(run_tour(signups, click.echo, stay=stay))
