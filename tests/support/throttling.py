"""A simulated account that throttles, and a sender that keeps to a ``Rate``; nothing waits for real."""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

from mailroom.inbox.limits import Limits
from mailroom.sender.rate import Rate

ANSWER_S: Final = 0.1
COLLECT_S: Final = 0.02
PER_CALL: Final = 50


class Clock:
    """A clock that only the test and sleeping tasks move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    @property
    def asyncio(self) -> Any:
        """The module ``asyncio``, with this clock's ``sleep``."""
        return SimpleNamespace(**{**vars(asyncio), "sleep": self.sleep})


@dataclass(slots=True)
class Counts:
    """Recipients of one simulation; the other sender's accepted ones apart."""

    arrived: int = 0
    accepted: int = 0
    throttled: int = 0
    other: int = 0


class Account:
    """A provider's account: a bucket that holds a second's worth.

    Args:
        allowed: recipients a second.
        share: the probability that it throttles a call for no reason.
        other: recipients a second of another sender, in calls of one, which never gives way.
    """

    def __init__(self, clock: Clock, allowed: float, *, share: float = 0.0, other: float = 0.0) -> None:
        self._clock = clock
        self._at = clock.now
        self._limits = Limits(allowed, clock=lambda: self._at)
        self._share = share
        self._other = other
        self._other_at = clock.now if other else math.inf
        self._random = random.Random(7)
        self.counts = Counts()

    def call(self, recipients: int) -> bool:
        """Whether it accepts a call now."""
        while self._other_at <= self._clock.now:
            self._at = self._other_at
            self.counts.other += self._limits.take(1)
            self._other_at += 1 / self._other
        self._at = self._clock.now
        if self._random.random() < self._share or not self._limits.take(recipients):
            self.counts.throttled += recipients
            return False
        self.counts.accepted += recipients
        return True


async def send(
    account: Account, rate: Rate, clock: Clock, seconds: float, *, arriving: float = math.inf
) -> Counts:
    """Send ``arriving`` recipients a second, and those that were throttled again, for this long."""
    counts = account.counts
    ends_at = clock.now + seconds
    began_at = clock.now
    answers: deque[tuple[float, int, bool]] = deque()
    while clock.now < ends_at:
        while answers and answers[0][0] <= clock.now:
            _, recipients, accepted = answers.popleft()
            if not accepted:
                rate.throttle(recipients)
        waiting: float = PER_CALL
        if arriving < math.inf:
            counts.arrived = int((clock.now - began_at) * arriving)
            waiting = counts.arrived - counts.accepted
        recipients = int(min(waiting, PER_CALL, rate.burst))
        if recipients < min(arriving * COLLECT_S, rate.burst, PER_CALL) or not recipients:
            clock.now += COLLECT_S
            continue
        await rate.take(recipients)
        answers.append((clock.now + ANSWER_S, recipients, account.call(recipients)))
    return counts
