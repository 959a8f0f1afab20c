"""The job of the queues in Python: fetch a mail's fields, sign them, and write the line or call SES."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final

from mailroom.actions import load_actions
from mailroom.tokens import parse_keys, sign
from mailroom.wire import Message, encode

ELIGIBLE: Final = """
SELECT t.id, t.action::text, a.email, a.login, t.secret, t.code
FROM tokens t JOIN accounts a ON a.id = t.account
WHERE t.consumed_at IS NULL AND t.expires_at > now() AND a.status = 'provisioned'
"""
FETCH: Final = f"{ELIGIBLE} AND t.id = ANY ($1::bigint[])"
FETCH_PSYCOPG: Final = f"{ELIGIBLE} AND t.id = %s"

KEYS: Final = parse_keys(os.environ.get("MAILROOM_SECRET_KEY", "ab" * 32))
ACTIONS: Final = load_actions()
TUNING: Final[dict[str, Any]] = json.loads(os.environ.get("MAILROOM_BENCH_TUNING", "{}"))
SENDS: Final = os.environ.get("MAILROOM_BENCH_JOB") == "send"
MAX_CONNECTIONS: Final = 100


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


def send(row: Sequence[Any]) -> None:
    """Send one mail through SES, within its rate."""
    _, action, email, login, secret, code = row
    known = ACTIONS[action]
    token = sign(bytes(secret), known, keys=KEYS, code=code)
    _take_turn()
    _client().send_templated_email(
        Source=os.environ["MAILROOM_SES_SOURCE"],
        Destination={"ToAddresses": [email]},
        Template=known.template,
        TemplateData=json.dumps({"login": login, "secret": token, "code": code}),
    )


def unpack(row: Sequence[Any]) -> list[Any]:
    """The row of ``ELIGIBLE`` whose fields a job carries."""
    action, email, login, secret, code = row
    return [None, action, email, login, bytes.fromhex(secret), code]


@cache
def _client() -> Any:
    import botocore.session
    from botocore.config import Config

    config = Config(max_pool_connections=MAX_CONNECTIONS, retries={"mode": "standard"})
    return botocore.session.get_session().create_client("ses", config=config)


def _turns() -> Callable[[], None]:
    """Return a function that waits, so that its calls are spaced evenly at the rate."""
    interval_s = 1 / int(os.environ.get("MAILROOM_BENCH_RATE", "1000"))
    lock, following = threading.Lock(), 0.0

    def wait() -> None:
        nonlocal following
        with lock:
            now = time.monotonic()
            following = max(following, now - 50 * interval_s) + interval_s
            due = following
        time.sleep(max(0.0, due - now))

    return wait


_take_turn: Final = _turns()
if SENDS:
    _client()  # before the threads, which would each make one
