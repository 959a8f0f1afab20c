"""The doorbell: hear of new tokens, and say when a claim is due.

A notification is a hint that something is pending; the query is the truth. Its payload is the number
of tokens that a statement inserted. From the first hint the doorbell waits until the batch is full or
its time is over. Under load nobody rings (see ``bell``): then a claim is due whenever a batch will
have filled.

Promises: no token that commits while we listen goes unheard, however often connections are made
anew: after each one a claim is due. A quiet doorbell sends no statement but a sign of life. Does not
promise an exact count: PostgreSQL folds identical notifications of one transaction into one, so a
batch may go out on its time-out. Whoever is woken claims until a claim comes back short.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from typing import Final

import psycopg
from psycopg import sql

from mailroom.concurrency import first
from mailroom.database.connection import LOST, Database, explained
from mailroom.logs import EventLogger
from mailroom.queue.leader import PATIENCE_S, SIGN_OF_LIFE, WAKE, Bell, Role

# From so many tokens a second on, nobody is asked to ring: a commit that notifies may take a flush of a
# slow disk, and lets the next one wait as long.
BUSY: Final = 50.0
RATE_S: Final = 1.0
# Awake and with nothing more to claim, it claims again after so long, at the least.
MIN_PAUSE_S: Final = 0.01
# Falling asleep, it claims after half the time that it has taken so far, between these.
LOOK_S: Final = (0.01, 0.5)
DEEP_CLAIMS: Final = 3

log = EventLogger("doorbell")


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
        # Silence for two thirds of the interval is followed by a question that has to be answered
        # in the last third (see Database.limited): a dead connection is noticed within the whole.
        self._silence_s = check_interval_s * 2 / 3
        self._announced = 0
        self._first_hint_at: float | None = None
        self._catch_up = False
        self._changed = asyncio.Event()  # for whoever waits until a claim is due
        self._bell = Bell(
            database,
            channel=channel,
            silence_s=self._silence_s,
            suspect=self._suspect,
            changed=self._changed,
        )
        self._heard_at: float | None = None
        self._rate = 0.0
        self._claimed = self._claims = 0
        self._counted_since = time.monotonic()

    @property
    def silent_s(self) -> float | None:
        """For how many seconds one of our sessions gave no sign of life; None when we hear nothing."""
        bell_s = self._bell.silent_s
        if self._heard_at is None or bell_s is None:
            return None
        return max(time.monotonic() - self._heard_at, bell_s)

    @property
    def is_busy(self) -> bool:
        """Whether so many tokens came of late that nobody is asked to ring."""
        return self._rate >= BUSY

    def clear(self) -> None:
        """Forget the hints so far: call it right before a claim, which covers them."""
        self._announced = 0
        self._first_hint_at = None
        self._catch_up = False
        self._bell.claims()

    def claimed(self, tokens: int, *, more: bool) -> None:
        """Note what a claim gave, and whether it came back full, so that there may be more."""
        self._bell.claims()
        self._claimed += tokens
        self._claims = self._claims + 1 if more else 0
        if self._claims == 2:
            self._bell.want(sleepy=False)
        elif self._claims == DEEP_CLAIMS:
            self._bell.wake_others()

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
        self._bell.want(sleepy=self._rate < BUSY, at_rest=True)
        try:
            while not self._catch_up and not (self._bell.answers and self._announced >= self._batch_limit):
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
            self._bell.claims()
            self._bell.want(at_rest=False)
        return 0.0 if self._first_hint_at is None else time.monotonic() - self._first_hint_at

    async def run(self) -> None:
        """Listen and take part in the protocol for ever, over as many connections as it takes.

        Raises:
            DatabaseError: the first connection was refused for good.
        """
        await first(self._listen(), self._bell.run())

    def _pause_s(self) -> float | None:
        """How long not to claim, where nobody may ring; None where everybody does."""
        if self._bell.role is Role.FALLING_ASLEEP:
            look_s = (time.monotonic() - self._bell.since) / 2
            return max(min(max(look_s, LOOK_S[0]), LOOK_S[1]), self._batch_timeout_s)
        if self._bell.role is Role.AWAKE and self._rate >= BUSY:  # the time that a batch takes to fill
            return max(min(self._batch_limit / self._rate, self._batch_timeout_s), MIN_PAUSE_S)
        return None

    def _soonest(self, *others: float | None) -> float | None:
        batch_due_at = None
        if self._first_hint_at is not None:
            patience_s = 0.0 if self._bell.answers else PATIENCE_S
            batch_due_at = self._first_hint_at + self._batch_timeout_s + patience_s
        return min((at for at in (batch_due_at, *others) if at is not None), default=None)

    async def _listen(self) -> None:
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
                    async for notification in connection.notifies(timeout=self._silence_s, stop_after=1):
                        self._hear(notification.payload)
                        heard = True
                    if not heard:
                        await self._database.limited(connection, connection.execute(SIGN_OF_LIFE))
            except LOST as error:
                self._database.lost(error)
            except psycopg.Error as error:
                raise explained(error) from error
            finally:
                self._heard_at = None
                await connection.close()

    def _hear(self, payload: str) -> None:
        if payload == WAKE:
            self._claim_soon()
            return
        self._suspect()
        self._announced += int(payload) if re.fullmatch("[0-9]{1,9}", payload) else 1
        if self._first_hint_at is not None and self._announced >= BUSY:
            self._rate = self._announced / max(time.monotonic() - self._first_hint_at, 0.001)
            self._bell.want(sleepy=self._rate < BUSY)

    def _claim_soon(self) -> None:
        self._catch_up = True
        self._changed.set()

    def _suspect(self) -> None:
        """Take it that there is something of which nobody told, and give it a batch's time."""
        if self._first_hint_at is None:
            self._first_hint_at = time.monotonic()
        self._changed.set()
