"""Deletes the ledger's old rows and old tokens, in small transactions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Final

import psycopg

from mailroom.database.sync import one

PRUNE_DELIVERIES: Final = "SELECT mailroom.prune_deliveries(%s, %s) AS deleted"
PRUNE_TOKENS: Final = "SELECT last_seen, deleted FROM mailroom.prune_tokens(%s, %s, %s)"


def prune(
    connection: psycopg.Connection, older_than: timedelta, batch: int, tell: Callable[[str, int], None]
) -> tuple[int, int]:
    """Delete the ledger's old rows, and old tokens that are in no lease; gives back how many of each.

    Args:
        connection: in autocommit mode, so that each batch is a transaction.
        older_than: since so long written, or expired or consumed.
        batch: look at so many at a time.
        tell: is told after each batch what, and how many so far.

    Raises:
        DatabaseError: there is not this schema, or a foreign key holds a token.
        DatabaseUnavailable: the connection was lost.
    """
    deliveries = tokens = 0
    while deleted := one(connection, PRUNE_DELIVERIES, [older_than, batch])[0]:
        deliveries += deleted
        tell("deliveries", deliveries)
    last_seen, deleted = one(connection, PRUNE_TOKENS, [-(2**63), older_than, batch])
    while last_seen is not None:
        tokens += deleted
        tell("tokens", tokens)
        last_seen, deleted = one(connection, PRUNE_TOKENS, [last_seen, older_than, batch])
    return deliveries, tokens
