"""Checks that PostgreSQL fires Mailroom's triggers."""

from __future__ import annotations

from typing import Final

from mailroom.doctor.probe import Probe
from mailroom.doctor.report import Finding, fault, ok, warning
from mailroom.queue.start_check import RING_FUNCTION
from mailroom.wording import counted

ISSUE_FUNCTION: Final = "mailroom.issue_activation()"
DISABLED: Final = """
SELECT t.tgrelid::regclass::text, quote_ident(t.tgname) FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
WHERE p.pronamespace = to_regnamespace('mailroom') AND t.tgenabled NOT IN ('O', 'A')
  AND t.tgfoid <> ALL (ARRAY[to_regprocedure(%s), to_regprocedure(%s)]::oid[]) AND p.proname !~ '^watch_'
ORDER BY 1, 2
"""
# Of this session, and of the roles and databases whose sessions begin with it here.
REPLICATION_ROLES: Final = """
SELECT 'this session', 'reset it in postgresql.conf and in MAILROOM_DATABASE_URL'
WHERE current_setting('session_replication_role') = 'replica'
UNION ALL
SELECT coalesce(nullif(concat_ws(' in ', 'role ' || r.rolname, 'database ' || d.datname), ''), 'all roles'),
       CASE WHEN r.oid IS NULL AND d.oid IS NOT NULL
            THEN format('ALTER DATABASE %I RESET session_replication_role', d.datname)
            ELSE format('ALTER ROLE %s%s RESET session_replication_role',
                        coalesce(quote_ident(r.rolname), 'ALL'), ' IN DATABASE ' || quote_ident(d.datname))
       END
FROM pg_db_role_setting s
LEFT JOIN pg_roles r ON r.oid = s.setrole
LEFT JOIN pg_database d ON d.oid = s.setdatabase
WHERE (s.setdatabase = 0 OR d.datname = current_database())
  AND 'session_replication_role=replica' = ANY (s.setconfig)
"""
SUBSCRIBED: Final = """
SELECT c.oid::regclass::text FROM pg_subscription_rel r JOIN pg_class c ON c.oid = r.srrelid
WHERE c.oid IN (SELECT t.tgrelid FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
                WHERE p.oid IN (to_regprocedure(%s), to_regprocedure(%s))
                   OR p.pronamespace = to_regnamespace('mailroom') AND p.proname ~ '^watch_')
ORDER BY 1
"""
ADOPTED: Final = "SELECT fault, remedy, works FROM mailroom.adoption_faults()"
ADOPTED_COUNT: Final = "SELECT mailroom.adopted_count()"


def disabled(probe: Probe) -> Finding:
    """The other triggers of Mailroom's are enabled."""
    found = probe.ask(DISABLED, RING_FUNCTION, ISSUE_FUNCTION)
    if found:
        names = ", ".join(f"{name} on {table}" for table, name in found)
        remedy = "; ".join(f"ALTER TABLE {table} ENABLE TRIGGER {name}" for table, name in found)
        return fault(f"disabled: {names}, so rows may lack what the queue relies on", remedy)
    return ok("enabled")


def replication_role(probe: Probe) -> Finding:
    """No session of an application begins with session_replication_role = replica."""
    found = probe.ask(REPLICATION_ROLES)
    if found:
        who = ", ".join(name for name, _ in found)
        return fault(
            f"session_replication_role is set for {who}: triggers do not fire, so nobody gets mail",
            "; ".join(dict.fromkeys(remedy for _, remedy in found)),
        )
    return ok("triggers fire in new sessions")


def subscriptions(probe: Probe) -> Finding:
    """No subscription fills the tables, since PostgreSQL fires no statement-level trigger for it."""
    tables = [table for (table,) in probe.ask(SUBSCRIBED, RING_FUNCTION, ISSUE_FUNCTION)]
    if tables:
        return fault(
            f"a subscription fills {' and '.join(tables)}: PostgreSQL fires none of the triggers for its"
            " rows, so nobody gets mail for them",
            "run Mailroom on the publisher; see docs/how-to/isolation-and-replication.md",
        )
    return ok("no subscription fills the tables")


def adopted(probe: Probe) -> Finding:
    """Adopted tables have the columns, triggers and rights that they had."""
    found = probe.ask(ADOPTED)
    faults = [(what, remedy) for what, remedy, works in found if not works]
    if faults:
        return fault(
            "; ".join(one for one, _ in faults) + ", so users may get no mail",
            "; ".join(dict.fromkeys(remedy for _, remedy in faults)),
        )
    if found:
        return warning("; ".join(one for one, _, _ in found), "; ".join(remedy for _, remedy, _ in found))
    ((tables,),) = probe.ask(ADOPTED_COUNT)
    return ok(f"{counted(tables, 'table')} adopted, in order" if tables else "none")
