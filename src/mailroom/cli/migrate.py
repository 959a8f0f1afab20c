"""``mailroom migrate``."""

from __future__ import annotations

import json
import os
import sys

import click

from mailroom.cli.common import EXIT_CONFIGURATION, environment_help
from mailroom.settings.collector import DATABASE_URL


@click.group(epilog=environment_help([DATABASE_URL]))
def migrate() -> None:
    """Bring the database's schema up to date, or back.

    Files and bookkeeping are golang-migrate's: either tool can go on from where the other stopped.
    """


@migrate.command("up")
@click.argument("steps", type=click.IntRange(min=1), required=False)
def migrate_up(steps: int | None) -> None:
    """Apply the next STEPS migrations; all of them by default."""
    from mailroom.database import migrate as migrations
    from mailroom.database import sync
    from mailroom.settings.collector import database_url

    with sync.connected(database_url(os.environ)) as connection:
        if not migrations.up(connection, steps, click.echo):
            click.echo("nothing to apply: the schema is up to date")


@migrate.command("down")
@click.argument("steps", type=click.IntRange(min=1), default=1)
@click.option("--yes", is_flag=True, help="Do not ask.")
def migrate_down(steps: int, yes: bool) -> None:
    """Take back the last STEPS migrations; one by default.

    Tables are dropped with their rows. On a terminal it asks first, and elsewhere it needs --yes.
    """
    from mailroom.database import migrate as migrations
    from mailroom.database import sync
    from mailroom.settings.collector import database_url

    url = database_url(os.environ)
    if not yes:
        if not (sys.stdin and sys.stdin.isatty()):
            raise click.UsageError("taking migrations back without a terminal needs --yes")
        click.confirm(f"Take back {steps} migration(s), with the rows of their tables?", abort=True, err=True)
    with sync.connected(url) as connection:
        if not migrations.down(connection, steps, click.echo):
            click.echo("nothing to take back: no migration is applied")


@migrate.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def migrate_status(as_json: bool) -> None:
    """Show which migrations are applied. Exits with 78 when the state is dirty."""
    from mailroom.database import migrate as migrations
    from mailroom.database import sync
    from mailroom.settings.collector import database_url

    with sync.connected(database_url(os.environ)) as connection:
        state = migrations.state(connection)
    rows = [
        {"version": migration.version, "name": migration.name, "applied": migration.version <= state.version}
        for migration in migrations.shipped()
    ]
    if as_json:
        click.echo(json.dumps({"version": state.version, "dirty": state.dirty, "migrations": rows}))
    else:
        for row in rows:
            click.echo(f"{row['version']:06d}  {'applied' if row['applied'] else 'pending'}  {row['name']}")
        if state.version > len(rows):
            click.echo(f"the schema is at version {state.version}, newer than this Mailroom")
        if state.dirty:
            click.echo(f"dirty: a migration to or from version {state.version} was left half done")
    if state.dirty:
        sys.exit(EXIT_CONFIGURATION)
