"""The command line: runs a command, prints its error, and exits with its code.

Errors are printed only here. A command imports what it needs when it runs, so that ``--help`` is fast and the
collector loads only what it uses.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, Final, NoReturn, cast

import click
from click.core import ParameterSource

from mailroom import __version__
from mailroom.errors import MailroomError, OutputClosed, SettingsError, TokenError

# Shells complete commands and options by it: _MAILROOM_COMPLETE=bash_source mailroom prints the script.
COMPLETION = "_MAILROOM_COMPLETE"
# What each command does: the first sentence of its own help, which is imported only when it is used.
SUMMARIES: Final = {
    "init": "Write files to start from: the mails and the settings.",
    "run": "Claim, send and settle in one process.",
    "status": "Show what waits, what is in flight, outcomes and workers.",
    "why": "Show what happened to the mails of WHO.",
    "dead": "List mails that were rejected for good; retry or drop them.",
    "suppressions": "Show and change which addresses get no mail.",
    "forget": "Erase ADDRESS from Mailroom's tables and this machine's files.",
    "pause": "Stop all workers from claiming mail.",
    "resume": "Let workers claim mail again, after `mailroom pause`.",
    "prune": "Delete old rows of the ledger, old events and old tokens.",
    "doctor": "Check all that mail depends on, and say how to fix faults.",
    "collector": "Print committed tokens, signed, as one line for each batch.",
    "sender": "Mail the lines on standard input.",
    "replay": "Turn FILE, a rejected.csv, into lines for `mailroom sender`.",
    "events": "Read SES's events into the database.",
    "actions": "List, check and add actions, the kinds of mail.",
    "adopt": "Adopt TABLE, the application's own table of users.",
    "templates": "Check, preview and publish the templates of mails.",
    "inbox": "Receive mail in place of SES, and keep it.",
    "console": "Show the queue in a browser.",
    "migrate": "Apply or revert migrations of the database's schema.",
    "roles": "Make three roles with the least rights they need.",
    "token": "Check tokens from a shell.",
    "key": "Make keys.",
    "demo": "Run a demonstration: people sign up and get their mails.",
}
# The module of a command, where its name differs.
MODULES: Final = {"resume": "pause"}

EXIT_USAGE: Final = 64
EXIT_INTERRUPTED: Final = 130
NO_OUTPUT = (errno.EPIPE, errno.ENOSPC, errno.EBADF, errno.EIO, errno.EFBIG, errno.EDQUOT)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments)
    except click.UsageError as error:
        if fault := _environment_fault(error):
            _print_error(fault)
            code = fault.exit_code
        else:
            error.show()
            code = EXIT_USAGE
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = EXIT_INTERRUPTED
    except MailroomError as error:
        if isinstance(error, OutputClosed):
            _discard_output()
        _print_error(error)
        code = error.exit_code
    except OSError as error:
        if error.errno not in NO_OUTPUT:
            raise
        _discard_output()
        if error.errno != errno.EPIPE:  # a reader that is gone is not reported as an error
            _print_error(OutputClosed(f"cannot write to standard output: {error.strerror}"))
        code = OutputClosed.exit_code
    sys.exit(code)


def _environment_fault(error: click.UsageError) -> SettingsError | None:
    """The fault of an option whose value came from the environment, as a fault of its variable."""
    if not isinstance(error, click.BadParameter) or not (error.ctx and error.param and error.param.name):
        return None
    if error.ctx.get_parameter_source(error.param.name) is not ParameterSource.ENVIRONMENT:
        return None
    return SettingsError([f"{error.param.envvar}: {error.message}"])


def _colour() -> bool | None:
    """False if the environment asks for none (https://no-color.org); None to use it on a terminal."""
    return False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None


def _discard_output() -> None:
    # Otherwise Python would write what is buffered when it exits.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _run(arguments: Sequence[str]) -> int:
    if instruction := os.environ.get(COMPLETION):
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, "mailroom", COMPLETION, instruction)
    # click's own main would treat a reader that is gone as a failure of the command.
    try:
        with cli.make_context("mailroom", list(arguments), color=_colour()) as context:
            cli.invoke(context)
        code = 0
    except click.exceptions.Exit as end:
        code = end.exit_code
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    if sys.stdout:
        sys.stdout.flush()
    return code


def _print_error(error: MailroomError) -> None:
    label = click.style("Error:", fg="red", bold=True)
    reason = f"{error.reason}: " if isinstance(error, TokenError) else ""
    click.echo(f"{label} {reason}{error}", err=True, color=_colour())
    if error.hint:
        click.echo(f"{click.style('Try:', bold=True)} {error.hint}", err=True, color=_colour())


class _Word(click.Choice[str]):
    """A choice whose value may come from a file of variables, as other settings do."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from mailroom.settings.variables import clerical_fault

        if fault := clerical_fault(value := value.strip()):
            self.fail(f"{value!r} {fault}", param, ctx)
        return super().convert(value, param, ctx)


class _Commands(Mapping[str, click.Command]):
    """The commands by their names, each imported when it is looked up."""

    def __getitem__(self, name: str) -> click.Command:
        if name not in SUMMARIES:
            raise KeyError(name)
        module = import_module(f"mailroom.cli.{MODULES.get(name, name)}")
        return cast("click.Command", getattr(module, name))

    def __iter__(self) -> Iterator[str]:
        return iter(SUMMARIES)

    def __len__(self) -> int:
        return len(SUMMARIES)


class _Group(click.Group):
    """Lists its commands without importing them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(commands=cast("dict[str, click.Command]", _Commands()), **settings)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        summaries = [click.Command(name, help=summary) for name, summary in SUMMARIES.items()]
        click.Group(commands=summaries).format_commands(ctx, formatter)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="mailroom")
@click.option(
    "--log-format",
    type=_Word(["text", "json"]),
    default="text",
    show_default=True,
    envvar="MAILROOM_LOG_FORMAT",
    show_envvar=True,
    help="The format of logs on standard error.",
)
@click.option(
    "--log-level",
    type=_Word(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    envvar="MAILROOM_LOG_LEVEL",
    show_envvar=True,
    help="The lowest level to log.",
)
def cli(log_format: str, log_level: str) -> None:
    """User-lifecycle mail for applications whose users live in PostgreSQL.

    An application commits an account and a trigger makes its token. Mailroom is notified, signs the token
    and mails it. No committed token is lost.

    \b
    A first run:
      export MAILROOM_DATABASE_URL=postgresql://app:app@127.0.0.1/app
      export MAILROOM_SECRET_KEY=$(mailroom key new)
      export MAILROOM_APP_NAME=Acme MAILROOM_APP_URL=https://acme.example
      export MAILROOM_SES_SOURCE=noreply@acme.example MAILROOM_SES_CONFIG_SET=none
      export AWS_DEFAULT_REGION=eu-west-1
      mailroom migrate up
      mailroom templates push
      mailroom run

    \b
    Exit codes: 0 done, 1 faults or differences found, 64 wrong usage, 65 bad data, 69 unavailable,
    75 try again later, 78 wrong configuration.
    """
    from mailroom import logs

    logs.set_up(log_format, log_level)
