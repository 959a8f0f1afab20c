"""The leader: the one worker of a queue that inserts notify, and only while it is idle.

Terms. *To ring* is to send a notification (NOTIFY). NOTIFY serialises the commits of the whole cluster, so
producers ring only while the leader *sleeps*, which means: it will not claim until it is notified. Two
advisory locks implement this. BELL makes a worker the leader. SLEEP tells producers that the leader sleeps.

The protocol:

- A producer (the trigger ``tokens_ring``) tries to take SLEEP, shared, until the end of its transaction.
  If it gets the lock, the leader does not sleep, and the producer does not ring. If it is refused, it rings.
- To fall asleep, the leader requests SLEEP exclusively, on a session of its own, once a claim came back
  short. From the request on, producers are refused and ring. The lock is granted when the transactions of
  all producers that did not ring are over. After the grant the leader claims once more: the last drain.
- Until the grant, which a producer with a long transaction may delay, the leader claims now and then.
- While tokens come faster than ``BUSY``, or a backlog is deep, the leader is awake and does not hold SLEEP.

Proof that no token is missed. Take a token whose transaction has committed. There are two cases. (1) Its
producer was refused SLEEP and rang. Either the notification arrives, or no connection listened, and then a
claim follows the next LISTEN. (2) Its producer got SLEEP, shared, and held it until the token was visible.
Then SLEEP is granted to the leader only after that, and the last drain, which follows the grant, sees the
token. Until the grant the leader claims in any case. The tests search all interleavings for a
counterexample, and find one as soon as the last drain is left out.

Many workers: only the leader takes part in the above. The others wait for BELL in line. They receive the
notifications too, but leave the leader ``PATIENCE_S`` to claim first. The leader wakes them when the backlog
is deep. It passes BELL on when it has not claimed for ``PATIENCE_S``, since its reader or its provider may
be stuck. When it dies, its session's locks are released, and the next leader begins with a claim. When it is
suspended while awake, the server ends its session after ``FROZEN_MS``; when it is suspended while it sleeps,
the others receive the notifications.

Promises: reports each change of its role, and whether a claim has to follow. Does not listen: that is
``listener``'s part.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, LiteralString

import psycopg

from mailroom.concurrency import before
from mailroom.database.connection import LOST, Connection, Database, explained, hang_up, reason
from mailroom.logs import EventLogger

# How long the other workers wait for the leader to claim, and how long it stays the leader without a claim.
PATIENCE_S: Final = 1.0
FROZEN_MS: Final = 5000
# A request for a lock is repeated after this time, to check that the server still knows of it.
MAX_WAIT_S: Final = 600.0
WAKE: Final = "wake"

# The database's own limits would end a long wait. The keepalives find a dead client. An unlock of a lock
# that is not held would warn.
SET_UP: Final = """
SELECT set_config(s.name, given.value, false)
FROM (VALUES ('statement_timeout', '0'), ('transaction_timeout', '0'), ('idle_session_timeout', '0'),
             ('lock_timeout', %s), ('client_min_messages', 'error'),
             ('tcp_keepalives_idle', '30'), ('tcp_keepalives_interval', '10'), ('tcp_keepalives_count', '3')
     ) AS given (name, value)
