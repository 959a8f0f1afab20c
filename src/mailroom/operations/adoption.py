"""Adopts an application's own table of users: plans the SQL, runs it, lists it, takes it back.

Promises: the SQL that is shown is the SQL that ``apply`` runs, in one transaction. It was checked against the
table before. Repeating it replaces what was there. Taking it back leaves the table as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from mailroom.database.connection import reason
from mailroom.database.sync import translated
from mailroom.errors import AdoptionError
from mailroom.operations.adoption_sql import Columns, UserTable, functions, reverse, triggers

# A transaction that holds the table must not make every sign-up wait behind the creation of triggers.
LOCK_TIMEOUT: Final = "5s"
BATCH_ROWS: Final = 1000

RESOLVE: Final = """
SELECT pg_catalog.format('%%I.%%I', n.nspname, c.relname) AS name, n.nspname::text AS schema,
       c.relname::text AS relation, pg_catalog.quote_ident(c.relname) AS alias, c.relkind::text AS kind,
       pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(c.relowner)) AS owner,
       pg_catalog.quote_ident(current_user) AS me,
       (SELECT pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(m.nspowner)) FROM pg_catalog.pg_namespace m
        WHERE m.nspname = 'mailroom') AS mailroom_owner,
       (SELECT pg_catalog.format('%%I.%%I', s.nspname, y.typname)
        FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type y ON y.oid = a.atttypid
        JOIN pg_catalog.pg_namespace s ON s.oid = y.typnamespace
        WHERE a.attrelid = pg_catalog.to_regclass('mailroom.actions') AND a.attname = 'account_status')
           AS status_type,
       (SELECT pg_catalog.string_agg(pg_catalog.quote_ident(p.name), ', ' ORDER BY p.first DESC, p.n)
        FROM (SELECT n.nspname AS name, true AS first, 0 AS n
              UNION ALL SELECT x.name, false, x.n
              FROM pg_catalog.unnest(pg_catalog.current_schemas(false) || name 'pg_temp')
                   WITH ORDINALITY AS x (name, n)
              WHERE x.name <> n.nspname) p) AS search_path
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = %s::regclass
"""
COLUMNS: Final = """
SELECT a.attname::text AS name, pg_catalog.quote_ident(a.attname) AS quoted,
       pg_catalog.format_type(a.atttypid, a.atttypmod) AS type,
       a.attnotnull AND EXISTS (
           SELECT FROM pg_catalog.pg_index i
           WHERE i.indrelid = a.attrelid AND i.indisunique AND i.indpred IS NULL AND i.indkey[0] = a.attnum
             AND (i.indnkeyatts = 1 OR c.relkind = 'p')) AS is_key,
       EXISTS (SELECT FROM pg_catalog.pg_index i
               WHERE i.indrelid = a.attrelid AND i.indisprimary AND i.indkey[0] = a.attnum
                 AND (i.indnkeyatts = 1 OR c.relkind = 'p')) AS is_primary
FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
BELOW: Final = """
SELECT DISTINCT d.refobjid::regclass::text
FROM pg_catalog.pg_rewrite r
JOIN pg_catalog.pg_depend d ON d.objid = r.oid AND d.classid = 'pg_catalog.pg_rewrite'::regclass
    AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid <> r.ev_class
WHERE r.ev_class = %s::regclass ORDER BY 1
"""
OURS: Final = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
               WHERE t.tgrelid = %(table)s::regclass AND p.pronamespace = 'mailroom'::regnamespace
                 AND p.proname <> 'after_user_change')
"""
ADOPTED: Final = """
SELECT coalesce(pg_catalog.format('%I.%I', n.nspname, c.relname), a.user_table::text) AS user_table,
       a.name, a.key_column, a.email, a.login, a.locale, a.pending_when, a.active_when, a.on_activation,
       a.search_path, c.oid IS NOT NULL AS exists
