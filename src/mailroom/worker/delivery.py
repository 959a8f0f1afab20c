"""A lease's way out: sign its tokens, send them, settle each with its outcome.

Promises: one attempt for every token, and one settling for the lease. What is to be tried again stays
in it. A lease that may be another worker's by now is not sent. A token that no line could hold is
rejected, and its neighbours go out; one whose action this version does not know stays for a newer
worker, until it expires. Cancelled during a call, a delivery may have been accepted: ``give_back``
settles it as unknown, and what was answered before as it was answered.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Final

from mailroom.actions import BY_NAME
from mailroom.answers import RETRY_LIMIT, Answer, Result, Scope
from mailroom.errors import WireError
from mailroom.logs import EventLogger
from mailroom.queue.client import Queue
from mailroom.queue.lease import Claimed, Lease
from mailroom.sender.calls import Calls
from mailroom.tokens import sign
from mailroom.wire import Message, encode_message
from mailroom.worker.metrics import Metrics

# What waits for longer is claimed anew, which tests again whether it may be mailed.
MAX_AT_GATE_S: Final = 1.0
# Before a lease is tried again, by its generation: at first, at last.
BACK_OFF_S: Final = (0.5, 60.0)
CUT_OFF: Final = Answer(Result.UNKNOWN, "stopped before it was answered; it may have been accepted")

log = EventLogger("run")


class Delivery:
    """Delivers leases of ``queue`` over ``calls``, signed with ``keys``.

    Args:
        provider: what the transport calls itself, for the ledger.
    """

    def __init__(
        self,
        queue: Queue,
        calls: Calls,
        metrics: Metrics,
        *,
        provider: str,
        keys: Sequence[bytes],
    ) -> None:
        self._queue = queue
        self._calls = calls
        self._metrics = metrics
        self._provider = provider
        self._keys = keys
        self._cut_off: list[tuple[Lease, dict[int, Answer | None]]] = []

    async def deliver(self, lease: Lease, waited_s: float) -> bool:
        """Attempt and settle; gives back whether something of it is to be tried again."""
        outcomes: dict[int, Answer | None] = {}
        messages: list[tuple[int, Message]] = []
        for claimed in lease.claimed:
            signed = self._signed(claimed)
            if isinstance(signed, Message):
                messages.append((claimed.token, signed))
            else:
                outcomes[claimed.token] = signed
        messages.sort(key=lambda pair: pair[1].action)
        attempts = [
            self._attempt(list(group), lease, outcomes)
            for _, group in groupby(messages, key=lambda pair: pair[1].action)
        ]
        try:
            await asyncio.gather(*attempts)
        except asyncio.CancelledError:
            under_way = {token: CUT_OFF for token, message in messages if self._calls.is_under_way(message)}
            if any(outcomes.values()) or under_way:
                untried = dict.fromkeys(claimed.token for claimed in lease.claimed)
                self._cut_off.append((lease, untried | outcomes | under_way))
            raise
        return await self._settle(lease, outcomes, waited_s, _back_off_s(lease.generation))

    async def give_back(self) -> int:
        """Settle what was cut off; how many tokens of it are due at once."""
        freed = 0
        while self._cut_off:
            lease, outcomes = self._cut_off.pop()
            if await self._settle(lease, outcomes, 0.0, 0.0):
                freed += len(outcomes)
        return freed

    async def _settle(
        self, lease: Lease, outcomes: dict[int, Answer | None], waited_s: float, retry_s: float
    ) -> bool:
        recorded = await self._queue.record(
            lease,
            outcomes,
            provider=self._provider,
            retry_ms=round(1000 * retry_s),
            retry_limit=RETRY_LIMIT,
        )
        actions = {claimed.token: claimed.action for claimed in lease.claimed}
        tried = {token: one for token, one in recorded.items() if outcomes[token]}
        for token, one in tried.items():
            self._metrics.settled(actions[token], one)
        if tried:
            counts = Counter(one.outcome for one in tried.values())
            log.info("settled", **dict(sorted(counts.items())), waited=f"{waited_s:.1f}s")
        return any(one.outcome not in {"sent", "rejected"} for one in recorded.values())

    async def _attempt(
        self,
        messages: Sequence[tuple[int, Message]],
        lease: Lease,
        outcomes: dict[int, Answer | None],
    ) -> None:
        """Find the outcomes of one action's messages; None for those that got no leave in time."""
        size = self._calls.largest
        chunks = [messages[first : first + size] for first in range(0, len(messages), size)]
        while chunks:
            chunk = chunks.pop()
            # As long as the lease is ours without being renewed: a frozen process does not send late.
            attempt = await self._calls.attempt(
                [message for _, message in chunk], lease.valid_until, gate_s=MAX_AT_GATE_S
            )
            found = attempt.outcomes if attempt else [None] * len(chunk)
            outcomes |= dict(zip(map(itemgetter(0), chunk), found, strict=True))
            blamed = [
                pair
                for pair, outcome in zip(chunk, found, strict=True)
                if outcome and outcome.scope is Scope.CALL
            ]
            if len(blamed) > 1:  # for somebody among these: cut the call, to see for whom
                chunks += [blamed[: len(blamed) // 2], blamed[len(blamed) // 2 :]]

    def _signed(self, claimed: Claimed) -> Message | Answer | None:
        """The message to send, or why there is none; None where a newer worker may know more."""
        action = BY_NAME.get(claimed.action)
        if action is None:
            log.warning("unknown_action", token=claimed.token, action=claimed.action)
            return None
        try:
            token = sign(claimed.secret, action, keys=self._keys, code=claimed.code)
            message = Message(claimed.action, claimed.email, claimed.login, token, claimed.code)
            encode_message(message)
        except (WireError, ValueError) as error:
            log.warning("rejected", token=claimed.token, reason=error)
            return Answer(Result.REJECTED, str(error))
        return message


def _back_off_s(generation: int) -> float:
    first_s, longest_s = BACK_OFF_S
    ceiling = min(longest_s, first_s * 2 ** min(generation - 1, 10))
    return random.uniform(ceiling / 2, ceiling)  # noqa: S311 - jitter, no secret
