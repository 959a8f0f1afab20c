"""``mailroom dead``."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import click

from mailroom.actions import BY_NAME
from mailroom.cli.common import EXIT_DATA, as_json_text, duration, environment_help, text_argument
from mailroom.settings.collector import CHANNEL_NAME, DATABASE_URL

if TYPE_CHECKING:
    import psycopg

    from mailroom.operations.dead import Decided

EXIT_SOME_NOT: Final = 1
TELL_INTERVAL_S: Final = 1.0
HEADER: Final = ("token", "action", "address", "rejected at", "attempts", "state", "reason")

of_action = click.option("--action", type=click.Choice(list(BY_NAME)), help="Of this action alone.")
since_when = click.option(
    "--since", callback=duration, help="Rejected in this time alone, such as 30m or 7d."
)
of_all = click.option("--all", "every", is_flag=True, help="All dead letters, in small batches.")
with_reason = click.option(
    "--reason", default="", callback=text_argument, help="Why, for whoever asks later."
)
tokens_or_all = click.argument("tokens", metavar="[TOKEN]...", type=int, nargs=-1)


@click.group()
def dead() -> None:
    """Look at what was rejected for good, and mail it again or let it rest.

    A token is a dead letter when the last that became of it is a rejection: by SES for that recipient, or
    after MAILROOM_RETRY_LIMIT failures without a stated reason. Only `mailroom run` writes that down; what
    a pipe's sender set aside is in its rejected.csv, see `mailroom replay`.
    """


@dead.command("list", epilog=environment_help([DATABASE_URL]))
@of_action
@since_when
@click.option("--limit", type=click.IntRange(1, 100_000), default=20, show_default=True, help="So many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def dead_list(action: str | None, since: timedelta | None, limit: int, as_json: bool) -> None:
    """List dead letters, newest first, with the reason and whether the token may still be mailed."""
    from mailroom.operations.dead import count, dead_letters
    from mailroom.operations.story import counted

    with _connected() as connection:
        letters = dead_letters(connection, action, since, limit)
        known = count(connection, action, since)
    more = max(known.dead - len(letters), 0)
    at_least = known.more and len(letters) == limit
    if as_json:
        listed = [asdict(letter) | {"state": letter.state} for letter in letters]
        click.echo(as_json_text({"dead": listed, "more": more, "at_least": at_least}))
        return
    if letters:
        click.echo(_table([HEADER, *(letter.cells() for letter in letters)]))
    if more or at_least:
        left = f"{'at least ' if at_least else ''}{more}" if more else "perhaps some"
        click.echo(f"and {left} more; --limit shows more of them")
    else:
        click.echo(counted(len(letters), "dead letter") if letters else "no dead letters")


@dead.command("show", epilog=environment_help([DATABASE_URL]))
@click.argument("token", type=int)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def dead_show(token: int, as_json: bool) -> None:
    """Tell the whole story of a dead letter, as `mailroom why` does.

    Exits with 65 when it is none, and says what it is instead.
    """
    from mailroom.operations.dead import show

    with _connected() as connection:
        story = show(connection, token)
    click.echo(as_json_text(story.as_dict()) if as_json else story.text())


@dead.command("retry", epilog=environment_help([DATABASE_URL, CHANNEL_NAME]))
@tokens_or_all
@of_all
@of_action
@since_when
@click.option("--renew", is_flag=True, help="Where the token has expired, make a new one and mail that.")
@with_reason
def dead_retry(
    tokens: tuple[int, ...],
    every: bool,
    action: str | None,
    since: timedelta | None,
    renew: bool,
    reason: str,
) -> None:
    """Mail dead letters again, those of the TOKENs or --all of them.

    What may still be mailed is due at once, for whichever worker claims it first, with as many tries as a
    new mail. An expired token stays as it is; with --renew its account gets a new one, if its status
    still fits the action and it has no valid one already.

    Prints what became of each. Exits with 0 when all are to be mailed, 1 when some are not, 65 when one of
    the TOKENs is no dead letter.
    """
    from mailroom.operations.dead import retry
    from mailroom.settings.collector import queue_settings

    channel = queue_settings(os.environ).channel_name

    def decide(connection: psycopg.Connection, page: Sequence[int]) -> list[Decided]:
        return retry(connection, channel, page, renew=renew, reason=reason)

    _decide(tokens, every, action, since, decide)


@dead.command("drop", epilog=environment_help([DATABASE_URL]))
@tokens_or_all
@of_all
@of_action
@since_when
@with_reason
@click.option("--yes", is_flag=True, help="Do not ask before --all.")
def dead_drop(
    tokens: tuple[int, ...],
    every: bool,
    action: str | None,
    since: timedelta | None,
    reason: str,
    yes: bool,
) -> None:
    """Let dead letters rest, those of the TOKENs or --all of them.

    They are neither mailed nor listed any more, and `mailroom why` still tells of them. --all asks first
    on a terminal, and elsewhere needs --yes.

    Exits with 0 when all are dropped, 65 when one of the TOKENs is no dead letter.
    """
    from mailroom.operations.dead import drop

    if every and not yes:
        if not (sys.stdin and sys.stdin.isatty()):
            raise click.UsageError("--all without a terminal needs --yes")
        click.confirm("Drop all these dead letters?", abort=True, err=True)
    _decide(tokens, every, action, since, lambda connection, page: drop(connection, page, reason=reason))


def _decide(
    tokens: Sequence[int],
    every: bool,
    action: str | None,
    since: timedelta | None,
    decide: Callable[[psycopg.Connection, Sequence[int]], list[Decided]],
) -> None:
    """Decide about each token, print what became of it, and exit."""
    from mailroom.operations.dead import NOT_DEAD, PAGE, all_dead, why_not_dead

    if every == bool(tokens):
        raise click.UsageError("name either TOKENs or --all")
    if not every and (action or since is not None):
        raise click.UsageError("--action and --since go with --all")
    outcomes: Counter[str] = Counter()
    some_not = False
    told_at = time.monotonic()
    with _connected() as connection:
        pages = all_dead(connection, action, since) if every else _pages(list(dict.fromkeys(tokens)), PAGE)
        for page in pages:
            for one in decide(connection, page):
                text = one.text()
                if one.outcome == NOT_DEAD and not every:
                    text = why_not_dead(connection, one.token)
                click.echo(f"{one.token}  {text}")
                outcomes[one.outcome if one.done or one.outcome == NOT_DEAD else "not retried"] += 1
                some_not |= not one.done
            if time.monotonic() >= told_at + TELL_INTERVAL_S:
                told_at = time.monotonic()
                click.echo(f"{outcomes.total()} dead letters so far", err=True)
    summary = ", ".join(
        f"{outcome.replace(NOT_DEAD, 'no dead letter')} {n}" for outcome, n in outcomes.items()
    )
    click.echo(summary or "no dead letters")
    if outcomes[NOT_DEAD] and not every:
        sys.exit(EXIT_DATA)
    sys.exit(EXIT_SOME_NOT if some_not else 0)


def _pages(tokens: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (tokens[first : first + size] for first in range(0, len(tokens), size))


@contextmanager
def _connected() -> Iterator[psycopg.Connection]:
    from mailroom.database import sync
    from mailroom.settings.collector import database_url

    with sync.connected(database_url(os.environ)) as connection:
        yield connection


def _table(rows: Iterable[Sequence[str]]) -> str:
    listed = list(rows)
    widths = [max(map(len, column)) for column in zip(*listed, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in listed
    )
