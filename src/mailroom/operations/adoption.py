"""Adopts an application's own table of users: plans the SQL, runs it, lists it, takes it back.

Promises: the SQL that is shown is the SQL that ``apply`` runs, in one transaction. It was checked against the
table before. Repeating it replaces what was there. Taking it back leaves the table as it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from mailroom.database.connection import reason
from mailroom.database.sync import translated
from mailroom.errors import AdoptionError
from mailroom.operations.adoption_sql import UserTable, functions, reverse, triggers
from mailroom.operations.adoption_table import PRESETS, Wish, columns_of, meaning, resolved, tables_below

__all__ = ["PRESETS", "Adopted", "Plan", "Wish", "adopted", "apply", "drop", "mail_existing", "plan"]

# A transaction that holds the table must not make every sign-up wait behind the creation of triggers.
LOCK_TIMEOUT: Final = "1s"
LOCK_TRIES: Final = 5
LOCK_PAUSE_S: Final = 0.5
BATCH_ROWS: Final = 1000

ADOPTED: Final = """
SELECT CASE WHEN c.oid IS NULL THEN a.user_table::text
            ELSE pg_catalog.format('%I.%I', n.nspname, c.relname) END AS user_table,
       a.name, a.key_column, a.email, a.login, a.locale, a.pending_when, a.active_when, a.on_activation,
       a.search_path, c.oid IS NOT NULL AS exists
FROM mailroom.adopted a
LEFT JOIN pg_catalog.pg_class c ON c.oid = a.user_table
LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
ORDER BY a.adopted_at
"""
FACTS_QUERY: Final = (
    "SELECT mailroom.facts_query(a), a.search_path FROM mailroom.adopted a WHERE a.user_table = %s::regclass"
)
FACTS: Final = "SELECT mailroom.user_facts(a) FROM mailroom.adopted a WHERE a.user_table = %s::regclass"
SET_LOCAL: Final = "SELECT pg_catalog.set_config(%s, %s, true)"
ONE_AT_A_TIME: Final = """
SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('mailroom.mail_existing', 0))
"""
# A user who is being changed is left for the last pass, which locks one user at a time, so that no
# transaction of the application's can deadlock with it.
MAIL_BATCH: Final = """
WITH batch AS (
    SELECT {facts} FROM {table} AS {alias}
    WHERE {after} AND ({pending_when}) AND mailroom.lacks_activation({name}::regclass, {alias}.{key}::text)
    ORDER BY {alias}.{key} LIMIT {rows} FOR NO KEY UPDATE {skip}
)
SELECT pg_catalog.count(*), (pg_catalog.array_agg(b.id))[pg_catalog.count(*)],
       mailroom.request_activations({name}::regclass, pg_catalog.array_agg(
           ROW(b.id, b.email, b.login, b.locale, b.status, NULL, NULL)::mailroom.user_change), true)::text
