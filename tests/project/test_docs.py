"""The documentation tells the truth: commands run, and names are complete."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from mailroom import errors
from mailroom.answers import Result, Scope
from mailroom.cli.main import cli
from mailroom.consumption import CONSUME, CONSUME_CODE
from mailroom.demo.postgres import PostgresServer, embedded_binaries, free_port
from mailroom.doctor.triggers import ADOPTED, ADOPTED_COUNT
from mailroom.inbox.server import InboxServer
from mailroom.operations.pause import PAUSE, RESUME
from mailroom.queue.pulse import PULSE
from mailroom.queue.start_check import CALLED
from mailroom.sender.policy import Verdict
from mailroom.sender.rejected import Rejected, RejectedRow
from mailroom.settings.variables import variables
from mailroom.settings.worker import RunSettings
from mailroom.transports.transport import Transport
from support.adopting import DEVISE
from support.messages import ACTIVATION, decoded, message
from support.postgres import bindir
from support.senders import send, settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ONCALL = "".join(
    (ROOT / "src" / "mailroom" / name).read_text()
    for name in (
        "operations/reports.py",
        "operations/prune.py",
        "operations/dead.py",
        "operations/suppressions.py",
        "operations/forgetting.py",
        "operations/fates.py",
        "console/ledger.py",
        "console/snapshot.py",
    )
)
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
COMMANDS, SETTINGS, SQL = (
    (ROOT / "docs" / "reference" / f"{name}.md").read_text() for name in ("commands", "settings", "sql")
)


def block(text: str, language: str, containing: str) -> str:
    """The one fenced block of a language that holds some words."""
    found = [code for code in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) if containing in code]
    assert 1 == len(found)
    return str(found[0])


def commands(command: click.Command, path: str) -> list[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        return [
            pair for name, child in command.commands.items() for pair in commands(child, f"{path} {name}")
        ]
    return [(path, command)]


@contextmanager
def shell(script: str, folder: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A shell that ends at the first command that fails, with the commands that the documents use."""
    programs = folder / "programs"
    programs.mkdir()
    (programs / "curl").write_text(CURL.format(python=sys.executable))
    (programs / "curl").chmod(0o755)
    path = [programs, Path(sys.executable).parent, bindir() or embedded_binaries(), os.environ["PATH"]]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["/bin/sh", "-e", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=folder,
            env=os.environ | {"PATH": ":".join(map(str, path))} | variables,
            start_new_session=True,
        )
    assert process.stdout
    with process.stdout:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


# The documents' curl, which is not on every machine: -s [--retry …] ADDRESS, or -sX METHOD ADDRESS -d BODY.
CURL = """#!{python}
import sys, time, urllib.error, urllib.request
if sys.argv[1] == "-s":
    for left in range(30 if "--retry" in sys.argv else 1, 0, -1):
        try:
            print(urllib.request.urlopen(sys.argv[-1]).read().decode())
            sys.exit()
        except urllib.error.URLError:
            if left == 1:
                raise
            time.sleep(1)
_, method, url, *body = sys.argv[1:]
data = body[1].encode() if body else None
print(urllib.request.urlopen(urllib.request.Request(url, data, method=method)).status)
"""


def on_ones_own_database(server: PostgresServer) -> tuple[str, dict[str, str]]:
    """The README's commands for Debian, up to the collector, and a superuser's variables for them."""
    address = conninfo_to_dict(server.url())
    script = 'sudo() { shift 2; "$@"; }\n' + block(README, "sh", "CREATE ROLE")
    script += block(README, "sh", "mailroom collector\n")
    assert "app:app@127.0.0.1/app" in script
    script = script.replace("app:app@127.0.0.1/app", f"app:app@127.0.0.1:{address['port']}/app")
    superuser = {f"PG{key.upper()}": str(address[key]) for key in ("host", "port", "user", "password")}
    return script, superuser | {"PGDATABASE": "postgres"}


def test_the_commands_for_ones_own_database_work(own_server: PostgresServer, tmp_path: Path) -> None:
    script, superuser = on_ones_own_database(own_server)
    with shell(script, tmp_path, **superuser) as process:
        assert process.stdout
        lines = []
        for line in process.stdout:
            lines.append(line)
            if b"zoe@example.com" in line:
                break
    assert [b"CREATE ROLE\n", b"INSERT 0 1\n"] == [lines[0], lines[-2]]
    (message,) = decoded(lines[-1])
    assert (ACTIVATION, "zoe@example.com", "zoe") == message[:3]


