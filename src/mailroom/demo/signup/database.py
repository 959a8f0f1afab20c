"""Opens the database. A connection for each request is easy to read; a real application keeps a pool."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import psycopg

Connection = psycopg.AsyncConnection[Any]

# The actions that it uses beside the two that are there from the start.
ACTIONS: Final = ["magic_link", "email_change", "invitation", "password_changed", "email_changed"]
MISSING_ACTIONS: Final = """
SELECT string_agg(name, ' ') FROM unnest(%s::text[]) name
WHERE name NOT IN (SELECT unnest(enum_range(NULL::token_action))::text)
"""


class Database:
    """The database at ``url``, which has Mailroom's migrations."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def prepare(self) -> None:
        """Create the example's own tables, unless they exist.

        Raises:
            RuntimeError: the database lacks an action.
        """
        async with self.transaction() as connection:
            if missing := await value(connection, MISSING_ACTIONS, [ACTIONS]):
                raise RuntimeError(f"the database lacks actions; run `mailroom actions apply {missing}`")
            await connection.execute((Path(__file__).parent / "schema.sql").read_bytes())

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Run a transaction, which an exception rolls back."""
        async with await psycopg.AsyncConnection.connect(self._url) as connection, connection.transaction():
            yield connection


async def value(connection: Connection, query: str, parameters: Any) -> Any:
    """Return the first column of the first row; None if there is no row."""
    row = await (await connection.execute(query.encode(), parameters)).fetchone()
    return row[0] if row else None
