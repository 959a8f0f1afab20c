"""Writes the SQL that adopts a table of users, and the SQL that takes it back.

Expressions come from the person who adopts the table, and stand in the SQL as they are. Names are quoted by
the database.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
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
        can_own: this user may give functions to the table's owner. The user runs them otherwise.
        may_create: the table's owner may have functions in Mailroom's schema.
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
    can_own: bool
    may_create: bool
    is_partition: bool
    search_path: str

    @property
    def short_name(self) -> str:
        """What the names of the table's functions end with: short enough for PostgreSQL, and distinct."""
        if self.schema == "public" and SIMPLE_NAME.fullmatch(self.relation):
            return self.relation
        digest = hashlib.sha256(f"{self.schema}\0{self.relation}".encode()).hexdigest()[:8]
        name = f"{self.schema}_{self.relation}".lower()
        return f"{re.sub('[^a-z0-9]+', '_', name)[:30].strip('_')}_{digest}"


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


def functions(table: UserTable, columns: Columns, name_before: str | None = None) -> list[str]:
    """The row of ``mailroom.adopted`` and the table's functions.

    Args:
        table: the table.
        columns: what its columns mean.
        name_before: the name of its functions so far, if it is adopted: it may have been renamed.
    """
    name, path = table.short_name, table.search_path
    values = (columns.email, columns.login, columns.locale, columns.pending_when, columns.active_when)
    assignments = columns.on_activation
    written = dropped(name_before) if name_before not in {None, name} else []
    written += [
        f"""\
INSERT INTO mailroom.adopted (user_table, name, key_column, email, login, locale, pending_when, active_when,
                              on_activation, search_path)
VALUES ({literal(table.name)}, {literal(name)}, {literal(columns.key_column)},
        {", ".join(map(literal, values))},
        {literal(assignments) if assignments else "NULL"}, {literal(path)})
ON CONFLICT (user_table) DO UPDATE SET name = excluded.name, key_column = excluded.key_column,
    email = excluded.email, login = excluded.login, locale = excluded.locale,
    pending_when = excluded.pending_when, active_when = excluded.active_when,
    on_activation = excluded.on_activation, search_path = excluded.search_path;""",
        f"""\
CREATE OR REPLACE FUNCTION mailroom.lock_{name}(key text) RETURNS mailroom.adopted_user
LANGUAGE sql SECURITY DEFINER SET search_path = {path} SET row_security = off AS $mailroom$
    SELECT {columns.key}::text, ({columns.email})::text, ({columns.login})::text, ({columns.locale})::text,
           CASE WHEN ({columns.pending_when}) THEN 'provisioned' WHEN ({columns.active_when}) THEN 'active'
                ELSE 'suspended' END
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


def triggers(name: str, below: Sequence[str]) -> list[str]:
    """The triggers of a table and of the tables below it: partitions, and those that inherit from it."""
    return [
        f"CREATE OR REPLACE TRIGGER mailroom_{event.lower()} AFTER {event} ON {one}\n"
        f"    {transition}FOR EACH STATEMENT EXECUTE FUNCTION mailroom.after_user_change();"
        for one, event, transition in _events(name, below)
    ]


def reverse(name: str, short_name: str, below: Sequence[str], *, exists: bool = True) -> list[str]:
    """What takes a table back, which may have been dropped since."""
    drops = [
        f"DROP TRIGGER IF EXISTS mailroom_{event.lower()} ON {one};" for one, event, _ in _events(name, below)
    ]
    return [
        *(drops if exists else ()),
        *dropped(short_name),
        f"SELECT mailroom.end_users({literal(name)}, 'not adopted any more');",
        f"DELETE FROM mailroom.adopted WHERE user_table = {literal(name)}::regclass;",
    ]


def dropped(short_name: str | None) -> list[str]:
    """What drops a table's functions."""
    return [f"DROP FUNCTION IF EXISTS mailroom.{verb}_{short_name}(text);" for verb in ("activate", "lock")]


def literal(text: str) -> str:
    """A text as SQL."""
    quoted = text.replace("'", "''")
    return f"'{quoted}'" if "\\" not in text else "E'" + quoted.replace("\\", "\\\\") + "'"


def _events(name: str, below: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """The triggers: table, event, transition tables. No TRUNCATE of a part tells whose tokens to end."""
    for one in (name, *below):
        for event, transition in TRIGGERS.items():
            if one == name or event != "TRUNCATE":
                yield one, event, transition


def _owned(table: UserTable, function: str) -> list[str]:
    """With whose rights a function runs, those of the table's owner, and who may call it."""
    written = []
    owner = table.owner if table.can_own else table.me
    if owner != table.me:
        written.append(f"ALTER FUNCTION {function} OWNER TO {owner};")
        if not table.may_create:
            written = [
                f"GRANT CREATE ON SCHEMA mailroom TO {owner};",
                *written,
                f"REVOKE CREATE ON SCHEMA mailroom FROM {owner};",
            ]
    written.append(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC;")
    if table.mailroom_owner and owner != table.mailroom_owner:
        written.append(f"GRANT EXECUTE ON FUNCTION {function} TO {table.mailroom_owner};")
    return written
