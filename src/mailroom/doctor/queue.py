"""Checks the queue: its functions, row-level security, triggers, notifications, backlog, and workers."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Final, TypeVar

import psycopg
from psycopg import sql

from mailroom.database.sqlstates import is_permanent
from mailroom.doctor.probe import NO_ANSWER, PROGRAM, Probe, connect
from mailroom.doctor.report import Finding, NotKnown, fault, ok, skipped, warning
from mailroom.doctor.triggers import ISSUE_FUNCTION
from mailroom.errors import DatabaseError, DatabaseUnavailable
from mailroom.operations import reports
from mailroom.operations.mail_state import RESUME_ACTION, utc
from mailroom.queue.client import BACKLOG, NEXT_DUE, RING, Backlog
from mailroom.queue.start_check import (
    CALLED,
    HIDDEN,
    MISPLACED,
    RING_FUNCTION,
    TRIGGERS,
    UNUSABLE,
    VERSION,
    hidden_fault,
    restore_fault,
    schema_fault,
)
from mailroom.wording import counted

Value = TypeVar("Value")

OLDEST_S: Final = 300.0
DELIVERY_S: Final = 2.0
PROGRAMS: Final = ("mailroom run", "mailroom collector")
COLLECTORS: Final = """
SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity
WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
      AND application_name OPERATOR(pg_catalog.=) ANY (%s::pg_catalog.text[])
"""


def functions(probe: Probe) -> Finding:
    """The schema is the one that this version needs, and this user may call the queue's functions."""
    unusable: dict[str, bool] = dict(probe.ask(UNUSABLE, list(CALLED)))
    version = None if "schema_version" in unusable else probe.ask(VERSION)[0][0]
    if found := schema_fault(unusable, version):
        return fault(str(found), found.hint)
    return ok(f"version {version}, and this user may call its {len(CALLED)} functions")


def row_security(probe: Probe) -> Finding:
    """Row-level security hides no row from Mailroom's functions."""
    if found := hidden_fault([(row[0], row[1], row[2]) for row in probe.ask(HIDDEN)]):
        return fault(str(found), found.hint)
    return ok("it hides no row from Mailroom's functions")


def queue(probe: Probe) -> Finding:
    """The queue's cursor can be read."""
    probe.ask(NEXT_DUE)
    return ok("its cursor can be read")


def cursor(probe: Probe) -> Finding:
    """The cursor fits the tokens: no restore left it out."""
    for unreachable, repeated in probe.ask(MISPLACED):
        if found := restore_fault(unreachable, repeated):
            return fault(str(found), found.hint)
    return ok("it fits the tokens")


def pause(probe: Probe) -> Finding:
    """Neither the queue nor an action is paused."""
    found = _asked(probe, reports.paused)
    if found.paused_at:
        return warning(found.text(), "run `mailroom resume` to continue")
    if actions := _asked(probe, reports.paused_actions):
        return warning(
            "; ".join(f"{each.what} is {each.reason}" for each in actions),
            RESUME_ACTION,
        )
    return ok("it is not paused")


def workers(probe: Probe) -> Finding:
    """No worker that is alive reports trouble."""
    alive = [worker for worker in _asked(probe, reports.workers) if worker.alive]
    troubles = [
        f"{worker.worker} since {utc(worker.trouble_since)}: {worker.trouble}"
        for worker in alive
        if worker.trouble and worker.trouble_since
    ]
    if troubles:
        return warning(
            f"{len(troubles)} of {counted(len(alive), 'worker')} in trouble: {'; '.join(troubles)}",
            "fix the cause; until then their mail waits",
        )
    return ok(f"{counted(len(alive), 'worker')} of `mailroom run` alive, none in trouble")


def _asked(probe: Probe, ask: Callable[[psycopg.Connection], Value]) -> Value:
    """The result of ``ask``.

    Raises:
        NotKnown: there was no answer, or the roles are of an older version and lack a privilege.
        DatabaseError: another statement failed.
    """
    try:
        with probe.transaction() as connection:
            return ask(connection)
    except (DatabaseError, DatabaseUnavailable) as error:
        if isinstance(error.__cause__, psycopg.errors.InsufficientPrivilege):
            remedy = "update the roles: `mailroom roles --apply`"
        elif isinstance(error.__cause__, psycopg.Error) and not is_permanent(error.__cause__):
            remedy = NO_ANSWER
        else:
            raise
        raise NotKnown(f"not known: {error}", remedy) from error


