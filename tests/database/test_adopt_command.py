"""``mailroom adopt``: what it prints, what it runs, and what it refuses."""

from __future__ import annotations

import json
import subprocess

import pytest

from support import commands, processes
from support.adopting import DEVISE, Db, live, run, sign_up


def mailroom(database: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return commands.run(*arguments, env=processes.environment(database))


@pytest.fixture
def users(db: Db) -> Db:
    db.execute(DEVISE.encode())
    return db


def test_it_prints_sql_that_a_migration_can_run(users: Db, database: str) -> None:
    done = mailroom(database, "adopt", "--preset", "devise")
    assert (0, "") == (done.returncode, done.stderr)
    assert [] == run(users, "SELECT 1 FROM mailroom.adopted")
    with users.transaction():
        run(users, done.stdout.replace("%", "%%"))
    assert 1 == len(live(users, sign_up(users, "users", "a@example.com")))
    with users.transaction():
        back = done.stdout.split("-- To take it back:\n")[1]
        run(users, "".join(line.removeprefix("-- ") + "\n" for line in back.splitlines()))
    assert [] == run(users, "SELECT 1 FROM pg_trigger WHERE tgname LIKE 'mailroom%%'")


def test_it_runs_it_lists_it_and_takes_it_back(users: Db, database: str) -> None:
    assert "no table is adopted" in mailroom(database, "adopt").stdout
    assert "public.users is adopted\n" == mailroom(database, "adopt", "--preset", "devise", "--apply").stdout
    assert "public.users" in mailroom(database, "adopt").stdout
    (listed,) = json.loads(mailroom(database, "adopt", "--json").stdout)
    assert ("public.users", "id", "email", "confirmed_at IS NULL") == tuple(
        listed[name] for name in ("user_table", "key_column", "email", "pending_when")
    )
    asked = mailroom(database, "adopt", "users", "--drop")
    assert (64, True) == (asked.returncode, "--drop needs --yes" in asked.stderr)
    assert "users is not adopted any more\n" == mailroom(database, "adopt", "users", "--drop", "--yes").stdout


def test_mailing_those_from_before(users: Db, database: str) -> None:
    run(users, "INSERT INTO users (email) VALUES ('a@example.com'), ('b@example.com')")
    mailroom(database, "adopt", "--preset", "devise", "--apply")
    for requested in ("2 mails requested\n", "0 mails requested\n"):
        assert requested == mailroom(database, "adopt", "users", "--mail-existing", "--yes").stdout


def test_it_adds_actions_of_the_catalogue(users: Db, database: str) -> None:
    done = mailroom(
        database, "adopt", "--preset", "devise", "--actions", "email_change,password_changed", "--apply"
    )
    assert (0, True) == (done.returncode, "public.users is adopted" in done.stdout), done.stderr
    assert [("email_change",), ("password_changed",)] == run(
        users,
        "SELECT action::text FROM mailroom.actions"
        " WHERE action::text IN ('email_change', 'password_changed') ORDER BY 1",
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nobody"], 78, 'there is no table nobody: relation "nobody" does not exist'),
        (["users", "--pending-when", "confirmd IS NULL"], 78, 'column "confirmd" does not exist'),
        (["users", "--key", "uid"], 78, "has no column uid"),
        (["users", "--drop", "--yes"], 78, "users is not adopted"),
        (["--apply"], 64, "name the table"),
        (["users", "--json"], 64, "--json is for the list"),
        (["users", "--drop", "--email", "mail"], 64, "--drop and --mail-existing take no columns"),
        (["--preset", "drupal"], 64, "'drupal' is not one of"),
        (["users", "--drop", "--apply"], 64, "--drop"),
        (["users", "--actions", "invitation"], 64, "--actions needs --apply"),
        (["users", "--actions", "invitation,party", "--apply"], 64, "party"),
    ],
)
def test_what_it_refuses(users: Db, database: str, arguments: list[str], code: int, said: str) -> None:
    assert users
    done = mailroom(database, "adopt", *arguments)
    assert (code, True) == (done.returncode, said in done.stderr), done.stderr
