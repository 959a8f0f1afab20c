"""``mailroom roles``."""

from __future__ import annotations

import click


@click.command()
def roles() -> None:
    """Print the SQL that makes roles with what they need and no more.

    mailroom_worker claims and settles, and reads no table; mailroom_app signs up and consumes, and reads
    no secret; mailroom_oncall is for status, why, dead, console, pause, resume and prune. They are made
    or brought up to date, as often as you like, and again after each `mailroom migrate up`:

    \b
      mailroom roles | psql "$MAILROOM_DATABASE_URL"
      psql "$MAILROOM_DATABASE_URL" -c "GRANT mailroom_worker TO acme_worker"
    """
    from importlib.resources import files

    click.echo(files("mailroom").joinpath("roles.sql").read_text("utf-8"), nl=False)
