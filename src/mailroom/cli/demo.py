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
    help="The number of people who sign up by SQL.",
)
@click.option(
    "--stay/--no-stay",
    default=None,
    help="Keep everything running until Ctrl-C, or end after the tour.  [default: stay on a terminal]",
)
def demo(signups: int, stay: bool | None) -> None:
    """Run a demonstration: people sign up and get their mails.

    It runs its own PostgreSQL, `mailroom run`, the inbox, the example application and the console
    on loopback. Each takes its usual port, or another one if that is in use. A tour signs people up, a few
    through the application's forms and the others by SQL. It prints what happens, and at the end the counts
    of the database, the ledger and the inbox.

    On a terminal everything then keeps running until Ctrl-C, so that you can click through it.

    It removes everything at the end, and exits with 0 if all mails arrived.

    \b
    It needs the extra demo: pip install 'mailroom-postgresql[demo]'
    """
    import signal

    from mailroom.demo.tour import run_tour

    # These signals then clean up as an interrupt does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    if stay is None:
        stay = all(stream and stream.isatty() for stream in (sys.stdin, sys.stdout))
    sys.exit(run_tour(signups, click.echo, stay=stay))
