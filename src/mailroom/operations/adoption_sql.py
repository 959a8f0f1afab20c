"""Writes the SQL that adopts a table of users, and the SQL that takes it back.

Expressions come from the person who adopts the table, and stand in the SQL as they are. Names are quoted by
the database.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
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
    def runs_as(self) -> str:
        """With whose rights the expressions are evaluated."""
        return self.owner if self.can_own else self.me

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
    return [*written, *_watch(table, columns)]


def _watch(table: UserTable, columns: Columns) -> list[str]:
    """The function of the triggers, and the one that it calls, which has the rights of Mailroom's owner.

    Its queries stand in it, so that a session plans them once. A plan that was made for one row has to do for
    many too, so old and new rows are grouped, not joined.
    It has no percent sign, which some migration tools take for a parameter.
    """
    name, alias, indent = table.short_name, table.alias, " " * 20
    facts = (
        f"left({columns.key}::text, 256) AS id, left(({columns.email})::text, 255) AS email,"
        f"\n{indent}left(({columns.login})::text, 255) AS login,"
        f" left(({columns.locale})::text, 36) AS locale,"
        f"\n{indent}CASE WHEN ({columns.pending_when}) THEN 'provisioned' WHEN ({columns.active_when})"
        f" THEN 'active'\n{indent}     ELSE 'suspended' END AS status"
    )
    report = f"mailroom.report_{name}(regclass, text, mailroom.user_state[], boolean)"
    return [
        f"""\
CREATE OR REPLACE FUNCTION mailroom.report_{name}(
    at regclass, event text, users mailroom.user_state[], are_many boolean) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER AS $mailroom$
BEGIN
    PERFORM mailroom.users_changed({literal(name)}, at, event, users, are_many);
END $mailroom$;""",
        *_of_mailroom(table, report),
        f"""\
CREATE OR REPLACE FUNCTION mailroom.watch_{name}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = {table.search_path} SET row_security = off AS $mailroom$
#variable_conflict use_column
DECLARE
    mailroom_users mailroom.user_state[] := '{{}}';
    mailroom_done  integer := 0;
BEGIN
    LOOP
        BEGIN
            IF TG_OP = 'INSERT' THEN
                mailroom_users := ARRAY(SELECT ROW(n.*, true)::mailroom.user_state FROM (SELECT
                    {facts}
                    FROM new_users AS {alias}) n
                    WHERE n.status = 'provisioned' LIMIT 10000 OFFSET mailroom_done);
            ELSIF TG_OP = 'UPDATE' THEN
                mailroom_users := ARRAY(
                    SELECT ROW(c.id, c.email, c.login, c.locale, c.status, bool_and(c.is_new)
                           )::mailroom.user_state FROM (SELECT
                    {facts}, mailroom_is_new AS is_new
                    FROM (SELECT true AS mailroom_is_new, * FROM new_users
                          UNION ALL SELECT false, * FROM old_users) AS {alias}) c
                    GROUP BY c.id, c.email, c.login, c.locale, c.status HAVING count(*) = 1
                    ORDER BY c.id OFFSET mailroom_done FETCH FIRST 20000 ROWS WITH TIES);
            ELSIF TG_OP = 'DELETE' THEN
                mailroom_users := ARRAY(
                    SELECT ROW({columns.key}::text, NULL, NULL, NULL, NULL, false)::mailroom.user_state
                    FROM old_users AS {alias} LIMIT 10000 OFFSET mailroom_done);
            END IF;
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING USING
                MESSAGE = concat('mailroom: the users of ', TG_RELID::regclass, ' cannot be read: ', SQLERRM),
                HINT = 'Run `mailroom doctor`.';
            RETURN NULL;
        END;
        IF cardinality(mailroom_users) > 0 OR TG_OP = 'TRUNCATE' OR pg_trigger_depth() > 1 THEN
            PERFORM mailroom.report_{name}(TG_RELID, TG_OP, mailroom_users, mailroom_done > 0);
        END IF;
        EXIT WHEN cardinality(mailroom_users) < 10000;
        mailroom_done := mailroom_done + cardinality(mailroom_users);
    END LOOP;
    RETURN NULL;
END $mailroom$;""",
        *_owned(table, f"mailroom.watch_{name}()"),
    ]


def triggers(table: UserTable, below: Sequence[str], name_before: str | None = None) -> list[str]:
    """The triggers of a table and of the tables below it: partitions, and those that inherit from it.

    Args:
        table: the table.
        below: the tables below it.
        name_before: what its functions were called so far, if it is adopted: it may have been renamed.
    """
    written = [
        f"CREATE OR REPLACE TRIGGER mailroom_{event.lower()} AFTER {event} ON {one}\n"
        f"    {transition}FOR EACH STATEMENT EXECUTE FUNCTION mailroom.watch_{table.short_name}();"
        for one in (table.name, *below)
        for event, transition in TRIGGERS.items()
        # No TRUNCATE of a part tells whose tokens to end.
        if one == table.name or event != "TRUNCATE"
    ]
    if name_before is not None and name_before != table.short_name:
        written += dropped(name_before)
    return written


def reverse(name: str, short_name: str) -> list[str]:
    """What takes a table back, which may have been dropped since."""
    return [
        *dropped(short_name),
        f"SELECT mailroom.end_users({literal(name)}, 'not adopted any more');",
        f"DELETE FROM mailroom.adopted WHERE user_table = {literal(name)}::regclass;",
    ]


def dropped(short_name: str) -> list[str]:
    """What drops a table's functions and triggers, also those of a partition that was detached."""
    signatures = (
        f"watch_{short_name}() CASCADE",
        f"report_{short_name}(regclass, text, mailroom.user_state[], boolean)",
        f"activate_{short_name}(text)",
        f"lock_{short_name}(text)",
    )
    return [f"DROP FUNCTION IF EXISTS mailroom.{signature};" for signature in signatures]


def literal(text: str) -> str:
    """A text as SQL."""
    quoted = text.replace("'", "''")
    return f"'{quoted}'" if "\\" not in text else "E'" + quoted.replace("\\", "\\\\") + "'"


def _owned(table: UserTable, function: str) -> list[str]:
    """With whose rights a function runs, those of the table's owner, and who may call it."""
    written = []
    owner = table.runs_as
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


def _of_mailroom(table: UserTable, function: str) -> list[str]:
    """That a function runs with the rights of Mailroom's owner, and that the table's triggers may call it."""
    owner = table.mailroom_owner or table.me
    caller = table.runs_as
    written = [f"ALTER FUNCTION {function} OWNER TO {owner};"] if owner != table.me else []
    written.append(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC;")
    if caller != owner:
        written.append(f"GRANT USAGE ON SCHEMA mailroom TO {caller};")
        written.append(f"GRANT EXECUTE ON FUNCTION {function} TO {caller};")
    return written
