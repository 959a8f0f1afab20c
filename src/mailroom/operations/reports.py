"""Reports the state of the queue, and what happened to a mail.

``overview`` counts the tokens that wait, were sent, or are dead letters, and lists the workers.
``stories`` explains the last tokens of a person: from the token's row to the provider's message id, or to the
reason why there was no mail. It reads the token, its account, the cursor, the lease and the ledger.

Promises: no secret and no code is read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, TypeVar

import psycopg

from mailroom.database.sync import one, rows
from mailroom.errors import DatabaseError, MailroomError
from mailroom.operations.fates import Fates, fates
from mailroom.operations.mail_state import (
    MailEvent,
    MailState,
    Pause,
    PausedAction,
    TokenDelivery,
    mask,
    masked,
    plain,
    span,
    utc,
)
from mailroom.operations.story import NO_WORKER_ALIVE, Story, tell_story
from mailroom.wording import counted

RowT = TypeVar("RowT")

MAX_TOKENS: Final = 5
# Dead letters are counted among this many rejections at most, which takes milliseconds.
MAX_COUNTED: Final = 10_000

OVERVIEW: Final = (
    "SELECT waiting, urgent, normal, bulk, scheduled, in_flight, retrying, oldest_age AS oldest_age_s,"
    " sent_minute, rejected_minute, unknown_minute,"
    " sent_hour, rejected_hour, unknown_hour, paused_at, pause_reason, rate"
    " FROM mailroom.overview()"
)
DEAD_COUNT: Final = "SELECT dead, more FROM mailroom.dead_count(%s, %s, %s)"
WORKERS: Final = (
    "SELECT worker, version, alive, started_at, seen_at, up AS up_s, silent AS silent_s, leases, tokens,"
    " trouble, trouble_since, events_trouble, events_trouble_since FROM mailroom.recent_workers()"
)
PAUSED: Final = "SELECT paused_at, pause_reason FROM mailroom.paused()"
TOKENS_OF: Final = (
    "SELECT token, action, email, login, status, status_changed_at, needed_status, created_at, expires_at,"
    " consumed_at, why_not_mailable, lane, send_at, waits, lease_worker, lease_generation, lease_due_at,"
    " lease_is_due, subject, user_table, ended_at, ended_as"
    " FROM mailroom.tokens_of(%s, %s)"
)
DELIVERIES_OF: Final = (
    "SELECT token, attempt, outcome, result, provider, message_id, detail, worker, at, recipient, template,"
    " language FROM mailroom.deliveries_of(%s::bigint[])"
)
EVENTS_OF: Final = (
    "SELECT token, kind, message_id, recipient, at, type, subtype, status, diagnostic, received_at"
    " FROM mailroom.events_of(%s::bigint[])"
)
PAUSED_ACTIONS: Final = "SELECT action, paused_at, pause_reason FROM mailroom.paused_actions()"


class UnknownPerson(MailroomError):
    """No account and no token matches the name."""

    exit_code = 65


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A `mailroom run` that reported in the last hour; ``alive`` unless it stopped reporting."""

    worker: str
    version: str
    alive: bool
    started_at: datetime
    seen_at: datetime
    up_s: float
    silent_s: float
    leases: int
    tokens: int
    trouble: str
    trouble_since: datetime | None
    events_trouble: str
    events_trouble_since: datetime | None

    def text(self) -> str:
        """The status on one line."""
        life = f"up {span(self.up_s)}"
        if not self.alive:
            life = f"stopped answering {span(self.silent_s)} ago, at {utc(self.seen_at)}"
        held = f"{counted(self.tokens, 'token')} in {counted(self.leases, 'lease')}"
        line = f"{self.worker}  {life}, {held if self.leases else 'nothing'} in hand"
        if self.trouble and self.trouble_since:
            line += f"; in trouble since {utc(self.trouble_since)}: {self.trouble}"
        return line

    @property
    def events_alarm(self) -> str:
        """That it cannot read SES's events, with the remedy; empty if it can, or has stopped answering."""
        if not (self.alive and self.events_trouble and self.events_trouble_since):
            return ""
        since = f"has not read SES's events since {utc(self.events_trouble_since)}"
        return (
            f"{self.worker} {since}: {self.events_trouble}; `mailroom doctor --only events` checks the queue"
        )