def test_the_commands_that_adopt_a_table_work(database: str, db: psycopg.Connection, tmp_path: Path) -> None:
    db.execute(DEVISE.encode())
    script = block(README, "sh", "mailroom adopt users")
    with shell(f"export MAILROOM_DATABASE_URL='{database}'\n{script}", tmp_path) as process:
        assert process.stdout
        output = process.stdout.read().decode()
    assert "CREATE OR REPLACE TRIGGER" in output
    assert "confirmed_at = now()" in output.splitlines()[-1]
    db.execute("INSERT INTO users (email) VALUES ('zoe@example.com')")
    assert [("zoe@example.com",)] == db.execute("SELECT email FROM tokens").fetchall()


@pytest.mark.slow
def test_the_commands_for_mailing_through_ses_work(own_server: PostgresServer, tmp_path: Path) -> None:
    script, superuser = on_ones_own_database(own_server)
    script = script.removesuffix("mailroom collector\n")
    script += block(README, "sh", "mailroom run &") + "wait\n"
    with InboxServer() as ses:
        endpoint = {"AWS_ENDPOINT_URL_SES": ses.url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
        with shell(script, tmp_path, **endpoint, **superuser):
            try:
                ses.wait_for(lambda inbox: inbox.counts.accepted == 2)
            except TimeoutError:
                pytest.fail((tmp_path / "log").read_text())
        mail, other = ses.inbox.mails.find()
        rendered = ses.inbox.render(mail)
        # Nobody ran the collector alone here, so that zoe is mailed as well.
        assert {"zoe@example.com", "success@simulator.amazonses.com"} == {mail.recipient, other.recipient}
        assert "Acme <noreply@acme.example>" == mail.source
        assert rendered
        assert "https://acme.example/activate?token=" in rendered.text


@pytest.mark.slow
def test_the_commands_for_templates_work(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "templates.md").read_text()
    script = block(text, "sh", "mailroom init") + block(text, "sh", "templates push")
    script += block((ROOT / "docs" / "how-to" / "languages.md").read_text(), "sh", "render invitation")
    with InboxServer() as ses:
        endpoint = {"AWS_ENDPOINT_URL_SES": ses.url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
        with shell(script, tmp_path, AWS_DEFAULT_REGION="us-east-1", **endpoint) as process:
            assert process.stdout
            printed = process.stdout.read().decode()
            assert 0 == process.wait(30), (tmp_path / "log").read_text()
        names = ("activationv1", "passwordrecoveryv1")
        assert {*names, *(f"{name}-de" for name in names)} == set(ses.inbox.account.templates)
        assert "Anna lädt Sie zu Acme ein." in printed
        assert "Zoë &lt;zoe&gt;" in (tmp_path / "mail.html").read_text()


@pytest.mark.slow
def test_the_commands_for_the_inbox_work(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "inbox.md").read_text()
    port = free_port()
    script = block(text, "sh", "mailroom inbox --port 8025").replace("8025", str(port))
    script += block(text, "sh", "soft_bounce") + block(text, "sh", "curl -sX DELETE")
    settings = {"MAILROOM_APP_NAME": "Acme", "MAILROOM_APP_URL": "https://acme.example"}
    with shell(script + "echo done\n", tmp_path, **settings) as process:
        assert process.stdout
        for line in process.stdout:
            if line == b"done\n":
                break
        else:
            pytest.fail((tmp_path / "log").read_text())


def test_the_commands_for_replaying_work(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "when-a-mail-did-not-arrive.md").read_text()
    script = textwrap.dedent(block(text, "sh", "mailroom replay"))
    rejected = Rejected(tmp_path / "output")
    rejected.add([RejectedRow.of(message(1), "unsent", "stopped before it was sent")])
    with shell(script, tmp_path, MAILROOM_DEBUG="true") as process:
        assert process.stdout
        assert b"person1@example.com" in process.stdout.read()
        assert 0 == process.wait(30)


def test_the_example_of_a_transport_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "adding-a-transport.md").read_text()
    names: dict[str, Any] = {}
    exec(block(text, "python", "class MaildirTransport"), names)  # noqa: S102 - it is our own
    transport = names["MaildirTransport"](settings(tmp_path), str(tmp_path / "mails"))
    sent = send(settings(tmp_path, SEND_RATE=1000), [message(n) for n in range(5)], transport)
    assert {"sent": 5} == sent.count()
    assert 5 == len(list((tmp_path / "mails" / "new").iterdir()))
    protocol = block(text, "python", "class Transport(Protocol)")
    members = {name for name in vars(Transport) | Transport.__annotations__ if not name.startswith("_")}
    assert members == set(re.findall(r"^    (?:def )?(\w+)[:(]", protocol, re.MULTILINE))


def test_the_outcomes_are_documented() -> None:
    guide = (ROOT / "docs" / "adding-a-transport.md").read_text()
    for result in Result:
        assert f"| `{result.name}` |" in guide
    for scope in Scope:
        assert f"`{scope.name}`" in guide
    help_ = (ROOT / "docs" / "when-a-mail-did-not-arrive.md").read_text()
    for verdict in set(Verdict) - {Verdict.SENT}:
        assert f"| `{verdict.value}` |" in help_


def test_the_two_commands_at_the_top_exist() -> None:
    first = block(README, "sh", "git clone")
    targets = re.findall(r"^make (\w+)", first, re.MULTILINE)
    assert ["demo", "test"] == targets
    makefile = (ROOT / "Makefile").read_text()
    for target in [*targets, "bench", "check", "help"]:
        assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE)


