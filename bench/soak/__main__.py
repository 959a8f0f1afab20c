"""``python -m bench.soak --minutes 20 --seed 1`` lets faults happen under load, and accounts for every mail.

Two `mailroom run` workers mail what people's sign-ups and recoveries commit, 200 a second. The provider is
the built-in inbox, which answers after 30 ms. Faults happen at random from the seed, one or two at a time.
Afterwards it waits until the queue is empty, and compares the tokens, the ledger and the mails. It exits with
1 if a mail was lost, if a duplicate has no cause, or if memory, descriptors, connections, dead rows or tables
grew.
"""

from __future__ import annotations

import argparse
import signal
import sys
from dataclasses import replace
from pathlib import Path

from bench import report, results
from bench.__main__ import machine_facts
from bench.soak.report import keep, tables
from bench.soak.run import Plan, soak
from bench.tell import tell


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    options.add_argument("--minutes", type=float, default=20, help="how long the load lasts (default 20)")
    options.add_argument("--seed", type=int, default=1, help="decides the faults (default 1)")
    options.add_argument("--rate", type=float, default=Plan.rate, help="mails a second (default 200)")
    options.add_argument(
        "--folder", type=Path, help="keep the logs and the mails here; by default they are deleted"
    )
    given = options.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    plan = replace(Plan(), seconds=given.minutes * 60, seed=given.seed, rate=given.rate)
    result = soak(plan, given.folder)
    print(tables([result]), flush=True)
    if not result["flat"]:  # too short to be a result
        results.files = results.QUICK
    keep(result, machine_facts())
    report.write()
    if result["faults_found"]:
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        tell("interrupted")
        sys.exit(130)
