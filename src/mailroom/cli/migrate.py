"""``mailroom migrate``."""

from __future__ import annotations

import json
import sys

import click

from mailroom.cli.common import EXIT_CONFIGURATION, confirm, connected_as_owner, environment_help, json_option
from mailroom.settings.collector import DatabaseSettings


@click.group(epilog=environment_help(DatabaseSettings))
def migrate() -> None:
    """Apply or revert migrations of the database's schema.

    The files and the table of versions are golang-migrate's: either tool can continue where the other one
    stopped.
    """


@migrate.command("up")
@click.argument("steps", type=click.IntRange(min=1), required=False)
def migrate_up(steps: int | None) -> None:
    """Apply the next STEPS migrations; all of them by default."""
    from mailroom.database import migrate as migrations

    with connected_as_owner() as connection:
        if not migrations.up(connection, steps, click.echo):
            click.echo("nothing to apply: the schema is up to date")


@migrate.command("down")
@click.argument("steps", type=click.IntRange(min=1), default=1)
@click.option("--yes", is_flag=True, help="Do not ask.")
def migrate_down(steps: int, yes: bool) -> None:
    """Revert the last STEPS migrations; one by default.

    This drops tables with their rows. It asks first on a terminal, and needs --yes elsewhere.
    """
    from mailroom.database import migrate as migrations

    if not yes:
        confirm(
            f"Revert {steps} migration(s), and drop their tables with all rows?",
            "reverting migrations without a terminal needs --yes",
        )
    with connected_as_owner() as connection:
        if not migrations.down(connection, steps, click.echo):
            click.echo("nothing to revert: no migration is applied")


@migrate.command("status")
@json_option
def migrate_status(as_json: bool) -> None:
    """Show which migrations are applied. Exits with 78 if the state is dirty."""
    from mailroom.database import migrate as migrations

    with connected_as_owner() as connection:
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
            click.echo(f"dirty: a migration to or from version {state.version} was interrupted")
    if state.dirty:
        sys.exit(EXIT_CONFIGURATION)
