"""The job of all peers: fetch a mail's fields, sign them and write the line, with Mailroom's own code."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any, Final

import psycopg

from mailroom.actions import load_actions
from mailroom.tokens import parse_keys, sign
from mailroom.wire import Message, encode

ELIGIBLE: Final = """
SELECT t.id, t.action::text, a.email, a.login, t.secret, t.code
FROM tokens t JOIN accounts a ON a.id = t.account
WHERE t.consumed_at IS NULL AND t.expires_at > now() AND a.status = 'provisioned'
"""
FETCH: Final = f"{ELIGIBLE} AND t.id = %s"
FETCH_ASYNCPG: Final = f"{ELIGIBLE} AND t.id = $1"

KEYS: Final = parse_keys(os.environ.get("MAILROOM_SECRET_KEY", "ab" * 32))
ACTIONS: Final = load_actions()
TUNING: Final[dict[str, Any]] = json.loads(os.environ.get("MAILROOM_BENCH_TUNING", "{}"))


def url() -> str:
    return os.environ["MAILROOM_DATABASE_URL"]


def line(row: Sequence[Any]) -> bytes:
    """The line of a row of ``ELIGIBLE``."""
    _, action, email, login, secret, code = row
    known = ACTIONS[action]
    return encode([Message(known, email, login, sign(bytes(secret), known, keys=KEYS, code=code), code)])


def write(content: bytes) -> None:
    """Write all of ``content`` to standard output."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(1, rest) :]


def first_tokens(connection: psycopg.Connection, jobs: int) -> list[tuple[Any, ...]]:
    """The first ``jobs`` rows of ``ELIGIBLE``."""
    return connection.execute(f"{ELIGIBLE} ORDER BY t.id LIMIT %s".encode(), [jobs]).fetchall()


def pack(row: Sequence[Any], *, fields: bool) -> dict[str, Any]:
    """The payload of a job: the token's id, or all fields."""
    if not fields:
        return {"token": row[0]}
    return {"token": row[0], "row": [*row[:4], bytes(row[4]).hex(), row[5]]}


def unpack(row: Sequence[Any]) -> list[Any]:
    """The row that ``pack`` put into a job."""
    return [*row[:4], bytes.fromhex(row[4]), row[5]]
