"""Delivers a lease: signs its tokens, sends them, and settles each with its answer.

Promises: each token is tried once, and the lease is settled once. Tokens to be tried again stay in the
lease. While an action's mails cannot be sent, one lease comes back for each try, and the others are put
off, so that they delay no other action. A lease that another worker may have taken over is not sent. A
token that no line can hold is rejected, and one of an action that the worker does not know stays in the
queue until it expires; neither affects the others. After a cancellation during a call, ``give_back``
settles its tokens as unknown, since they may have been accepted, and tokens that were already answered with
their answers.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Final

from mailroom.answers import RETRY_LIMIT, Answer, Result, Scope
from mailroom.logs import EventLogger
from mailroom.outage import back_off_s
from mailroom.queue.client import Queue
from mailroom.queue.known_actions import KnownActions
from mailroom.queue.lease import Lease, Signed, sign_claimed
from mailroom.runner.ledger import record
from mailroom.sender.failover import EVENT_S, AnyCalls
from mailroom.wire import Message, Reference, checked

if TYPE_CHECKING:
    from mailroom.runner.metrics import Metrics

# A mail that waits longer at a tripped breaker is claimed again, and the claim checks again whether it may be
# sent.
MAX_AT_BREAKER_S: Final = 1.0
# Before a lease is tried again, by its generation: the first wait and the longest.
BACK_OFF_S: Final = (0.5, 60.0)
# For how long the mails of a paused action are put off. They are due at once when they can be sent again.
PUT_OFF_S: Final = 300.0
# Another lease is to try if the one that was to come back is later than this.
LATE_S: Final = 5.0
SOON_S: Final = 0.2

log = EventLogger("run")


class LeaseDelivery:
    """Delivers leases of ``queue`` over ``calls``, signed with ``keys``.

    Args:
        metrics: count the outcomes; None if nobody reads them.
        provider: the transport's name, for the ledger; of two the first's.
        waits_for_events: whether the provider reports by an event that it took a mail. Then a mail whose
            answer was lost waits for one before it is sent again.
    """

    def __init__(
        self,
        queue: Queue,
        calls: AnyCalls,
        metrics: Metrics | None,
        *,
        provider: str,
        keys: Sequence[bytes],
        known: KnownActions,
        waits_for_events: bool = False,
    ) -> None:
        self._queue = queue
        self._calls = calls
        self._metrics = metrics
        self._provider = provider
        self._keys = keys
        self._known = known
        self._waits_for_events = waits_for_events
        self._cut_off: list[tuple[Lease, dict[int, Answer | None]]] = []
        # By paused action: the lease that is to try, and when it comes back.
        self._tries: dict[str, tuple[int, float]] = {}

    async def deliver(self, lease: Lease, waited_s: float) -> bool:
        """Send and settle a lease; True if some of its tokens are to be tried again."""
        actions = await self._known.covering(lease.actions)
        signed = sign_claimed(lease.columns, self._keys, actions, log, checked)
        # None where there was no attempt.
        answers: dict[int, Answer | None] = dict.fromkeys(lease.tokens)
        answers.update({token: Answer(Result.REJECTED, why) for token, why in signed.refused.items()})
        pairs = _referring(lease, signed)
        if lease.generation > 1:  # one that ends every call must not stay before the others
            random.shuffle(pairs)
        messages = sorted(pairs, key=_group)
        attempts = [self._attempt(list(group), lease, answers) for _, group in groupby(messages, key=_group)]
        try:
            await asyncio.gather(*attempts)
        except asyncio.CancelledError:
            under_way = {
                token: answer for token, message in messages if (answer := self._calls.cut_off(message))
            }
            if any(answers.values()) or under_way:
                self._cut_off.append((lease, {**answers, **under_way}))
            raise
        return await self._settle(lease, answers, waited_s, self._retry_s(lease, answers))

    async def give_back(self) -> int:
        """Settle the leases whose delivery was cancelled; returns how many of their tokens are due now."""
        freed = 0
        while self._cut_off:
            lease, answers = self._cut_off.pop()
            if await self._settle(lease, answers, 0.0, self._event_s(answers)):
                freed += len(answers)
        return freed

    async def _settle(
        self, lease: Lease, answers: dict[int, Answer | None], waited_s: float, retry_s: float
    ) -> bool:
        recorded = await record(
            self._queue,
            lease,
            answers,
            provider=self._provider,
            retry_ms=round(1000 * retry_s),
            retry_limit=RETRY_LIMIT,
            never_early=self._calls.lost_wait_s > 0,
        )
        actions = {claimed.token: claimed.action for claimed in lease.claimed}
        tried = {token: one for token, one in recorded.items() if answers[token]}
        for token, one in tried.items():
            if self._metrics:
                self._metrics.settled(actions[token], one)
        if tried:
            counts = Counter(one.outcome for one in tried.values())
            log.info("settled", **dict(sorted(counts.items())), waited=f"{waited_s:.1f}s")
        return any(one.outcome not in {"sent", "rejected"} for one in recorded.values())

    async def _attempt(
        self, messages: Sequence[tuple[int, Message]], lease: Lease, answers: dict[int, Answer | None]
    ) -> None:
        """Send messages of one action and language, and add their answers to ``answers``."""
        action = messages[0][1].action.name
        chunks = [messages]
        while chunks and self._calls.try_in_s(action) is None:
            chunk = chunks.pop()
            # While no transport can send, one mail tries the first.
            size = 1 if self._calls.wants_probe and not self._calls.can_send else self._calls.largest
            if len(chunk) > size:
                chunks.append(chunk[size:])
                chunk = chunk[:size]
            # Only within the lease's time: a process that was suspended must not send late.
            attempt = await self._calls.attempt(
                [message for _, message in chunk],
                lease.valid_until,
                lane=lease.lane,
                max_wait_s=MAX_AT_BREAKER_S,
                is_retry=lease.generation > 1,
            )
            if attempt is None:
                continue
            halves = attempt.halves(chunk)
            chunks += halves
            answers |= {
                token: answer
                for (token, _), answer in zip(chunk, attempt.answers, strict=True)
                if not halves or answer.scope is not Scope.CALL
            }

    def _retry_s(self, lease: Lease, answers: dict[int, Answer | None]) -> float:
        """In how many seconds the tokens of a lease that are to be tried again are due."""
        rest = [
            (one.action, answers[one.token]) for one in lease.claimed if not _is_final(answers[one.token])
        ]
        if all(answer is None or answer.result is Result.PAUSED for _, answer in rest):
            waits_s = [self._put_off_s(lease, action) for action in {action for action, _ in rest}]
            known_s = [wait_s for wait_s in waits_s if wait_s is not None]
            if known_s and len(known_s) == len(waits_s):
                return min(known_s)
        # They are due by the time when another transport begins to send.
        wait_s = min(back_off_s(lease.generation - 1, BACK_OFF_S), self._calls.moves_in_s)
        return max(wait_s, self._event_s(answers))

    def _event_s(self, answers: dict[int, Answer | None]) -> float:
        """For how long a retry waits for an event that says that the mail was taken."""
        is_unknown = any(answer and answer.result is Result.UNKNOWN for answer in answers.values())
        waits = self._waits_for_events or self._calls.lost_wait_s
        return EVENT_S if waits and is_unknown else 0.0

    def _put_off_s(self, lease: Lease, action: str) -> float | None:
        """For how long the mails of a paused action are put off; None when one may be tried now."""
        try_in_s = self._calls.try_in_s(action)
        if try_in_s is None:
            return None
        now = time.monotonic()
        tries, at = self._tries.get(action, (0, -math.inf))
        if lease.id == tries or at + LATE_S < now:
            try_in_s = max(try_in_s, SOON_S)
            self._tries[action] = lease.id, now + try_in_s
            return try_in_s
        return random.uniform(PUT_OFF_S / 2, PUT_OFF_S)  # noqa: S311 - jitter, no secret


def _referring(lease: Lease, signed: Signed[Message]) -> list[tuple[int, Message]]:
    """The tokens that can be mailed with their messages, each with its reference."""
    fingerprints = {claimed.token: claimed.fingerprint for claimed in lease.claimed}
    return [
        (token, message._replace(reference=Reference(token, fingerprints[token], lease.generation)))
        for token, message in zip(signed.ids, signed.encoded, strict=True)
    ]


def _group(pair: tuple[int, Message]) -> tuple[str, str]:
    return pair[1].action.name, pair[1].locale


def _is_final(answer: Answer | None) -> bool:
    return answer is not None and answer.result in {Result.SENT, Result.REJECTED}
