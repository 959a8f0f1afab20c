"""The leader: the one worker of a queue that inserts notify, and only while it is idle.

Terms. *To ring* is to send a notification (NOTIFY). NOTIFY serialises the commits of the whole cluster, so
producers ring only while the leader *sleeps*, which means: it will not claim until it is notified. Two
advisory locks implement this. BELL makes a worker the leader. SLEEP tells producers that the leader sleeps.

The protocol:

- A producer (the trigger ``tokens_ring``) tries to take SLEEP, shared, until the end of its transaction.
  If it gets the lock, the leader does not sleep, and the producer does not ring. If it is refused, it rings.
- To fall asleep, the leader requests SLEEP exclusively, on a session that makes no claims, once a claim came
  back short. While it waits for the lock, producers are refused and ring. The lock is granted when the
  transactions of all producers that did not ring are over. After the grant the leader claims once more: the
  last drain.
- A request ends after ``REQUEST_S`` at most without the lock, and is made again. The server sends a session
  no notification while it waits. A session that waits for a lock also holds a snapshot, which delays VACUUM
  and CREATE INDEX CONCURRENTLY in the whole database. Between two requests producers may get SLEEP again.
  That is as before the first request: the leader does not sleep yet.
- Until the grant, which a producer with a long transaction may delay, the leader claims now and then. So does
  a worker whose session for this protocol cannot connect, since producers may not ring then.
- While tokens come faster than ``BUSY``, or a backlog is deep, the leader is awake and does not hold SLEEP.

Proof that no token is missed. Take a token whose transaction has committed. There are two cases. (1) Its
producer was refused SLEEP and rang. Either the notification arrives, or no connection listened, and then a
claim follows the next LISTEN. (2) Its producer got SLEEP, shared, and held it until the token was visible.
Then SLEEP is granted to the leader only after that, and the last drain, which follows the grant, sees the
token. Until the grant the leader claims in any case. The tests search all interleavings for a
counterexample, and find one as soon as the last drain is left out.

Many workers: only the leader takes part in the above. Each of the others tries to take BELL once in
``TRY_S``: a session that waited for it would hold a snapshot for hours, and the end of the leader's session
sends no notification. The others receive the notifications too, but leave the leader ``PATIENCE_S`` to claim
first. The leader wakes them when the backlog is deep. It gives BELL up when it has not claimed for
``PATIENCE_S``, since its reader or its provider may be stuck. When it dies, its session's locks are released,
and the next leader begins with a claim. When it is suspended while awake, the server ends its session after
``FROZEN_MS``; when it is suspended while it sleeps, the others receive the notifications.

One session does all of this: it listens, holds both locks, and makes no claims. A session that the server
ended with a reason is no outage; any other loss is.

Promises: reports each notification and each change of its role, and whether a claim has to follow. An idle
session holds no snapshot and waits for no lock. Does not decide when to claim: that is ``listener``'s part.
"""

from __future__ import annotations

import asyncio
import enum
import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, LiteralString

import psycopg
from psycopg import sql

from mailroom.database.connection import Connection, Database, explained, reason, refusal
from mailroom.database.sqlstates import is_lost, is_permanent
from mailroom.logs import EventLogger
from mailroom.outage import Outage

# How long the other workers wait for the leader to claim, and how long it stays the leader without a claim.
PATIENCE_S: Final = 1.0
FROZEN_MS: Final = 5000
# A worker in line tries to become the leader this often.
TRY_S: Final = 1.0
# A request for SLEEP waits for half the time that falling asleep has taken so far, within these, and for less
# than the server's limit of a statement.
REQUEST_S: Final = (0.01, 0.05)
REQUEST_SHARE: Final = 0.5
WAKE: Final = "wake"

TRY_BELL: Final = """
SELECT CASE WHEN pg_catalog.pg_try_advisory_lock(mailroom.bell_lock(%s))
            THEN pg_catalog.set_config('idle_session_timeout', %s, false) IS NOT NULL ELSE false END
"""
REQUEST_SLEEP: Final = """
SELECT CASE WHEN mailroom.request_sleep(%s, %s)
            THEN pg_catalog.set_config('idle_session_timeout', '0', false) IS NOT NULL ELSE false END
"""
UNLOCK_SLEEP: Final = """
SELECT pg_catalog.pg_advisory_unlock(mailroom.sleep_lock(%s)),
       pg_catalog.set_config('idle_session_timeout', %s, false)
"""
UNLOCK_BELL: Final = """
SELECT pg_catalog.pg_advisory_unlock(mailroom.bell_lock(%s)),
       pg_catalog.set_config('idle_session_timeout', '0', false)
"""
NOTIFY: Final = "SELECT pg_catalog.pg_notify(%s, %s)"
SIGN_OF_LIFE: Final = "SELECT 1"

