"""The documentation's site: it builds, the tutorial and the guides run, and the generated pages are fresh."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from mailroom.cli.main import cli
from mailroom.demo.postgres import PostgresServer, embedded_binaries, free_port
from mailroom.doctor.triggers import ISSUE_FUNCTION, SUBSCRIBED
from mailroom.inbox.server import InboxServer
from mailroom.queue.start_check import RING_FUNCTION
from project.test_docs import commands, shell
from support import postgres
from support.image import OFFLINE
from support.postgres import FAST, bindir, migrated, needs
from support.queue_sql import Db, claimed_tokens, sign_up, sign_up_many
from support.runs import wait_until

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
HOW_TO = DOCS / "how-to"
ADDRESS = "acme@127.0.0.1/app"


def blocks(text: str, *languages: str) -> list[tuple[str, str]]:
    """The fenced blocks of some languages, in order, each with its language."""
    found = re.findall(r"^( *)```(\w+)\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE)
    return [(language, textwrap.dedent(code)) for _, language, code in found if language in languages]


def script_of(text: str) -> str:
    """All shell blocks of a text, as one script."""
    return "".join(code for _, code in blocks(text, "sh"))


def uri(database: str) -> str:
    """A database's address as a URL, which the documents' commands take as well."""
    parts = {name: quote(str(value), safe="") for name, value in conninfo_to_dict(database).items()}
    name, user = parts.pop("dbname"), parts.pop("user")
    return f"postgresql://{user}@/{name}?{'&'.join(f'{key}={value}' for key, value in parts.items())}"


def real_curl() -> dict[str, str]:
    """The PATH without the stand-in for curl, where there is a real one."""
    if not shutil.which("curl"):
        return {}
    path = [Path(sys.executable).parent, bindir() or embedded_binaries(), os.environ["PATH"]]
    return {"PATH": ":".join(map(str, path))}


def run(script: str, folder: Path, **variables: str) -> str:
    """What a script prints until it is through; fails with its log when it ends before."""
    lines: list[str] = []
    with shell(script + "\necho the end\n", folder, **(real_curl() | variables)) as process:
        assert process.stdout
        for line in process.stdout:
            if line == b"the end\n":
                return "".join(lines)
            lines.append(line.decode())
    pytest.fail("".join(lines) + (folder / "log").read_text())


@pytest.fixture(name="site", scope="module")
def site_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
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


@pytest.mark.slow
def test_the_site_holds_every_page_in_its_navigation(site: Path) -> None:
    named = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    written = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert written == named
    for page in written:
        assert (site / page).with_suffix(".html").exists()
    assert not list(site.rglob("*.py"))


@pytest.mark.slow
def test_the_site_fetches_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        fetched = re.findall(
            r"""<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)""",
            page.read_text(),
        )
        assert [] == fetched, page
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"""(?:url\(|@import\s)["']?(?:https?:)?//""", sheet.read_text())


@pytest.mark.slow
def test_what_is_written_as_a_list_a_table_or_code_is_shown_as_one(site: Path) -> None:
    for page in site.rglob("*.html"):
        shown = re.sub(r"<pre.*?</pre>", "", page.read_text(), flags=re.DOTALL)
        assert [] == re.findall(r"^ *(?:\d+\. |- |\||```).*", shown, re.MULTILINE), page


@pytest.mark.slow
def test_the_generated_pages_are_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, DOCS / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode, done.stdout + "run `python docs/generate.py`"


def test_every_command_has_its_help_on_the_page() -> None:
    page = (DOCS / "reference" / "commands.md").read_text()
    for path, _ in commands(cli, "mailroom"):
        assert f"## `{path}`\n" in page


UNCOMMENTED = """
SELECT 'function', p.oid::regprocedure::text FROM pg_proc p
WHERE p.pronamespace = 'mailroom'::regnamespace AND obj_description(p.oid, 'pg_proc') IS NULL
UNION ALL
SELECT 'table', c.oid::regclass::text FROM pg_class c
WHERE c.relkind = 'r' AND c.relnamespace IN ('mailroom'::regnamespace, 'public'::regnamespace)
  AND c.relname <> 'schema_migrations' AND obj_description(c.oid, 'pg_class') IS NULL
UNION ALL
SELECT 'column', c.oid::regclass || '.' || a.attname
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relkind = 'r' AND c.relnamespace IN ('mailroom'::regnamespace, 'public'::regnamespace)
  AND c.relname <> 'schema_migrations' AND col_description(c.oid, a.attnum) IS NULL
ORDER BY 1, 2
"""


def test_every_function_table_and_column_has_a_comment(db: Db) -> None:
    """In psql, and so on the page that is made from them."""
    assert [] == db.execute(UNCOMMENTED).fetchall()


def test_the_arguments_on_the_page_are_the_functions_own(db: Db) -> None:
    """On this server, whichever it is; the page was made on the embedded one."""
    page = " ".join((DOCS / "reference" / "sql.md").read_text().split())
    functions = db.execute(
        "SELECT p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid) FROM pg_proc p"
        " WHERE p.pronamespace = 'mailroom'::regnamespace AND p.prorettype <> 'trigger'::regtype"
    ).fetchall()
    assert functions
    for name, arguments, result in functions:
        assert f"mailroom.{name}({arguments}) RETURNS {result} ``` " in page, name


def repository(folder: Path) -> Path:
    """A git repository of the working tree as it is, to be cloned."""
    git: list[str | Path] = ["git", "-c", "user.name=a test", "-c", "user.email=test@acme.example", "-C"]
    listed = [*git, ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(listed, text=True).rstrip("\0").split("\0"):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--no-verify", "--message=all"]):
        subprocess.run([*git, folder, *words], check=True)
    return folder


@pytest.mark.slow
def test_every_command_of_the_tutorial_works_in_its_order(own_server: PostgresServer, tmp_path: Path) -> None:
    """From the clone on, in an environment that the tutorial makes; pip asks the index as a reader's does."""
    text = (DOCS / "tutorial.md").read_text()
    (_, install), *others = blocks(text, "sh", "python")
    here = tmp_path / "here"
    here.mkdir()
    script = ""
    for language, code in others:
        if language == "python":
            (here / "lifecycle.py").write_text(code)
        else:
            script += code
    assert ADDRESS in script
    port = str(free_port())
    server = conninfo_to_dict(own_server.url())
    script = script.replace(ADDRESS, f"acme@127.0.0.1:{server['port']}/app").replace("8025", port)
    script = 'sudo() { shift 2; "$@"; }\n' + script
    assert "<this repository>" in install
    install = install.replace("<this repository>", str(repository(tmp_path / "repository")))
    asked = "command -v mailroom\ncommand -v python\n"
    # A reader's shell has no environment active: what the tutorial types must be in the one that it makes.
    path = real_curl().get("PATH", "").replace(f"{Path(sys.executable).parent}:", "")
    try:
        superuser = {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(server["port"]),
            "PGUSER": str(server["user"]),
            "PGPASSWORD": str(server.get("password") or ""),
            "PGDATABASE": "postgres",
        }
        printed = run(install + asked + script, here, **superuser, **({"PATH": path} if path else {}))
    except pytest.fail.Exception as failure:
        if any(word in str(failure) for word in OFFLINE):
            pytest.skip("the package index does not answer")
        raise
    assert f"{here}/venv/bin/mailroom\n{here}/venv/bin/python\n" in printed
    for _, output in blocks(text, "text"):
        assert output in printed
    assert "mailroom run" in printed.split("The code is wrong")[1]  # status: nobody sends
    assert "attempt 1" in printed.splitlines()[-1]  # why


@pytest.mark.slow
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


def test_transactions_that_must_run_again_do(database: str, db: Db) -> None:
    ((_, code),) = blocks((HOW_TO / "isolation-and-replication.md").read_text(), "python")
    guide: dict[str, Any] = {}
    exec(code, guide)  # noqa: S102
    sign_up(db, "zoe")
    db.execute("UPDATE accounts SET status = 'active'")
    with psycopg.connect(database) as connection, psycopg.connect(database) as other:
        for one in (connection, other):
            one.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
            one.execute("SELECT count(*) FROM tokens")
        db.execute("UPDATE accounts SET login = 'zoe2'")
        with pytest.raises(psycopg.errors.SerializationFailure):
            guide["recovery_mail"](connection, "zoe@example.com")  # the transaction around it has begun
        for one in (connection, other):
            one.rollback()
        guide["recovery_mail"](connection, "ZOE@example.com")
    assert [("password_recovery",)] == db.execute(
        "SELECT action::text FROM tokens ORDER BY id DESC LIMIT 1"
    ).fetchall()


@pytest.mark.slow
def test_a_move_by_logical_replication_as_the_guide_says() -> None:
    text = (HOW_TO / "isolation-and-replication.md").read_text()
    empty, sequences = (code for _, code in blocks(text, "sql"))
    with (
        postgres.server(FAST | {"wal_level": "logical"}) as old,
        postgres.server() as new,
        psycopg.connect(migrated(old.url()), autocommit=True) as source,
        psycopg.connect(migrated(new.url()), autocommit=True) as target,
    ):
        sign_up(source, "sent")
        assert 1 == len(claimed_tokens(source))
        source.execute("CREATE PUBLICATION everything FOR ALL TABLES")
        target.execute(empty.encode())
        address = make_conninfo(old.url()).replace("'", "''")
        target.execute(f"CREATE SUBSCRIPTION move CONNECTION '{address}' PUBLICATION everything".encode())
        wait_until(target, "SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'", 0)
        waiting = sign_up(source, "waiting")
        wait_until(target, f"SELECT count(*) FROM tokens WHERE id >= {waiting}", 1)
        wait_until(target, "SELECT count(*) FROM accounts", 2)
        (subscribed,) = target.execute(SUBSCRIBED.encode(), [RING_FUNCTION, ISSUE_FUNCTION]).fetchall()[:1]
        assert ("accounts",) == subscribed
        assert [(2,)] == target.execute("SELECT count(*) FROM tokens").fetchall()
        target.execute("DROP SUBSCRIPTION move")
        target.execute(sequences.encode())
        assert [waiting] == claimed_tokens(target)
        later = sign_up(target, "later")
        assert later > waiting + 500
        assert [later] == claimed_tokens(target)


ROWS_ALONE = "## From pg_dump, without the schema"


@pytest.mark.slow
@pytest.mark.parametrize("new_cluster", ["lower", "higher"])
def test_rows_alone_are_restored_as_the_guide_says(
    database: str, db: Db, tmp_path: Path, new_cluster: str
) -> None:
    needs("pg_dump", "pg_restore")
    sign_up(db, "sent")
    assert 1 == len(claimed_tokens(db))
    waiting = sign_up(db, "waiting")
    text = (HOW_TO / "restoring-a-backup.md").read_text()
    section = text.split(ROWS_ALONE)[1].split("\n## ")[0]
    with postgres.server() as new:
        if new_cluster == "higher":
            with psycopg.connect(new.url(), autocommit=True) as other:
                other.execute(
                    "DO $$ BEGIN FOR i IN 1..3000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$"
                )
        run(
            'pg_dump --format=custom --file=app.dump "$MAILROOM_DATABASE_URL"\n' + script_of(section),
            tmp_path,
            MAILROOM_DATABASE_URL=uri(database),
            NEW_DATABASE_URL=uri(new.url()),
        )
        with psycopg.connect(new.url(), autocommit=True) as restored:
            assert [waiting] == claimed_tokens(restored)
            later = sign_up(restored, "later")
            assert [later] == claimed_tokens(restored)
            for _, code in blocks(section, "sql"):  # does no harm where it is not needed
                restored.execute(code.encode())
            assert [] == claimed_tokens(restored)


@pytest.mark.slow
def test_a_backup_is_restored_as_the_guide_says(
    database: str, empty_database: str, db: Db, tmp_path: Path
) -> None:
    needs("pg_dump", "pg_restore")
    db.execute("INSERT INTO accounts (email, login) VALUES ('zoe@example.com', 'zoe')")
    script = script_of((HOW_TO / "restoring-a-backup.md").read_text().split(ROWS_ALONE)[0])
    printed = run(
        script,
        tmp_path,
        MAILROOM_DATABASE_URL=uri(database),
        NEW_DATABASE_URL=uri(empty_database),
    )
    assert "paused" not in printed.split("resumed")[-1].lower()
    with psycopg.connect(empty_database) as restored:
        assert [(1,)] == restored.execute("SELECT waiting FROM mailroom.backlog()").fetchall()
        assert [(None,)] == restored.execute("SELECT paused_at FROM jobs").fetchall()


# Debian's and Ubuntu's packages; the embedded one is newer.
OLDER = sorted(Path("/usr/lib/postgresql").glob("1[4-7]/bin/pg_upgrade"))


@pytest.mark.slow
@pytest.mark.skipif(not OLDER, reason="there is no older PostgreSQL to upgrade from")
def test_after_pg_upgrade_what_waits_is_mailed_and_nothing_twice() -> None:
    old = PostgresServer(bindir=OLDER[-1].parent, settings=FAST)
    new = PostgresServer(settings=FAST, password=old.password)
    try:
        old.make()
        old.start()
        with psycopg.connect(migrated(old.url()), autocommit=True) as db:
            sign_up_many(db, 5, "settled")
            assert 5 == len(claimed_tokens(db))
            sign_up_many(db, 3, "waiting")
            waiting = db.execute("SELECT array_agg(id ORDER BY id DESC) FROM tokens").fetchall()[0][0][:3]
        old.stop()
        new.run_tool(
            "initdb", f"--pgdata={new.data}", "--username=postgres", "--encoding=UTF8", "--locale=C",
            "--no-data-checksums", "--no-sync", "--auth=trust",
        )  # fmt: skip
        new.run_tool(
            "pg_upgrade", f"--old-bindir={old.bindir}", f"--new-bindir={new.bindir}",
            f"--old-datadir={old.data}", f"--new-datadir={new.data}", "--username=postgres",
            f"--socketdir={new.folder}",
        )  # fmt: skip
        new.start()
        warnings: list[str] = []
        with psycopg.connect(new.url(), autocommit=True) as db:
            db.add_notice_handler(lambda notice: warnings.append(notice.message_primary or ""))
            assert set(waiting) == set(claimed_tokens(db))
            sign_up_many(db, 2, "new")
            assert 2 == len(claimed_tokens(db))
            assert 1 == len(warnings)
            assert "waiting tokens taken over: 3" in warnings[0]
    finally:
        old.remove()
        new.remove()


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
    (9, 'max@example.com', 'max', 'active'), (11, 'ada@example.com', 'ada', 'suspended'),
    (13, 'eve@example.com', 'eve', 'suspended'), (15, 'rob@example.com', 'rob', 'suspended');
INSERT INTO tokens (action, secret, code, account, consumed_at) VALUES
    ('activation', sha256('zoe'), '12345', 7, NULL), ('password_recovery', sha256('max'), '54321', 9, NULL),
    ('password_recovery', sha256('rob'), '54321', 15, '2020-02-02');
CREATE TABLE "Orders" (account bigint CONSTRAINT "The buyer" REFERENCES accounts ON DELETE CASCADE);
INSERT INTO "Orders" VALUES (9);
"""
WITH_TIMES = """
ALTER TABLE accounts ADD activated_at timestamp;
UPDATE accounts SET activated_at = '2020-01-01' WHERE login IN ('max', 'ada');
"""


@pytest.mark.slow
@pytest.mark.parametrize("times", ["", WITH_TIMES], ids=["without times", "with times"])
def test_one_moves_from_the_reference_as_the_guide_says(
    empty_database: str, tmp_path: Path, times: str
) -> None:
    from mailroom import consume, sign

    with psycopg.connect(empty_database, autocommit=True) as db:
        db.execute((OLD_SCHEMA + times).encode())
        script = ""
        for language, code in blocks((HOW_TO / "moving-from-the-reference.md").read_text(), "sh", "sql"):
            in_psql = f'psql "$MAILROOM_DATABASE_URL" -v ON_ERROR_STOP=1 <<SQL\n{code}SQL\n'
            script += in_psql if language == "sql" else code
        key = "deadbeef" * 8
        variables = {"MAILROOM_SECRET_KEY": key, "MAILROOM_BATCH_TIMEOUT": "50"}
        if not times:  # the ten seconds, once
            script = re.sub(r"timeout 10 mailroom collector.*\n", "", script)
        printed = run(script, tmp_path, MAILROOM_DATABASE_URL=uri(empty_database), **variables)
        assert [(0 if times else 2, 0)] == db.execute(
            "SELECT waiting, in_flight FROM mailroom.backlog()"
        ).fetchall()
        (secret,) = db.execute("SELECT sha256('zoe')").fetchall()[0]
        assert 7 == consume(db, sign(secret, "activation", keys=key), "activation", keys=key).account
        db.execute("INSERT INTO accounts (email, login) VALUES ('new@example.com', 'new')")
        assert [(16,)] == db.execute("SELECT id FROM accounts WHERE login = 'new'").fetchall()
        # An account that was active is active again after a suspension; the guide names the others.
        assert ("eve@example.com" in printed, "rob@example.com" in printed) == (True, False)
        assert ("ada@example.com" in printed) is (not times)
        db.execute("UPDATE accounts SET status = 'active' WHERE status = 'suspended'")
        after: dict[str, str] = dict(db.execute("SELECT login, status::text FROM accounts").fetchall())
        assert {"ada": "active" if times else "provisioned", "eve": "provisioned", "rob": "active"} == {
            login: after[login] for login in ("ada", "eve", "rob")
        }
        if times:
            query = "SELECT DISTINCT activated_at::date::text FROM accounts WHERE login IN ('max', 'ada')"
            assert [("2020-01-01",)] == db.execute(query).fetchall()
        # The application's own references lead to the new table, and outlive the old one.
        db.execute("DROP SCHEMA old CASCADE")
        with pytest.raises(psycopg.errors.ForeignKeyViolation, match="The buyer"):
            db.execute('INSERT INTO "Orders" VALUES (99)')
        db.execute("DELETE FROM accounts WHERE login = 'max'")
        assert [(0,)] == db.execute('SELECT count(*) FROM "Orders"').fetchall()


@pytest.mark.slow
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
            "AWS_ENDPOINT_URL_SESV2": ses.url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
        }
        (tmp_path / "ses").mkdir()
        run(script_of((HOW_TO / "ses.md").read_text()), tmp_path / "ses", **variables)
        (tmp_path / "upgrading").mkdir()
        printed = run(script_of((HOW_TO / "upgrading.md").read_text()), tmp_path / "upgrading", **variables)
        assert " down" in printed
        (tmp_path / "scaling").mkdir()
        script = script_of((HOW_TO / "scaling-out.md").read_text())
        ports = re.findall(r"MAILROOM_HTTP=(\d+) ", script)
        assert 2 == len(set(ports)) == script.count("mailroom run &")
        for port in ports:
            free = str(free_port())
            script = script.replace(port, free)
            script += f"until curl -s http://127.0.0.1:{free}/readyz | grep true; do sleep 0.1; done\n"
        script = (
            "mailroom migrate up\nmailroom templates push\n"
            + script
            + "echo workers\nmailroom status --json\n"
        )
        printed = run(script, tmp_path / "scaling", **variables)
        assert 2 == len(json.loads(printed.split("workers\n")[1])["workers"])


def test_the_least_policies_permit_every_call_that_is_made() -> None:
    second, second_deployer, worker, deployer = permitted("ses.md")
    assert {"ses:SendBulkTemplatedEmail", "ses:GetSendQuota", "ses:GetTemplate"} == worker
    assert {"ses:SendBulkEmail", "ses:SendBulkTemplatedEmail", "ses:GetAccount"} == second
    assert all(action.startswith(("ses:Get", "ses:List")) for action in second_deployer)
    _, reader = permitted("events.md")
    assert {
        f"sqs:{one}" for one in ("GetQueueUrl", "GetQueueAttributes", "ReceiveMessage", "DeleteMessage")
    } == reader
    made = set()
    for path in (ROOT / "src" / "mailroom").rglob("*.py"):
        if {"demo", "inbox"}.isdisjoint(path.parts):
            service, source = "sqs" if path.name == "sqs.py" else "ses", path.read_text()
            names = re.findall(
                r'^OPERATION: Final = "(\w+)"|_ask\(\s*"(\w+?)(?:Batch)?",', source, re.MULTILINE
            )
            made |= {f"{service}:{''.join(name)}" for name in names}
            for method in re.findall(
                r"client\.((?:get|send|receive|delete|describe|create|update|list)_\w+)", source
            ):
                made.add(f"{service}:{''.join(word.capitalize() for word in method.split('_'))}")
    assert made == worker | deployer | reader | second | second_deployer


def permitted(page: str) -> list[set[str]]:
    """The actions that each policy of a page permits."""
    found = []
    for _, code in blocks((HOW_TO / page).read_text(), "json"):
        actions = [statement["Action"] for statement in json.loads(code)["Statement"]]
        found.append({a for action in actions for a in ([action] if isinstance(action, str) else action)})
    return found
