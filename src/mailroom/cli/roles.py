"""``mailroom roles``."""

from __future__ import annotations

import os

import click

from mailroom.cli.common import environment_help
from mailroom.settings.collector import DATABASE_URL


@click.command(epilog=environment_help([DATABASE_URL]))
@click.option("--apply", "is_applied", is_flag=True, help="Run it, as the user of MAILROOM_DATABASE_URL.")
def roles(is_applied: bool) -> None:
    """Print the SQL that makes roles with what they need and no more, or run it.

    mailroom_worker claims and settles, and reads no table; mailroom_app signs up and consumes, and reads
    no secret; mailroom_oncall is for status, why, dead, console, pause, resume and prune. They are made
    or brought up to date, as often as you like, and again after each `mailroom migrate up`:

    \b
      mailroom roles --apply
      psql "$MAILROOM_DATABASE_URL" -c "GRANT mailroom_worker TO acme_worker"

    It needs the owner of Mailroom's schema, who may make roles. Only --apply reads MAILROOM_DATABASE_URL.
    """
    from importlib.resources import files

    script = files("mailroom").joinpath("sql", "roles.sql").read_text("utf-8")
    if is_applied:
        _apply(script)
        click.echo("mailroom_worker, mailroom_app, mailroom_oncall: made, or brought up to date")
    else:
        click.echo(script, nl=False)


def _apply(script: str) -> None:
    import psycopg

    from mailroom.database import sync
    from mailroom.database.connection import reason
    from mailroom.errors import DatabaseUnavailable, MigrationError
    from mailroom.settings.collector import database_url

    with sync.connected(database_url(os.environ)) as connection:
        try:
            # The script is one transaction: what fails in it is rolled back when the connection ends.
            connection.execute(script.encode())
        except psycopg.errors.InvalidSchemaName as error:
            raise MigrationError(
                f"the roles were not made: {reason(error)}", hint="run `mailroom migrate up` first"
            ) from error
        except psycopg.Error as error:
            if connection.broken:
                raise DatabaseUnavailable(
                    f"PostgreSQL was lost, and the roles may not be made: {reason(error)}",
                    hint="run it again when the server is back: it may run as often as you like",
                ) from error
            raise MigrationError(
                f"the roles were not made: {reason(error)}",
                hint="nothing was changed; connect as the owner of Mailroom's schema, who may make roles"
                " (ALTER ROLE … CREATEROLE), and run it again",
            ) from error
