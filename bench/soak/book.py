"""The book: a copy of every token and of every row of the ledger, taken before they are pruned.

The caretaker does what cron does at an operator's: it prunes, and deletes old accounts. Before that it copies
what is in the tables, so that nothing is deleted that was not copied.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import psycopg

from bench.soak.load import connect
from mailroom.demo.postgres import ending_with_us

PRUNE_EVERY_S: Final = 15.0
KEPT: Final = "1m"
ACCOUNTS_KEPT_S: Final = 150
PRUNE_S: Final = 60.0
# `mailroom prune` keeps an hour at least, which a soak of minutes cannot wait for.
PRUNE: Final = """
from datetime import timedelta
from mailroom.cli import prune
prune.MIN_AGE = timedelta(0)
from mailroom.cli.main import main
main()
"""
TOKENS: Final = "SELECT id, mailroom.fingerprint(secret), email FROM tokens"
LEDGER: Final = """
SELECT id, token, fingerprint, attempt, outcome, message_id, detail, extract(epoch FROM at)::float8
FROM mailroom.deliveries
"""
OLD_ACCOUNTS: Final = """
DELETE FROM accounts WHERE id IN (
    SELECT id FROM accounts
    WHERE email LIKE 'u%%' AND activated_at < now() - make_interval(secs => %s) LIMIT 1000)
"""


class Token(NamedTuple):
    """A token that was committed."""

    id: int
    fingerprint: bytes
    email: str


class Delivery(NamedTuple):
    """A row of the ledger; ``at`` in seconds since the epoch."""

    id: int
    token: int
    fingerprint: bytes | None
    attempt: int
    outcome: str
    message_id: str
    detail: str
    at: float


class Book:
    """What was in the tables.

    Attributes:
        tokens: by their fingerprints.
        ledger: by the rows' ids.
    """

    def __init__(self) -> None:
        self.tokens: dict[bytes, Token] = {}
        self.ledger: dict[int, Delivery] = {}

    def copy(self, url: str) -> None:
        """Copy what is in the tables now, as of one moment."""
        with connect(url) as connection:
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            tokens = [Token(*row) for row in connection.execute(TOKENS).fetchall()]
            ledger = [Delivery(*row) for row in connection.execute(LEDGER).fetchall()]
            connection.execute("COMMIT")
        self.tokens |= {token.fingerprint: token for token in tokens}
        self.ledger |= {row.id: row for row in ledger}


class Caretaker:
    """Copies, prunes and deletes what is old.

    Attributes:
        pruned: how often it pruned.
        failed: how often that failed, because the database was away.
    """

    def __init__(self, book: Book, url: Callable[[], str], variables: Mapping[str, str], log: Path) -> None:
        self.pruned = self.failed = 0
        self._book = book
        self._url = url
        self._variables = variables
        self._log = log

    def tend(self) -> None:
        """Copy, prune and delete once."""
        try:
            self._book.copy(self._url())
            self._prune()
            with connect(self._url()) as connection:
                while connection.execute(OLD_ACCOUNTS, [ACCOUNTS_KEPT_S]).rowcount:
                    pass
        except (psycopg.Error, subprocess.SubprocessError):
            self.failed += 1
        else:
            self.pruned += 1

    def _prune(self) -> None:
        command = [sys.executable, "-c", PRUNE, "prune", "--older-than", KEPT]
        with self._log.open("ab") as log:
            subprocess.run(
                ending_with_us(command),
                env={**self._variables, "MAILROOM_DATABASE_URL": self._url()},
                stdout=log,
                stderr=log,
                check=True,
                timeout=PRUNE_S,
            )