@pytest.mark.parametrize("document", ["README.md", "docs/reference.md", "docs/when-a-mail-did-not-arrive.md"])
def test_the_sql_in_the_documentation_runs(database: str, document: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("INSERT INTO accounts (email, login, status) VALUES ('a@b', 'a', 'active')")
        for script in re.findall(r"```sql\n(.*?)```", (ROOT / document).read_text(), re.DOTALL):
            for statement in filter(None, map(str.strip, textwrap.dedent(script).split(";"))):
                connection.execute(statement.encode())


def test_every_command_is_in_the_reference() -> None:
    known = commands(cli, "mailroom")
    assert known
    for path, command in known:
        assert f"| [`{path}`](#" in COMMANDS, path
        assert command.help
        text = COMMANDS.split(f"## `{path}`\n")[1].split("\n## ")[0]
        for option in command.params:
            if isinstance(option, click.Option):
                assert any(name in text for name in option.opts), option.name


def test_every_variable_stands_in_the_reference_with_its_default() -> None:
    for variable in variables(RunSettings):
        default = {None: "required", "": "optional"}.get(variable.default, f"`{variable.default}`")
        names = f"`{variable.name}`, or `{variable.name}_FILE`" if variable.secret else f"`{variable.name}`"
        (row,) = re.findall(rf"^\| {names} \| [^|]*{re.escape(default)} \| .*", SETTINGS, re.MULTILINE)
        assert " to ".join(map(str, variable.bounds)) in row


def test_every_exit_code_is_in_the_reference() -> None:
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.exit_code for kind in classes if issubclass(kind, errors.MailroomError)}
    codes.discard(errors.MailroomError.exit_code)  # never raised itself
    assert codes == {64, 65, 69, 75, 78}
    for code in codes | {0, 1, 130}:
        assert f"| {code} |" in REFERENCE


def test_every_log_event_is_in_the_reference_and_no_other() -> None:
    events = set()
    signing = (ROOT / "src" / "mailroom" / "queue" / "lease.py").read_text()
    for path in (ROOT / "src" / "mailroom").rglob("*.py"):
        source = path.read_text()
        if re.search(r"import .*\bsign_claimed", source):
            source += signing  # it logs by its caller's logger
        for name in re.findall(r'^log = EventLogger\("(\w+)"\)', source, re.MULTILINE):
            events |= {
                f"{name}.{event}"
                for event in re.findall(r'(?:log\.\w+|self\._warn_once)\(\s*"(\w+)"', source)
            }
            for outage in re.findall(r"Outage\(log, (.*)\)", source):
                events |= {f"{name}.{event}" for event in re.findall(r"\w+", outage)}
    assert events
    assert events == set(re.findall(r"^\| `(\w+\.\w+)` \|", REFERENCE, re.MULTILINE))


def test_every_function_of_the_queue_is_in_the_reference() -> None:
    functions = {f"mailroom.{name}" for name in CALLED}
    functions |= set(re.findall(r"mailroom\.\w+", CONSUME + CONSUME_CODE)) | {"mailroom.send"}
    functions |= {f"mailroom.{name}" for name in re.findall(r"FROM mailroom\.(\w+)\(", ONCALL)}
    functions |= {f"mailroom.{name}" for name in re.findall(r"SELECT mailroom\.(\w+)\(", ONCALL)}
    functions |= set(re.findall(r"mailroom\.\w+", PULSE + PAUSE + RESUME + ADOPTED + ADOPTED_COUNT))
    functions.add("mailroom.last_tokens")  # for mailroom.contrib.django
    functions |= {"mailroom.suppressed", "mailroom.status_of"}  # for the application
    for_roles = "".join(
        re.findall(r"^## Called by `mailroom_\w+`\n.*?(?=^## )", SQL, re.DOTALL | re.MULTILINE)
    )
    assert functions == set(re.findall(r"^### `(mailroom\.\w+)`", for_roles, re.MULTILINE))


def test_links_lead_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"
