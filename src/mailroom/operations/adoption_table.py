"""Looks at a table that is to be adopted: its columns, its key, the tables below it; and what they mean.

Promises: a table that cannot be adopted is an error that names the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import psycopg
from psycopg.rows import class_row

from mailroom.database.connection import reason
from mailroom.errors import AdoptionError
from mailroom.operations.adoption_sql import Columns, UserTable

RESOLVE: Final = """
SELECT pg_catalog.format('%%I.%%I', n.nspname, c.relname) AS name, n.nspname::text AS schema,
       c.relname::text AS relation, pg_catalog.quote_ident(c.relname) AS alias, c.relkind::text AS kind,
       pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(c.relowner)) AS owner,
       pg_catalog.quote_ident(current_user) AS me,
       (SELECT pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(m.nspowner)) FROM pg_catalog.pg_namespace m
        WHERE m.nspname = 'mailroom') AS mailroom_owner,
       pg_catalog.pg_has_role(c.relowner, 'MEMBER') AS can_own,
       coalesce(pg_catalog.has_schema_privilege(
           c.relowner, pg_catalog.to_regnamespace('mailroom')::oid, 'CREATE'), false) AS may_create,
       c.relispartition AS is_partition,
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
       pg_catalog.format_type(a.atttypid, -1) AS type,
       a.attnotnull AND EXISTS (
           SELECT FROM pg_catalog.pg_index i
           WHERE i.indrelid = a.attrelid AND i.indisunique AND i.indpred IS NULL AND i.indkey[0] = a.attnum
             AND (i.indnkeyatts = 1 OR c.relkind = 'p')) AS is_key,
       EXISTS (SELECT FROM pg_catalog.pg_index i
               WHERE i.indrelid = a.attrelid AND i.indisprimary AND i.indkey[0] = a.attnum
                 AND (i.indnkeyatts = 1 OR c.relkind = 'p')) AS is_primary,
       (SELECT t.typtype = 'e' OR p.provolatile = 'i' AND p.oid <> 'pg_catalog.byteaout'::regproc
        FROM pg_catalog.pg_type t JOIN pg_catalog.pg_proc p ON p.oid = t.typoutput
        WHERE t.oid = a.atttypid) AS has_one_text
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
                 AND p.proname !~ '^watch_')
"""
PARENT: Final = "SELECT pg_catalog.pg_partition_root(%s::regclass)::text"
BELOW_TABLE: Final = """
SELECT pg_catalog.format('%%I.%%I', n.nspname, c.relname)
FROM mailroom.adopted_below(%s::regclass) b (id)
JOIN pg_catalog.pg_class c ON c.oid = b.id JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
"""


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
    "devise": (
        "users",
        Wish(pending_when="confirmed_at IS NULL", on_activation="confirmed_at = now() AT TIME ZONE 'UTC'"),
    ),
    "supabase": (
        "auth.users",
        Wish(
            pending_when="email IS NOT NULL AND email_confirmed_at IS NULL AND deleted_at IS NULL"
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


class Column(NamedTuple):
    """A column; ``is_key`` if its values name a row, ``has_one_text`` if no setting changes their text."""

    name: str
    quoted: str
    type: str
    is_key: bool
    is_primary: bool
    has_one_text: bool


def resolved(connection: psycopg.Connection, name: str) -> UserTable:
    """The table with this name.

    Raises:
        AdoptionError: there is none, or it cannot be adopted.
    """
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
    if table.is_partition:
        ((parent,),) = connection.execute(PARENT, [name]).fetchall()
        raise AdoptionError(f"{table.name} is a partition", hint=f"adopt {parent}, which it belongs to")
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


def columns_of(connection: psycopg.Connection, name: str) -> list[Column]:
    """The columns of a table, in order."""
    return [Column(*row) for row in connection.execute(COLUMNS, [name])]


def meaning(connection: psycopg.Connection, table: UserTable, wish: Wish) -> Columns:
    """What the columns of a table mean, checked against those that it has.

    Raises:
        AdoptionError: a column is missing, or the key is none.
    """
    found = columns_of(connection, table.name)
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
    if not key.has_one_text:
        raise AdoptionError(
            f"the column {key.name} of {table.name} cannot be the key: how a {key.type} is written depends on"
            " settings of the session, so that it would not always name the same user",
            hint="name another unique column with --key",
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


def tables_below(connection: psycopg.Connection, name: str) -> list[str]:
    """The partitions of a table, and the tables that inherit from it."""
    return [one for (one,) in connection.execute(BELOW_TABLE, [name])]