FROM batch b
"""


@dataclass(frozen=True, slots=True)
class Adopted:
    """An adopted table; see ``mailroom.adopted``. ``exists`` is false after it was dropped."""

    user_table: str
    name: str
    key_column: str
    email: str
    login: str
    locale: str
    pending_when: str
    active_when: str
    on_activation: str | None
    search_path: str
    exists: bool

    @property
    def wish(self) -> Wish:
        """What was said of its columns."""
        return Wish(
            self.key_column,
            self.email,
            self.login,
            self.locale,
            self.pending_when,
            self.active_when,
            self.on_activation,
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """The SQL that adopts a table, in order, and the SQL that takes it back."""

    table: UserTable
    functions: list[str]
    triggers: list[str]
    reverse: list[str]

    def text(self) -> str:
        """It as a migration, with its reverse as a comment."""
        back = "\n-- ".join(["-- To take it back:", *self.reverse])
        return "\n\n".join([f"-- Mailroom adopts {self.table.name}.", *self.functions, *self.triggers, back])


def adopted(connection: psycopg.Connection) -> list[Adopted]:
    """The adopted tables, in the order in which they were adopted.

    Raises:
        DatabaseError, DatabaseUnavailable: as ``translated`` does.
    """
    with translated(connection), connection.cursor(row_factory=class_row(Adopted)) as cursor:
        return cursor.execute(ADOPTED).fetchall()


def plan(connection: psycopg.Connection, name: str, wish: Wish) -> Plan:
    """Plan the adoption of a table, and check the SQL against the database.

    Args:
        connection: in autocommit mode, as the owner of the table and of Mailroom's schema.
        name: the table, as SQL names it.
        wish: what its columns mean.

    Raises:
        AdoptionError: the table cannot be adopted, or an expression does not fit it.
        DatabaseError, DatabaseUnavailable: as ``translated`` does.
    """
    with translated(connection):
        table = resolved(connection, name)
        before = _before(connection, table)
        columns = meaning(connection, table, wish.over(before.wish) if before else wish)
        below = tables_below(connection, table.name)
        planned = Plan(
            table,
            functions(table, columns),
            triggers(table, below, before.name if before else None),
            reverse(table.name, table.short_name),
        )
        # Triggers would wait for everybody who uses the table.
        with _explained(table.name), connection.transaction(force_rollback=True):
            _run(connection, planned.functions)
            ((facts, path),) = connection.execute(FACTS_QUERY, [table.name]).fetchall()
            connection.execute(SET_LOCAL, ["search_path", path])
            if table.runs_as != table.me:
                connection.execute(f"SET LOCAL ROLE {table.runs_as}".encode())
            connection.execute(facts.encode())
    return planned


def apply(connection: psycopg.Connection, planned: Plan) -> None:
    """Adopt the table, in one transaction.

    Raises:
        AdoptionError: the table stays in use, or this user may not.
        DatabaseError, DatabaseUnavailable: as ``translated`` does.
    """
    with translated(connection), _explained(planned.table.name):
        _in_one_go(connection, [*planned.functions, *planned.triggers])


def drop(connection: psycopg.Connection, name: str) -> None:
    """Take an adoption back, in one transaction. Links that were mailed stop working.

    Raises:
        AdoptionError: the table is not adopted, or stays in use.
        DatabaseError, DatabaseUnavailable: as ``translated`` does.
    """
    with translated(connection):
        one = _named(connection, name)
        with _explained(one.user_table):
            _in_one_go(connection, reverse(one.user_table, one.name))


def mail_existing(connection: psycopg.Connection, name: str, report: Callable[[int], None]) -> int:
    """Mail the pending users of an adopted table that never had an activation, in batches, as bulk.

    It may be interrupted and repeated.

    Args:
        connection: in autocommit mode, as the owner of the table and of Mailroom's schema.
        name: the table, as SQL names it.
        report: is called after each batch with the mails requested so far.

    Returns:
        The number of mails requested.

    Raises:
        AdoptionError: the table is not adopted, or was dropped.
        DatabaseError, DatabaseUnavailable: as ``translated`` does.
    """
    mailed = 0
    with translated(connection):
        one = _named(connection, name)
        if not one.exists:
            raise AdoptionError(f"{name} was dropped", hint=f"run `mailroom adopt {name} --drop`")
        table = resolved(connection, one.user_table)
        ((facts,),) = connection.execute(FACTS, [one.user_table]).fetchall()
        kinds = {column.name: column.type for column in columns_of(connection, one.user_table)}
        if one.key_column not in kinds:
            raise AdoptionError(
                f"{table.name} has no column {one.key_column} any more", hint="name its key: --key, --apply"
            )
        key = sql.Identifier(one.key_column)
        alias = sql.SQL(table.alias)
        for rows, skip in ((BATCH_ROWS, "SKIP LOCKED"), (1, "")):
            after: sql.Composable = sql.SQL("true")
            requested = 1
            while requested:
                query = sql.SQL(MAIL_BATCH).format(
                    facts=sql.SQL(facts), table=sql.SQL(one.user_table), name=sql.Literal(one.user_table),
                    alias=alias, key=key, pending_when=sql.SQL(one.pending_when), after=after,
                    rows=sql.Literal(rows), skip=sql.SQL(skip),
                )  # fmt: skip
                with _explained(table.name), connection.transaction():
                    connection.execute(ONE_AT_A_TIME)
                    connection.execute(SET_LOCAL, ["search_path", one.search_path])
                    ((requested, last, _),) = connection.execute(query).fetchall()
                after = sql.SQL("{}.{} > {}::{}").format(
                    alias, key, sql.Literal(last), sql.SQL(kinds[one.key_column])
                )
                mailed += requested
                if requested:
                    report(mailed)
    return mailed


def _named(connection: psycopg.Connection, name: str) -> Adopted:
    """The adopted table with this name; one that was dropped goes by the number that is left of it."""
    query = "SELECT pg_catalog.to_regclass(%s)::oid::text"
    try:
        ((oid,),) = connection.execute(query, [name]).fetchall()
    except psycopg.Error:
        oid = None
    for one in adopted(connection):
        ((other,),) = connection.execute("SELECT %s::regclass::oid::text", [one.user_table]).fetchall()
        if other in {oid, name}:
            return one
    raise AdoptionError(
        f"{name} is not adopted", hint="`mailroom adopt` without arguments lists the tables that are"
    )


def _before(connection: psycopg.Connection, table: UserTable) -> Adopted | None:
    """The table as it is adopted already."""
    for one in adopted(connection):
        if one.user_table == table.name:
            return one
        if one.name == table.short_name and not one.exists:
            raise AdoptionError(
                f"{table.name} was adopted before it was dropped and made again",
                hint=f"run `mailroom adopt {one.user_table} --drop`, then this again",
            )
    return None


def _in_one_go(connection: psycopg.Connection, statements: Sequence[str]) -> None:
    """Run statements in a transaction that others never wait for longer than a second."""
    for tries_left in reversed(range(LOCK_TRIES)):
        try:
            with connection.transaction():
                _run(connection, statements)
                return
        except psycopg.errors.LockNotAvailable:
            if not tries_left:
                raise
        time.sleep(LOCK_PAUSE_S)


def _run(connection: psycopg.Connection, statements: Sequence[str]) -> None:
    connection.execute(SET_LOCAL, ["lock_timeout", LOCK_TIMEOUT])
    for statement in statements:
        connection.execute(statement.encode())


@contextmanager
def _explained(table: str) -> Iterator[None]:
    try:
        yield
    except psycopg.errors.LockNotAvailable as error:
        raise AdoptionError(
            f"{table} is in use: {LOCK_TRIES} times a transaction did not release it within a second",
            hint="nothing was changed; end that transaction, or run it again later",
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise AdoptionError(
            f"this user may not adopt {table}: {reason(error)}",
            hint="connect as a user that owns the table and Mailroom's schema, or is a member of both owners",
        ) from error
    except (psycopg.ProgrammingError, psycopg.DataError, psycopg.NotSupportedError) as error:
        raise AdoptionError(
            f"an expression does not fit {table}: {reason(error)}",
            hint="correct --email, --login, --locale, --pending-when, --active-when or --on-activation;"
            " triggers see no virtual generated column",
        ) from error
