"""``python -m bench`` measures, prints tables, and writes the results, the plots and docs/benchmarks.md.

Each result is a file under bench/results/, and the document is made from all of them, so one part can be
measured again alone. Progress goes to standard error, tables to standard output. If one measurement fails,
the others still run, and the command exits with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

import psycopg

from bench import database, report, results
from bench.options import Options
from bench.programs import StoppedShort
from bench.tables import HEADINGS, table
from bench.tell import tell
from mailroom.errors import MailroomError

# In the order of the document.
BENCHES: Final = {
    "drain": "bench.drain",
    "peers": "bench.peers.draining",
    "peers_latency": "bench.peers.latency",
    "peers_producers": "bench.peers.producers",
    "peers_sending": "bench.peers.sending",
    "reference": "bench.reference",
    "producers": "bench.producers",
    "adopted": "bench.adopted",
    "latency": "bench.latency",
    "lanes": "bench.lanes",
    "memory": "bench.memory",
    "tablesize": "bench.tablesize",
    "snapshot": "bench.snapshot",
    "deep": "bench.deep",
    "sending": "bench.sending",
    "events": "bench.events",
}
MIN_TABLE: Final = 50_000

REFERENCE_HELP: Final = """
Any command that follows the reference's contract, quoted with its arguments; it is compared with
`mailroom collector`. It starts with MAILROOM_DATABASE_URL, MAILROOM_SECRET_KEY, MAILROOM_CHANNEL_NAME
(token_insert), MAILROOM_QUEUE_NAME (mailroom), MAILROOM_HEALTHCHECK_INTERVAL, MAILROOM_BATCH_TIMEOUT and
MAILROOM_BATCH_LIMIT in its environment, on a database with tokens waiting, and must print lines
(action,email,username,secret,code, repeated) to standard output until SIGTERM.
"""
SENDER_HELP: Final = """
The command that reads these lines on standard input and calls SES, at AWS_ENDPOINT_URL_SES. With it,
--reference sends mail beside Mailroom and the other queues.
"""
SCHEMA_HELP: Final = """
SQL for psql that makes the reference's own schema: accounts (email, login) whose inserts make tokens, and
jobs. Without it the reference gets Mailroom's schema, whose jobs has no numeric cursor.
"""


def main() -> None:
    options = parser()
    arguments = options.parse_args()
    signal.signal(signal.SIGTERM, _end)
    if arguments.quick:
        results.files = results.QUICK
    if arguments.report:
        report.write()
        return
    only = arguments.only.split(",") if arguments.only else []
    if unknown := set(only) - set(BENCHES):
        options.error(f"--only: there is no {', '.join(sorted(unknown))}; choose from {', '.join(BENCHES)}")
    # The peers' measurements go together.
    wanted = [name for name in BENCHES if not only or name in only or name.partition("_")[0] in only]
    if not arguments.reference and not only:
        wanted.remove("reference")
    if "reference" in wanted and not arguments.reference:
        options.error("--only reference needs --reference")
    if arguments.largest < MIN_TABLE:
        options.error(f"--largest must be at least {MIN_TABLE}")
    given = Options(
        arguments.quick,
        arguments.largest,
        arguments.reference,
        arguments.reference_sender,
        arguments.reference_schema,
    )
    machine = machine_facts()
    failed = []
    for name in wanted:
        tell(f"── {name}")
        started = time.monotonic()
        try:
            result: dict[str, Any] = import_module(BENCHES[name]).measure(given)
        except (
            StoppedShort,
            TimeoutError,
            MailroomError,
            psycopg.Error,
            subprocess.SubprocessError,
        ) as error:
            tell(f"{name} failed: {error!r}")
            failed.append(name)
            continue
        results.keep(
            name,
            {
                "bench": name,
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "took_s": round(time.monotonic() - started),
                "quick": given.quick,
                "machine": machine,
                "result": result,
            },
        )
        if not arguments.json:
            print(f"\n{HEADINGS[name]}\n\n{table(name)}", flush=True)
    report.write()
    if arguments.json:
        print(json.dumps({name: results.load(name) for name in wanted}))
    if failed:
        sys.exit(f"failed, without new results: {', '.join(failed)}")


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    options.add_argument("--only", metavar="A,B", help=f"measure only these: {', '.join(BENCHES)}")
    options.add_argument(
        "--quick",
        action="store_true",
        help="small sizes, as a smoke test; writes to bench/results/quick",
    )
    options.add_argument(
        "--report", action="store_true", help="measure nothing; write the document from the results"
    )
    options.add_argument(
        "--largest", type=int, default=5_000_000, help="tokens in the largest table (default 5000000)"
    )
    options.add_argument("--reference", metavar="PATH", default="", help=REFERENCE_HELP)
    options.add_argument("--reference-sender", metavar="PATH", default="", help=SENDER_HELP)
    options.add_argument("--reference-schema", metavar="FILE", type=Path, help=SCHEMA_HELP)
    options.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return options


def machine_facts() -> dict[str, Any]:
    """The facts about the machine that the numbers depend on."""
    with database.durable() as server:
        postgresql = database.facts(server)
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": cpu(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
        "commit": commit(),
        "postgresql": postgresql,
    }


def cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def commit() -> str:
    """The commit that is measured, marked if files differ from it."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _end(_signal: int, _frame: FrameType | None) -> NoReturn:
    """Raise on SIGTERM as on SIGINT, so that every context ends what it started."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        tell("interrupted; the results so far are kept")
        sys.exit(130)
