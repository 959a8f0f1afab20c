"""`mailroom suppressions`."""

from __future__ import annotations

import csv
import json
import re
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailroom.operations.suppressions import import_csv
from support import commands
from support.events import hand_out, of, send, tell
from support.processes import environment
from support.queue_sql import Db, claimed_tokens, sign_up


@pytest.fixture
def run(database: str) -> Run:
    return Run(database)


class Run:
    """Runs `mailroom suppressions` on a database."""

    def __init__(self, database: str) -> None:
        self._env = environment(database)

    def __call__(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return commands.run("suppressions", *arguments, env=self._env, stdin=stdin)


def test_an_address_is_added_shown_and_removed(db: Db, run: Run) -> None:
    token = sign_up(db, "zoe")
    assert (0, "suppressed\n") == outcome(run("add", "Zoe@example.com", "--reason", "asked by phone"))
    assert (0, "it was suppressed already, and keeps its reason\n") == outcome(
        run("add", "zoe@EXAMPLE.com", "--reason", "again")
    )
    assert [] == claimed_tokens(db)
    shown = run("show", "zoe@example.com").stdout
    assert re.match(r"Z…@example.com gets no mail since .* UTC: asked by phone\n  by \S+:\S+\n$", shown)
    listed = run("list").stdout.splitlines()
    assert ["address", "Z…@example.com", "1 suppressed address"] == [
        re.split("  ", each)[0] for each in listed
    ]
    assert (0, "removed\n") == outcome(run("remove", "ZOE@example.com"))
    assert (0, "no suppressed addresses\n") == outcome(run("list"))
    for command in ("show", "remove"):
        done = run(command, "zoe@example.com")
        assert (65, True) == (done.returncode, "'z…@example.com' is not suppressed" in done.stderr)
    assert [("suppressed",)] == db.execute("SELECT mailroom.status_of(%s)", [token]).fetchall()


def outcome(done: subprocess.CompletedProcess[str]) -> tuple[int, str]:
    return done.returncode, done.stdout


def test_what_ses_said_is_shown(db: Db, run: Run) -> None:
    sent = send(db, hand_out(db))
    (token,) = sent.tokens
    tell(db, of(sent, "bounced", type="permanent", status="5.1.1", diagnostic="550 zoe@example.com unknown"))
    lines = run("show", "zoe@example.com").stdout.splitlines()
    assert [
        "  by SES",
        "  permanent, 5.1.1, 550 z…@example.com unknown",
        f"  it was token {token}; `mailroom why {token}` tells more",
    ] == lines[1:]
    found = json.loads(run("show", "zoe@example.com", "--json").stdout)
    assert ("z…@example.com", "bounced", token) == (found["address"], found["event"], found["token"])
    (listed,) = json.loads(run("list", "--json").stdout)["suppressions"]
    assert listed == {name: found[name] for name in listed}


@pytest.mark.parametrize(
    "address", ["", "zoe", "a@b@c", "@b", "a@", "a\tb@c.example", "z@ b.de", "Z <z@b.de>"]
)
def test_only_an_address_can_be_added(run: Run, address: str) -> None:
    done = run("add", address, "--reason", "x")
    assert 65 == done.returncode
    assert done.stderr.startswith("Error: ")


def test_the_list_is_cut(db: Db, run: Run) -> None:
    for number in range(5):
        db.execute("SELECT mailroom.suppress(%s, 'x')", [f"u{number}@example.com"])
    assert "and more; --limit shows more of them" == run("list", "--limit", "4").stdout.splitlines()[-1]
    assert "5 suppressed addresses" == run("list", "--limit", "5").stdout.splitlines()[-1]


def test_what_is_exported_can_be_imported(db: Db, run: Run) -> None:
    addresses = ['"quo,ted"@example.com', "zoe@bücher.example", "a@example.com"]
    for number, address in enumerate(addresses):
        db.execute("SELECT mailroom.suppress(%s, %s)", [address, f'reason, "{number}"'])
    done = run("export")
    assert "3 addresses\n" == done.stderr
    exported = done.stdout
    assert addresses == [row["address"] for row in csv.DictReader(exported.splitlines())][::-1]
    db.execute("DELETE FROM mailroom.suppressions")
    assert (0, "3 added, 0 suppressed already, 0 left out\n") == outcome(run("import", "-", stdin=exported))
    assert (0, "0 added, 3 suppressed already, 0 left out\n") == outcome(run("import", "-", stdin=exported))
    again = {(row["address"], row["reason"]) for row in csv.DictReader(run("export").stdout.splitlines())}
    assert {(address, f'reason, "{number}"') for number, address in enumerate(addresses)} == again


def test_rows_with_faults_are_left_out(db: Db, run: Run) -> None:
    text = "Address , note\nzoe@example.com,x\n\nnobody,y\nmax@example.com\n,z\n"
    done = run("import", "-", "--reason", "from the old system", stdin=text)
    assert (65, "2 added, 0 suppressed already, 2 left out\n") == outcome(done)
    assert ["line 4: 'nobody' is not an address", "line 6: '' is not an address"] == done.stderr.splitlines()
    assert [("from the old system", 2)] == db.execute(
        "SELECT reason, count(*) FROM mailroom.suppressions GROUP BY 1"
    ).fetchall()
    done = run("import", "-", stdin="email\nzoe@example.com\n")
    assert (65, True) == (done.returncode, "has no column address" in done.stderr)


def test_any_text_is_imported_or_reported(db: Db) -> None:
    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(st.text(max_size=40) | st.emails(), max_size=6))
    def imports(lines: list[str]) -> None:
        found = import_csv(db, ["address,reason", *lines], "x")
        assert found.added + found.known + len(found.faults) <= len("\n".join(lines)) + 1

    imports()
