"""Writes the SQL that adopts a table of users, and the SQL that takes it back.

Expressions come from the person who adopts the table, and stand in the SQL as they are. Names are quoted by
the database.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

SIMPLE_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,40}")
# In the order of creation, with what each sees of the statement's rows.
TRIGGERS: Final = {
    "INSERT": "REFERENCING NEW TABLE AS new_users ",
    "UPDATE": "REFERENCING OLD TABLE AS old_users NEW TABLE AS new_users ",
    "DELETE": "REFERENCING OLD TABLE AS old_users ",
    "TRUNCATE": "",
}


@dataclass(frozen=True, slots=True)
class UserTable:
    """A table of the database.

    Attributes:
        name: with its schema, quoted where SQL needs it.
        schema, relation: the two parts, not quoted.
        alias: the relation, quoted where SQL needs it.
        kind: PostgreSQL's letter for it: r for a table, p for a partitioned one, v for a view.
        owner, me, mailroom_owner: the roles that own the table, run this, and own Mailroom's schema; quoted.
        status_type: the type of an account's status, with its schema; None without Mailroom's schema.
        search_path: with which expressions are evaluated: the table's schema, then the session's.
    """

    name: str
    schema: str
    relation: str
    alias: str
    kind: str
    owner: str
    me: str
    mailroom_owner: str | None
    status_type: str | None
    search_path: str

    @property
    def short_name(self) -> str:
        """What the names of the table's functions end with: short enough for PostgreSQL, and distinct."""
        name = self.relation if self.schema == "public" else f"{self.schema}_{self.relation}"
        if SIMPLE_NAME.fullmatch(name) and (self.schema == "public" or "_" not in self.schema):
            return name
        digest = hashlib.sha256(f"{self.schema}.{self.relation}".encode()).hexdigest()[:8]
        return f"{re.sub('[^a-z0-9]+', '_', name.lower())[:30]}_{digest}"


@dataclass(frozen=True, slots=True)
class Columns:
    """What the columns of a table of users mean: a row of ``mailroom.adopted``.

    Attributes:
        key: the unique column whose text is the subject of tokens; quoted where SQL needs it.
        key_column, key_type: its name, not quoted, and its type.
        email, login, locale: expressions.
        pending_when, active_when: conditions.
        on_activation: the assignments when an activation is consumed, or None.
    """

    key: str
    key_column: str
    key_type: str
    email: str
    login: str
    locale: str
    pending_when: str
    active_when: str
    on_activation: str | None


def functions(table: UserTable, columns: Columns) -> list[str]:
    """The row of ``mailroom.adopted`` and the table's functions."""
    name, path = table.short_name, table.search_path
    values = (columns.email, columns.login, columns.locale, columns.pending_when, columns.active_when)
    assignments = columns.on_activation
    written = [
        f"""\
INSERT INTO mailroom.adopted (user_table, name, key_column, email, login, locale, pending_when, active_when,
                              on_activation, search_path)
VALUES ({literal(table.name)}, {literal(name)}, {literal(columns.key_column)},
        {", ".join(map(literal, values))},
        {literal(assignments) if assignments else "NULL"}, {literal(path)})
ON CONFLICT (user_table) DO UPDATE SET key_column = excluded.key_column, email = excluded.email,
    login = excluded.login, locale = excluded.locale, pending_when = excluded.pending_when,
    active_when = excluded.active_when, on_activation = excluded.on_activation,
    search_path = excluded.search_path;""",
        f"""\
CREATE OR REPLACE FUNCTION mailroom.lock_{name}(key text) RETURNS mailroom.adopted_user
LANGUAGE sql SECURITY DEFINER SET search_path = {path} SET row_security = off AS $mailroom$
    SELECT {columns.key}::text, ({columns.email})::text, ({columns.login})::text, ({columns.locale})::text,
           CASE WHEN ({columns.pending_when}) THEN 'provisioned' WHEN ({columns.active_when}) THEN 'active'
                ELSE 'suspended' END::{table.status_type}
    FROM {table.name} AS {table.alias} WHERE {columns.key} = $1::{columns.key_type} FOR NO KEY UPDATE
$mailroom$;""",
        *_owned(table, f"mailroom.lock_{name}(text)"),
    ]
    if assignments:
        written += [
            f"""\
CREATE OR REPLACE FUNCTION mailroom.activate_{name}(key text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = {path} SET row_security = on AS $mailroom$
    UPDATE {table.name} AS {table.alias} SET {assignments} WHERE {columns.key} = $1::{columns.key_type}
$mailroom$;""",
            *_owned(table, f"mailroom.activate_{name}(text)"),
        ]
    return written


def triggers(table: UserTable) -> list[str]:
    """The table's triggers."""
    return [
        f"CREATE OR REPLACE TRIGGER mailroom_{event.lower()} AFTER {event} ON {table.name}\n"
        f"    {transition}FOR EACH STATEMENT EXECUTE FUNCTION mailroom.after_user_change();"
        for event, transition in TRIGGERS.items()
    ]


def reverse(name: str, short_name: str, *, exists: bool = True) -> list[str]:
    """What takes a table back, which may have been dropped since."""
    return [
        *(f"DROP TRIGGER IF EXISTS mailroom_{event.lower()} ON {name};" for event in TRIGGERS if exists),
        f"DROP FUNCTION IF EXISTS mailroom.activate_{short_name}(text);",
        f"DROP FUNCTION IF EXISTS mailroom.lock_{short_name}(text);",
        f"SELECT mailroom.end_users({literal(name)});",
        f"DELETE FROM mailroom.adopted WHERE user_table = {literal(name)}::regclass;",
    ]


def literal(text: str) -> str:
    """A text as SQL."""
    quoted = text.replace("'", "''")
    return f"'{quoted}'" if "\\" not in text else "E'" + quoted.replace("\\", "\\\\") + "'"


def _owned(table: UserTable, function: str) -> list[str]:
    """Who may call a function, and with whose rights it runs: those of the table's owner."""
    written = [f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC;"]
    if table.mailroom_owner and table.owner != table.mailroom_owner:
        written.append(f"GRANT EXECUTE ON FUNCTION {function} TO {table.mailroom_owner};")
    if table.owner != table.me:
        written.append(f"ALTER FUNCTION {function} OWNER TO {table.owner};")
    return written
