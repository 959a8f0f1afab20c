"""``python -m bench [--only drain|sending] [--json]``: measure, and print tables."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench import drain, sending

STARTS = 10


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    options.add_argument("--only", choices=["drain", "sending"], help="measure this alone")
    options.add_argument("--tokens", type=int, default=100_000, help="to be drained (default 100000)")
    options.add_argument("--recipients", type=int, default=20_000, help="to be mailed (default 20000)")
    options.add_argument("--json", action="store_true", help="print JSON")
    arguments = options.parse_args()
    if min(arguments.tokens, arguments.recipients) < 1000:
        options.error("fewer than 1000 measure nothing")
    wanted = [arguments.only] if arguments.only else ["drain", "sending"]
    results: dict[str, Any] = {}
    if "drain" in wanted:
        results["drain"] = drain.measure(arguments.tokens)
        results["help_s"] = round(min(help_seconds() for _ in range(STARTS)), 3)
    if "sending" in wanted:
        results["sending"] = sending.measure(arguments.recipients)
    if arguments.json:
        print(json.dumps(results))
        return
    for name in wanted:
        print_table(results[name])
    if "help_s" in results:
        print(f"mailroom --help: {results['help_s'] * 1000:.0f} ms (the best of {STARTS})")


def print_table(rows: list[dict[str, Any]]) -> None:
    for row in [{name: name for name in rows[0]}, *rows]:
        cells = (f"{value:,}" if isinstance(value, int) else str(value) for value in row.values())
        print("  ".join(cell.rjust(len(name)) for cell, name in zip(cells, row, strict=True)))
    print()


def help_seconds() -> float:
    """How long ``mailroom --help`` takes."""
    started = time.perf_counter()
    subprocess.run(
        [str(Path(sys.executable).with_name("mailroom")), "--help"], stdout=subprocess.DEVNULL, check=True
    )
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
