"""Measures the latency from the commit to the line, and in ``mailroom run`` to SES's acceptance.

`MAILROOM_BATCH_TIMEOUT` is 0, which is the default of ``run``. Another process signs people up, one commit
each. The time runs from the answer to COMMIT until the line is read from the pipe, or a local SES accepts the
mail. The time of the commit itself is measured separately.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from bench import database
from bench.options import Options
from bench.programs import Reader, environment, mailroom, percentiles, running
from bench.sending import push_templates, ses_environment
from bench.signups import Signup, sign_up
from bench.tell import tell
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.server import InboxServer

QUIET_PER_S: Final = 40
BUSY_PER_S: Final = 500
PATIENCE_S: Final = 30.0


def measure(options: Options) -> dict[str, Any]:
    """A row for each command and rate."""
    idle, busy = options.sized(600, 80), options.sized(5000, 1000)
    rows = []
    with database.durable() as server:
        url = database.make(server, "collected")
        variables = environment(url, BATCH_TIMEOUT=0)
        with running(mailroom("collector"), variables) as process:
            reader = Reader(process, times=True)
            warm_up(url, reader)
            for name, count, rate in (("idle", idle, QUIET_PER_S), ("busy", busy, BUSY_PER_S)):
                before = reader.count
                signups = sign_up(url, count, rate, name)
                reader.wait_for(before + count, PATIENCE_S)
                rows.append(row("collector: line", rate, signups, reader.times))
        url = database.make(server, "sent")
        with TemporaryDirectory() as folder, InboxServer(inbox=Inbox(keep=1_000_000)) as ses:
            variables = environment(url) | ses_environment(ses.url, Path(folder))
            push_templates(variables)
            with running(mailroom("run"), variables) as process:
                sign_up(url, 1, 0, "first")
                ses.wait_for(lambda inbox: inbox.counts.accepted >= 1, PATIENCE_S)
                for name, count, rate in (("idle", idle, QUIET_PER_S), ("busy", busy, BUSY_PER_S)):
                    wanted = ses.inbox.counts.accepted + count
                    signups = sign_up(url, count, rate, name)
                    ses.wait_for(lambda inbox, wanted=wanted: inbox.counts.accepted >= wanted, PATIENCE_S)  # type: ignore[misc]
                    accepted = {mail.recipient: mail.time.timestamp() for mail in ses.inbox.mails.find()}
                    rows.append(row("run: accepted", rate, signups, accepted, wall_clock=True))
    return {"rows": rows}


def warm_up(url: str, reader: Reader) -> None:
    """Wait until a first sign-up has been handed out."""
    sign_up(url, 1, 0, "first")
    if not reader.wait_for(1, PATIENCE_S):
        raise TimeoutError(f"no line came within {PATIENCE_S:.0f} s")
    time.sleep(0.5)


def row(
    what: str, rate: int, signups: list[Signup], came: dict[str, float], *, wall_clock: bool = False
) -> dict[str, Any]:
    """The percentiles of the sign-ups that came."""
    late = [
        came[one.email] - (one.answered_at if wall_clock else one.answered_s)
        for one in signups
        if one.email in came
    ]
    commits = percentiles([one.answered_s - one.sent_s for one in signups])
    found = percentiles([max(0.0, seconds) for seconds in late])
    tell(f"{what} at {rate}/s: p50 {found['p50_ms']} ms, p99 {found['p99_ms']} ms")
    return {
        "what": what,
        "per_s": rate,
        "commits": len(signups),
        "missing": len(signups) - len(late),
        **found,
        "commit_p50_ms": commits["p50_ms"],
        "commit_p99_ms": commits["p99_ms"],
    }
