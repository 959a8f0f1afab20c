"""Compares the whole job: a backlog goes to a local SES that answers in 30 ms and takes 1,000 mails a second.

When half of the mails have arrived, the workers are killed with SIGKILL and started again. The rate and the
CPU time are those between a fiftieth and the half. Then the run goes on until all mails have arrived, or none
has for a while. The handlers of the other queues call SES with the official SDK once for each mail, since
their unit is one job; they keep to the rate themselves.
"""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import psutil

from bench import database, reference
from bench.options import Options
from bench.peers.queues import (
    FAILURES,
    Adapter,
    Peer,
    Queues,
    enqueue,
    install,
    job_environment,
    text_of,
)
from bench.programs import StoppedShort, end, environment, mailroom
from bench.results import Rows
from bench.sending import push_templates, ses_environment
from bench.ses import PER_S, LocalSes, local_ses
from bench.tell import tell
from mailroom.demo.postgres import PostgresServer, ending_with_us

START_S: Final = 60.0  # until the first mail
STEP_S: Final = 0.01
QUIET_S: Final = 5.0  # after the last mail, for repeated ones
LIMITS: Final = (10, 50)


def measure(options: Options) -> dict[str, Any]:
    """A row for each worker."""
    mails, patience_s = options.sized((20_000, 75.0), (500, 25.0))
    rows: Rows = []
    queues = Queues()
    with database.durable() as server, TemporaryDirectory() as folder:
        bench = _Bench(server, Path(folder), mails, patience_s)
        database.filled(server, "filled", mails)
        for limit in LIMITS:
            for name, commands in (
                ("Mailroom run", [mailroom("run")]),
                ("Mailroom collector, sender", [mailroom("collector"), mailroom("sender")]),
            ):
                variables = {"MAILROOM_BATCH_LIMIT": str(limit)}
                rows.append({"name": f"{name}, limit {limit}"} | bench.ours(commands, variables))
        if options.reference and options.reference_sender:
            commands = [shlex.split(options.reference), shlex.split(options.reference_sender)]
            rows += [
                {"name": f"the reference, limit {limit}"} | bench.of_reference(options, commands, limit)
                for limit in LIMITS
            ]

        def measure_one(peer: Peer, adapter: Adapter) -> Rows:
            if peer.sending is None:
                return []
            found = bench.theirs(adapter, peer.sending)
            return [{"name": peer.name, "tuning": text_of(peer.sending)} | found]

        for found in queues.measured(measure_one):
            rows += found
    for row in rows:
        row["cpu_ratio"] = round(row["cpu_s_per_1000"] / max(rows[0]["cpu_s_per_1000"], 1e-9), 2)
    return {"mails": mails, "patience_s": patience_s, "missing": queues.missing, "rows": rows}


