"""``mailroom dead``."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import click

from mailroom.cli.common import (
    ANSWER_LIMIT_S,
    EXIT_DATA,
    EXIT_FOUND,
    as_json_text,
    as_table,
    confirm,
    connected,
    duration,
    environment_help,
    from_environment,
    json_option,
    text_argument,
)
from mailroom.settings.collector import DatabaseSettings, QueueSettings

if TYPE_CHECKING:
    import psycopg

    from mailroom.operations.dead import Decided

PROGRESS_INTERVAL_S: Final = 1.0
HEADER: Final = ("token", "action", "address", "rejected at", "attempts", "state", "reason")

of_action = click.option("--action", metavar="ACTION", help="Only this action.")
since_when = click.option(
    "--since", callback=duration, help="Only those rejected in this time, such as 30m or 7d."
)
of_all = click.option("--all", "every", is_flag=True, help="All dead letters, in small batches.")
with_reason = click.option(
    "--reason", default="", callback=text_argument, help="The reason, which `mailroom why` shows later."
)
tokens_or_all = click.argument("tokens", metavar="[TOKEN]...", type=int, nargs=-1)


@click.group()
def dead() -> None:
    """List mails that were rejected for good; retry or drop them.

    A token is a dead letter when its last outcome is a rejection: by the provider for that recipient, or
    after 10 failures for no stated reason, or because the mail cannot be made or addressed. What a pipe's
    sender set aside is in its rejected.csv; see `mailroom replay`.
    """


@dead.command("list", epilog=environment_help(DatabaseSettings))
@of_action
@since_when
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=20, show_default=True, help="The number to list."
)
@json_option
def dead_list(action: str | None, since: timedelta | None, limit: int, as_json: bool) -> None:
    """List dead letters, newest first, with the reason and whether the token can still be mailed."""
    from mailroom.operations.dead import count, dead_letters
    from mailroom.wording import counted

    with connected(ANSWER_LIMIT_S) as connection:
        _check(connection, action)
        letters = dead_letters(connection, action, since, limit)
        known = count(connection, action, since)
    more = max(known.dead - len(letters), 0)
    at_least = known.more and len(letters) == limit
    if as_json:
        listed = [asdict(letter) | {"state": letter.state} for letter in letters]
        click.echo(as_json_text({"dead": listed, "more": more, "at_least": at_least}))
        return
    if letters:
        click.echo(as_table([HEADER, *(letter.cells() for letter in letters)]))
    if more or at_least:
        left = f"{'at least ' if at_least else ''}{more}" if more else "perhaps some"
        click.echo(f"and {left} more; --limit shows more of them")
    else:
        click.echo(counted(len(letters), "dead letter") if letters else "no dead letters")


@dead.command("show", epilog=environment_help(DatabaseSettings))
@click.argument("token", type=int)
@json_option
def dead_show(token: int, as_json: bool) -> None:
    """Show the whole history of a dead letter, as `mailroom why` does.

    Exits with 65 if TOKEN is not a dead letter, and says what it is.
    """
    from mailroom.operations.dead import show

    with connected(ANSWER_LIMIT_S) as connection:
        story = show(connection, token)
    click.echo(as_json_text(story.as_dict()) if as_json else story.text())


@dead.command("retry", epilog=environment_help(QueueSettings))
@tokens_or_all
@of_all
@of_action
@since_when
@click.option("--renew", is_flag=True, help="Replace an expired token with a new one, and mail that.")
@with_reason
def dead_retry(
    tokens: tuple[int, ...],
    every: bool,
    action: str | None,
    since: timedelta | None,
    renew: bool,
    reason: str,
) -> None:
    """Mail dead letters again: the TOKENs, or --all.

    A token that can still be mailed is due at once, with as many tries as a new one. An expired token is
    left as it is; with --renew its account gets a new one, if the account's status still fits the action
    and it has no valid token yet.

    Prints the result for each. Exits with 0 if all will be mailed, 1 if some will not, 65 if one of the
    TOKENs is not a dead letter.
    """
    from mailroom.operations.dead import retry

    channel = from_environment(QueueSettings).channel_name

    def decide(connection: psycopg.Connection, page: Sequence[int]) -> list[Decided]:
        return retry(connection, channel, page, renew=renew, reason=reason)

    _decide(tokens, every, action, since, decide)


@dead.command("drop", epilog=environment_help(DatabaseSettings))
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
    """Drop dead letters from the list: the TOKENs, or --all.

    A dropped token is not mailed. `mailroom why` still shows its history. --all asks first on a terminal,
    and needs --yes elsewhere.

    Exits with 0 if all are dropped, 65 if one of the TOKENs is not a dead letter.
    """
    from mailroom.operations.dead import drop

    if every and not yes:
        confirm("Drop all these dead letters?", "--all without a terminal needs --yes")
    _decide(tokens, every, action, since, lambda connection, page: drop(connection, page, reason=reason))


def _check(connection: psycopg.Connection, action: str | None) -> None:
    """Check that the database has this action."""
    from mailroom.operations.actions import in_database

    if action is not None and action not in (known := in_database(connection)):
        raise click.UsageError(f"--action: {action!r} is not one of {', '.join(known)}")


def _decide(
    tokens: Sequence[int],
    every: bool,
    action: str | None,
    since: timedelta | None,
    decide: Callable[[psycopg.Connection, Sequence[int]], list[Decided]],
) -> None:
    """Decide about each token, print the result, and exit."""
    from mailroom.operations.dead import NOT_DEAD, PAGE, all_dead, why_not_dead

    if every == bool(tokens):
        raise click.UsageError("give either TOKENs or --all")
    if not every and (action or since is not None):
        raise click.UsageError("--action and --since need --all")
    outcomes: Counter[str] = Counter()
    some_not = False
    printed_at = time.monotonic()
    with connected(ANSWER_LIMIT_S) as connection:
        _check(connection, action)
        pages = all_dead(connection, action, since) if every else _pages(list(dict.fromkeys(tokens)), PAGE)
        for page in pages:
            for one in decide(connection, page):
                text = one.text()
                if one.outcome == NOT_DEAD and not every:
                    text = why_not_dead(connection, one.token)
                click.echo(f"{one.token}  {text}")
                outcomes[one.outcome if one.done or one.outcome == NOT_DEAD else "not retried"] += 1
                some_not |= not one.done
            if time.monotonic() >= printed_at + PROGRESS_INTERVAL_S:
                printed_at = time.monotonic()
                click.echo(f"{outcomes.total()} dead letters so far", err=True)
    summary = ", ".join(
        f"{outcome.replace(NOT_DEAD, 'no dead letter')} {n}" for outcome, n in outcomes.items()
    )
    click.echo(summary or "no dead letters")
    if outcomes[NOT_DEAD] and not every:
        sys.exit(EXIT_DATA)
    sys.exit(EXIT_FOUND if some_not else 0)


def _pages(tokens: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (tokens[first : first + size] for first in range(0, len(tokens), size))
