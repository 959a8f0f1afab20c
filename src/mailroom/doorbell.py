"""The doorbell: hear of new tokens, without being in the producers' way.

A notification is a hint that something is pending; the query is the truth. Its payload is the number
of tokens that a statement inserted. From the first hint the doorbell waits until the batch is full or
its time is over, and then says that a claim is due.

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

Promises: no token that commits while we listen goes unheard, however often connections are made
anew: after each one a claim is due. A quiet doorbell sends no statement but a sign of life. Does not
promise an exact count: PostgreSQL folds identical notifications of one transaction into one, so a
batch may go out on its time-out. Whoever is woken claims until a claim comes back short.
"""

from __future__ import annotations

import asyncio
import enum
import math
import time
from contextlib import suppress
from typing import Final, LiteralString

import psycopg
from psycopg import sql

from mailroom.database import LOST, Connection, Database, hang_up, reason
from mailroom.logs import EventLogger

# From so many tokens a second on, nobody is asked to ring: a commit that notifies may take a flush of a
# slow disk, and lets the next one wait as long.
BUSY: Final = 50.0
RATE_S: Final = 1.0
# Awake and with nothing more to claim, it claims again after so long, at the least.
SHORTEST_PAUSE_S: Final = 0.01
# While SLEEP is requested and not granted: at first, at last.
LOOK_S: Final = (0.01, 0.1)
# What the one who answers the bell is left by the others, and by itself when it does not claim.
PATIENCE_S: Final = 1.0
FROZEN_MS: Final = 5000
DEEP_CLAIMS: Final = 3
WAKE: Final = "wake"

# Other limits than ours would end a wait that is to be long; the others find a dead client.
SET_UP: Final = """
SELECT set_config('lock_timeout', '0', false), set_config('statement_timeout', '0', false),
       set_config('tcp_keepalives_idle', '30', false), set_config('tcp_keepalives_interval', '10', false),
       set_config('tcp_keepalives_count', '3', false),
       set_config('client_connection_check_interval', '1000', false)
"""
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


