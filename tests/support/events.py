"""Events about mails, given to the database as the reader of SES's queue gives them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from support.queue_sql import Db, Handed, claim, record, sign_up

# The kinds that say that SES took the mail.
TAKEN = ("sent", "delivered", "bounced", "complained", "delayed")
AT = "2026-01-01T00:00:00.123Z"


def event(kind: str, **values: Any) -> dict[str, Any]:
    """An event about the mail m-1 to zoe."""
    return {"kind": kind, "message_id": "m-1", "recipient": "zoe@example.com", "at": AT} | values


def of(handed: Handed, kind: str, **values: Any) -> dict[str, Any]:
    """An event about the first mail of a lease, by its tags."""
    tags = {"token": handed.tokens[0], "fingerprint": handed.fingerprints[0].hex()}
    return event(kind, **(tags | {"attempt": handed.generation} | values))


def unrendered(handed: Handed, **values: Any) -> dict[str, Any]:
    """The event that SES could not render the first mail of a lease."""
    return of(handed, "rendering_failed", **({"diagnostic": "Attribute 'app' is not present"} | values))


def tell(db: Db, *events: Mapping[str, Any]) -> list[tuple[str, bool, bool]]:
    """Record events; returns for each its kind, and whether it is new and known."""
    answer = db.execute("SELECT * FROM mailroom.record_events(%s::jsonb)", [json.dumps(events)])
    return [(kind, is_new, is_known) for kind, is_new, is_known in answer.fetchall()]


def hand_out(db: Db, login: str = "zoe") -> Handed:
    """The mail of a new account, claimed."""
    sign_up(db, login)
    (lease,) = claim(db)
    return lease


def send(db: Db, handed: Handed, message_id: str = "m-1") -> Handed:
    """Record that a claimed mail was sent."""
    (token,) = handed.tokens
    record(db, handed, {token: "sent"}, message_ids={token: message_id})
    return handed
