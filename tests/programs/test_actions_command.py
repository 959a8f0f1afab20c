"""``mailroom actions``: what a folder says comes into the database, once, and breaks no link."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

import psycopg
import pytest

import mailroom
from mailroom.action_text import table
from mailroom.actions import BUILT_IN, Action, Limit, load_actions
from mailroom.database import migrate, sync
from mailroom.operations import actions as work
from support import commands
from support.messages import CATALOGUE
from support.processes import environment
from support.queue_sql import Db

JOIN = """
[join]
number = 30
prefix = "/join"
lifetime = "7d"
fields = ["inviter"]
lane = "urgent"
limit = "5 in 15m"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of one's own from before there were actions in it: six templates."""
    made = tmp_path / "mails"
    made.mkdir()
    for name in ("activation", "password_recovery"):
        for suffix in (".html", ".txt", ".subject.txt"):
            (made / f"{name}{suffix}").write_bytes((BUILT_IN / f"{name}{suffix}").read_bytes())
    return made


def run(database: str, *arguments: str, **variables: str | Path) -> subprocess.CompletedProcess[str]:
    given = {name: str(value) for name, value in variables.items()}
    return commands.run("actions", *arguments, env=environment(database, **given))


def in_database(db: Db) -> dict[str, Action]:
    return work.in_database(db)


def define(folder: Path, *tables: str) -> None:
    """Let the folder have these actions beside the two of the start."""
    (folder / "actions.toml").unlink(missing_ok=True)
    both = map(table, (CATALOGUE["activation"], CATALOGUE["password_recovery"]))
    (folder / "actions.toml").write_text("\n".join([*both, *tables]))


def test_the_database_begins_with_the_catalogues_first_two(db: Db, database: str, folder: Path) -> None:
    expected = {name: CATALOGUE[name] for name in ("activation", "password_recovery")}
    assert expected == in_database(db)
    for variables in ({}, {"TEMPLATES": folder}):
        for command in (("diff",), ("apply",), ("apply", "--yes")):
            done = run(database, *command, **variables)
            assert (0, "") == (done.returncode, done.stderr)
            assert done.stdout.startswith("nothing to apply")


def test_an_action_of_the_catalogue_takes_one_command(db: Db, database: str) -> None:
    done = run(database, "add", "magic_link", "--yes")
    assert (0, "") == (done.returncode, done.stderr)
    assert done.stdout.startswith("+ magic_link\n    number = 3\n")
    assert done.stdout.endswith("\napplied: magic_link\n")
    assert CATALOGUE["magic_link"] == in_database(db)["magic_link"]
    db.execute("INSERT INTO accounts (email, login, status) VALUES ('a@example.com', 'a', 'active')")
    db.execute("SELECT mailroom.send('magic_link', account => 1)")
    again = run(database, "add", "magic_link")
    assert (0, "nothing to apply: the database has magic_link\n") == (again.returncode, again.stdout)


def test_every_action_of_the_catalogue_can_be_added(db: Db, database: str) -> None:
    assert 0 == run(database, "apply", "--yes", *CATALOGUE).returncode
    assert CATALOGUE == in_database(db)


def test_adding_copies_table_and_templates_and_overwrites_nothing(
    db: Db, database: str, folder: Path
) -> None:
    (folder / "email_change.txt").write_text("my own {{secret}}")
    assert 0 == run(database, "add", "email_change", "--yes", TEMPLATES=folder).returncode
    assert {name: CATALOGUE[name] for name in ("activation", "password_recovery", "email_change")} == (
        load_actions(folder)
    )
    assert "my own {{secret}}" == (folder / "email_change.txt").read_text()
    for source in BUILT_IN.glob("email_change.*"):
        assert (folder / source.name).exists()
    assert CATALOGUE["email_change"] == in_database(db)["email_change"]
    before = (folder / "actions.toml").read_bytes()
    again = run(database, "add", "email_change", "--yes", TEMPLATES=folder)
    assert (0, "nothing to apply: the database has email_change\n") == (again.returncode, again.stdout)
    assert before == (folder / "actions.toml").read_bytes()
    assert 0 == run(database, "add", "phone_changed", "--yes", TEMPLATES=folder).returncode
    assert (folder / "actions.toml").read_bytes().startswith(before)


