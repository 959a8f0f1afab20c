"""``mailroom token`` and ``mailroom key``."""

from __future__ import annotations

import json
import os
import sys

import click

from mailroom.actions import BY_NAME
from mailroom.cli.common import EXIT_DATA
from mailroom.errors import TokenError


@click.group()
def token() -> None:
    """Check tokens from a shell."""


# One token in 64 begins with a dash, and is no option.
@token.command("verify", context_settings={"ignore_unknown_options": True})
@click.argument("token", metavar="TOKEN")
@click.option("--action", type=click.Choice(list(BY_NAME)), required=True, help="What it should be for.")
@click.option("--code", help="The five digits that were mailed with it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def token_verify(token: str, action: str, code: str | None, as_json: bool) -> None:
    """Tell whether we signed TOKEN, with the keys of MAILROOM_SECRET_KEY; no database is asked.

    TOKEN may be - to read it from standard input, which keeps it out of the shell's history.
    Exits 0 when it is genuine, else 65 with the reason: malformed, forged, wrong action.
    """
    from mailroom.settings.collector import secret_keys
    from mailroom.tokens import verify

    keys = secret_keys(os.environ)
    from_input = token == "-"  # noqa: S105 - a dash
    text = sys.stdin.readline().strip() if from_input and sys.stdin else token
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


@click.group()
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
