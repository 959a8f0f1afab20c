"""Lists the checks of the database's side; each comes after the checks that it needs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

from mailroom.doctor import actions, queue, server, triggers
from mailroom.doctor import environment as variables
from mailroom.doctor.probe import Probe
from mailroom.doctor.report import Check, Report
from mailroom.settings.collector import CollectorSettings

CHECKS: Final[tuple[Check[Probe], ...]] = (
    Check("keys", server.keys, ("MAILROOM_SECRET_KEY",)),
    Check("server", server.server, ("MAILROOM_DATABASE_URL",)),
    Check("encoding", server.encoding, ("server",)),
    Check("writable", server.writable, ("server",)),
    Check("two-phase", server.two_phase, ("server",)),
    Check("clock", server.clock, ("server",)),
    Check("functions", queue.functions, ("server",)),
    Check("row-security", queue.row_security, ("functions",)),
    Check("queue", queue.queue, ("row-security",)),
    Check("cursor", queue.cursor, ("queue",)),
    Check("pause", queue.pause, ("queue",)),
    Check("tokens-trigger", queue.tokens_trigger, ("functions", "MAILROOM_CHANNEL_NAME")),
    Check("accounts-trigger", queue.accounts_trigger, ("functions",)),
    Check("other-triggers", triggers.disabled, ("functions",)),
    Check("adopted-tables", triggers.adopted, ("functions",)),
    Check("replication-role", triggers.replication_role, ("server",)),
    Check("subscriptions", triggers.subscriptions, ("functions",)),
    Check("notifications", queue.notifications, ("writable",)),
    Check("backlog", queue.backlog, ("queue",)),
    Check("collectors", queue.collectors, ("server",)),
    Check("workers", queue.workers, ("queue",)),
)


def examine(environment: Mapping[str, str], report: Report) -> None:
    """Run the checks."""
    probe = Probe(variables.read(CollectorSettings, environment, report, "mailroom collector"))
    try:
        report.run((*CHECKS, Check("actions", partial(actions.compared, environment), ("functions",))), probe)
    finally:
        if probe.opened:
            probe.opened.close()
