"""Holds what several commands share: exit codes, settings, a connection, options, signals."""

from __future__ import annotations

import gc
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import chain, takewhile
from typing import TYPE_CHECKING, Final, TypeVar

import click

from mailroom.settings.collector import DatabaseSettings
from mailroom.settings.variables import read_settings, variables

if TYPE_CHECKING:
    import asyncio
    from pathlib import Path

    import psycopg

    from mailroom.actions import Action

EXIT_FOUND: Final = 1
EXIT_DATA: Final = 65
EXIT_TRY_AGAIN: Final = 75
EXIT_CONFIGURATION: Final = 78

# A thousand tokens in hand are ten thousand objects, and none of them is part of a cycle.
OBJECTS_BETWEEN_COLLECTIONS: Final = 50_000
# A statement of a command that reads is ended after this time.
ANSWER_LIMIT_S: Final = 30.0
UNITS: Final = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

Settings = TypeVar("Settings")


class AnyTextCommand(click.Command):
    """A command whose argument may be any text of a stranger: one token in 64 begins with a dash.

    Only -h or --help alone prints the help. Otherwise a token ``-…h…`` would, and exit with 0.
    """

    ignore_unknown_options = True

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, as click does.

        Raises:
            UsageError: among them is --help, or click raises it.
        """
        if args not in (["-h"], ["--help"]):
            if "--help" in takewhile("--".__ne__, args) and not ctx.resilient_parsing:
                raise click.UsageError("ask for --help alone, since the argument may be any text", ctx)
            ctx.help_option_names = []
        return super().parse_args(ctx, args)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def environment_help(*settings: type) -> str:
    """The section of a command's help that lists the variables of its settings."""
    lines = ["\b", "Environment:"]
    for variable in chain.from_iterable(map(variables, settings)):
        default = {None: "required", "": "optional"}.get(variable.default, f"default {variable.default}")
        lines += [f"  {variable.name}  ({default})", f"      {variable.purpose}"]
        if variable.secret:
            lines.append(f"      (or {variable.name}_FILE: a file that holds it)")
    return "\n".join(lines)


def from_environment(settings: type[Settings]) -> Settings:
    """The settings of this type in the process's environment.

    Raises:
        SettingsError: with every fault.
    """
    return read_settings(settings, os.environ)


@contextmanager
def connected(answer_limit_s: float = 0.0) -> Iterator[psycopg.Connection]:
    """A connection to the database that MAILROOM_DATABASE_URL names.

    Args:
        answer_limit_s: how many seconds a statement may take; 0 is no limit.
    """
    from mailroom.database import sync

    url = from_environment(DatabaseSettings).database_url
    with sync.connected(url, parameters=sync.answer_limit(answer_limit_s)) as connection:
        yield connection


@contextmanager
def connected_as_owner() -> Iterator[psycopg.Connection]:
    """As ``connected``, with the search_path of the database or the user."""
    from mailroom.database import sync

    with sync.connected(from_environment(DatabaseSettings).database_url) as connection:
        yield connection


def duration(_context: click.Context, _parameter: click.Parameter, text: str | None) -> timedelta | None:
    """The value of an option that takes 30m, 12h, 7d or 8w."""
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,5})([mhdw])", text, re.ASCII)
    if not found:
        raise click.BadParameter(f"{text!r} is not a duration such as 30m, 12h, 30d or 8w")
    return timedelta(**{UNITS[found[2]]: int(found[1])})


def as_text(argument: str) -> str:
    """An argument without what PostgreSQL does not store: bytes that are not UTF-8, and NUL."""
    return os.fsencode(argument).decode("utf-8", "replace").replace("\0", "")


def text_argument(_context: click.Context, _parameter: click.Parameter, text: str | None) -> str | None:
    """The value of an option that takes any text; None if it is not given."""
    return None if text is None else as_text(text)


def action_argument(name: str, folder: Path | None) -> Action:
    """The action of a folder that an option names; None is the built-in folder.

    Raises:
        click.UsageError: the folder has none with this name.
    """
    from mailroom.actions import load_actions

    actions = load_actions(folder)
    if name not in actions:
        raise click.UsageError(f"{name!r} is not one of {', '.join(actions)}")
    return actions[name]


def confirm(question: str, refusal: str) -> None:
    """Ask on a terminal.

    Raises:
        click.UsageError: standard input is not a terminal.
        click.Abort: the answer is no.
    """
    if not (sys.stdin and sys.stdin.isatty()):
        raise click.UsageError(refusal)
    click.confirm(question, abort=True, err=True)


def as_json_text(value: object) -> str:
    """JSON, with times in UTC."""

    def plain(time_or_other: object) -> str:
        if isinstance(time_or_other, datetime):
            return time_or_other.astimezone(UTC).isoformat()
        raise TypeError(type(time_or_other).__name__)

    return json.dumps(value, default=plain, ensure_ascii=False)


def as_table(rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as aligned columns."""
    listed = list(rows)
    widths = [max(map(len, column)) for column in zip(*listed, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in listed
    )


def collect_garbage_rarely() -> None:
    """Search for cycles rarely, and not among imported objects: it took 8 % of a busy collector's time."""
    gc.freeze()
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set. A second SIGINT interrupts the process, as usual."""
    import asyncio
    import signal

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop_soon() -> None:
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_soon)
    return stop
