"""What commands share: exit codes, the environment in a command's help, an orderly end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mailroom.environment import Variable

if TYPE_CHECKING:
    import asyncio

EXIT_USAGE = 64
EXIT_DATA = 65
EXIT_TRY_AGAIN = 75
EXIT_CONFIGURATION = 78
EXIT_INTERRUPTED = 130


def environment_help(variables: Sequence[Variable]) -> str:
    """The section of a command's help that lists its variables."""
    lines = ["\b", "Environment:"]
    for variable in variables:
        default = {None: "required", "": "optional"}.get(variable.default, f"default {variable.default}")
        lines += [f"  {variable.name}  ({default})", f"      {variable.purpose}"]
        if variable.secret:
            lines.append(f"      (or {variable.name}_FILE: a file that holds it)")
    return "\n".join(lines)


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