def tokens_trigger(probe: Probe) -> Finding:
    """The trigger on tokens notifies the channel on which the collector listens."""
    wanted = probe.settings.channel_name
    found = probe.ask(TRIGGERS, RING_FUNCTION)
    rung = [channel for _, _, enabled, channel in found if enabled]
    if wanted in rung:
        return ok(f"notifies {wanted!r}")
    for table, name, _, channel in found:
        if channel == wanted:
            return _disabled(table, name, "no worker would notice new tokens")
    if rung:
        return fault(
            f"no trigger notifies {wanted!r}; the trigger on tokens notifies {', '.join(map(repr, rung))}",
            f"correct MAILROOM_CHANNEL_NAME, or create tokens_ring again with the argument {wanted!r}",
        )
    return fault(
        "no trigger on tokens notifies the workers, so no worker would notice new tokens",
        "create the trigger tokens_ring again, as in the migrations",
    )


def accounts_trigger(probe: Probe) -> Finding:
    """A trigger makes a token for each new account."""
    rows = probe.ask(TRIGGERS, ISSUE_FUNCTION)
    if not rows:
        return fault(
            "no trigger on accounts makes tokens, so new accounts would get no mail",
            "create the trigger accounts_issue_activation again, as in the migrations",
        )
    for table, name, enabled, _ in rows:
        if enabled:
            return ok(f"{name} makes a token for each new account in {table}")
    return _disabled(rows[0][0], rows[0][1], "new accounts would get no mail")


def notifications(probe: Probe) -> Finding:
    """A notification arrives. It uses its own channel, so that no worker claims because of it."""
    channel = f"mailroom_doctor_{secrets.token_hex(8)}"
    with probe.transaction() as listener:
        listener.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
    # From another session: a pooler may deliver a session's own notifications to it.
    with connect(probe.settings.database_url) as ringer:
        Probe(probe.settings, ringer).ask(RING, channel, "1")
    with probe.translated():
        arrived = list(probe.connection.notifies(timeout=DELIVERY_S, stop_after=1))
        probe.connection.execute(sql.SQL("UNLISTEN {}").format(sql.Identifier(channel)))
    if not arrived:
        return fault(
            f"a notification did not arrive within {DELIVERY_S:g} s",
            "set MAILROOM_DATABASE_URL to PostgreSQL itself: LISTEN does not work through PgBouncer in"
            " transaction mode",
        )
    return ok("a notification arrived")


def backlog(probe: Probe) -> Finding:
    """No token has waited for long."""
    try:
        waiting = Backlog._make(probe.ask(BACKLOG)[0])
    except DatabaseUnavailable as error:
        return warning(f"not known: {error}", error.hint)
    if waiting.oldest_age_s is None:
        return ok("nothing waits")
    oldest = f"the oldest for {waiting.oldest_age_s:.0f} s"
    detail = f"{waiting.waiting} waiting, {waiting.in_flight} in flight, {oldest}"
    if waiting.oldest_age_s > OLDEST_S:
        return warning(
            detail,
            "check that `mailroom run`, or a collector and a sender, is running; tokens expire",
        )
    return ok(detail)


def collectors(probe: Probe) -> Finding:
    """A worker is connected. Each one has three or more connections."""
    if probe.connection.info.parameter_status("application_name") != PROGRAM:
        return skipped("workers cannot be recognised: an application_name is set for all connections")
    ((connections,),) = probe.ask(COLLECTORS, list(PROGRAMS))
    if not connections:
        return warning("no worker is connected to this database", f"start `{PROGRAMS[0]}` to send mail now")
    return ok(f"{counted(connections, 'connection')} from {' or '.join(f'`{name}`' for name in PROGRAMS)}")


def _disabled(table: str, trigger: str, consequence: str) -> Finding:
    return fault(
        f"the trigger {trigger} on {table} is disabled, so {consequence}",
        f"ALTER TABLE {table} ENABLE TRIGGER {trigger}",
    )
