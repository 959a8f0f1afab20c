"""What commands share: exit codes, the environment in a command's help, durations, JSON, an orderly end."""

from __future__ import annotations

import gc
import json
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import click

from mailroom.settings.variables import Variable

if TYPE_CHECKING:
    import asyncio

EXIT_USAGE = 64
EXIT_DATA = 65
EXIT_TRY_AGAIN = 75
EXIT_CONFIGURATION = 78
EXIT_INTERRUPTED = 130

# A thousand tokens in hand are ten thousand objects, none of which is part of a cycle.
OBJECTS_BETWEEN_COLLECTIONS: Final = 50_000
UNITS: Final = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def environment_help(variables: Sequence[Variable]) -> str:
    """The section of a command's help that lists its variables."""
    lines = ["\b", "Environment:"]
    for variable in variables:
        default = {None: "required", "": "optional"}.get(variable.default, f"default {variable.default}")
        lines += [f"  {variable.name}  ({default})", f"      {variable.purpose}"]
        if variable.secret:
            lines.append(f"      (or {variable.name}_FILE: a file that holds it)")
    return "\n".join(lines)


def duration(_context: click.Context, _parameter: click.Parameter, text: str | None) -> timedelta | None:
    """An option's duration, such as 30m, 12h, 7d or 8w."""
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,5})([mhdw])", text, re.ASCII)
    if not found:
        raise click.BadParameter(f"{text!r} is not a duration such as 30m, 12h, 30d or 8w")
    return timedelta(**{UNITS[found[2]]: int(found[1])})


def text_argument(_context: click.Context, _parameter: click.Parameter, text: str) -> str:
    """An option's text, of whatever bytes."""
    return os.fsencode(text).decode("utf-8", "replace").replace("\0", "")


def as_json_text(value: object) -> str:
    """JSON, with times in UTC."""

    def plain(time_or_other: object) -> str:
        if isinstance(time_or_other, datetime):
            return time_or_other.astimezone(UTC).isoformat()
        raise TypeError(type(time_or_other).__name__)

    return json.dumps(value, default=plain, ensure_ascii=False)


def collect_garbage_rarely() -> None:
    """Look for cycles seldom, and not in what was imported; it was a twelfth of a busy collector's time."""
    gc.freeze()
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set; a second SIGINT interrupts, as it does everywhere else."""
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