class _Bench:
    def __init__(self, server: PostgresServer, folder: Path, mails: int, patience_s: float) -> None:
        self._server = server
        self._folder = folder
        self._mails = mails
        self._patience_s = patience_s

    def ours(self, commands: list[list[str]], variables: Mapping[str, str]) -> dict[str, Any]:
        with self._database() as url:
            return self._run(commands, environment(url) | dict(variables))

    def theirs(self, adapter: Adapter, tuning: Mapping[str, int]) -> dict[str, Any]:
        with self._database() as url:
            install(url, adapter)
            enqueue(url, adapter, self._mails, fields=False)
            variables = job_environment(tuning, "send") | {"MAILROOM_BENCH_RATE": str(PER_S)}
            return self._run([adapter.command], environment(url) | variables)

    def of_reference(self, options: Options, commands: list[list[str]], limit: int) -> dict[str, Any]:
        url = reference.make(self._server, "reference", options, self._mails)
        try:
            return self._run(commands, reference.settings(url, limit))
        except FAILURES as error:
            tell(f"the reference, limit {limit}: {error}")
            return {"recipients_per_s": 0, "cpu_s_per_1000": 0.0}
        finally:
            database.drop(self._server, "reference")

    @contextmanager
    def _database(self) -> Iterator[str]:
        url = database.clone(self._server, "filled", "whole")
        try:
            yield url
        finally:
            database.drop(self._server, "whole")

    def _run(self, commands: list[list[str]], settings: Mapping[str, str]) -> dict[str, Any]:
        """Send all mails, with one kill in the middle."""
        with local_ses() as ses, ExitStack() as undo:
            variables = dict(settings) | ses_environment(ses.url, self._folder)
            variables["MAILROOM_SEND_RATE"] = str(PER_S)
            push_templates(variables)
            started = time.monotonic()
            processes = _start(commands, variables)
            undo.callback(_end, processes)
            first, cpu_s, at = self._until(ses, processes, self._mails // 50)
            half, later_cpu_s, later = self._until(ses, processes, self._mails // 2)
            for process in processes:
                process.kill()
            for process in processes:
                process.wait()
            killed = time.monotonic()
            again = _start(commands, variables)
            undo.callback(_end, again)
            self._wait_for_all(ses, again)
            found = {
                "recipients_per_s": round((half - first) / (later - at)),
                "cpu_s_per_1000": round(1000 * (later_cpu_s - cpu_s) / (half - first), 3),
                "calls": ses.calls,
                "throttled": ses.throttled,
                "duplicates": ses.duplicates,
                "left": self._mails - len(ses.accepted),
                "whole_after_s": round(self._last - killed, 1),
                "start_s": round(at - started, 1),
            }
        tell(f"{' '.join(commands[0][-2:])}: {found}")
        return found

    def _until(
        self, ses: LocalSes, processes: list[subprocess.Popen[bytes]], mails: int
    ) -> tuple[int, float, float]:
        """Wait for this many mails; returns how many there are, the CPU seconds, and the time."""
        before, deadline = ses.mails, time.monotonic() + START_S
        while ses.mails < mails:
            _check(processes)
            if ses.mails > before:
                before, deadline = ses.mails, time.monotonic() + START_S
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{ses.mails:,} of {mails:,} mails came, and then none for {START_S:.0f} s"
                )
            time.sleep(STEP_S)
        return ses.mails, sum(map(_cpu_s, processes)), time.monotonic()

    def _wait_for_all(self, ses: LocalSes, processes: list[subprocess.Popen[bytes]]) -> None:
        """Wait until all mails have come and none is repeated, or none has come for a while."""
        seen, self._last = len(ses.accepted), time.monotonic()
        at_start = mails = ses.mails
        heard = time.monotonic()
        while True:
            _check(processes)
            now = time.monotonic()
            if len(ses.accepted) > seen:
                seen, self._last = len(ses.accepted), now
            if ses.mails > mails:
                mails, heard = ses.mails, now
            patience_s = QUIET_S if seen >= self._mails else self._patience_s
            if now - heard > (patience_s if mails > at_start else START_S):
                return
            time.sleep(STEP_S)


def _start(commands: list[list[str]], variables: Mapping[str, str]) -> list[subprocess.Popen[bytes]]:
    """Start the commands, connected by pipes."""
    processes: list[subprocess.Popen[bytes]] = []
    for number, command in enumerate(commands):
        before = processes[-1].stdout if processes else None
        processes.append(
            subprocess.Popen(
                ending_with_us(command),
                stdin=before or subprocess.DEVNULL,
                stdout=subprocess.PIPE if number < len(commands) - 1 else subprocess.DEVNULL,
                env=dict(variables),
            )
        )
        if before:
            before.close()
    return processes


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.stdout = None
        end(process)


def _check(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is not None:
            command = process.args if isinstance(process.args, list) else []
            raise StoppedShort(f"{' '.join(map(str, command[-4:]))} ended with {process.returncode}")


def _cpu_s(process: subprocess.Popen[bytes]) -> float:
    times = psutil.Process(process.pid).cpu_times()
    return float(times.user + times.system)
