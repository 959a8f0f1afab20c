"""Calls the queue's SQL functions: claim, settle, renew, release.

Promises: a claim is one statement that moves the cursor and writes the leases, or does nothing. No
transaction stays open between two statements. A statement whose answer was lost with the connection is
sent again after the reconnect. Repeating a settlement is harmless. Before a claim is repeated, the leases
that the first one may have made are released, which delays their tokens. After an outage, or after this
process was suspended, the held leases are renewed before the next claim, so a worker never claims again
what it has sent and not settled yet.

Does not promise that a held lease is still this worker's: ``settle`` and ``renew`` find out.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterable, Sequence
from typing import Final, LiteralString, NamedTuple

from psycopg.rows import TupleRow

from mailroom.database.connection import Database
from mailroom.database.session import AnswerLost, Postponed, Session
from mailroom.logs import EventLogger
from mailroom.queue.lease import LEASE_MS, Lease, read_leases
from mailroom.queue.start_check import check_schema, check_sessions

# A lease with less than this share of its time left is renewed before a claim.
LATE_SHARE: Final = 1 / 3

# Stands for the worker in leases whose tokens are put off because they cannot be sent.
PUT_OFF: Final = "paused"

_CLAIM: Final = (
    "SELECT lease, uuid_send(key), generation, lane, tokens, actions, emails, logins, secrets, codes,"
    " locales, data::pg_catalog.text[], expires_in_s FROM mailroom.claim(%s, %s, %s, %s"
)
CLAIM: Final = _CLAIM + ")"
CLAIM_NEW: Final = _CLAIM + ", true)"
SETTLE: Final = "SELECT mailroom.settle(%s, %s, %s)"
RENEW: Final = "SELECT mailroom.renew(%s::bigint[], %s::uuid[], %s)"
RELEASE: Final = "SELECT mailroom.release(%s, %s::uuid[])"
RING: Final = "SELECT pg_catalog.pg_notify(%s, %s)"
NEXT_DUE: Final = "SELECT mailroom.next_due()"
BACKLOG: Final = "SELECT waiting, in_flight, oldest_age FROM mailroom.backlog()"

log = EventLogger("queue")


class Backlog(NamedTuple):
    """Tokens waiting for a claim, tokens under a lease, and the age of the oldest in seconds."""

    waiting: int
    in_flight: int
    oldest_age_s: float | None


class Queue:
    """The queue, used by one worker over two connections that reconnect.

    Args:
        database: where the queue is.
        channel: the channel to notify when leases are released.
        worker: this worker's name; no two running workers may share one.
    """

    def __init__(self, database: Database, *, channel: str, worker: str = "") -> None:
        self._database = database
        self._channel = channel
        self.worker = worker or f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        # Two sessions, so that a settlement does not wait for a claim.
        self._claims, self._settlings = Session(database), Session(database)
        self._ever_claimed = False
        self._forgotten = False
        self._held: dict[int, Lease] = {}

    @property
    def held(self) -> list[Lease]:
        """The leases that were claimed, and not settled, lost or released."""
        return list(self._held.values())

    async def check(self) -> None:
        """Check that the connections can wait for new tokens, and that this version can use the schema.

        Raises:
            DatabaseError: a check failed; the hint says how to fix it.
        """
        await check_sessions(self._database, self._claims, self._settlings)
        await check_schema(self._claims, self._channel)

    async def claim(self, tokens: int, lease_tokens: int, *, only_new: bool = False) -> list[Lease]:
        """Claim up to ``tokens`` messages, in leases of up to ``lease_tokens``.

        Leases that are due come first, or not at all with ``only_new``.

        Fewer messages than asked for mean that nothing more was pending, unless ``next_due`` returns 0: a
        claim that meets many expired tokens stops early.
        """
        self._ever_claimed = True
        while True:
            if self._forgotten:
                # A claim whose answer was lost may have made leases that this worker does not know.
                await self._claims.ask(RELEASE, [self.worker, [lease.key for lease in self.held]])
                self._forgotten = False
            if self._is_late():
                await self.renew()
            asked_at = time.monotonic()
            try:
                answer = await self._claims.ask_once(
                    CLAIM_NEW if only_new else CLAIM,
                    [self.worker, tokens, lease_tokens, LEASE_MS],
                    unless=self._is_late,
                )
                break
            except Postponed:
                continue
            except AnswerLost:
                self._forgotten = True
        leases = read_leases(await answer.fetchall(), asked_at + LEASE_MS / 1000)
        self._held |= {lease.id: lease for lease in leases}
        return leases

    async def settle(self, lease: Lease, tokens: Sequence[int] | None = None, *, again: bool = False) -> bool:
        """Settle a lease, or only these tokens of it, and stop holding it.

        The other tokens are due when the lease expires. Returns False, and logs it, when another worker
        has taken over the lease. A call that is made ``again`` does not log it, since the first call may
        have settled the lease.
        """
        rows = await self._settlings.ask(
            SETTLE, [lease.id, lease.key, None if tokens is None else list(tokens)]
        )
        settled: bool = rows[0][0]
        if self.let_go(lease) and not (settled or again):
            log.warning("lease_lost", lease=lease.id, tokens=len(lease))
        return settled

    async def ask(self, query: LiteralString, parameters: Sequence[object]) -> list[TupleRow]:
        """The answer to a statement that may be sent twice.

        Raises:
            DatabaseError: the schema or a privilege is missing.
        """
        return await self._settlings.ask(query, parameters)

    async def renew(self) -> None:
        """Renew every held lease; stop holding those that another worker has taken over."""
        leases = self.held
        if not leases:
            return
        asked_at = time.monotonic()
        ids, keys = [lease.id for lease in leases], [lease.key for lease in leases]
        ours = {row[0] for row in await self._settlings.ask(RENEW, [ids, keys, LEASE_MS])}
        for lease in leases:
            if lease.key in ours:
                lease.valid_until = asked_at + LEASE_MS / 1000
            elif self.let_go(lease):
                log.warning("lease_lost", lease=lease.id, tokens=len(lease))

    def holds(self, lease: Lease) -> bool:
        """Whether a lease is certainly still this worker's, by the clock."""
        return self._held.get(lease.id) is lease and time.monotonic() < lease.valid_until

    async def release(self, keep: Iterable[Lease] = ()) -> int:
        """Release every lease but these, so that its tokens are due now; returns how many tokens.

        Notifies the workers of them.
        """
        self._held = {lease.id: lease for lease in keep if self._held.get(lease.id) is lease}
        if not self._ever_claimed:
            return 0
        freed: int = (await self._claims.ask(RELEASE, [self.worker, [lease.key for lease in self.held]]))[0][
            0
        ]
        if freed:
            await self.ring(freed)
        return freed

    async def resume(self) -> int:
        """Make tokens that were put off due now, and notify the workers of them; returns how many."""
        freed: int = (await self._claims.ask(RELEASE, [PUT_OFF, []]))[0][0]
        if freed:
            await self.ring(freed)
        return freed

    async def ring(self, tokens: int) -> None:
        """Notify the workers of tokens that were released."""
        await self._claims.ask(RING, [self._channel, str(tokens)])

    async def next_due(self) -> float | None:
        """Seconds until the first lease of any worker is due; 0 after a claim that stopped early.

        None when there is no lease, and while the queue is paused.
        """
        due: float | None = (await self._claims.ask(NEXT_DUE, []))[0][0]
        return due

    async def close(self) -> None:
        """Close the connections."""
        await self._claims.close()
        await self._settlings.close()

    def let_go(self, lease: Lease) -> bool:
        """Stop holding a lease; False if it was not held, or another one has its id."""
        if self._held.get(lease.id) is not lease:
            return False
        del self._held[lease.id]
        return True

    def _is_late(self) -> bool:
        """Whether a held lease may soon be due, and so be claimed by any worker, this one included."""
        soon = time.monotonic() + LATE_SHARE * LEASE_MS / 1000
        return any(lease.valid_until < soon for lease in self._held.values())
