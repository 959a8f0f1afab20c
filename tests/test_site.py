"""The documentation's site: it builds, the tutorial and the guides run, and the generated pages are fresh."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from conftest import bindir
from mailroom.cli import cli
from mailroom.demo.postgres import embedded_binaries, free_port
from mailroom.inbox import InboxServer
from support.queue_sql import Db
from test_docs import commands, shell

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
HOW_TO = DOCS / "how-to"
ADDRESS = "postgresql://postgres@127.0.0.1/app"


def blocks(text: str, *languages: str) -> list[tuple[str, str]]:
    """The fenced blocks of some languages, in order, each with its language."""
    found = re.findall(r"^( *)```(\w+)\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE)
    return [(language, textwrap.dedent(code)) for _, language, code in found if language in languages]


def script_of(text: str) -> str:
    """All shell blocks of a text but the installing one, as one script."""
    return "".join(code for _, code in blocks(text, "sh") if "git clone" not in code)


def uri(database: str) -> str:
    """A database's address as a URL, which the documents' commands take as well."""
    parts = {name: quote(str(value), safe="") for name, value in conninfo_to_dict(database).items()}
    name, user = parts.pop("dbname"), parts.pop("user")
    return f"postgresql://{user}@/{name}?{'&'.join(f'{key}={value}' for key, value in parts.items())}"


def run(script: str, folder: Path, **variables: str) -> str:
    """What a script prints until it is through; fails with its log when it ends before."""
    lines: list[str] = []
    with shell(script + "\necho the end\n", folder, **variables) as process:
        assert process.stdout
        for line in process.stdout:
            if line == b"the end\n":
                return "".join(lines)
            lines.append(line.decode())
    pytest.fail("".join(lines) + (folder / "log").read_text())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    if not importlib.util.find_spec("material"):
        pytest.skip("needs the extra docs: make docs")
    folder = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | nowhere | {"NO_MKDOCS_2_WARNING": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == built.returncode, built.stderr
    return folder


def test_the_site_holds_every_page_in_its_navigation(site: Path) -> None:
    named = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    written = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert written == named
    for page in written:
        assert (site / page).with_suffix(".html").exists()
    assert not list(site.rglob("*.py"))


def test_the_site_fetches_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        fetched = re.findall(
            r"""<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)""",
            page.read_text(),
        )
        assert [] == fetched, page
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"""(?:url\(|@import\s)["']?(?:https?:)?//""", sheet.read_text())


def test_what_is_written_as_a_list_a_table_or_code_is_shown_as_one(site: Path) -> None:
    for page in site.rglob("*.html"):
        shown = re.sub(r"<pre.*?</pre>", "", page.read_text(), flags=re.DOTALL)
        assert [] == re.findall(r"^ *(?:\d+\. |- |\||```).*", shown, re.MULTILINE), page


def test_the_generated_pages_are_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, DOCS / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode, done.stdout + "run `python docs/generate.py`"


def test_every_command_has_its_help_on_the_page() -> None:
    page = (DOCS / "reference" / "commands.md").read_text()
    for path, _ in commands(cli, "mailroom"):
        assert f"## `{path}`\n" in page


def test_the_arguments_of_sql_functions_are_those_in_the_reference(db: Db) -> None:
    written = re.findall(
        r"^\| `mailroom\.(\w+)\(([^)]*)\)` \|", (DOCS / "reference.md").read_text(), re.MULTILINE
    )
    assert written
    for name, arguments in written:
        rows = db.execute(
            "SELECT coalesce(p.proargnames[1:p.pronargs], '{}') FROM pg_proc p"
            " WHERE p.pronamespace = 'mailroom'::regnamespace AND p.proname = %s",
            [name],
        ).fetchall()
        known = [", ".join(argument.removeprefix("p_") for argument in row[0]) for row in rows]
        assert [arguments] == known, name


def test_every_command_of_the_tutorial_works_in_its_order(database: str, tmp_path: Path) -> None:
    text = (DOCS / "tutorial.md").read_text()
    script = ""
    for language, code in blocks(text, "sh", "python"):
        if language == "python":
            (tmp_path / "lifecycle.py").write_text(code)
        elif "git clone" not in code:
            script += code
    assert ADDRESS in script
    port = str(free_port())
    script = script.replace(ADDRESS, f"'{uri(database)}'").replace("8025", port)
    script = script.replace(
        "mails.log &\n",
        f"mails.log &\nuntil curl -s http://127.0.0.1:{port}/api/counts; do sleep 0.1; done\n",
    )
    printed = run(script, tmp_path)
    for _, output in blocks(text, "text"):
        assert output in printed
    assert "mailroom run" in printed.split("The code is wrong")[1]  # status: nobody sends
    assert "attempt 1" in printed.splitlines()[-1]  # why


def test_keys_are_rotated_as_the_guide_says(database: str, tmp_path: Path) -> None:
    text = (HOW_TO / "key-rotation.md").read_text()
    from mailroom import sign

    old = "deadbeef" * 8
    token = sign(bytes(32), "activation", keys=old)
    check = f"\necho {token} | mailroom token verify - --action activation"
    first, second, third = (code for _, code in blocks(text, "sh"))
    script = first + check + "\n" + second + check + "\n" + third + check + " || echo refused: $?\n"
    printed = run(script, tmp_path, MAILROOM_SECRET_KEY=old, MAILROOM_DATABASE_URL=database)
    assert "refused: 65" in printed
    with psycopg.connect(database) as connection:
        for _, code in blocks(text, "sql"):
            connection.execute(code.encode())


def test_a_backup_is_restored_as_the_guide_says(
    database: str, empty_database: str, db: Db, tmp_path: Path
) -> None:
    binaries = bindir() or embedded_binaries()
    if not (Path(binaries) / "pg_dump").exists():
        pytest.skip("these server's binaries come without pg_dump")
    db.execute("INSERT INTO accounts (email, login) VALUES ('zoe@example.com', 'zoe')")
    script = script_of((HOW_TO / "restoring-a-backup.md").read_text())
    printed = run(
        script,
        tmp_path,
        MAILROOM_DATABASE_URL=uri(database),
        NEW_DATABASE_URL=uri(empty_database),
    )
    assert "paused" not in printed.split("resumed")[-1].lower()
    with psycopg.connect(empty_database) as restored:
        assert [(1,)] == restored.execute("SELECT waiting FROM mailroom.backlog('mailroom')").fetchall()
        assert [(None,)] == restored.execute("SELECT paused_at FROM jobs").fetchall()


# As an implementation with a number for a cursor would have it.
OLD_SCHEMA = """
CREATE TYPE account_status AS ENUM ('provisioned', 'active', 'suspended');
CREATE TYPE token_action AS ENUM ('activation', 'password_recovery');
CREATE TABLE accounts (id bigserial PRIMARY KEY, email text NOT NULL, login text NOT NULL,
    status account_status NOT NULL DEFAULT 'provisioned');
CREATE TABLE tokens (id bigserial PRIMARY KEY, action token_action NOT NULL, secret bytea NOT NULL,
    code text NOT NULL, account bigint NOT NULL REFERENCES accounts,
    expires_at timestamp NOT NULL DEFAULT now() + interval '15 minutes', consumed_at timestamp);
CREATE TABLE jobs (job_type text PRIMARY KEY, last_id bigint);
INSERT INTO accounts (id, email, login, status) VALUES (7, 'zoe@example.com', 'zoe', 'provisioned'),
    (9, 'max@example.com', 'max', 'active');
INSERT INTO tokens (action, secret, code, account)
    VALUES ('activation', sha256('zoe'), '12345', 7), ('password_recovery', sha256('max'), '54321', 9);
"""


def test_one_moves_from_the_reference_as_the_guide_says(empty_database: str, tmp_path: Path) -> None:
    from mailroom import consume, sign

    with psycopg.connect(empty_database, autocommit=True) as db:
        db.execute(OLD_SCHEMA.encode())
        script = ""
        for language, code in blocks((HOW_TO / "moving-from-the-reference.md").read_text(), "sh", "sql"):
            in_psql = f'psql "$MAILROOM_DATABASE_URL" -v ON_ERROR_STOP=1 <<SQL\n{code}SQL\n'
            script += in_psql if language == "sql" else code
        key = "deadbeef" * 8
        variables = {"MAILROOM_SECRET_KEY": key, "MAILROOM_BATCH_TIMEOUT": "50"}
        run(script, tmp_path, MAILROOM_DATABASE_URL=uri(empty_database), **variables)
        assert [(0, 0)] == db.execute(
            "SELECT waiting, in_flight FROM mailroom.backlog('mailroom')"
        ).fetchall()
        (secret,) = db.execute("SELECT sha256('zoe')").fetchall()[0]
        assert 7 == consume(db, sign(secret, "activation", keys=key), "activation", keys=key).account
        db.execute("INSERT INTO accounts (email, login) VALUES ('new@example.com', 'new')")
        assert [(10,)] == db.execute("SELECT id FROM accounts WHERE login = 'new'").fetchall()


def test_the_upgrade_and_scaling_guides_run(database: str, tmp_path: Path) -> None:
    """Besides, ``migrate down`` leaves a schema that the next ``up`` starts from."""
    with InboxServer() as ses:
        variables = {
            "MAILROOM_DATABASE_URL": uri(database),
            "MAILROOM_SECRET_KEY": "deadbeef" * 8,
            "MAILROOM_APP_NAME": "Acme",
            "MAILROOM_APP_URL": "https://acme.example",
            "MAILROOM_SES_SOURCE": "noreply@acme.example",
            "MAILROOM_SES_CONFIG_SET": "none",
            "AWS_ENDPOINT_URL_SES": ses.url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
        }
        (tmp_path / "ses").mkdir()
        run(script_of((HOW_TO / "ses.md").read_text()), tmp_path / "ses", **variables)
        (tmp_path / "upgrading").mkdir()
        printed = run(script_of((HOW_TO / "upgrading.md").read_text()), tmp_path / "upgrading", **variables)
        assert " down" in printed


def test_the_least_policies_permit_every_call_that_is_made() -> None:
    text = (HOW_TO / "ses.md").read_text()
    policies = [json.loads(code) for _, code in blocks(text, "json")]
    permitted = []
    for policy in policies:
        actions = [statement["Action"] for statement in policy["Statement"]]
        permitted.append({a for action in actions for a in ([action] if isinstance(action, str) else action)})
    worker, deployer = permitted
    assert {"ses:SendBulkTemplatedEmail", "ses:GetSendQuota", "ses:GetTemplate"} == worker
    made = set()
    for path in (ROOT / "src" / "mailroom").rglob("*.py"):
        if {"demo", "inbox"}.isdisjoint(path.parts):
            for method in re.findall(
                r"client\.((?:get|send|describe|create|update|list)_\w+)", path.read_text()
            ):
                made.add("ses:" + "".join(word.capitalize() for word in method.split("_")))
    assert made == worker | deployer