class Doorbell:
    """The channel, listened to.

    Args:
        database: where it is.
        channel: its name.
        batch_limit: so many announced tokens are a full batch.
        batch_timeout_s: a batch that is not full waits so long after its first hint.
        check_interval_s: a dead connection is noticed within so many seconds.
    """

    def __init__(
        self,
        database: Database,
        *,
        channel: str,
        batch_limit: int,
        batch_timeout_s: float,
        check_interval_s: float,
    ) -> None:
        self._database = database
        self._channel = channel
        self._batch_limit = batch_limit
        self._batch_timeout_s = batch_timeout_s
        self._check_interval_s = check_interval_s
        self._announced = 0
        self._first_hint_at: float | None = None
        self._catch_up = False
        self._changed = asyncio.Event()  # for whoever waits until a claim is due
        self._heard_at: float | None = None
        self._role = Role.AWAY
        self._sleepy = False
        self._rings_others = False
        self._at_rest = False
        self._turn = asyncio.Event()  # for the bell's session: one of the three above has changed
        self._look_s = LOOK_S[0]
        self._asked_at = 0.0  # over the bell's session
        self._rate = 0.0
        self._claimed = self._claims = 0
        self._counted_since = self._claimed_at = time.monotonic()

    @property
    def silent_s(self) -> float | None:
        """For how many seconds the listening connection gave no sign of life; None when we hear nothing."""
        if self._heard_at is None or self._role is Role.AWAY:
            return None
        return time.monotonic() - self._heard_at

    @property
    def _answers(self) -> bool:
        return self._role in {Role.AWAKE, Role.FALLING_ASLEEP, Role.ASLEEP}

    def clear(self) -> None:
        """Forget the hints so far: call it right before a claim, which covers them."""
        self._announced = 0
        self._first_hint_at = None
        self._catch_up = False
        self._claimed_at = time.monotonic()

    def claimed(self, tokens: int, *, more: bool) -> None:
        """Note what a claim gave, and whether it came back full, so that there may be more."""
        self._claimed_at = time.monotonic()
        self._claimed += tokens
        self._claims = self._claims + 1 if more else 0
        if self._claims == 2:
            self._want(sleepy=False)
        elif self._claims == DEEP_CLAIMS and self._answers:
            self._rings_others = True
            self._turn.set()

    async def due(self, lease_due_s: float | None) -> float:
        """Wait until a claim is due; gives back how long the first hint waited, in seconds.

        Args:
            lease_due_s: a claim is due after so many seconds even without a hint.
        """
        now = time.monotonic()
        lease_due_at = None if lease_due_s is None else now + lease_due_s
        # The tokens of late, a second in the mean: what comes alone is no rate.
        passed_s = max(now - self._counted_since, 0.001)
        self._rate += (self._claimed / passed_s - self._rate) * -math.expm1(-passed_s / RATE_S)
        self._claimed, self._counted_since, self._claims = 0, now, 0
        self._want(sleepy=self._rate < BUSY, at_rest=True)
        try:
            while not self._catch_up and not (self._answers and self._announced >= self._batch_limit):
                pause_s = self._pause_s()
                soonest = self._soonest(lease_due_at, None if pause_s is None else now + pause_s)
                if soonest is not None and soonest <= time.monotonic():
                    break
                self._changed.clear()
                try:
                    async with asyncio.timeout(None if soonest is None else soonest - time.monotonic()):
                        await self._changed.wait()
                except TimeoutError:
                    break
        finally:
            self._claimed_at = time.monotonic()
            self._look_s = min(self._look_s * 3, LOOK_S[1])
            self._want(at_rest=False)
        return 0.0 if self._first_hint_at is None else time.monotonic() - self._first_hint_at

    async def run(self) -> None:
        """Listen and take part in the protocol for ever, over as many connections as it takes.

        Raises:
            DatabaseError: the first connection was refused for good.
        """
        tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._stand_in_line())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                await task
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _pause_s(self) -> float | None:
        """How long not to claim, where nobody may ring; None where everybody does."""
        if self._role is Role.FALLING_ASLEEP:
            return max(self._look_s, self._batch_timeout_s)
        if self._role is Role.AWAKE and self._rate >= BUSY:  # the time that a batch takes to fill
            return max(min(self._batch_limit / self._rate, self._batch_timeout_s), SHORTEST_PAUSE_S)
        return None

    def _soonest(self, *others: float | None) -> float | None:
        batch_due_at = None
        if self._first_hint_at is not None:
            patience_s = 0.0 if self._answers else PATIENCE_S
            batch_due_at = self._first_hint_at + self._batch_timeout_s + patience_s
        return min((at for at in (batch_due_at, *others) if at is not None), default=None)

    def _want(self, *, sleepy: bool | None = None, at_rest: bool | None = None) -> None:
        self._sleepy = self._sleepy if sleepy is None else sleepy
        self._at_rest = self._at_rest if at_rest is None else at_rest
        self._turn.set()

    @property
    def _is_stuck(self) -> bool:
        return not self._at_rest and time.monotonic() - self._claimed_at > PATIENCE_S

    async def _listen(self) -> None:
        # Silence for two thirds of the interval is followed by a question that has to be answered
        # in the last third (see Database.limited): a dead connection is noticed within the whole.
        silence_s = self._check_interval_s * 2 / 3
        listen = sql.SQL("LISTEN {}").format(sql.Identifier(self._channel))
        while True:
            connection = await self._database.connect()
            try:
                await self._database.limited(connection, connection.execute(listen))
                self._database.answered()
                log.debug("listening", channel=self._channel)
                self._claim_soon()
                while True:
                    self._heard_at = time.monotonic()
                    heard = False
                    async for notification in connection.notifies(timeout=silence_s, stop_after=1):
                        self._hear(notification.payload)
                        heard = True
                    if not heard:
                        await self._database.limited(connection, connection.execute(SIGN_OF_LIFE))
            except LOST as error:
                self._database.lost(error)
            finally:
                self._heard_at = None
                await connection.close()

    def _hear(self, payload: str) -> None:
        if payload == WAKE:
            self._claim_soon()
            return
        self._suspect()
        self._announced += int(payload) if payload.isascii() and payload.isdigit() else 1
        if self._first_hint_at is not None and self._announced >= BUSY:
            self._rate = self._announced / max(time.monotonic() - self._first_hint_at, 0.001)
            self._want(sleepy=self._rate < BUSY)

    def _claim_soon(self) -> None:
        self._catch_up = True
        self._changed.set()

    def _suspect(self) -> None:
        """Take it that there is something of which nobody told, and give it a batch's time."""
        if self._first_hint_at is None:
            self._first_hint_at = time.monotonic()
        self._changed.set()

    async def _stand_in_line(self) -> None:
        while True:
            began = time.monotonic()
            connection = await self._database.connect()
            try:
                await self._ask(connection, SET_UP)
                while True:
                    self._become(Role.IN_LINE)
                    await self._wait_for(connection, ANSWER, self._channel, str(FROZEN_MS))
                    self._become(Role.AWAKE)
                    self._suspect()
                    await self._answer(connection)
                    await self._ask(connection, TO_THE_NEXT, self._channel)
            except LOST as error:
                log.debug("bell_lost", reason=reason(error))
            finally:
                self._role = Role.AWAY
                await connection.close()
            await asyncio.sleep(max(0.0, began + PATIENCE_S - time.monotonic()))

    def _become(self, role: Role) -> None:
        self._role = role
        self._changed.set()

    async def _answer(self, connection: Connection) -> None:
        """Answer the bell, awake at first and in the end, until we are stuck."""
        while await self._stay_awake(connection):
            self._look_s = LOOK_S[0]
            self._become(Role.FALLING_ASLEEP)
            if await self._fall_asleep(connection):
                self._become(Role.ASLEEP)
                self._suspect()  # the last drain
                while self._sleepy and not self._is_stuck:
                    await self._watch(connection, None if self._at_rest else PATIENCE_S)
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
            with suppress(psycopg.errors.QueryCanceled):
                await asking
                return True
            return False
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def _watch(self, connection: Connection, timeout_s: float | None) -> None:
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
        is_late = timeout_s is not None and time.monotonic() - self._asked_at >= PATIENCE_S
        if stirred.is_set() or is_late:
            await self._ask(connection, SIGN_OF_LIFE)

    async def _ask(self, connection: Connection, query: LiteralString, *parameters: str) -> None:
        await self._database.limited(connection, connection.execute(query, parameters))
        self._asked_at = time.monotonic()

    async def _wait_for(self, connection: Connection, query: LiteralString, *parameters: str) -> None:
        """Ask for a lock, for as long as it takes; cancelled, it hangs up."""
        asking = asyncio.create_task(connection.execute(query, parameters))
        try:
            await asyncio.wait({asking})
            await asking
        finally:
            if not asking.done():
                hang_up(connection)
                await asyncio.gather(asking, return_exceptions=True)
