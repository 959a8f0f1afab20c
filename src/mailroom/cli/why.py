"""``mailroom why``."""

from __future__ import annotations

import click

from mailroom.cli.common import (
    ANSWER_LIMIT_S,
    AnyTextCommand,
    as_json_text,
    as_text,
    connected,
    environment_help,
    json_option,
)
from mailroom.settings.collector import DatabaseSettings


@click.command(cls=AnyTextCommand, epilog=environment_help(DatabaseSettings))
@click.argument("who")
@json_option
def why(who: str, as_json: bool) -> None:
    """Show what happened to the mails of WHO.

    WHO is an address, a login, a subject, or the id of a token or a mail. The address may be a former
    one, or that of a deleted account. It shows the last five tokens of a person, oldest first. Each has a
    conclusion, then a list of events that ends with what SES reported, or the reason why it was not sent.
    Addresses are masked; tokens and codes are never shown. Exits with 65 if nothing matches WHO.
    """
    from mailroom.operations.reports import stories

    with connected(ANSWER_LIMIT_S) as connection:
        found = stories(connection, as_text(who).strip())
    if as_json:
        click.echo(as_json_text([story.as_dict() for story in found]))
    else:
        click.echo("\n\n".join(story.text() for story in found))
