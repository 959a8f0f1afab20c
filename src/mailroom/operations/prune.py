"""Deletes old rows of the ledger, old events and old tokens, in small transactions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Final

import psycopg

from mailroom.database.sync import one

PRUNE_DELIVERIES: Final = "SELECT mailroom.prune_deliveries(%s, %s) AS deleted"
PRUNE_EVENTS: Final = "SELECT mailroom.prune_events(%s, %s) AS deleted"
PRUNE_TOKENS: Final = "SELECT last_seen, deleted FROM mailroom.prune_tokens(%s, %s, %s)"


def prune(
    connection: psycopg.Connection, older_than: timedelta, batch: int, report: Callable[[str, int], None]
) -> tuple[int, int, int]:
    """Delete old rows of the ledger, old events, and old tokens that no lease holds; the number of each.

    Args:
        connection: in autocommit mode, so that each batch is a transaction.
        older_than: the age of a row, or of a token's expiry or consumption.
        batch: the number of rows to check in one transaction.
        report: called after each batch with the name of the rows and the number deleted so far.

    Raises:
        DatabaseError: the schema or a privilege is missing, or a foreign key refers to a token.
        DatabaseUnavailable: the connection was lost.
    """
    deliveries = events = tokens = 0
    while deleted := one(connection, PRUNE_DELIVERIES, [older_than, batch])[0]:
        deliveries += deleted
        report("deliveries", deliveries)
    while deleted := one(connection, PRUNE_EVENTS, [older_than, batch])[0]:
        events += deleted
        report("events", events)
    last_seen, deleted = one(connection, PRUNE_TOKENS, [-(2**63), older_than, batch])
    while last_seen is not None:
        tokens += deleted
        report("tokens", tokens)
        last_seen, deleted = one(connection, PRUNE_TOKENS, [last_seen, older_than, batch])
    return deliveries, events, tokens
