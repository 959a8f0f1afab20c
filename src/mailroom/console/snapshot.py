"""Takes a snapshot of the queue at most once a second, for all viewers together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

import psycopg

from mailroom.action_table import LANES
from mailroom.console.ledger import KEPT, MINUTE, Interval, Recent, Traffic, recent, summed
from mailroom.console.reader import ConsoleReader
from mailroom.database.sync import one
from mailroom.errors import MailroomError
from mailroom.logs import EventLogger
from mailroom.operations.dead import DeadCount, count
from mailroom.operations.fates import Fates, fates
from mailroom.operations.mail_state import Pause, PausedAction
from mailroom.operations.reports import WorkerStatus, paused, paused_actions, workers
from mailroom.operations.verdicts import Outcome
from mailroom.outage import Outage
from mailroom.queue.pulse import COUNT_LIMIT, PULSE, Pulse
from mailroom.wording import counted

FRESH_S: Final = 1.0
# A viewer waits this long for a new snapshot, and then gets the last one.
PATIENCE_S: Final = 2.0
# An outcome's newest rows are read for this long after somebody viewed them.
WANTED_S: Final = 10.0

log = EventLogger("console")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of the queue at one time.

    Attributes:
        at: the time.
        traffic: the intervals of the last hour, the current one at the end; None is not known.
        recent: the ledger's newest rows by outcome; under None those of all outcomes.
    """

    at: datetime
    pulse: Pulse
    pause: Pause
    dead: DeadCount
    workers: tuple[WorkerStatus, ...]
    paused_actions: tuple[PausedAction, ...]
    fates: Fates
    traffic: tuple[Interval | None, ...]
    recent: dict[str | None, Recent]

    @property
    def alive(self) -> int:
        """The number of workers that are alive."""
        return sum(worker.alive for worker in self.workers)

    @property
    def left(self) -> int:
        """The number of tokens to be mailed; a lower bound if there are many."""
        return self.pulse.waiting + self.pulse.in_flight + self.pulse.retrying

    @property
    def waits(self) -> str:
        """What the waiting mails wait for, in words."""
        lanes = [f"{getattr(self.pulse, lane)} {lane}" for lane in LANES if getattr(self.pulse, lane)]
        scheduled = [f"{self.pulse.scheduled} scheduled besides"] if self.pulse.scheduled else []
        return ", ".join([*(lanes or ["for a worker"]), *scheduled])

    @property
    def minute(self) -> Interval:
        """The results of the attempts in the last minute."""
        return summed([each for each in self.traffic[-MINUTE:] if each])

    @property
    def hour(self) -> Interval:
        """The results of the attempts in the last hour."""
        return summed([each for each in self.traffic if each])

    @property
    def knows_the_hour(self) -> bool:
        """Whether the whole last hour is counted."""
        return None not in self.traffic

    @property
    def troubled(self) -> tuple[WorkerStatus, ...]:
        """The workers that are alive and report trouble."""
        return tuple(worker for worker in self.workers if worker.alive and worker.trouble)

    @property
    def events_alarms(self) -> tuple[str, ...]:
        """That workers cannot read SES's events."""
        return tuple(worker.events_alarm for worker in self.workers if worker.events_alarm)

    @property
    def no_worker(self) -> str:
        """A warning if there is mail and no worker; else empty."""
        if self.alive or not self.left:
            return ""
        more = " at least" if self.pulse.waiting >= COUNT_LIMIT else ""
        return f"{counted(self.left, 'token')}{more} to be mailed, and no `mailroom run` is alive"


@dataclass(frozen=True, slots=True)
class Look:
    """The last snapshot for a viewer, if there is one, and why there is no newer one."""

    snapshot: Snapshot | None = None
    away: str = ""


class Snapshots:
    """Takes snapshots of the queue over a reader."""

    def __init__(self, reader: ConsoleReader) -> None:
        self._reader = reader
        self._traffic = Traffic()
        self._wanted: dict[str | None, float] = {}
        self._look = Look()
        self._looked_at = float("-inf")
        self._under_way: asyncio.Task[None] | None = None
        self._outage = Outage(log, "lost", "still_lost", "back")

    def take(self, connection: psycopg.Connection, outcomes: Sequence[str | None] = (None,)) -> Snapshot:
        """A new snapshot.

        Raises:
            DatabaseError: the schema or a privilege is missing.
            DatabaseUnavailable: the connection was lost.
        """
        pause = paused(connection)
        self._traffic.look(connection, time.monotonic())
        return Snapshot(
            at=datetime.now(UTC),
            pulse=Pulse._make(one(connection, PULSE, [COUNT_LIMIT])),
            pause=pause,
            dead=count(connection),
            workers=workers(connection),
            paused_actions=tuple(paused_actions(connection)),
            fates=fates(connection),
            traffic=self._traffic.last(KEPT),
            recent={outcome: recent(connection, outcome, None) for outcome in outcomes},
        )

    async def look(self, outcome: str | None = None) -> Look:
        """The last snapshot, with the newest rows of an outcome, and why it is not newer if it is old."""
        self._wanted[outcome] = time.monotonic()
        for _ in range(2):  # the one under way may have begun before this outcome was requested
            if self._under_way is None:
                if time.monotonic() - self._looked_at < FRESH_S and not self._lacks(outcome):
                    break
                self._under_way = asyncio.create_task(self._renew())
            under_way = self._under_way
            done, _ = await asyncio.wait([under_way], timeout=PATIENCE_S)
            if not done:
                return replace(self._look, away=self._look.away or "PostgreSQL has not answered yet")
            under_way.result()
            if not self._lacks(outcome):
                break
        return self._look

    def forget(self) -> None:
        """Take a new snapshot for the next viewer, because something was changed."""
        self._looked_at = float("-inf")

    def _lacks(self, outcome: str | None) -> bool:
        """Whether the last snapshot has no rows of this outcome."""
        snapshot = self._look.snapshot
        return not self._look.away and snapshot is not None and outcome not in snapshot.recent

    async def _renew(self) -> None:
        self._looked_at = time.monotonic()
        wanted = [
            outcome
            for outcome in (None, *Outcome)
            if self._wanted.get(outcome, float("-inf")) > self._looked_at - WANTED_S
        ]
        try:
            snapshot = await self._reader.ask(lambda connection: self.take(connection, wanted))
        except MailroomError as error:
            self._look = replace(self._look, away=str(error))
            self._outage.failed(str(error))
        else:
            self._look = Look(snapshot)
            self._outage.ended()
        finally:
            self._under_way = None
