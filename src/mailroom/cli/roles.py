"""``mailroom roles``."""

from __future__ import annotations

from typing import Final

import click

from mailroom.cli.common import connected_as_owner, environment_help
from mailroom.settings.collector import DatabaseSettings

ROLES: Final = ("mailroom_app", "mailroom_oncall", "mailroom_worker")
MISSING: Final = """
SELECT r.name FROM pg_catalog.unnest(%s::pg_catalog.text[]) AS r (name)
WHERE pg_catalog.to_regrole(r.name) IS NULL ORDER BY r.name
"""


@click.command(epilog=environment_help(DatabaseSettings))
@click.option("--apply", "is_applied", is_flag=True, help="Run it, as the user of MAILROOM_DATABASE_URL.")
def roles(is_applied: bool) -> None:
    """Make three roles with the least rights they need.

    It prints the SQL, or runs it with --apply.

    mailroom_worker claims and settles, and reads no table. mailroom_app signs up and consumes, and reads no
    secret. mailroom_oncall is for status, why, dead, suppressions, forget, console, pause, resume and prune.
    Run it as often as you like: it creates or updates the roles. Run it again after each `mailroom migrate
    up`:

    \b
      mailroom roles --apply
      psql "$MAILROOM_DATABASE_URL" -c "GRANT mailroom_worker TO acme_worker"

    It must run as the owner of Mailroom's schema, with the right to create roles (CREATEROLE) unless they
    exist, or as a superuser. Only --apply reads MAILROOM_DATABASE_URL.
    """
    from importlib.resources import files

    script = files("mailroom").joinpath("sql", "roles.sql").read_text("utf-8")
    if is_applied:
        _apply(script)
        click.echo("created or updated: mailroom_worker, mailroom_app, mailroom_oncall")
    else:
        click.echo(script, nl=False)


def _apply(script: str) -> None:
    import psycopg

    from mailroom.database.connection import reason
    from mailroom.errors import DatabaseUnavailable, MigrationError

    with connected_as_owner() as connection:
        try:
            # The script is one transaction: if it fails, it is rolled back when the connection ends.
            connection.execute(script.encode())
        except psycopg.errors.InvalidSchemaName as error:
            raise MigrationError(
                f"the roles were not created: {reason(error)}", hint="run `mailroom migrate up` first"
            ) from error
        except psycopg.Error as error:
            if connection.broken:
                raise DatabaseUnavailable(
                    f"the connection to PostgreSQL was lost, and the roles may be missing: {reason(error)}",
                    hint="run it again when the server is back; running it twice does no harm",
                ) from error
            connection.rollback()
            names = connection.execute(MISSING, [list(ROLES)]).fetchall()
            if names and isinstance(error, psycopg.errors.InsufficientPrivilege):
                asked = "; ".join(f"CREATE ROLE {name}" for (name,) in names)
                raise MigrationError(
                    f"the roles were not created: {reason(error)}",
                    hint="nothing was changed; connect as the owner of Mailroom's schema with the right to"
                    f" create roles (CREATEROLE) or as a superuser, or ask the administrator to run: {asked}",
                ) from error
            raise MigrationError(
                f"the roles were not created: {reason(error)}",
                hint="nothing was changed; connect as the owner of Mailroom's schema, with the right to"
                " create roles (ALTER ROLE … CREATEROLE), or as a superuser, and run it again",
            ) from error
