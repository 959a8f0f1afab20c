"""``mailroom adopt``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from mailroom.cli.actions import add_of_catalogue
from mailroom.cli.common import (
    action_argument,
    as_table,
    confirm,
    connected_as_owner,
    environment_help,
    json_option,
)
from mailroom.settings.actions import ActionsSettings
from mailroom.wording import counted

if TYPE_CHECKING:
    import psycopg

# operations.adoption has what they mean; importing it would load psycopg for --help.
PRESETS = ("django", "devise", "supabase", "fastapi-users")


@click.command(epilog=environment_help(ActionsSettings))
@click.argument("table", required=False)
@click.option("--preset", type=click.Choice(PRESETS), help="Begin with the columns of this framework.")
@click.option("--key", help="The unique column that names a user.  [default: the primary key]")
@click.option("--email", help="The column of the address, or an expression.  [default: email]")
@click.option("--login", help="The column of the name that mails show, or an expression.")
@click.option("--locale", help="The column of the language, or an expression.")
@click.option("--pending-when", metavar="SQL", help="The condition for a user who waits for activation.")
@click.option(
    "--active-when",
    metavar="SQL",
    help="The condition for an active user.  [default: who is not pending]",
)
@click.option(
    "--on-activation", metavar="SQL", help="What a consumed activation sets, as in: confirmed_at = now()"
)
@click.option(
    "--actions",
    metavar="NAME[,NAME]...",
    help="With --apply: first add these actions of the catalogue, as `mailroom actions add` does.",
)
@click.option("--apply", is_flag=True, help="Run the SQL instead of printing it.")
@click.option(
    "--mail-existing",
    is_flag=True,
    help="Mail the pending users of an adopted table who had no activation.",
)
@click.option("--drop", is_flag=True, help="Take the adoption back.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def adopt(
    table: str | None, preset: str | None, actions: str | None, apply: bool, mail_existing: bool,
    drop: bool, yes: bool, as_json: bool, **said: str | None,
) -> None:  # fmt: skip
    """Adopt TABLE, the application's own table of users.

    Without TABLE it lists what is adopted.

    It prints SQL for a migration of the application, which --apply runs instead. From then on an INSERT of a
    pending user requests the activation mail in the same transaction, and a change of the address or of the
    status ends what is pending. Users who were there before get no mail, unless --mail-existing asks for it.
    Repeated for an adopted table, it keeps what no option names. Run it as the owner of Mailroom's schema.

    \b
    Examples:
      mailroom adopt --preset django
      mailroom adopt users --pending-when 'confirmed_at IS NULL' --on-activation 'confirmed_at = now()'
      mailroom adopt users --mail-existing
      mailroom adopt users --drop
    """
    from mailroom.operations import adoption

    given = adoption.Wish(**said)
    if preset:
        name, wish = adoption.PRESETS[preset]
        table, given = table or name, given.over(wish)
    if apply + mail_existing + drop > 1:
        raise click.UsageError("--apply, --mail-existing and --drop exclude each other")
    if table and as_json:
        raise click.UsageError("--json is for the list, without TABLE")
    if (drop or mail_existing) and any(text is not None for text in said.values()):
        raise click.UsageError("--drop and --mail-existing take no columns and conditions")
    names = [name.strip() for name in (actions or "").split(",") if name.strip()]
    if names and not apply:
        raise click.UsageError("--actions needs --apply; beside a migration, run `mailroom actions add`")
    for name in names:
        action_argument(name, None)
    with connected_as_owner() as connection:
        if table is None:
            if apply or mail_existing or drop or given != adoption.Wish():
                raise click.UsageError("name the table")
            _list(connection, as_json=as_json)
        elif drop:
            if not yes:
                confirm(f"Take {table} back? Links that were mailed stop working.", "--drop needs --yes")
            adoption.drop(connection, table)
            click.echo(f"{table} is not adopted any more")
        elif mail_existing:
            _mail_existing(connection, table, yes=yes)
        else:
            planned = adoption.plan(connection, table, given)
            if not apply:
                click.echo(planned.text())
                return
            for name in names:
                add_of_catalogue(connection, name, yes=True)
            adoption.apply(connection, planned)
            click.echo(f"{planned.table.name} is adopted")


def _list(connection: psycopg.Connection, *, as_json: bool) -> None:
    from mailroom.operations.adoption import adopted

    found = adopted(connection)
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found]))
    elif found:
        header = ("table", "key", "email", "login", "locale", "pending when", "active when", "on activation")
        rows = [
            (
                one.user_table + ("" if one.exists else " (dropped)"), one.key_column, one.email, one.login,
                one.locale, one.pending_when, one.active_when, one.on_activation or "-",
            )
            for one in found
        ]  # fmt: skip
        click.echo(as_table([header, *rows]))
    else:
        click.echo("no table is adopted; `mailroom adopt --help` shows how")


def _mail_existing(connection: psycopg.Connection, table: str, *, yes: bool) -> None:
    from mailroom.operations.adoption import mail_existing

    if not yes:
        confirm(
            f"Mail the pending users of {table} who had no activation yet?", "--mail-existing needs --yes"
        )
    mailed = mail_existing(
        connection, table, lambda mailed: click.echo(f"{mailed} mails requested so far", err=True)
    )
    click.echo(f"{counted(mailed, 'mail')} requested")