FROM mailroom.adopted a
LEFT JOIN pg_catalog.pg_class c ON c.oid = a.user_table
LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
ORDER BY a.adopted_at
"""
FACTS: Final = """
SELECT mailroom.user_facts(a), mailroom.user_schema() FROM mailroom.adopted a
WHERE a.user_table = %s::regclass
"""
SET_LOCAL: Final = "SELECT pg_catalog.set_config(%s, %s, true)"
# It waits for a transaction that changes one of the users, and then sees the change.
MAIL_BATCH: Final = """
WITH batch AS (
    SELECT {facts} FROM {table} AS t WHERE {after} ORDER BY t.{key} LIMIT {rows} FOR SHARE
), mailed AS (
    SELECT pg_catalog.array_agg(ROW(b.id, b.email, b.login, b.locale, b.status, NULL, false)
                                ::mailroom.user_change) AS users
    FROM batch b
    WHERE b.status = 'provisioned'
      AND NOT EXISTS (SELECT FROM {schema}.tokens x
                      JOIN mailroom.actions k ON k.action = x.action AND k.activates
                      WHERE x.subject = b.id AND x.user_table = {name}::regclass)
)
SELECT pg_catalog.count(*), (SELECT coalesce(pg_catalog.cardinality(m.users), 0) FROM mailed m),
       (pg_catalog.array_agg(b.id))[pg_catalog.count(*)],
       (SELECT mailroom.users_changed({name}::regclass, m.users, true)::text FROM mailed m)
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


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person says of the columns of a table; None where they say nothing."""

    key: str | None = None
    email: str | None = None
    login: str | None = None
    locale: str | None = None
    pending_when: str | None = None
    active_when: str | None = None
    on_activation: str | None = None

    def over(self, preset: Wish) -> Wish:
        """This wish, completed from a preset."""
        return Wish(*(getattr(self, name) or getattr(preset, name) for name in self.__slots__))


# By name: the table and the columns as the framework makes them.
PRESETS: Final[dict[str, tuple[str, Wish]]] = {
    # An account that an administrator deactivates after its first login is suspended, not pending.
    "django": (
        "auth_user",
        Wish(
            login="username",
            pending_when="NOT is_active AND last_login IS NULL",
            active_when="is_active",
            on_activation="is_active = true",
        ),
    ),
    "devise": ("users", Wish(pending_when="confirmed_at IS NULL", on_activation="confirmed_at = now()")),
    "supabase": (
        "auth.users",
        Wish(
            pending_when="email_confirmed_at IS NULL AND NOT is_anonymous AND deleted_at IS NULL"
            " AND coalesce(banned_until <= now(), true)",
            active_when="deleted_at IS NULL AND coalesce(banned_until <= now(), true)",
            on_activation="email_confirmed_at = now()",
        ),
    ),
    "fastapi-users": (
        '"user"',
        Wish(
            pending_when="is_active AND NOT is_verified",
            active_when="is_active",
            on_activation="is_verified = true",
        ),
    ),
}


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
        table = _table(connection, name)
        columns = _meaning(connection, table, wish)
        planned = Plan(
            table, functions(table, columns), triggers(table), reverse(table.name, table.short_name)
        )
        # Triggers would wait for everybody who uses the table.
        with _explained(table.name), connection.transaction(force_rollback=True):
            _run(connection, planned.functions)
    return planned


def apply(connection: psycopg.Connection, planned: Plan) -> None:
    """Adopt the table, in one transaction.

    Raises:
        AdoptionError: the table is in use for longer than five seconds, or this user may not.
        DatabaseError, DatabaseUnavailable: as ``translated`` does.
    """
    with translated(connection), _explained(planned.table.name), connection.transaction():
        _run(connection, [*planned.functions, *planned.triggers])


def drop(connection: psycopg.Connection, name: str) -> None:
    """Take an adoption back, in one transaction. Links that were mailed stop working.

    Raises:
        AdoptionError: the table is not adopted, or in use for longer than five seconds.
        DatabaseError, DatabaseUnavailable: as ``translated`` does.
    """
    with translated(connection):
        one = _named(connection, name)
        with _explained(one.user_table), connection.transaction():
            _run(connection, reverse(one.user_table, one.name, exists=one.exists))


def mail_existing(
    connection: psycopg.Connection, name: str, report: Callable[[int, int], None]
) -> tuple[int, int]:
    """Mail the pending users of an adopted table that never had an activation, in batches, as bulk.

    It may be interrupted and repeated.

    Args:
        connection: in autocommit mode, as the owner of the table and of Mailroom's schema.
        name: the table, as SQL names it.
        report: is called after each batch with the users read and the mails requested so far.

    Returns:
        The number of users read, and of mails requested.

    Raises:
        AdoptionError: the table is not adopted.
        DatabaseError, DatabaseUnavailable: as ``translated`` does.
    """
    read, mailed = 0, 0
    after: sql.Composable = sql.SQL("true")
    with translated(connection):
        one = _named(connection, name)
        ((facts, schema),) = connection.execute(FACTS, [one.user_table]).fetchall()
        kinds = {column.name: column.type for column in _columns(connection, one.user_table)}
        key = sql.Identifier(one.key_column)
        while True:
            query = sql.SQL(MAIL_BATCH).format(
                facts=sql.SQL(facts), schema=sql.SQL(schema), table=sql.SQL(one.user_table),
                name=sql.Literal(one.user_table), key=key, after=after, rows=sql.Literal(BATCH_ROWS),
            )  # fmt: skip
            with connection.transaction():
                connection.execute(SET_LOCAL, ["search_path", one.search_path])
                ((users, requested, last, _),) = connection.execute(query).fetchall()
            if not users:
                return read, mailed
            read, mailed = read + users, mailed + requested
            report(read, mailed)
            after = sql.SQL("t.{} > {}::{}").format(key, sql.Literal(last), sql.SQL(kinds[one.key_column]))


class _Column(NamedTuple):
    name: str
    quoted: str
    type: str
    is_key: bool
    is_primary: bool


def _table(connection: psycopg.Connection, name: str) -> UserTable:
    try:
        with connection.cursor(row_factory=class_row(UserTable)) as cursor:
            (table,) = cursor.execute(RESOLVE, [name]).fetchall()
    except (
        psycopg.errors.UndefinedTable,
        psycopg.errors.InvalidSchemaName,
        psycopg.errors.InvalidName,
        psycopg.errors.SyntaxError,
    ) as error:
        raise AdoptionError(
            f"there is no table {name}: {reason(error)}",
            hint='name it as in SQL: users, auth.users, or "User" with its quotation marks',
        ) from error
    if table.kind in "vm":
        below = [base for (base,) in connection.execute(BELOW, [name])]
        raise AdoptionError(f"{table.name} is a view", hint=f"adopt the table below it: {', '.join(below)}")
    if table.kind not in "rp":
        raise AdoptionError(f"{table.name} is not a table of this database", hint="adopt a table")
    ((ours,),) = connection.execute(OURS, {"table": name}).fetchall()
    if ours or table.schema == "mailroom":
        raise AdoptionError(
            f"{table.name} is Mailroom's own", hint="it works already; adopt the application's table of users"
        )
    return table


def _columns(connection: psycopg.Connection, name: str) -> list[_Column]:
    return [_Column(*row) for row in connection.execute(COLUMNS, [name])]


def _meaning(connection: psycopg.Connection, table: UserTable, wish: Wish) -> Columns:
    found = _columns(connection, table.name)
    quoted = {column.name: column.quoted for column in found}
    key = next((one for one in found if (one.is_primary if wish.key is None else one.name == wish.key)), None)
    if key is None:
        said = "has no primary key of one column" if wish.key is None else f"has no column {wish.key}"
        raise AdoptionError(f"{table.name} {said}", hint="name a unique column with --key")
    if not key.is_key:
        raise AdoptionError(
            f"the column {key.name} of {table.name} is not a key: it is not both NOT NULL and unique",
            hint="name a column that is, with --key",
        )
    if wish.email is None and "email" not in quoted:
        raise AdoptionError(
            f"{table.name} has no column email", hint="name the column of the address with --email"
        )

    def expression(said: str | None, otherwise: str) -> str:
        """The quoted name of a column; any other text is an expression."""
        return otherwise if said is None else quoted.get(said, said)

    return Columns(
        key.quoted,
        key.name,
        key.type,
        expression(wish.email, "email"),
        expression(wish.login, "NULL"),
        expression(wish.locale, "NULL"),
        expression(wish.pending_when, "false"),
        expression(wish.active_when, "true"),
        wish.on_activation,
    )


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
            f"{table} is in use: a transaction has held it for five seconds",
            hint="nothing was changed; end that transaction, or run it again later",
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise AdoptionError(
            f"this user may not adopt {table}: {reason(error)}",
            hint="connect as a user that owns the table and Mailroom's schema, or is a member of both owners",
        ) from error
    except (psycopg.errors.ProgrammingError, psycopg.errors.DataError) as error:
        raise AdoptionError(
            f"an expression does not fit {table}: {reason(error)}",
            hint="correct --email, --login, --locale, --pending-when, --active-when or --on-activation",
        ) from error