log = EventLogger("leader")


class Role(enum.Enum):
    """This worker's part: not connected, in line to be the leader, or the leader, and in which state."""

    AWAY = "away"
    IN_LINE = "in line"
    AWAKE = "awake"
    FALLING_ASLEEP = "falling asleep"
    ASLEEP = "asleep"


class Leader:
    """One worker's part in the protocol.

    Args:
        database: where the queue is.
        channel: the channel of the notifications.
        silence_s: a session that was silent for this number of seconds is checked.
        changed: is called when ``role`` has changed; with True when a claim has to follow.
        listening: is called when the session listens; a claim has to follow.
        heard: is called with the payload of each notification.

    Attributes:
        role: this worker's part.
        since: when it began, of ``time.monotonic``.
    """

    def __init__(
        self,
        database: Database,
        *,
        channel: str,
        silence_s: float,
        changed: Callable[[bool], None],
        listening: Callable[[], None],
        heard: Callable[[str], None],
    ) -> None:
        self._database = database
        self._channel = channel
        self._silence_s = silence_s
        self._changed = changed
        self._listening = listening
        self._heard = heard
        self.role = Role.AWAY
        self.since = self._claimed_at = time.monotonic()
        self._may_sleep = self._nothing_to_claim = self._wakes_others = False
        self._updated = asyncio.Event()  # one of these has changed
        self._answered_at: float | None = None
        self._refused = Outage(log, "refused", "still_refused", "accepted")

    @property
    def leads(self) -> bool:
        """Whether this worker is the leader."""
        return self.role in {Role.AWAKE, Role.FALLING_ASLEEP, Role.ASLEEP}

    @property
    def silent_s(self) -> float | None:
        """For how many seconds the server has not answered; None when no connection listens."""
        return None if self._answered_at is None else time.monotonic() - self._answered_at

    def update(self, *, may_sleep: bool | None = None, nothing_to_claim: bool | None = None) -> None:
        """Set whether the leader may sleep, and whether this worker waits for something to claim."""
        known = self._may_sleep, self._is_stuck
        self._may_sleep = self._may_sleep if may_sleep is None else may_sleep
        self._nothing_to_claim = self._nothing_to_claim if nothing_to_claim is None else nothing_to_claim
        if nothing_to_claim is False or known != (self._may_sleep, self._is_stuck):
            self._updated.set()

    def note_claim(self) -> None:
        """Note that this worker claims, so it is not stuck."""
        was_stuck = self._is_stuck
        self._claimed_at = time.monotonic()
        if was_stuck:
            self._updated.set()

    def wake_others(self) -> None:
        """Notify the other workers, if this one is the leader, so that they claim as well."""
        self._wakes_others = self.leads
        self._updated.set()

    async def run(self) -> None:
        """Take part until cancelled; reconnects as often as needed.

        Raises:
            DatabaseError: the first connection, or a privilege, was refused for good.
        """
        while True:
            began = time.monotonic()
            await self._refused.back_off()
            connection = await self._database.connect()
            try:
                await self._use(connection)
            except psycopg.Error as error:
                if is_lost(connection, error):
                    log.debug("session_lost", reason=reason(error))
                elif is_permanent(error):
                    raise explained(error) from error
                else:
                    self._refused.failed(refusal(error))
            finally:
                self._answered_at = None
                self._become(Role.AWAY)
                await connection.close()
            await asyncio.sleep(max(0.0, began + PATIENCE_S - time.monotonic()))

    def _become(self, role: Role, *, claim: bool = False) -> None:
        self.role, self.since = role, time.monotonic()
        self._changed(claim)

    @property
    def _is_stuck(self) -> bool:
        return not self._nothing_to_claim and time.monotonic() - self._claimed_at > PATIENCE_S

    async def _use(self, connection: Connection) -> None:
        """Listen and take part over a connection; report an outage unless the server ends the session."""
        epoch = self._database.epoch
        notices: list[str | None] = []
        connection.add_notice_handler(lambda notice: notices.append(notice.severity_nonlocalized))
        connection.add_notify_handler(lambda notification: self._heard(notification.payload))
        try:
            await self._ask(connection, sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)))
            self._database.answered()
            self._listening()
            await self._take_part(connection)
        except psycopg.Error as error:
            is_ended = (error.sqlstate or "").startswith("57P") or "FATAL" in notices
            if is_lost(connection, error) and not is_ended and epoch == self._database.epoch:
                self._database.lost(error)
            raise

    async def _take_part(self, connection: Connection) -> None:
        while True:
            self._become(Role.IN_LINE)
            if await self._ask(connection, TRY_BELL, self._channel, str(FROZEN_MS)):
                self._refused.ended()
                self._become(Role.AWAKE, claim=True)
                await self._lead(connection)
                self._become(Role.IN_LINE)
                await self._ask(connection, UNLOCK_BELL, self._channel)
            self._refused.ended()
            until = time.monotonic() + TRY_S
            while (left_s := until - time.monotonic()) > 0:
                await self._hear(connection, left_s)
            while self._is_stuck:
                await self._watch(connection, self._silence_s)

    async def _lead(self, connection: Connection) -> None:
        """Be the leader, awake at first and at the end, until this worker is stuck."""
        while await self._stay_awake(connection):
            self._become(Role.FALLING_ASLEEP)
            if await self._fall_asleep(connection):
                self._become(Role.ASLEEP, claim=True)  # the last drain
                while self._may_sleep and not self._is_stuck:
                    stuck_s = math.inf if self._nothing_to_claim else PATIENCE_S
                    await self._watch(connection, self._silence_s, stuck_s)
                await self._ask(connection, UNLOCK_SLEEP, self._channel, str(FROZEN_MS))
            self._become(Role.AWAKE)

    async def _stay_awake(self, connection: Connection) -> bool:
        """Return True when it is time to sleep, or False when this worker is stuck."""
        while not self._is_stuck:
            if self._may_sleep:
                return True
            if self._wakes_others:
                self._wakes_others = False
                await self._ask(connection, NOTIFY, self._channel, WAKE)
            else:
                await self._watch(connection, min(PATIENCE_S, self._silence_s))  # else the server ends it
        return False

    async def _fall_asleep(self, connection: Connection) -> bool:
        """Request SLEEP; False when it was not granted before it was time to be awake."""
        longest_s = min(REQUEST_S[1], REQUEST_SHARE * self._database.answer_limit_s)
        while self._may_sleep and not self._is_stuck:
            wait_s = min(max((time.monotonic() - self.since) / 2, REQUEST_S[0]), longest_s)
            if await self._ask(connection, REQUEST_SLEEP, self._channel, round(wait_s * 1000)):
                return True
            self._pass_on(connection)
        return False

    async def _watch(self, connection: Connection, silence_s: float, timeout_s: float = math.inf) -> None:
        """Wait for an update or the timeout; ask a server that has not answered for ``silence_s``."""
        now = time.monotonic()
        ask_at = (self._answered_at or now) + silence_s
        await self._hear(connection, min(ask_at - now, timeout_s))
        if time.monotonic() >= ask_at:
            await self._ask(connection, SIGN_OF_LIFE)

    async def _hear(self, connection: Connection, timeout_s: float) -> None:
        """Wait for an update, for the end of the session, or for the timeout; report what is notified.

        Raises:
            psycopg.OperationalError: the session has ended.
        """
        loop, descriptor = asyncio.get_running_loop(), connection.fileno()
        self._updated.clear()
        self._pass_on(connection)  # what came with the last answer
        loop.add_reader(descriptor, self._readable, connection)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._updated.wait()
        finally:
            loop.remove_reader(descriptor)
        self._read(connection)

    def _readable(self, connection: Connection) -> None:
        try:
            self._read(connection)
        except psycopg.OperationalError:
            self._updated.set()  # _hear raises it again

    def _read(self, connection: Connection) -> None:
        try:
            connection.pgconn.consume_input()
        finally:
            self._pass_on(connection)

    def _pass_on(self, connection: Connection) -> None:
        """Report the notifications that have arrived, and let psycopg report the notices."""
        while notification := connection.pgconn.notifies():
            self._heard(notification.extra.decode("utf-8", "replace"))

    async def _ask(
        self, connection: Connection, query: LiteralString | sql.Composed, *parameters: object
    ) -> object:
        """The first value of the answer."""
        cursor = await self._database.limited(connection, connection.execute(query, parameters))
        self._answered_at = time.monotonic()
        row = await cursor.fetchone() if cursor.description else None
        return row[0] if row else None
