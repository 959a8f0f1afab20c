"""The documentation tells the truth: commands run, and names are complete."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import psycopg
import pytest

from conftest import bindir
from mailroom import errors
from mailroom.cli import cli
from mailroom.consumption import CONSUME
from mailroom.demo.postgres import embedded_binaries
from mailroom.queue import NEEDED
from mailroom.settings import COLLECTOR_VARIABLES
from mailroom.wire import decode

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
REFERENCE = (ROOT / "docs" / "reference.md").read_text()


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


def test_the_commands_for_ones_own_database_work(database: str, tmp_path: Path) -> None:
    script = block(README, "sh", "pip install").replace("pip install .\n", "")
    address = "postgresql://postgres@127.0.0.1/app"
    assert address in script
    programs = [str(Path(sys.executable).parent), str(bindir() or embedded_binaries()), os.environ["PATH"]]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            ["/bin/sh", "-e", "-c", script.replace(address, f"'{database}'")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=os.environ | {"PATH": ":".join(programs)},
            start_new_session=True,
        )
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if b"zoe@example.com" in line:
                break
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
        assert process.stdout is not None
        process.stdout.close()
    assert [b"nothing to apply: the schema is up to date\n", b"INSERT 0 1\n"] == lines[:-1]
    (message,) = decode(lines[-1])
    assert ("activation", "zoe@example.com", "zoe") == message[:3]


def test_the_two_commands_at_the_top_exist() -> None:
    first = block(README, "sh", "git clone")
    targets = re.findall(r"^make (\w+)", first, re.MULTILINE)
    assert ["demo", "test"] == targets
    makefile = (ROOT / "Makefile").read_text()
    for target in [*targets, "bench", "check", "help"]:
        assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE)


@pytest.mark.parametrize("document", ["README.md", "docs/reference.md"])
def test_the_sql_in_the_documentation_runs(database: str, document: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("INSERT INTO accounts (email, login, status) VALUES ('a@b', 'a', 'active')")
        for script in re.findall(r"```sql\n(.*?)```", (ROOT / document).read_text(), re.DOTALL):
            for statement in filter(None, map(str.strip, script.split(";"))):
                connection.execute(statement.encode())


def test_every_command_is_in_the_reference() -> None:
    known = commands(cli, "mailroom")
    assert known
    for path, command in known:
        assert f"`{path}" in REFERENCE, path
        assert command.help
        for option in command.params:
            if isinstance(option, click.Option):
                assert any(name in REFERENCE for name in option.opts), option.name


def test_every_variable_stands_in_the_reference_with_its_default() -> None:
    for variable in COLLECTOR_VARIABLES:
        default = "required" if variable.default is None else f"`{variable.default}`"
        assert f"| `{variable.name}` | {default} |" in REFERENCE
        assert not variable.secret or f"`{variable.name}_FILE`" in REFERENCE


def test_every_exit_code_is_in_the_reference() -> None:
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.exit_code for kind in classes if issubclass(kind, errors.MailroomError)}
    codes.discard(errors.MailroomError.exit_code)  # never raised itself
    assert codes == {65, 69, 75, 78}
    for code in codes | {0, 64, 130}:
        assert f"| {code} |" in REFERENCE


def test_every_log_event_is_in_the_reference_and_no_other() -> None:
    events = set()
    for path in (ROOT / "src" / "mailroom").glob("*.py"):
        source = path.read_text()
        for name in re.findall(r'^log = EventLogger\("(\w+)"\)', source, re.MULTILINE):
            events |= {f"{name}.{event}" for event in re.findall(r'log\.\w+\(\s*"(\w+)"', source)}
            for outage in re.findall(r"Outage\(log, (.*)\)", source):
                events |= {f"{name}.{event}" for event in re.findall(r"\w+", outage)}
    assert events
    assert events == set(re.findall(r"^\| `(\w+\.\w+)` \|", REFERENCE, re.MULTILINE)) - {"mailroom.collector"}


def test_every_function_of_the_queue_is_in_the_reference() -> None:
    functions = {name.split("(")[0] for name in NEEDED} | set(re.findall(r"mailroom\.\w+", CONSUME))
    assert functions - {"mailroom.ring"} == set(
        re.findall(r"^\| `(mailroom\.\w+)\(", REFERENCE, re.MULTILINE)
    )


def test_links_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"
