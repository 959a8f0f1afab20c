"""``mailroom migrate``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from mailroom.cli.common import (
    EXIT_CONFIGURATION,
    confirm,
    connected_as_owner,
    environment_help,
    from_environment,
    json_option,
)
from mailroom.settings.migrations import MigrationSettings

if TYPE_CHECKING:
    import psycopg

dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Check everything and name the migrations, but write nothing."
)


@contextmanager
def _database() -> Iterator[tuple[psycopg.Connection, str]]:
    """A connection, and the name of the table of versions."""
    table = from_environment(MigrationSettings).table
    with connected_as_owner() as connection:
        yield connection, table


@click.group(epilog=environment_help(MigrationSettings))
def migrate() -> None:
    """Apply or revert migrations of the database's schema.

    The files and the table of versions are golang-migrate's: either tool can continue where the other one
    stopped. Accounts, tokens, jobs and the table of versions are created in the first schema of
    search_path, the rest in the schema mailroom.
    """


@migrate.command("up")
@click.argument("steps", type=click.IntRange(min=1), required=False)
@dry_run_option
def migrate_up(steps: int | None, dry_run: bool) -> None:
    """Apply the next STEPS migrations; all of them by default.

    Before it writes anything, it looks for tables, types and indexes of Mailroom's names that are not
    Mailroom's, and for a table of versions of another tool. It lists what it finds, and exits with 78.
    """
    from mailroom.database import migrate as migrations

    with _database() as (connection, table):
        if not migrations.up(connection, steps, click.echo, table=table, dry_run=dry_run):
            click.echo("nothing to apply: the schema is up to date")


@migrate.command("down")
@click.argument("steps", type=click.IntRange(min=1), default=1)
@click.option("--yes", is_flag=True, help="Do not ask.")
@dry_run_option
def migrate_down(steps: int, yes: bool, dry_run: bool) -> None:
    """Revert the last STEPS migrations; one by default.

    This drops tables with their rows. It asks first on a terminal, and needs --yes elsewhere.
    """
    from mailroom.database import migrate as migrations

    if not yes and not dry_run:
        confirm(
            f"Revert {steps} migration(s), and drop their tables with all rows?",
            "reverting migrations without a terminal needs --yes",
        )
    with _database() as (connection, table):
        if not migrations.down(connection, steps, click.echo, table=table, dry_run=dry_run):
            click.echo("nothing to revert: no migration is applied")


@migrate.command("version")
def migrate_version() -> None:
    """Print the version that is applied; 0 is none. Exits with 78 if the state is dirty."""
    from mailroom.database import migrate as migrations

    with _database() as (connection, table):
        state = migrations.state(connection, table)
    click.echo(f"{state.version} (dirty)" if state.dirty else state.version)
    if state.dirty:
        sys.exit(EXIT_CONFIGURATION)


@migrate.command("status")
@json_option
def migrate_status(as_json: bool) -> None:
    """Show which migrations are applied. Exits with 78 if the state is dirty."""
    from mailroom.database import migrate as migrations

    with _database() as (connection, table):
        state = migrations.state(connection, table)
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
