"""The bell: which of a queue's workers is rung, and when. No wake-up is lost, and nobody rings in vain.

NOTIFY lets the cluster's commits wait for each other, so producers ring only a sleeper. There is an
advisory lock for a channel, SLEEP, and this is the protocol:

- A producer (the trigger ``tokens_ring``) tries SLEEP, shared, until the end of its transaction. It
  gets it: nobody sleeps, and it stays silent. It is refused: it notifies.
- The worker that answers the bell, to fall asleep, requests SLEEP exclusively, on a session of its
  own, once a claim came back short. As soon as it is requested, new producers are refused and ring.
  It is granted when the last silent producer is through. Then comes one more claim, the last drain.
- Until it is granted, which a producer with a long transaction may hold up, it claims now and then.
- Awake, which is while tokens come faster than ``BUSY`` or a backlog is deep, it lets go of SLEEP.

Proof that no wake-up is lost. Take a token whose transaction has committed. Its producer was refused,
and rang: the hint arrives, or we were not listening, and claim after each LISTEN. Or it got SLEEP,
shared, and held it until its token was visible: then SLEEP is granted to us after that, and the last
drain follows the grant and sees the token; until then we claim in any case. The tests search all
interleavings for a counterexample, and find one at once without the last drain.

Many workers: one of them holds a second lock, BELL, and alone takes part in the above; the others wait
for it in line, and hear what is rung as well, but give the first a second. It wakes them when the
backlog is deep, and passes BELL on when it has not claimed for a second, since its reader or its
provider may be stuck. When it dies, its session's locks go to the next, which begins with a claim.
Frozen while awake it loses its session after ``FROZEN_MS``; while asleep, the others hear what is rung.

Promises: whoever answers the bell is told of each grant and each turn of its own (``suspect``). Does
not listen itself: that is the doorbell's.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, LiteralString

import psycopg

from mailroom.database.connection import LOST, Connection, Database, explained, hang_up, reason
from mailroom.logs import EventLogger

# What the one who answers the bell is left by the others, and by itself when it does not claim.
PATIENCE_S: Final = 1.0
FROZEN_MS: Final = 5000
# One who waits for a lock asks anew after so long, to see that the server still knows of it.
MAX_WAIT_S: Final = 600.0
WAKE: Final = "wake"

# Other limits than ours would end a wait that is to be long; the others find a dead client. An unlock
# of what is not locked would warn.
SET_UP: Final = """
SELECT set_config(s.name, given.value, false)
FROM (VALUES ('statement_timeout', '0'), ('transaction_timeout', '0'), ('idle_session_timeout', '0'),
             ('lock_timeout', %s), ('client_min_messages', 'error'),
             ('tcp_keepalives_idle', '30'), ('tcp_keepalives_interval', '10'), ('tcp_keepalives_count', '3')
     ) AS given (name, value)
