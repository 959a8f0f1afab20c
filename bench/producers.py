"""Measures commits per second of clients that sign people up, with and without Mailroom.

pgbench's clients each insert one account per transaction, as fast as they can. All variants have the same
tables and the same trigger on tokens. They differ in the trigger's body and in the listener:

- empty: the body does nothing, and there is no trigger that checks the txid. Mailroom is compared with this;
- nobody: Mailroom's body, without a collector;
- draining: Mailroom's body, with a collector that hands out every token meanwhile;
- asleep: Mailroom's body, with a collector that fell asleep and never wakes up (it is stopped by SIGSTOP), so
  every commit notifies: the worst case, which in practice lasts only until the collector wakes up;
- notify: a plain NOTIFY, with a listener.

The variants take turns for several rounds, and the median of each counts. NOTIFY takes a cluster-wide lock
during the commit, so its cost depends on how long a commit takes to reach the disk.
"""

from __future__ import annotations

import contextlib
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, Final

import psycopg
from psycopg import sql

from bench import database
from bench.options import Options
from bench.programs import Reader, environment, mailroom, running
from bench.tell import tell
from mailroom.demo.postgres import PostgresServer

CLIENTS: Final = (1, 8, 64)
VARIANTS: Final = ("empty", "nobody", "draining", "asleep", "notify")
SETTLE_S: Final = 1.5  # for a collector to start, and to fall asleep
CATCH_UP_S: Final = 60.0
TIMEOUT_MS: Final = 1000

SIGN_UP: Final = """
\\set n random(1, 9223372036854775000)
INSERT INTO accounts (email, login) VALUES ('user' || :n || '@example.com', 'login' || :n)
"""
# The triggers on tokens that fire for an INSERT, whatever their names. The variants that nobody claims from
# do not need the row-level one.
BELLS: Final = """
SELECT t.tgname, t.tgfoid::regproc::text, t.tgtype & 1 = 1 FROM pg_trigger t
WHERE t.tgrelid = 'public.tokens'::regclass AND NOT t.tgisinternal AND t.tgtype & 4 = 4
"""
EMPTY: Final = "BEGIN RETURN NULL; END"
NOTIFY: Final = "BEGIN PERFORM pg_notify(TG_ARGV[0], ''); RETURN NULL; END"


def measure(options: Options) -> dict[str, Any]:
    """A row for each number of clients and each variant."""
    seconds, rounds = options.sized((3, 8), (2, 1))
    rates: dict[tuple[int, str], list[float]] = {}
    drained: dict[int, list[float]] = {}
    with database.durable() as server, contextlib.ExitStack() as stack:
        script = server.folder / "sign_up.sql"
        script.write_text(SIGN_UP)
        script.chmod(0o644)
        readers = {}
        for variant in VARIANTS:
            prepare(database.make(server, variant), variant)
            readers[variant] = stack.enter_context(listener(server.url(variant), variant))
        for number in range(rounds):
            # The order rotates, since writes that one variant leaves behind slow down the next.
            turn = number % len(VARIANTS)
            for clients in CLIENTS:
                for variant in VARIANTS[turn:] + VARIANTS[:turn]:
                    rate, share = measure_one(server, variant, clients, seconds, script, readers[variant])
                    rates.setdefault((clients, variant), []).append(rate)
                    if variant == "draining":
                        drained.setdefault(clients, []).append(share)
                tell(
                    f"{clients} clients: "
                    + ", ".join(f"{variant} {rates[clients, variant][-1]:,.0f}" for variant in VARIANTS)
                )
    rows = []
    for clients in CLIENTS:
        base = rates[clients, "empty"]
        for variant in VARIANTS:
            found = rates[clients, variant]
            rows.append(
                {
                    "clients": clients,
                    "variant": variant,
                    "commits_per_s": round(median(found)),
                    # A ratio compares rates of one round, since a slow phase of the machine affects both.
                    "ratio": round(median(one / empty for one, empty in zip(found, base, strict=True)), 3),
                    "drained": round(median(drained[clients]), 3) if variant == "draining" else None,
                }
            )
    return {"seconds": seconds, "rounds": rounds, "rows": rows}


def prepare(url: str, variant: str) -> None:
    """Replace the trigger's body by the variant's."""
    body = {"empty": EMPTY, "notify": NOTIFY}.get(variant)
    if body is None:
        return
    with database.connected(url) as connection:
        for trigger, name, for_a_row in connection.execute(BELLS).fetchall():
            if for_a_row:
                connection.execute(sql.SQL("DROP TRIGGER {} ON tokens").format(sql.Identifier(trigger)))
                continue
            connection.execute(
                sql.SQL("CREATE OR REPLACE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql AS {}").format(
                    sql.Identifier(*name.split(".")), sql.Literal(body)
                )
            )


def measure_one(
    server: PostgresServer, variant: str, clients: int, seconds: int, script: Path, reader: Reader | None
) -> tuple[float, float]:
    """Commits per second, and the share that the collector had handed out when the clients ended."""
    before = reader.count if reader else 0
    rate, commits = run_clients(server, variant, clients, seconds, script)
    found = reader.count - before if reader else 0
    if reader and not reader.wait_for(before + commits, CATCH_UP_S):
        raise TimeoutError(f"{reader.count - before} of {commits} tokens came within {CATCH_UP_S:.0f} s")
    return rate, found / commits


def run_clients(
    server: PostgresServer, name: str, clients: int, seconds: int, script: Path
) -> tuple[float, int]:
    """Run pgbench on a database. Returns its commits per second, and their number."""
    done = server.run_tool(
        "pgbench", "--no-vacuum", "--protocol=prepared", f"--client={clients}",
        f"--jobs={min(clients, 2)}", f"--time={seconds}", f"--file={script}",
        f"--port={server.port}", f"--host={server.folder}", "--username=postgres", name,
    ).decode()  # fmt: skip
    (rate,) = re.findall(r"^tps = ([0-9.]+)", done, re.MULTILINE)
    (commits,) = re.findall(r"transactions actually processed: ([0-9]+)", done)
    with database.connected(server.url(name)) as connection:
        connection.execute("CHECKPOINT")
    return float(rate), int(commits)


@contextlib.contextmanager
def listener(url: str, variant: str) -> Iterator[Reader | None]:
    """Run the variant's listener; yields the reader of its lines, or None if it writes none."""
    if variant == "notify":
        with plain_listener(url):
            yield None
    elif variant in ("draining", "asleep"):
        with running(mailroom("collector"), environment(url, BATCH_TIMEOUT=TIMEOUT_MS)) as process:
            reader = Reader(process)
            time.sleep(SETTLE_S)
            if variant == "asleep":
                process.send_signal(signal.SIGSTOP)
            yield reader if variant == "draining" else None
    else:
        yield None


@contextlib.contextmanager
def plain_listener(url: str) -> Iterator[None]:
    """Listen on the channel and do nothing."""
    over = threading.Event()

    def listen() -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("LISTEN token_insert")
            while not over.is_set():
                for _ in connection.notifies(timeout=0.1):
                    pass

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