def test_an_action_of_ones_own_is_applied_and_changed(db: Db, database: str, folder: Path) -> None:
    define(folder, JOIN)
    own = Action(
        "join", 30, b"/join", lifetime_s=604_800, fields=("inviter",), lane="urgent", limit=Limit(5, 900)
    )
    difference = run(database, "diff", "--json", TEMPLATES=folder)
    assert 1 == difference.returncode
    assert [{"action": "join", "state": "missing", "keys": {}, "refused": []}] == (
        json.loads(difference.stdout)["differences"]
    )
    assert 0 == run(database, "apply", "--yes", TEMPLATES=folder).returncode
    assert own == in_database(db)["join"]
    define(folder, JOIN.replace("7d", "3d").replace('limit = "5 in 15m"\n', ""))
    done = run(database, "apply", "--yes", TEMPLATES=folder)
    assert done.stdout == (
        '~ join\n    lifetime: "7d" -> "3d"\n    limit: "5 in 15m" -> none\napplied: join\n'
    )
    changed = in_database(db)["join"]
    assert (259_200, None) == (changed.lifetime_s, changed.limit)
    define(folder)
    done = run(database, "diff", TEMPLATES=folder)
    expected = "nothing to apply: the database has these actions\nonly in the database: join\n"
    assert (0, expected) == (done.returncode, done.stdout)
    assert "join" in in_database(db)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (JOIN.replace("30", "31"), "join: number would change from 30 to 31"),
        (JOIN.replace("/join", "/enter"), 'join: prefix would change from "/join" to "/enter"'),
        (JOIN + "code = true\n", "join: code would change from false to true"),
        (JOIN.replace("[join]", "[enter]"), "enter: number: 30 is also join's"),
        (
            JOIN.replace("[join]", "[enter]").replace("30", "31"),
            "enter: prefix: one of /join and join's /join",
        ),
        (
            JOIN.replace("[join]", "[enter]").replace("30", "31").replace("/join", "/join/x"),
            "enter: prefix: one of /join/x and join's /join begins with the other",
        ),
    ],
)
def test_what_would_break_links_is_refused(
    db: Db, database: str, folder: Path, changed: str, why: str
) -> None:
    define(folder, JOIN)
    assert 0 == run(database, "apply", "--yes", TEMPLATES=folder).returncode
    before = in_database(db)
    define(folder, changed, JOIN.replace("[join]", "[other]").replace("30", "40").replace("/join", "/other"))
    done = run(database, "apply", "--yes", TEMPLATES=folder)
    assert 78 == done.returncode
    assert f"\n  {why}" in done.stderr
    assert before == in_database(db)
    assert 1 == run(database, "diff", TEMPLATES=folder).returncode


def test_without_a_terminal_it_needs_yes(db: Db, database: str) -> None:
    before = in_database(db)
    done = run(database, "add", "magic_link")
    assert 64 == done.returncode
    assert "+ magic_link" in done.stdout
    assert "applying actions without a terminal needs --yes" in done.stderr
    assert before == in_database(db)


def test_on_a_terminal_it_asks(db: Db, database: str) -> None:
    for answer, code, added in ((b"n\n", 130, False), (b"y\n", 0, True)):
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "mailroom", "actions", "add", "magic_link"],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(database),
        )
        os.write(ours, answer)
        stdout, stderr = process.communicate(timeout=60)
        os.close(ours)
        os.close(theirs)
        assert (code, added) == (process.returncode, "magic_link" in in_database(db)), stderr
        assert b"+ magic_link" in stdout
        assert b"Apply this?" in stderr


def test_an_interruption_between_value_and_row_is_completed(db: Db, database: str, folder: Path) -> None:
    define(folder, JOIN)
    db.execute("ALTER TYPE token_action ADD VALUE 'join'")
    db.execute("ALTER TYPE token_action ADD VALUE 'left'")
    done = run(database, "diff", TEMPLATES=folder)
    assert 1 == done.returncode
    assert "? left: a value of token_action without a row" in done.stdout
    assert "? join" not in done.stdout
    assert 0 == run(database, "apply", "--yes", TEMPLATES=folder).returncode
    assert "join" in in_database(db)