@dataclass(frozen=True, slots=True)
class Overview:
    """The state of the queue: numbers of tokens, and of the ledger's rows in the last minute and hour.

    Attributes:
        urgent, normal, bulk: ``waiting`` of each lane.
        scheduled: tokens that wait for their ``send_at``, which count nowhere else.
        dead: the number of dead letters.
        dead_more: whether there are older rejections, which were not counted.
    """

    waiting: int
    urgent: int
    normal: int
    bulk: int
    scheduled: int
    in_flight: int
    retrying: int
    oldest_age_s: float | None
    sent_minute: int
    rejected_minute: int
    unknown_minute: int
    sent_hour: int
    rejected_hour: int
    unknown_hour: int
    paused_at: datetime | None
    pause_reason: str | None
    rate: float | None
    dead: int = 0
    dead_more: bool = False
    workers_alive: int = 0
    workers: tuple[WorkerStatus, ...] = ()
    events: Fates | None = None
    paused_actions: tuple[PausedAction, ...] = ()

    def text(self) -> str:
        """The state as lines of text."""
        lanes = (("urgent", self.urgent), ("normal", self.normal), ("bulk", self.bulk))
        of_lanes = ", ".join(f"{tokens} {lane}" for lane, tokens in lanes if tokens)
        lines = [
            f"waiting    {self.waiting}" + (f": {of_lanes}" if of_lanes else ""),
            *([f"scheduled  {self.scheduled}"] if self.scheduled else []),
            f"in flight  {self.in_flight}",
            f"retrying   {self.retrying}",
            f"oldest     {'-' if self.oldest_age_s is None else f'{self.oldest_age_s:.1f} s'}",
            f"sent       {self.sent_minute} in the last minute, {self.sent_hour} in the last hour",
            f"rejected   {self.rejected_minute} in the last minute, {self.rejected_hour} in the last hour",
            f"unknown    {self.unknown_minute} in the last minute, {self.unknown_hour} in the last hour",
            f"dead       {self.dead}{' at least' if self.dead_more else ''}"
            + ("; see `mailroom dead list`" if self.dead else ""),
        ]
        lines += self.events.lines() if self.events else []
        if self.rate is not None:
            rate = f"{self.rate:.0f}" if self.rate >= 1000 else f"{self.rate:.4g}"
            lines.append(f"rate       {rate}/s, shared by all workers, as of the last send")
        lines.append(f"workers    {self.workers_alive} alive")
        lines += [f"           {worker.text()}" for worker in self.workers]
        lines += [f"alarm      {worker.events_alarm}" for worker in self.workers if worker.events_alarm]
        if not self.workers_alive and (left := self.waiting + self.in_flight + self.retrying):
            lines.append(f"no worker: {counted(left, 'token')} to be mailed, and {NO_WORKER_ALIVE}")
        if pause := Pause(self.paused_at, self.pause_reason).text():
            lines.append(pause)
        lines += [f"the action {each.action} is {each.text()}" for each in self.paused_actions]
        return "\n".join(lines)


def overview(connection: psycopg.Connection) -> Overview:
    """The state of the queue.

    Raises:
        DatabaseError: the schema, a privilege or the queue's row is missing.
        DatabaseUnavailable: the connection was lost.
    """
    found = _of_the_queue(rows(connection, Overview, OVERVIEW))
    dead, more = one(connection, DEAD_COUNT, [None, None, MAX_COUNTED])
    working = workers(connection)
    alive = sum(worker.alive for worker in working)
    return replace(
        found,
        dead=dead,
        dead_more=more,
        workers_alive=alive,
        workers=working,
        events=fates(connection),
        paused_actions=tuple(paused_actions(connection)),
    )


def workers(connection: psycopg.Connection) -> tuple[WorkerStatus, ...]:
    """The workers that reported in the last hour.

    Raises:
        DatabaseError, DatabaseUnavailable: as ``overview`` does.
    """
    return tuple(
        replace(
            worker,
            worker=plain(worker.worker),
            trouble=plain(mask(worker.trouble)),
            events_trouble=plain(mask(worker.events_trouble)),
        )
        for worker in rows(connection, WorkerStatus, WORKERS)
    )


def paused(connection: psycopg.Connection) -> Pause:
    """Since when the queue is paused, and why.

    Raises:
        DatabaseError, DatabaseUnavailable: as ``overview`` does.
    """
    return _of_the_queue(rows(connection, Pause, PAUSED))


def stories(connection: psycopg.Connection, who: str) -> list[Story]:
    """What happened to the last mails of a person, or to one token, oldest first.

    Args:
        connection: in autocommit mode.
        who: an address, also a former one, a login, a subject, a token's id, or the provider's id of a mail.

    Raises:
        UnknownPerson: no account matches, or it has no token.
        DatabaseError: the schema or a privilege is missing.
        DatabaseUnavailable: the connection was lost.
    """
    pause = paused(connection)
    alive = [worker for worker in workers(connection) if worker.alive]
    # The ledger is read last: a token that has left its lease is in it by then.
    mails = rows(connection, MailState, TOKENS_OF, [who, MAX_TOKENS])[::-1]
    if not mails:
        raise UnknownPerson(
            f"no account or token matches {who!r}",
            hint="logins are case-sensitive; search for a deleted account by address or by a mail's id",
        )
    if mails[0].token is None:
        raise UnknownPerson(
            f"the account of {who!r} is {mails[0].status} and has no token: none was made, or it was pruned",
            hint="an account gets an activation token when it is inserted as provisioned",
        )
    named = [mail.token for mail in mails]
    written = rows(connection, TokenDelivery, DELIVERIES_OF, [named])
    told = rows(connection, MailEvent, EVENTS_OF, [named])
    stopped = {each.action: each for each in paused_actions(connection)}
    troubles = list(dict.fromkeys(worker.trouble for worker in alive if worker.trouble))
    return [
        tell_story(
            masked(mail, written, told),
            stopped.get(mail.action or "", pause) if not pause.paused_at else pause,
            alive=len(alive),
            troubles=troubles,
        )
        for mail in mails
    ]


def paused_actions(connection: psycopg.Connection) -> list[PausedAction]:
    """The actions whose mails wait, because SES could not render one.

    Raises:
        DatabaseError, DatabaseUnavailable: as ``overview`` does.
    """
    return rows(connection, PausedAction, PAUSED_ACTIONS)


def _of_the_queue(found: list[RowT]) -> RowT:
    if not found:
        raise DatabaseError(
            "the table jobs has lost its row, which is the queue",
            hint="restore the row from a backup",
        )
    return found[0]
