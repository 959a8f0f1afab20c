"""``mailroom token``."""

from __future__ import annotations

import json
import sys

import click

from mailroom.cli.common import (
    EXIT_DATA,
    AnyTextCommand,
    action_argument,
    environment_help,
    from_environment,
    json_option,
)
from mailroom.errors import TokenError
from mailroom.settings.collector import KeySettings
from mailroom.settings.sender import FolderSettings


@click.group()
def token() -> None:
    """Check tokens from a shell."""


@token.command("verify", cls=AnyTextCommand, epilog=environment_help(KeySettings, FolderSettings))
@click.argument("token", metavar="TOKEN")
@click.option("--action", required=True, help="The action it should be for.")
@click.option("--code", help="The five digits that were mailed with it.")
@json_option
def token_verify(token: str, action: str, code: str | None, as_json: bool) -> None:
    """Check the signature of TOKEN with the keys of MAILROOM_SECRET_KEY, without the database.

    TOKEN may be - to read it from standard input, which keeps it out of the shell's history. Exits with 0
    if the token is genuine, else with 65 and the reason: malformed, forged or wrong action.
    """
    from mailroom.tokens import verify

    keys = from_environment(KeySettings).keys
    wanted = action_argument(action, from_environment(FolderSettings).folder)
    from_input = token == "-"  # noqa: S105 - a dash
    text = sys.stdin.readline().strip() if from_input and sys.stdin else token
    if wanted.needs_code and code is None:
        raise click.UsageError(f"--code: the signature of a token for {action} covers its code")
    try:
        verify(text, wanted, keys=keys, code=code)
    except TokenError as error:
        if as_json:
            click.echo(json.dumps({"valid": False, "action": action, "reason": error.reason}))
            sys.exit(EXIT_DATA)
        raise
    click.echo(json.dumps({"valid": True, "action": action}) if as_json else f"genuine, for {action}")