JOIN pg_settings s ON s.name = given.name
"""
CHECK_CLIENT: Final = "SELECT set_config('client_connection_check_interval', '1000', false)"
ANSWER: Final = (
    "SELECT pg_advisory_lock(mailroom.bell_lock(%s)), set_config('idle_session_timeout', %s, false)"
)
SLEEP: Final = (
    "SELECT set_config('idle_session_timeout', '0', false), pg_advisory_lock(mailroom.sleep_lock(%s))"
)
AWAKE: Final = (
    "SELECT pg_advisory_unlock(mailroom.sleep_lock(%s)), set_config('idle_session_timeout', %s, false)"
)
TO_THE_NEXT: Final = "SELECT pg_advisory_unlock(mailroom.bell_lock(%s))"
NOTIFY: Final = "SELECT pg_notify(%s, %s)"
SIGN_OF_LIFE: Final = "SELECT 1"

log = EventLogger("doorbell")


class Role(enum.Enum):
    """What this worker is to the bell: in line for it, or the one who answers, and in which state."""

    AWAY = "away"
    IN_LINE = "in line"
    AWAKE = "awake"
    FALLING_ASLEEP = "falling asleep"
    ASLEEP = "asleep"


class Bell:
    """One worker's part in the protocol.

    Args:
        database: where it is.
        channel: the channel that is rung.
        silence_s: after so many seconds without one, the session is asked for a sign of life.
        suspect: is called when there may be something of which nobody told.
        changed: is set whenever ``role`` has changed.

    Attributes:
        role: what we are to the bell.
        since: when that began, of ``time.monotonic``.
    """

    def __init__(
        self,
        database: Database,
        *,
        channel: str,
        silence_s: float,
        suspect: Callable[[], None],
        changed: asyncio.Event,
    ) -> None:
        self._database = database
        self._channel = channel
        self._silence_s = silence_s
        self._suspect = suspect
        self._changed = changed
        self.role = Role.AWAY
        self.since = self._claimed_at = time.monotonic()
        self._sleepy = self._at_rest = self._rings_others = False
        self._turn = asyncio.Event()  # one of these has changed
        self._asked_at: float | None = None  # and answered
        self._is_waiting = False  # for a lock

    @property
    def answers(self) -> bool:
        """Whether it is us who answer the bell."""
        return self.role in {Role.AWAKE, Role.FALLING_ASLEEP, Role.ASLEEP}

    @property
    def silent_s(self) -> float | None:
        """For how many seconds its session gave no sign of life; None when there never was one."""
        if self._asked_at is None or self._is_waiting:  # then the server answers when it is our turn
            return None if self._asked_at is None else 0.0
        return time.monotonic() - self._asked_at

    def want(self, *, sleepy: bool | None = None, at_rest: bool | None = None) -> None:
        """Say whether it is time to sleep, and whether we wait for something to claim."""
        self._sleepy = self._sleepy if sleepy is None else sleepy
        self._at_rest = self._at_rest if at_rest is None else at_rest
        self._turn.set()

    def claims(self) -> None:
        """Say that we claim: we are not stuck."""
        self._claimed_at = time.monotonic()
        self._turn.set()

    def wake_others(self) -> None:
        """Let the others claim as well, if it is us who answer the bell."""
        self._rings_others = self.answers
        self._turn.set()

    async def run(self) -> None:
        """Take part for ever, over as many connections as it takes.

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
                    if await self._wait_for(connection, ANSWER, self._channel, str(FROZEN_MS)):
                        self._become(Role.AWAKE)
                        self._suspect()
                        await self._answer(connection)
                        self._become(Role.IN_LINE)
                        await self._ask(connection, TO_THE_NEXT, self._channel)
                    while self._is_stuck:
                        await self._watch(connection, PATIENCE_S)
            except LOST as error:
                log.debug("bell_lost", reason=reason(error))
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
        except psycopg.DataError as error:  # not every system can
            log.debug("client_not_checked", reason=reason(error))

    def _become(self, role: Role) -> None:
        self.role, self.since = role, time.monotonic()
        self._changed.set()

    @property
    def _is_stuck(self) -> bool:
        return not self._at_rest and time.monotonic() - self._claimed_at > PATIENCE_S

    async def _answer(self, connection: Connection) -> None:
        """Answer the bell, awake at first and in the end, until we are stuck."""
        while await self._stay_awake(connection):
            self._become(Role.FALLING_ASLEEP)
            if await self._fall_asleep(connection):
                self._become(Role.ASLEEP)
                self._suspect()  # the last drain
                while self._sleepy and not self._is_stuck:
                    await self._watch(connection, self._silence_s if self._at_rest else PATIENCE_S)
            # Even when it was not granted: the cancellation may have come after the lock.
            await self._ask(connection, AWAKE, self._channel, str(FROZEN_MS))
            self._become(Role.AWAKE)

    async def _stay_awake(self, connection: Connection) -> bool:
        """Return when it is time to sleep, or (False) when we are stuck."""
        while not self._is_stuck:
            if self._sleepy:
                return True
            if self._rings_others:
                self._rings_others = False
                await self._ask(connection, NOTIFY, self._channel, WAKE)
            else:
                await self._watch(connection, PATIENCE_S)
        return False

    async def _fall_asleep(self, connection: Connection) -> bool:
        """Request SLEEP; False when it was time to be awake before it was granted."""
        asking = asyncio.create_task(self._wait_for(connection, SLEEP, self._channel))
        try:
            while not asking.done() and self._sleepy and not self._is_stuck:
                self._turn.clear()
                turn = asyncio.create_task(self._turn.wait())
                await asyncio.wait(
                    {asking, turn},
                    return_when=asyncio.FIRST_COMPLETED,
                    timeout=None if self._at_rest else PATIENCE_S,
                )
                turn.cancel()
            if not asking.done():
                await self._database.limited(connection, connection.cancel_safe(timeout=PATIENCE_S))
            return await asking
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def _watch(self, connection: Connection, timeout_s: float) -> None:
        """Wait until we want something else; when the server stirs, or after so long, see that it lives."""
        loop, descriptor = asyncio.get_running_loop(), connection.fileno()
        stirred = asyncio.Event()
        self._turn.clear()
        loop.add_reader(descriptor, stirred.set)
        turns = [asyncio.create_task(self._turn.wait()), asyncio.create_task(stirred.wait())]
        try:
            await asyncio.wait(turns, return_when=asyncio.FIRST_COMPLETED, timeout=timeout_s)
        finally:
            loop.remove_reader(descriptor)
            for turn in turns:
                turn.cancel()
        late_s = min(timeout_s, self._silence_s)
        if stirred.is_set() or self._asked_at is None or time.monotonic() - self._asked_at >= late_s:
            await self._ask(connection, SIGN_OF_LIFE)

    async def _ask(self, connection: Connection, query: LiteralString, *parameters: str) -> None:
        await self._database.limited(connection, connection.execute(query, parameters))
        self._asked_at = time.monotonic()

    async def _wait_for(self, connection: Connection, query: LiteralString, *parameters: str) -> bool:
        """Ask for a lock; False when it is not to be had for now, or was cancelled at the server."""
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
            self._asked_at = time.monotonic()