JOIN pg_settings s ON s.name = given.name
"""
CHECK_CLIENT: Final = "SELECT set_config('client_connection_check_interval', '1000', false)"
LOCK_BELL: Final = (
    "SELECT pg_advisory_lock(mailroom.bell_lock(%s)), set_config('idle_session_timeout', %s, false)"
)
LOCK_SLEEP: Final = (
    "SELECT set_config('idle_session_timeout', '0', false), pg_advisory_lock(mailroom.sleep_lock(%s))"
)
UNLOCK_SLEEP: Final = (
    "SELECT pg_advisory_unlock(mailroom.sleep_lock(%s)), set_config('idle_session_timeout', %s, false)"
)
UNLOCK_BELL: Final = "SELECT pg_advisory_unlock(mailroom.bell_lock(%s))"
NOTIFY: Final = "SELECT pg_notify(%s, %s)"
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
    ) -> None:
        self._database = database
        self._channel = channel
        self._silence_s = silence_s
        self._changed = changed
        self.role = Role.AWAY
        self.since = self._claimed_at = time.monotonic()
        self._may_sleep = self._nothing_to_claim = self._wakes_others = False
        self._updated = asyncio.Event()  # one of these has changed
        self._answered_at: float | None = None
        self._is_waiting = False  # for a lock

    @property
    def leads(self) -> bool:
        """Whether this worker is the leader."""
        return self.role in {Role.AWAKE, Role.FALLING_ASLEEP, Role.ASLEEP}

    @property
    def silent_s(self) -> float | None:
        """For how many seconds the server has not answered; None when it never has."""
        if self._answered_at is None or self._is_waiting:  # it answers when the lock is granted
            return None if self._answered_at is None else 0.0
        return time.monotonic() - self._answered_at

    def update(self, *, may_sleep: bool | None = None, nothing_to_claim: bool | None = None) -> None:
        """Set whether the leader may sleep, and whether this worker waits for something to claim."""
        self._may_sleep = self._may_sleep if may_sleep is None else may_sleep
        self._nothing_to_claim = self._nothing_to_claim if nothing_to_claim is None else nothing_to_claim
        self._updated.set()

    def note_claim(self) -> None:
        """Note that this worker claims, so it is not stuck."""
        self._claimed_at = time.monotonic()
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
            connection = await self._database.connect()
            try:
                await self._set_up(connection)
                while True:
                    self._become(Role.IN_LINE)
                    if await self._wait_for(connection, LOCK_BELL, self._channel, str(FROZEN_MS)):
                        self._become(Role.AWAKE, claim=True)
                        await self._lead(connection)
                        self._become(Role.IN_LINE)
                        await self._ask(connection, UNLOCK_BELL, self._channel)
                    while self._is_stuck:
                        await self._watch(connection, PATIENCE_S)
            except LOST as error:
                log.debug("session_lost", reason=reason(error))
            except psycopg.Error as error:
                raise explained(error) from error
            finally:
                self._become(Role.AWAY)
                await connection.close()
            await asyncio.sleep(max(0.0, began + PATIENCE_S - time.monotonic()))

    async def _set_up(self, connection: Connection) -> None:
        await self._ask(connection, SET_UP, f"{MAX_WAIT_S * 1000:.0f}")
        try:
            await self._ask(connection, CHECK_CLIENT)
        except psycopg.DataError as error:  # the server's system does not support it
            log.debug("client_not_checked", reason=reason(error))

    def _become(self, role: Role, *, claim: bool = False) -> None:
        self.role, self.since = role, time.monotonic()
        self._changed(claim)

    @property
    def _is_stuck(self) -> bool:
        return not self._nothing_to_claim and time.monotonic() - self._claimed_at > PATIENCE_S

    async def _lead(self, connection: Connection) -> None:
        """Be the leader, awake at first and at the end, until this worker is stuck."""
        while await self._stay_awake(connection):
            self._become(Role.FALLING_ASLEEP)
            if await self._fall_asleep(connection):
                self._become(Role.ASLEEP, claim=True)  # the last drain
                while self._may_sleep and not self._is_stuck:
                    await self._watch(connection, self._silence_s if self._nothing_to_claim else PATIENCE_S)
            # Even when it was not granted: the cancellation may have come after the lock.
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
                await self._watch(connection, PATIENCE_S)
        return False

    async def _fall_asleep(self, connection: Connection) -> bool:
        """Request SLEEP; False when it was not granted before it was time to be awake."""
        asking = asyncio.create_task(self._wait_for(connection, LOCK_SLEEP, self._channel))
        try:
            while not asking.done() and self._may_sleep and not self._is_stuck:
                self._updated.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(None if self._nothing_to_claim else PATIENCE_S):
                        await before(self._updated.wait(), asking)
            if not asking.done():
                await self._database.limited(connection, connection.cancel_safe(timeout=PATIENCE_S))
            return await asking
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def _watch(self, connection: Connection, timeout_s: float) -> None:
        """Wait for an update, for data from the server, or for the timeout; then check the session."""
        loop, descriptor = asyncio.get_running_loop(), connection.fileno()
        readable = asyncio.Event()
        self._updated.clear()
        loop.add_reader(descriptor, readable.set)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await before(self._updated.wait(), readable.wait())
        finally:
            loop.remove_reader(descriptor)
        late_s = min(timeout_s, self._silence_s)
        if readable.is_set() or self._answered_at is None or time.monotonic() - self._answered_at >= late_s:
            await self._ask(connection, SIGN_OF_LIFE)

    async def _ask(self, connection: Connection, query: LiteralString, *parameters: str) -> None:
        await self._database.limited(connection, connection.execute(query, parameters))
        self._answered_at = time.monotonic()

    async def _wait_for(self, connection: Connection, query: LiteralString, *parameters: str) -> bool:
        """Request a lock; False when it was not granted in time, or the request was cancelled."""
        asking = asyncio.create_task(connection.execute(query, parameters))
        self._is_waiting = True
        try:
            await asyncio.wait({asking}, timeout=MAX_WAIT_S + self._database.answer_limit_s)
            if not asking.done():
                hang_up(connection)
            with suppress(psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable):
                await asking
                return True
            return False
        finally:
            self._is_waiting = False
            if not asking.done():
                hang_up(connection)
                await asyncio.gather(asking, return_exceptions=True)
            self._answered_at = time.monotonic()
