"""Records in the database the answers to a worker's attempts, and that the worker is alive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from mailroom import __version__
from mailroom.answers import Answer, Result
from mailroom.database import arrays
from mailroom.logs import EventLogger
from mailroom.queue.client import Queue
from mailroom.queue.lease import Lease

RECORD: Final = (
    "SELECT token, outcome, settled, age FROM mailroom.record("
    "%s, %s, %s, %s, %s::bigint[], %s::bytea[], %s::text[], %s::text[], %s::text[], %s::text[],"
    " %s::text[], %s::text[], %s::text[], %s, %s, %s)"
)
HEARTBEAT: Final = "SELECT mailroom.heartbeat(%s, %s, %s, %s)"
LOST: Final = "lost"
LEAVE: Final = "SELECT mailroom.leave(%s)"

log = EventLogger("queue")


class Recorded(NamedTuple):
    """A token's outcome in the ledger (sent, rejected, retried, unknown), and its age in seconds."""

    outcome: str
    age_s: float | None


async def record(
    queue: Queue,
    lease: Lease,
    answers: Mapping[int, Answer | None],
    *,
    provider: str,
    retry_ms: int,
    retry_limit: int,
    never_early: bool = False,
) -> dict[int, Recorded]:
    """Settle a lease with the answers of an attempt, and stop holding it.

    Args:
        queue: the queue.
        lease: the lease.
        answers: one for each of its tokens; None where there was no attempt.
        provider: the transport's name, where an answer has none.
        retry_ms: in how many milliseconds the tokens to be tried again are due.
        retry_limit: after this number of failures without a stated reason a token is rejected.
        never_early: whether a token whose answer was lost waits ``retry_ms``, even if it expires first.

    Returns:
        For each token its record in the ledger; none for a token that the database lost in a failover, and
        whose id another token has now.
    """
    claimed = {one.token: one for one in lease.claimed}
    given = [one or Answer(Result.TRANSIENT) for one in answers.values()]
    rows = await queue.ask(
        RECORD,
        [
            lease.id,
            lease.key,
            lease.generation,
            queue.worker,
            arrays.numbers(answers),
            arrays.octets([claimed[token].fingerprint for token in answers]),
            arrays.texts([one.result.value if one else "" for one in answers.values()]),
            arrays.texts([one.transport or provider for one in given]),
            arrays.texts([one.message_id for one in given]),
            arrays.texts([one.detail for one in given]),
            arrays.texts([claimed[token].email for token in answers]),
            arrays.texts([one.template for one in given]),
            arrays.texts([one.language for one in given]),
            retry_ms,
            retry_limit,
            never_early,
        ],
    )
    if queue.let_go(lease) and not all(row[2] for row in rows):
        log.warning("lease_lost", lease=lease.id, tokens=len(lease))
    recorded = {row[0]: Recorded(row[1], row[3]) for row in rows if row[1] != LOST}
    if lost := len(rows) - len(recorded):
        log.warning("tokens_lost", lease=lease.id, tokens=lost, reason="a failover gave their ids again")
    return recorded


async def heartbeat(queue: Queue, trouble: str, events_trouble: str = "") -> None:
    """Record that this worker is alive; to be called every few seconds.

    Args:
        queue: the worker's queue.
        trouble: why it cannot send, for people; empty when it can.
        events_trouble: why it cannot read SES's events; empty when it can, or has none to read.
    """
    await queue.ask(HEARTBEAT, [queue.worker, __version__, trouble, events_trouble])


async def leave(queue: Queue) -> None:
    """Record that this worker ends."""
    await queue.ask(LEAVE, [queue.worker])
