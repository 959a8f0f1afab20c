"""Row-level security that hides rows from Mailroom's functions is an error, before the cursor moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from mailroom.inbox.server import InboxServer
from support import commands, processes, senders
from support.postgres import migrated
from support.processes import CollectorProcess
from support.queue_sql import Db, sign_up
from support.runs import RunProcess


@pytest.fixture
def owned(owned_database: str) -> str:
    """A database whose schema belongs to an ordinary user; its address names that user."""
    return migrated(owned_database)


@pytest.fixture
def owner(owned: str) -> Iterator[Db]:
    with psycopg.connect(owned, autocommit=True) as connection:
        yield connection


def hide(db: Db, table: str = "accounts") -> None:
    db.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY".encode())
    db.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY".encode())


def show(db: Db, table: str = "accounts") -> None:
    db.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY".encode())


def cursor_of(db: Db) -> list[tuple[object, ...]]:
    return db.execute("SELECT c::text, j::text FROM mailroom.cursors c, jobs j ORDER BY c.lane").fetchall()


def start_run(url: str, ses: InboxServer, folder: Path, log: str) -> RunProcess:
    given = senders.environment(folder / "output", SEND_RATE=1000)
    return RunProcess(processes.environment(url) | given | senders.aws(ses.url), folder / log)


def start_collector(url: str, _: InboxServer, folder: Path, log: str) -> CollectorProcess:
    return CollectorProcess(url, log=folder / log, BATCH_TIMEOUT=0)


Program = Callable[[str, InboxServer, Path, str], RunProcess | CollectorProcess]


def delivered(program: RunProcess | CollectorProcess, ses: InboxServer, count: int) -> None:
    if isinstance(program, CollectorProcess):
        program.wait_for_messages(count)
    else:
        ses.wait_for(lambda inbox: inbox.counts.accepted == count)


def test_no_function_with_its_owners_rights_can_see_less(db: Db) -> None:
    forgotten = db.execute(
        "SELECT p.oid::regprocedure::text FROM pg_proc p WHERE p.pronamespace = 'mailroom'::regnamespace"
        " AND p.prosecdef AND NOT coalesce(p.proconfig @> '{row_security=off}', false)"
    ).fetchall()
    assert [("mailroom.after_consumption()",)] == forgotten  # see below


def test_the_applications_triggers_keep_their_policies(owner: Db) -> None:
    """Those on accounts run while a token is consumed."""
    owner.execute("CREATE TABLE audit (account bigint)")
    hide(owner, "audit")
    owner.execute("CREATE POLICY all_rows ON audit USING (true) WITH CHECK (true)")
    owner.execute(
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN INSERT INTO public.audit VALUES (NEW.id); RETURN NULL; END$$"
    )
    owner.execute("CREATE TRIGGER note AFTER UPDATE ON accounts FOR EACH ROW EXECUTE FUNCTION note()")
    sign_up(owner, "zoe")
    consume = "SELECT c.outcome FROM tokens t, mailroom.consume(t.secret, 'activation') c"
    assert [("consumed",)] == owner.execute(consume).fetchall()
    assert [(1,)] == owner.execute("SELECT count(*) FROM audit").fetchall()
    assert [("active",)] == owner.execute("SELECT status::text FROM accounts").fetchall()


@pytest.mark.parametrize(
    "table", ["accounts", "tokens", "jobs", "mailroom.cursors", "mailroom.leases", "mailroom.actions"]
)
def test_a_claim_fails_and_the_cursor_stays(owner: Db, table: str) -> None:
    sign_up(owner, "zoe")
    before = cursor_of(owner)
    hide(owner, table)
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
        owner.execute("SELECT mailroom.claim('w', 10, 10, 60000)")
    show(owner, table)
    assert before == cursor_of(owner)
    assert 1 == len(owner.execute("SELECT mailroom.claim('w', 10, 10, 60000)").fetchall())


def test_a_suspension_can_begin_and_end_meanwhile(owner: Db) -> None:
    sign_up(owner, "zoe")
    hide(owner)
    owner.execute("CREATE POLICY all_rows ON accounts USING (true) WITH CHECK (true)")
    for status in ("suspended", "provisioned"):
        owner.execute("UPDATE accounts SET status = %s", [status])
    show(owner)
    assert 1 == len(owner.execute("SELECT mailroom.claim('w', 10, 10, 60000)").fetchall())


@pytest.mark.parametrize("command", ["run", "collector"])
def test_a_program_does_not_start(
    owned: str, owner: Db, ses: InboxServer, tmp_path: Path, command: str
) -> None:
    hide(owner)
    variables = processes.environment(owned) | senders.environment(tmp_path / "output") | senders.aws(ses.url)
    done = commands.run(command, env=variables)
    assert 78 == done.returncode
    assert "row-level security is forced on public.accounts" in done.stderr
    assert "ALTER TABLE public.accounts NO FORCE ROW LEVEL SECURITY" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("begin", [start_run, start_collector])
def test_no_mail_is_lost_when_it_begins_later(
    owned: str, owner: Db, ses: InboxServer, tmp_path: Path, begin: Program
) -> None:
    with begin(owned, ses, tmp_path, "first") as program:
        program.wait_for_log(".started")
        hide(owner)
        owner.execute("CREATE POLICY sign_up ON accounts FOR INSERT WITH CHECK (true)")
        owner.execute("INSERT INTO accounts (email, login) VALUES ('zoe@example.com', 'zoe')")
        program.wait_for_log("row-level security")
    show(owner)
    with begin(owned, ses, tmp_path, "second") as program:
        delivered(program, ses, 1)


def test_doctor_says_what_to_do(owned: str, owner: Db) -> None:
    hide(owner)
    hide(owner, "mailroom.deliveries")
    done = commands.run("doctor", "--json", env=processes.environment(owned))
    assert "row-level security is forced on mailroom.deliveries, public.accounts" in done.stdout
    assert "ALTER TABLE public.accounts NO FORCE ROW LEVEL SECURITY" in done.stdout
    show(owner)
    show(owner, "mailroom.deliveries")
    done = commands.run("doctor", "--json", env=processes.environment(owned))
    assert "row-level security is" not in done.stdout


def test_a_table_of_another_owner_with_row_level_security(empty_database: str, owned: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as admin:
        admin.execute("ALTER TABLE accounts OWNER TO CURRENT_USER")
        name = psycopg.conninfo.conninfo_to_dict(owned)["user"]
        admin.execute(sql.SQL("GRANT ALL ON accounts TO {}").format(sql.Identifier(str(name))))
        admin.execute("ALTER TABLE accounts ENABLE ROW LEVEL SECURITY")
        done = commands.run("collector", env=processes.environment(owned))
        admin.execute("DROP TABLE accounts CASCADE")
    assert 78 == done.returncode
    assert f"row-level security is enabled on public.accounts, and would hide rows from {name}" in done.stderr
    assert f"ALTER TABLE public.accounts OWNER TO {name}" in done.stderr
