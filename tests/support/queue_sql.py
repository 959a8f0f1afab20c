"""The queue's SQL functions called directly, as a consumer in any language would."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

import psycopg

from mailroom.runner.shared_rate import POLICY, RESERVE

Db = psycopg.Connection


@dataclass(frozen=True)
class Handed:
    """What one claim handed out of one lease."""

    lease: int
    key: str
    generation: int
    tokens: tuple[int, ...]
    fingerprints: tuple[bytes, ...]


def claim(
    db: Db, tokens: int = 1000, *, worker: str = "w", lease_tokens: int = 1000, lease_ms: int = 60_000
) -> list[Handed]:
    return [
        Handed(lease, key, generation, tuple(ids), tuple(sha256(secret).digest()[:8] for secret in secrets))
        for lease, key, generation, ids, secrets in db.execute(
            "SELECT lease, key::text, generation, tokens, secrets FROM mailroom.claim(%s, %s, %s, %s)",
            [worker, tokens, lease_tokens, lease_ms],
        ).fetchall()
    ]


def reserve(
    db: Db, recipients: int, ceiling: float, longest_s: float = float("inf"), *, is_known: bool = True
) -> float:
    """Charge the shared rate by the sender's policy; returns the wait in seconds."""
    ((wait_s, _),) = db.execute(
        RESERVE, ["ses", recipients, 0, ceiling, is_known, longest_s, *POLICY]
    ).fetchall()
    return float(wait_s)


def claimed_tokens(db: Db, tokens: int = 1000) -> list[int]:
    """Claim, settle, and return the tokens."""
    handed = claim(db, tokens)
    for lease in handed:
        assert settle(db, lease)
    return [token for lease in handed for token in lease.tokens]


def settle(db: Db, lease: Handed, tokens: list[int] | None = None) -> bool:
    row = db.execute("SELECT mailroom.settle(%s, %s, %s)", [lease.lease, lease.key, tokens]).fetchone()
    assert row
    return bool(row[0])


def record(
    db: Db,
    lease: Handed,
    results: Mapping[int, str],
    *,
    detail: str = "",
    message_ids: Mapping[int, str] | None = None,
    providers: Mapping[int, str] | None = None,
    recipient: str = "",
    template: str = "",
    language: str = "",
    retry_ms: int = 0,
    limit: int = 3,
    never_early: bool = False,
) -> bool:
    """Settle a lease as `mailroom run` does; returns whether it was still held under its key."""
    fingerprints = dict(zip(lease.tokens, lease.fingerprints, strict=True))
    rows = db.execute(
        "SELECT settled FROM mailroom.record("
        "%s, %s, %s, 'w', %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        [
            lease.lease,
            lease.key,
            lease.generation,
            [*results],
            [fingerprints[token] for token in results],
            [*results.values()],
            [(providers or {}).get(token, "ses") for token in results],
            [(message_ids or {}).get(token, "") for token in results],
            [detail] * len(results),
            [recipient] * len(results),
            [template] * len(results),
            [language] * len(results),
            retry_ms,
            limit,
            never_early,
        ],
    ).fetchall()
    return all(row[0] for row in rows)


def record_all(
    db: Db, result: str, *, detail: str = "", message_id: str = "", retry_ms: int = 60_000, limit: int = 3
) -> None:
    """Claim all, and settle each lease with one outcome."""
    for lease in claim(db):
        ids = dict.fromkeys(lease.tokens, message_id)
        results = dict.fromkeys(lease.tokens, result)
        record(db, lease, results, detail=detail, message_ids=ids, retry_ms=retry_ms, limit=limit)


def next_due(db: Db) -> float | None:
    """In how many seconds a claim may find something; None when nothing is known of."""
    ((due,),) = db.execute("SELECT mailroom.next_due()").fetchall()
    return None if due is None else float(due)


def ask_recovery(db: Db, login: str) -> int:
    """Request a recovery for the account with this login; returns its token."""
    row = db.execute(
        "INSERT INTO tokens (action, account) SELECT 'password_recovery', id FROM accounts WHERE login = %s"
        " RETURNING id",
        [login],
    ).fetchone()
    assert row
    return int(row[0])


def expire_leases(db: Db) -> None:
    """Let the time of every lease be over, as if it had been waited for."""
    db.execute("UPDATE mailroom.leases SET due_at = clock_timestamp() - interval '1 second'")


def sign_up(db: Db, login: str) -> int:
    """Insert an account; returns its activation token."""
    row = db.execute(
        "WITH a AS (INSERT INTO accounts (email, login) VALUES (%s, %s) RETURNING id) SELECT id FROM a",
        [f"{login}@example.com", login],
    ).fetchone()
    assert row
    token = db.execute("SELECT id FROM tokens WHERE account = %s", row).fetchone()
    assert token
    return int(token[0])


def sign_up_many(db: Db, count: int, prefix: str = "u") -> None:
    """Insert accounts in one statement."""
    db.execute(
        "INSERT INTO accounts (email, login) SELECT %s || g || '@example.com', %s || g"
        " FROM generate_series(1, %s) g",
        [prefix, prefix, count],
    )
