"""Records the events in messages of the queue, and keeps the messages that cannot be read."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from mailroom.database.session import Refused, Session
from mailroom.events.envelopes import Unreadable, opened
from mailroom.events.facts import Fact, facts_of, without_secrets
from mailroom.logs import EventLogger

RECORD: Final = "SELECT is_new, is_known FROM mailroom.record_events(%s::pg_catalog.jsonb)"
KEEP: Final = "SELECT mailroom.keep_unreadable(%s::pg_catalog.text[], %s::pg_catalog.text[])"
# How many facts one statement records.
MAX_FACTS: Final = 1000

log = EventLogger("events")


class Tally(NamedTuple):
    """What was recorded of some messages.

    Attributes:
        new: how many new events there are of each kind and type; only bounces have a type here.
        repeated: how many events were recorded before.
        unmatched: how many new events are about a mail that the database does not know.
        unreadable: how many messages could not be read.
    """

    new: Counter[tuple[str, str]]
    repeated: int
    unmatched: int
    unreadable: int


async def record(session: Session, texts: Sequence[str]) -> Tally:
    """Record the events in messages, and keep the messages that cannot be read.

    Raises:
        DatabaseError: the schema or a privilege is missing.
    """
    facts: list[tuple[Fact, str]] = []
    unreadable: list[tuple[str, str]] = []
    for text in texts:
        try:
            event = opened(text)
            facts += [(fact, text) for fact in (facts_of(event) if event else ())]
        except Unreadable as error:
            unreadable.append((text, str(error)))
        except Exception as error:  # noqa: BLE001 - no message's content may end the reading
            unreadable.append((text, f"it cannot be read: {type(error).__name__}"))
    recorded: list[tuple[Fact, bool, bool]] = []
    for first in range(0, len(facts), MAX_FACTS):
        recorded += await _record(session, facts[first : first + MAX_FACTS], unreadable)
    if unreadable:
        kept = []
        for text, reason in unreadable:
            kept.append((without_secrets(text), without_secrets(reason)))
            await asyncio.sleep(0)  # what else runs in this loop has its turn
        await session.ask(KEEP, [[text for text, _ in kept], [reason for _, reason in kept]])
        for reason, count in Counter(reason for _, reason in unreadable).items():
            log.warning("unreadable", count=count, reason=reason)
    new = [fact for fact, is_new, _ in recorded if is_new]
    repeated = len(recorded) - len(new)
    unmatched = sum(is_new and not is_known for _, is_new, is_known in recorded)
    if recorded:
        kinds = dict(sorted(Counter(fact.kind for fact in new).items()))
        log.info("recorded", **kinds, repeated=repeated, unmatched=unmatched)
    counts = Counter((fact.kind, fact.type or "" if fact.kind == "bounced" else "") for fact in new)
    return Tally(counts, repeated, unmatched, len(unreadable))


async def _record(
    session: Session, facts: Sequence[tuple[Fact, str]], unreadable: list[tuple[str, str]]
) -> list[tuple[Fact, bool, bool]]:
    """Record facts; returns each with whether it is new, and whether the database knows its mail.

    The messages of those that the database refuses are added to ``unreadable`` instead.
    """
    try:
        rows = await session.ask(RECORD, [_as_json(fact for fact, _ in facts)], refused=True)
    except Refused as error:
        if len(facts) == 1:
            unreadable.append((facts[0][1], f"the database refuses it: {error}"))
            return []
        half = len(facts) // 2
        return [
            *await _record(session, facts[:half], unreadable),
            *await _record(session, facts[half:], unreadable),
        ]
    return [(fact, *row) for (fact, _), row in zip(facts, rows, strict=True)]


def _as_json(facts: Iterable[Fact]) -> str:
    return json.dumps(
        [{name: value for name, value in fact._asdict().items() if value is not None} for fact in facts],
        ensure_ascii=False,
    )
