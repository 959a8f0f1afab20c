"""``mailroom key``."""

from __future__ import annotations

import click


@click.group()
def key() -> None:
    """Make keys."""


@key.command("new")
def key_new() -> None:
    """Print a new key for MAILROOM_SECRET_KEY: 32 random bytes in hexadecimal.

    To rotate keys, put the new key first and keep the old one after a comma, until the last token that it
    signed has expired.
    """
    from mailroom.tokens import new_key

    click.echo(new_key())