def test_an_ordinary_owner_applies_and_nobody_else(owned_database: str, empty_database: str) -> None:
    with sync.connected(owned_database) as owner:
        migrate.up(owner, None, lambda _: None)
    assert 0 == run(owned_database, "add", "invitation", "--yes").returncode
    with psycopg.connect(empty_database, autocommit=True) as admin:
        user = "acme_reader_of_actions"
        admin.execute(f"CREATE ROLE {user} LOGIN PASSWORD 'acme'")
        try:
            admin.execute(f"GRANT USAGE ON SCHEMA mailroom TO {user}")
            admin.execute(f"GRANT EXECUTE ON FUNCTION mailroom.known_actions TO {user}")
            reader = psycopg.conninfo.make_conninfo(empty_database, user=user, password="acme")
            done = run(reader, "add", "magic_link", "--yes")
            assert 78 == done.returncode
            assert "the user may not add actions: must be owner of type token_action" in done.stderr
            assert "connect as the owner of Mailroom's schema" in done.stderr
        finally:
            admin.execute(f"DROP OWNED BY {user}")
            admin.execute(f"DROP ROLE {user}")


def test_two_that_apply_at_once_both_succeed(db: Db, database: str) -> None:
    codes = []
    chosen = {name: CATALOGUE[name] for name in ("magic_link", "invitation")}
    start = threading.Barrier(2)

    def apply() -> None:
        with sync.connected(database) as connection:
            start.wait(30)
            work.apply(connection, chosen)
            codes.append(0)

    threads = [threading.Thread(target=apply) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [0, 0] == codes
    assert chosen.items() <= in_database(db).items()


def test_activating_moves_from_one_action_to_another(db: Db, database: str, folder: Path) -> None:
    define(folder)
    text = (folder / "actions.toml").read_text().replace("activates = true\n", "")
    welcome = '[welcome]\nnumber = 30\nprefix = "/welcome"\naccount = "provisioned"\nactivates = true\n'
    (folder / "actions.toml").write_text(f"{text}\n{welcome}")
    assert 0 == run(database, "apply", "--yes", TEMPLATES=folder).returncode
    assert ["welcome"] == [action.name for action in in_database(db).values() if action.activates]


def test_list_show_and_check_need_no_database(folder: Path) -> None:
    define(folder, JOIN)
    listed = run("", "list", TEMPLATES=folder)
    assert (0, "") == (listed.returncode, listed.stderr)
    assert ["action", "activation", "password_recovery", "join"] == [
        line.split()[0] for line in listed.stdout.splitlines()
    ]
    as_json = json.loads(run("", "list", "--json", TEMPLATES=folder).stdout)
    assert ["/activate", "/recover", "/join"] == [one["prefix"] for one in as_json]
    shown = run("", "show", "join", TEMPLATES=folder)
    assert shown.stdout.startswith('[join]\nnumber = 30\nprefix = "/join"\naccount = "none"\nlink = true\n')
    assert "joinv1 in SES; its templates may show: login, secret, expires_in, inviter" in shown.stdout
    assert (
        mailroom.load_actions(folder)["join"].number
        == json.loads(run("", "show", "join", "--json", TEMPLATES=folder).stdout)["number"]
    )
    assert 64 == run("", "show", "party", TEMPLATES=folder).returncode
    checked = run("", "check", TEMPLATES=folder, APP_NAME="Acme", APP_URL="https://acme.example")
    assert 78 == checked.returncode
    assert "activation: ok" in checked.stdout
    assert "join:\n" in checked.stdout
    (folder / "actions.toml").write_text("[join]\nnumber = 3\n")
    for arguments in (("list",), ("check",), ("check", "--json")):
        broken = run("", *arguments, TEMPLATES=folder)
        assert 78 == broken.returncode
        assert "[join] prefix: it is missing" in broken.stdout + broken.stderr
