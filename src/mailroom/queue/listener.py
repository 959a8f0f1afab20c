"""Decides when a claim is due, by the notifications of new tokens.

A notification is only a hint that tokens are pending; the claim finds out which. Its payload is the number
of tokens that a statement inserted. After the first hint the listener waits until the batch is full or its
timeout is over. Under load producers do not notify (see ``leader``); then a claim is due whenever a batch
should be full.

Promises: no token that commits while it listens is missed, however often it reconnects: a claim is due
after each connection. While idle it sends no statement except to check the session.

Does not promise an exact count: PostgreSQL folds identical notifications of one transaction into one, so a
batch may have to wait for its time-out. When a claim is due, the caller claims until a claim comes back
short.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from typing import Final

from mailroom.database.connection import Database
from mailroom.logs import EventLogger
from mailroom.queue.leader import PATIENCE_S, WAKE, Leader, Role

# Above this number of tokens a second producers need not notify: a commit that notifies may have to wait
# for a slow disk, and the next commit waits for it.
BUSY: Final = 50.0
RATE_S: Final = 1.0
# An awake leader with nothing more to claim waits at least this long before the next claim.
MIN_PAUSE_S: Final = 0.01
# A leader that is falling asleep claims again after half the time that this has taken so far, within these.
LOOK_S: Final = (0.01, 0.5)
DEEP_CLAIMS: Final = 3

log = EventLogger("listener")


class Listener:
    """Listens to one channel.

    Args:
        database: where the queue is.
        channel: the channel's name.
        batch_limit: how many announced tokens make a full batch.
        batch_timeout_s: how long a batch that is not full waits after its first hint.
        check_interval_s: a dead connection is noticed within this time.
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
        self._announced = 0
        self._first_hint_at: float | None = None
        self._catch_up = False
        self._changed = asyncio.Event()  # whatever decides when a claim is due
        self._leader = Leader(
            database,
            channel=channel,
            # After silence for two thirds of the interval the server is asked, and has to answer in the last
            # third (see Database.limited). So a dead connection is noticed within the interval.
            silence_s=check_interval_s * 2 / 3,
            changed=self._role_changed,
            listening=self._listening,
            heard=self._hear,
        )
        self._rate = 0.0
        self._claimed = self._claims = 0
        self._counted_since = time.monotonic()

    @property
    def silent_s(self) -> float | None:
        """For how many seconds the session was silent; None when no connection listens."""
        return self._leader.silent_s

    @property
    def is_busy(self) -> bool:
        """Whether tokens come so fast that producers need not notify."""
        return self._rate >= BUSY

    def clear(self) -> None:
        """Forget the hints so far; call it right before a claim, which covers them."""
        self._announced = 0
        self._first_hint_at = None
        self._catch_up = False
        self._leader.note_claim()

    def claimed(self, tokens: int, *, more: bool) -> None:
        """Note what a claim returned, and whether it was full, so that there may be more."""
        self._leader.note_claim()
        self._claimed += tokens
        self._claims = self._claims + 1 if more else 0
        if self._claims == 2:
            self._leader.update(may_sleep=False)
        elif self._claims == DEEP_CLAIMS:
            self._leader.wake_others()

    async def due(self, lease_due_s: float | None) -> float:
        """Wait until a claim is due; returns for how many seconds the first hint has waited.

        Args:
            lease_due_s: in how many seconds a claim is due even without a hint; None for never.
        """
        now = time.monotonic()
        lease_due_at = None if lease_due_s is None else now + lease_due_s
        # Tokens a second, averaged over about a second; a single token counts little.
        passed_s = max(now - self._counted_since, 0.001)
        self._rate += (self._claimed / passed_s - self._rate) * -math.expm1(-passed_s / RATE_S)
        self._claimed, self._counted_since, self._claims = 0, now, 0
        self._leader.update(may_sleep=self._rate < BUSY, nothing_to_claim=True)
        try:
            while not self._catch_up and not (self._leader.leads and self._announced >= self._batch_limit):
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
            self._leader.note_claim()
            self._leader.update(nothing_to_claim=False)
        return 0.0 if self._first_hint_at is None else time.monotonic() - self._first_hint_at

    async def run(self) -> None:
        """Listen, and take part in the leader's protocol, until cancelled; reconnects as often as needed.

        Raises:
            DatabaseError: the first connection was refused for good.
        """
        await self._leader.run()

    def _pause_s(self) -> float | None:
        """How long to wait without a hint; None where producers notify."""
        if self._leader.role is Role.AWAY:  # it cannot connect: the server may have no free connection
            return max(PATIENCE_S, self._batch_timeout_s)
        if self._leader.role is Role.FALLING_ASLEEP:
            look_s = (time.monotonic() - self._leader.since) / 2
            return max(min(max(look_s, LOOK_S[0]), LOOK_S[1]), self._batch_timeout_s)
        if self._leader.role is Role.AWAKE and self._rate >= BUSY:  # until a batch has filled
            return max(min(self._batch_limit / self._rate, self._batch_timeout_s), MIN_PAUSE_S)
        return None

    def _soonest(self, *others: float | None) -> float | None:
        batch_due_at = None
        if self._first_hint_at is not None:
            patience_s = 0.0 if self._leader.leads else PATIENCE_S
            batch_due_at = self._first_hint_at + self._batch_timeout_s + patience_s
        return min((at for at in (batch_due_at, *others) if at is not None), default=None)

    def _listening(self) -> None:
        log.debug("listening", channel=self._channel)
        self._claim_soon()

    def _hear(self, payload: str) -> None:
        if payload == WAKE:
            self._claim_soon()
            return
        self._suspect()
        self._announced += int(payload) if re.fullmatch("[0-9]{1,9}", payload) else 1
        if self._first_hint_at is not None and self._announced >= BUSY:
            self._rate = self._announced / max(time.monotonic() - self._first_hint_at, 0.001)
            self._leader.update(may_sleep=self._rate < BUSY)

    def _claim_soon(self) -> None:
        self._catch_up = True
        self._changed.set()

    def _role_changed(self, claim: bool) -> None:
        if claim:
            self._suspect()
        self._changed.set()

    def _suspect(self) -> None:
        """Note that tokens may be pending; a claim is due when the batch's timeout is over."""
        if self._first_hint_at is None:
            self._first_hint_at = time.monotonic()
        self._changed.set()
