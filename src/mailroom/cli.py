"""The command line: commands, exit codes, and the wiring of one to the other.

This is the only place that prints errors. What a command needs is imported when it runs, so that
``--help`` answers at once and the collector loads no more than it uses.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import click

from mailroom import __version__
from mailroom.actions import BY_NAME
from mailroom.errors import MailroomError, TokenError
from mailroom.settings import COLLECTOR_VARIABLES, Variable

if TYPE_CHECKING:
    import asyncio

EXIT_USAGE = 64
EXIT_DATA = 65
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    try:
        code = cli.main(args=arguments, prog_name="mailroom", standalone_mode=False)
    except click.UsageError as error:
        error.show()
        code = EXIT_USAGE
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = EXIT_INTERRUPTED
    except MailroomError as error:
        _print_error(error)
        code = error.exit_code
    sys.exit(code or 0)


def _print_error(error: MailroomError) -> None:
    label = click.style("Error:", fg="red", bold=True)
    reason = f"{error.reason}: " if isinstance(error, TokenError) else ""
    click.echo(f"{label} {reason}{error}", err=True)
    if error.hint:
        click.echo(f"{click.style('Try:', bold=True)} {error.hint}", err=True)


def _environment_help(variables: Sequence[Variable]) -> str:
    """The section of a command's help that lists its variables."""
    lines = ["\b", "Environment:"]
    for variable in variables:
        default = "required" if variable.default is None else f"default {variable.default}"
        lines += [f"  {variable.name}  ({default})", f"      {variable.purpose}"]
        if variable.secret:
            lines.append(f"      (or {variable.name}_FILE: a file that holds it)")
    return "\n".join(lines)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="mailroom")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    envvar="MAILROOM_LOG_FORMAT",
    show_envvar=True,
    help="How logs look on standard error.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    envvar="MAILROOM_LOG_LEVEL",
    show_envvar=True,
    help="The least important log to show.",
)
def cli(log_format: str, log_level: str) -> None:
    """User-lifecycle mail for applications whose users live in PostgreSQL.

    An application commits an account, a trigger makes its token, and Mailroom hears of it at once,
    signs it and hands it on for mailing: nothing that was committed is ever skipped.

    \b
    A first run:
      export MAILROOM_DATABASE_URL=postgresql://localhost/app
      export MAILROOM_SECRET_KEY=$(mailroom key new)
      mailroom migrate up
      mailroom collector

    \b
    Exit codes: 0 done, 64 wrong usage, 65 bad data, 69 the other end is gone,
    75 try again later, 78 wrong configuration.
    """
    from mailroom import logs

    logs.set_up(log_format, log_level)


@cli.command(epilog=_environment_help(COLLECTOR_VARIABLES))
def collector() -> None:
    """Print signed batches of tokens as they are committed, one line each.

    A line is action,email,username,secret,code for each token of the batch. Standard output holds
    lines and nothing else; logs go to standard error. It runs until SIGTERM or SIGINT, then
    finishes the line in hand, gives back what else it had claimed, and exits 0.
    """
    import asyncio

    from mailroom.collector import Collector
    from mailroom.output import standard_output
    from mailroom.settings import collector_settings

    settings = collector_settings(os.environ)

    async def run() -> None:
        await Collector(settings, standard_output()).run(_stop_on_signals())

    asyncio.run(run())


@cli.group()
def migrate() -> None:
    """Bring the database's schema up to date, or back.

    Files and bookkeeping are golang-migrate's: either tool can go on from where the other stopped.
    """


@migrate.command("up")
@click.argument("steps", type=click.IntRange(min=1), required=False)
def migrate_up(steps: int | None) -> None:
    """Apply the next STEPS migrations; all of them by default."""
    from mailroom import migrate as migrations
    from mailroom.settings import database_url

    with migrations.connected(database_url(os.environ)) as connection:
        if not migrations.up(connection, steps, click.echo):
            click.echo("nothing to apply: the schema is up to date")


@migrate.command("down")
@click.argument("steps", type=click.IntRange(min=1), default=1)
@click.option("--yes", is_flag=True, help="Do not ask, even on a terminal.")
def migrate_down(steps: int, yes: bool) -> None:
    """Take back the last STEPS migrations; one by default.

    Tables are dropped with their rows. On a terminal it asks first.
    """
    from mailroom import migrate as migrations
    from mailroom.settings import database_url

    url = database_url(os.environ)
    if sys.stdin.isatty() and not yes:
        click.confirm(f"Take back {steps} migration(s), with the rows of their tables?", abort=True, err=True)
    with migrations.connected(url) as connection:
        if not migrations.down(connection, steps, click.echo):
            click.echo("nothing to take back: no migration is applied")


@migrate.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def migrate_status(as_json: bool) -> None:
    """Show which migrations are applied. Exits with 78 when the state is dirty."""
    from mailroom import migrate as migrations
    from mailroom.settings import database_url

    with migrations.connected(database_url(os.environ)) as connection:
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
        sys.exit(78)


@cli.group()
def token() -> None:
    """Check tokens from a shell."""


@token.command("verify")
@click.argument("token", metavar="TOKEN")
@click.option("--action", type=click.Choice(list(BY_NAME)), required=True, help="What it should be for.")
@click.option("--code", help="The five digits that were mailed with it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def token_verify(token: str, action: str, code: str | None, as_json: bool) -> None:
    """Tell whether we signed TOKEN, with the keys of MAILROOM_SECRET_KEY; no database is asked.

    TOKEN may be - to read it from standard input, which keeps it out of the shell's history.
    Exits 0 when it is genuine, else 65 with the reason: malformed, forged, wrong action.
    """
    from mailroom.settings import secret_keys
    from mailroom.tokens import verify

    keys = secret_keys(os.environ)
    text = sys.stdin.readline().strip() if token == "-" else token  # noqa: S105 - a dash
    if BY_NAME[action].needs_code and code is None:
        raise click.UsageError(f"--code: a token for {action} is signed over its code")
    try:
        verify(text, action, keys=keys, code=code)
    except TokenError as error:
        if as_json:
            click.echo(json.dumps({"valid": False, "action": action, "reason": error.reason}))
            sys.exit(EXIT_DATA)
        raise
    click.echo(json.dumps({"valid": True, "action": action}) if as_json else f"genuine, for {action}")


@cli.group()
def key() -> None:
    """Make keys."""


@key.command("new")
def key_new() -> None:
    """Print a fresh key for MAILROOM_SECRET_KEY: 32 random bytes in hexadecimal.

    To rotate, put the new key first and keep the old one behind it, after a comma, until the last
    token it signed has expired.
    """
    from mailroom.tokens import new_key

    click.echo(new_key())


@cli.command()
@click.option(
    "--signups", type=click.IntRange(min=1, max=10_000), default=42, show_default=True, help="How many."
)
def demo(signups: int) -> None:
    """See it work: a PostgreSQL of its own, sign-ups trickling in, the collector's lines.

    Needs the extra: pip install 'mailroom[demo]'. It ends by itself and leaves nothing behind.
    """
    from mailroom.demo.tour import run_tour

    sys.exit(run_tour(signups, click.echo))


def _stop_on_signals() -> asyncio.Event:
    import asyncio
    import signal

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop
