"""The load: people who sign up, recover, and click; and the application that deletes old accounts.

Every commit that was answered is remembered. A commit whose answer was lost may be in the database or not, as
for any application.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Self

import psycopg

from bench.soak.provider import Mail, Provider
from mailroom.actions import load_actions
from mailroom.errors import TokenError
from mailroom.tokens import verify

CLIENTS: Final = 8
RECOVERIES: Final = 10  # every tenth mail is a recovery
POOL: Final = 10_000
LATE_S: Final = 1.0  # a request that cannot be made for that long is not made
CLICK_AFTER_S: Final = 10.0
CLICK_S: Final = 1.0
CLICKS: Final = 100  # in one transaction
TIMEOUTS: Final = "-c statement_timeout=30s -c lock_timeout=4s"

PEOPLE: Final = """
INSERT INTO accounts (email, login, status)
SELECT 'p' || g || '@soak.example', 'p' || g, 'active' FROM generate_series(0, %s) g
RETURNING id
"""
SIGN_UP: Final = "INSERT INTO accounts (email, login) VALUES (%s, %s)"
RECOVER: Final = "SELECT mailroom.send('password_recovery', account => %s)"
CLICK: Final = """
SELECT count(*) FROM unnest(%s::bytea[], %s::text[], %s::text[]) u (secret, action, code),
    LATERAL mailroom.consume(u.secret, u.action, u.code) c WHERE c.outcome = 'consumed'
"""


class Load:
    """Commits at a rate while the context is entered.

    Args:
        url: returns the database's address.
        rate: mails a second.

    Attributes:
        signed_up: the addresses whose sign-up was answered.
        recovered: the tokens whose recovery was answered.
        failed: requests that the database did not answer, or refused.
        skipped: requests that were not made, because the database was away.
    """

    def __init__(self, url: Callable[[], str], rate: float) -> None:
        self.signed_up: list[str] = []
        self.recovered: list[int] = []
        self.failed = self.skipped = 0
        self._url = url
        self._rate = rate
        self._over = threading.Event()
        with psycopg.connect(url(), autocommit=True) as connection:
            self._people = [row[0] for row in connection.execute(PEOPLE, [POOL - 1]).fetchall()]
        self._threads = [
            threading.Thread(target=self._client, args=[number], name=f"client {number}", daemon=True)
            for number in range(CLIENTS)
        ]

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)

    def _client(self, first: int) -> None:
        numbers = itertools.count(first, CLIENTS)
        number = next(numbers)
        while not self._over.is_set():
            try:
                with connect(self._url()) as connection:
                    while not self._over.wait(max(0.0, self._late_s(number) * -1)):
                        if self._late_s(number) > LATE_S:
                            self.skipped += 1
                        else:
                            self._request(connection, number)
                        number = next(numbers)
            except psycopg.Error:
                self.failed += 1
                number = next(numbers)
                self._over.wait(0.2)

    def _late_s(self, number: int) -> float:
        return time.monotonic() - self._start - number / self._rate

    def _request(self, connection: psycopg.Connection, number: int) -> None:
        if number % RECOVERIES:
            email = f"u{number}@soak.example"
            connection.execute(SIGN_UP, [email, f"u{number}"])
            self.signed_up.append(email)
        else:
            account = self._people[number // RECOVERIES % len(self._people)]
            ((token,),) = connection.execute(RECOVER, [account]).fetchall()
            self.recovered.append(token)


class Visitors:
    """Clicks in every mail ten seconds after it came.

    Attributes:
        clicked: how many tokens were consumed.
    """

    def __init__(self, provider: Provider, url: Callable[[], str], key: str) -> None:
        self.clicked = 0
        self._provider = provider
        self._url = url
        self._key = key
        self._waiting: deque[Mail] = deque()

    def click(self) -> None:
        """Click in the mails that came by now and have waited."""
        self._waiting.extend(self._provider.read())
        with contextlib.suppress(psycopg.Error), connect(self._url()) as connection:
            while self._ripe():
                together = list(itertools.islice(self._waiting, CLICKS))
                self.clicked += click(connection, together, self._key)
                for _ in together:
                    self._waiting.popleft()

    def _ripe(self) -> bool:
        return bool(self._waiting) and self._waiting[0].at <= time.time() - CLICK_AFTER_S


def click(connection: psycopg.Connection, mails: list[Mail], key: str) -> int:
    """Consume the mails' tokens in one transaction, and return how many were consumed now."""
    found = [
        (secret, action_of(mail), mail.code or None) for mail in mails if (secret := secret_of(mail, key))
    ]
    columns = [list(column) for column in zip(*found, strict=True)] or [[], [], []]
    ((consumed,),) = connection.execute(CLICK, columns).fetchall()
    return int(consumed)


def action_of(mail: Mail) -> str:
    """The action of a mail: only a recovery has a code."""
    return "password_recovery" if mail.code else "activation"


def secret_of(mail: Mail, key: str) -> bytes | None:
    """The secret of a mail's token, or None if its signature is not valid."""
    try:
        return verify(mail.token, load_actions()[action_of(mail)], keys=key, code=mail.code or None)
    except TokenError:
        return None


def connect(url: str) -> psycopg.Connection:
    return psycopg.connect(url, autocommit=True, connect_timeout=3, options=TIMEOUTS)
