"""The command line: help, exit codes, errors with remedies, tokens and keys from a shell."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from mailroom.cli.main import SUMMARIES, cli
from mailroom.settings import misspelt
from mailroom.settings.collector import CollectorSettings
from mailroom.settings.variables import variables
from mailroom.tokens import sign
from support import commands

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "reference.json").read_text())
KEY: str = VECTORS["secret_key"]
ACTIVATION, RECOVERY = VECTORS["rows"][0], VECTORS["rows"][6]


def run(*arguments: str, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    return commands.run(
        *arguments, env={f"MAILROOM_{name}": value for name, value in variables.items()}, stdin=stdin
    )


def paths(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    children = command.commands if isinstance(command, click.Group) else {}
    return [path, *(below for name, child in children.items() for below in paths(child, (*path, name)))]


@pytest.mark.parametrize("path", paths(cli), ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    done = run(*path, "--help")
    assert (0, "") == (done.returncode, done.stderr)
    assert done.stdout.startswith(f"Usage: mailroom {' '.join(path)}".rstrip())
    assert "\x1b" not in done.stdout


def test_the_list_of_commands_says_what_each_says() -> None:
    assert SUMMARIES == {name: command.get_short_help_str(1000) for name, command in cli.commands.items()}


def test_the_collectors_help_lists_every_setting() -> None:
    text = run("collector", "--help").stdout
    for variable in variables(CollectorSettings):
        assert f"{variable.name}  (" in text
        assert variable.default is None or f"(default {variable.default})" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("collector", "--nonsense"),
        ("migrate", "up", "-1"),
        ("migrate", "up", "x"),
        ("token", "verify"),
    ],
)
def test_wrong_usage_exits_with_64(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert (64, "") == (done.returncode, done.stdout)
    assert "Usage:" in done.stderr


@pytest.mark.parametrize("arguments", [("collector",), ("migrate", "status"), ("migrate", "up")])
def test_a_faulty_environment_exits_with_78_and_a_remedy(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert (78, "") == (done.returncode, done.stdout)
    assert done.stderr.startswith("Error: the environment is not usable:\n  MAILROOM_DATABASE_URL: not set")
    assert "\nTry: " in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"LOG_FORMAT": "xml"}, "MAILROOM_LOG_FORMAT: 'xml' is not one of"),
        ({"LOG_LEVEL": "loud"}, "MAILROOM_LOG_LEVEL: 'loud' is not one of"),
    ],
)
def test_a_log_variable_is_a_variable_and_a_log_option_an_option(
    variables: dict[str, str], told: str
) -> None:
    done = run("key", "new", **variables)
    assert (78, "") == (done.returncode, done.stdout)
    assert done.stderr.startswith(f"Error: the environment is not usable:\n  {told}")
    assert "\nTry: " in done.stderr
    ((name, value),) = variables.items()
    done = run(f"--{name.lower().replace('_', '-')}", value, "key", "new")
    assert (64, "") == (done.returncode, done.stdout)


@pytest.mark.parametrize("key", ["", "ab", "ab" * 31])
def test_a_key_that_is_missing_or_too_short_is_reported_with_how_to_make_one(key: str) -> None:
    variables = {"DATABASE_URL": "dbname=a"} | ({"SECRET_KEY": key} if key else {})
    for arguments in (("collector",), ("run",), ("token", "verify", "x", "--action", "activation")):
        done = run(*arguments, **variables)
        assert 78 == done.returncode
        assert "`mailroom key new`" in done.stderr.split("Try: ")[1]


@pytest.mark.parametrize("command", ["collector", "run", "sender"])
def test_a_variable_that_no_command_reads_is_reported_once_without_its_value(command: str) -> None:
    done = run(
        command, BATCH_LIMTI="sesame", TEST_X="1", SERVICE_HOST="10.0.0.1", TRANSPORT_FILE="", SEND_RATE="x",
        DATABASE_URL="dbname=a",
    )  # fmt: skip
    (told,) = [line for line in done.stderr.splitlines() if "settings.unknown" in line]
    assert told.endswith(
        " warning settings.unknown name=MAILROOM_BATCH_LIMTI did_you_mean=MAILROOM_BATCH_LIMIT"
    )
    assert "sesame" not in done.stderr


def test_every_variable_that_a_command_reads_is_known() -> None:
    read = set()
    for path in paths(cli):
        read |= set(re.findall(r"MAILROOM_[A-Z_]+[A-Z]\b", run(*path, "--help").stdout))
    assert read - {"MAILROOM_TEST"} <= misspelt.known()
    assert {
        str(option.envvar) for option in cli.params if isinstance(option, click.Option) and option.envvar
    } == set(misspelt.LOG_VARIABLES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "is_coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
@pytest.mark.parametrize("arguments", [["doctor"], ["migrate", "status"]], ids=" ".join)
def test_there_is_no_colour_where_none_is_wanted(
    arguments: list[str], variables: dict[str, str], is_coloured: bool
) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAILROOM_")}
    kept.pop("NO_COLOR", None)
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mailroom",
            *arguments,
            *(["--only", "database"] if arguments == ["doctor"] else []),
        ],
        env=kept | {"TERM": "xterm"} | variables,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    ):
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # how a terminal ends
            while part := os.read(ours, 4096):
                seen += part
    os.close(ours)
    assert b"MAILROOM_DATABASE_URL" in seen
    assert is_coloured == (b"\x1b[" in seen)


def test_a_new_key_is_fresh_and_good() -> None:
    first, second = run("key", "new"), run("key", "new")
    assert re.fullmatch("[0-9a-f]{64}\n", first.stdout)
    assert first.stdout != second.stdout
    refused = run("token", "verify", "x", "--action", "activation", SECRET_KEY=first.stdout.strip())
    assert (65, True) == (refused.returncode, "a token has 86 characters" in refused.stderr)


@pytest.mark.parametrize("row", [ACTIVATION, RECOVERY], ids=["activation", "password_recovery"])
def test_a_genuine_token_exits_with_0(row: dict[str, str]) -> None:
    arguments = ("token", "verify", row["token"], "--action", row["action"], "--code", row["code"])
    done = run(*arguments, SECRET_KEY=KEY)
    assert (0, f"genuine, for {row['action']}\n", "") == (done.returncode, done.stdout, done.stderr)
    done = run(*arguments, "--json", SECRET_KEY=KEY)
    assert {"valid": True, "action": row["action"]} == json.loads(done.stdout)


@pytest.mark.parametrize(
    ("token", "action", "code", "reason"),
    [
        (ACTIVATION["token"][1:], "activation", None, "malformed"),
        ("B" + ACTIVATION["token"][1:], "activation", None, "forged"),
        (ACTIVATION["token"], "password_recovery", "12345", "wrong action"),
        (RECOVERY["token"], "activation", RECOVERY["code"], "wrong action"),
        (RECOVERY["token"], "password_recovery", "00000", "forged"),
        (RECOVERY["token"], "password_recovery", "0", "malformed"),
    ],
)
def test_a_token_that_is_not_exits_with_65_and_the_reason(
    token: str, action: str, code: str | None, reason: str
) -> None:
    arguments = ["token", "verify", token, "--action", action, *(["--code", code] if code else [])]
    done = run(*arguments, SECRET_KEY=KEY)
    assert (65, "") == (done.returncode, done.stdout)
    assert done.stderr.startswith(f"Error: {reason}: ")
    for secret in (KEY, token, ACTIVATION["code"], RECOVERY["code"]):
        assert secret not in done.stderr
    report = run(*arguments, "--json", SECRET_KEY=KEY)
    assert (65, {"valid": False, "action": action, "reason": reason}) == (
        report.returncode,
        json.loads(report.stdout),
    )


@pytest.mark.parametrize("first", [b"\xf8", b"\xfb\xe0"], ids=["one dash", "two dashes"])
def test_a_token_may_begin_with_dashes(first: bytes) -> None:
    token = sign(first.ljust(32, b"\x07"), "activation", keys=KEY)
    assert token.startswith("-" * len(first))
    done = run("token", "verify", token, "--action", "activation", SECRET_KEY=KEY)
    assert (0, "genuine, for activation\n") == (done.returncode, done.stdout), done.stderr
    misspelt = run("token", "verify", token, "--acton", "activation", SECRET_KEY=KEY)
    assert 64 == misspelt.returncode


@pytest.mark.parametrize("stranger", ["-h", "--help", "-xhy", "--json", "--action=x", "--"])
def test_no_word_of_a_stranger_passes_for_a_genuine_token(stranger: str) -> None:
    for arguments in ([stranger, "--action", "activation"], ["--action", "activation", stranger]):
        done = run("token", "verify", *arguments, SECRET_KEY=KEY)
        assert done.returncode in {64, 65}, done.stdout
        assert "" == done.stdout


@pytest.mark.parametrize(
    ("command", "code"),
    [("why", 65), ("forget --yes", 0), ("suppressions add --reason x", 0), ("suppressions show", 65)],
)
def test_no_address_that_begins_with_a_dash_asks_for_help(command: str, code: int, database: str) -> None:
    done = run(*command.split(), "-h@example.com", DATABASE_URL=database)
    assert "Usage" not in done.stdout + done.stderr
    assert code == done.returncode


def test_a_token_can_come_from_standard_input() -> None:
    done = run(
        "token", "verify", "-", "--action", "activation", stdin=ACTIVATION["token"] + "\n", SECRET_KEY=KEY
    )
    assert 0 == done.returncode


def test_a_recovery_token_takes_a_code() -> None:
    done = run("token", "verify", RECOVERY["token"], "--action", "password_recovery", SECRET_KEY=KEY)
    assert (64, True) == (done.returncode, "--code" in done.stderr)


def test_init_writes_files_that_can_be_used_and_overwrites_none(tmp_path: Path) -> None:
    done = run("init", str(tmp_path / "mine"))
    settings = tmp_path / "mine" / "mailroom.env"
    written = {str(path) for path in (tmp_path / "mine").rglob("*") if path.is_file()}
    assert written == set(done.stdout.splitlines()) > {str(settings)}
    assert 0o600 == settings.stat().st_mode & 0o777
    script = (
        'set -a; . ./mailroom.env; set +a; "$0" -m mailroom templates check'
        ' && exec "$0" -c "import os; from mailroom.settings.worker import RunSettings;'
        ' from mailroom.settings.variables import read_settings; read_settings(RunSettings, os.environ)"'
    )
    used = subprocess.run(
        ["sh", "-ec", script, sys.executable],
        cwd=settings.parent,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (0, "") == (used.returncode, used.stderr)
    before = settings.read_bytes()
    again = run("init", str(tmp_path / "mine"))
    assert (78, "", True) == (again.returncode, again.stdout, "exists already" in again.stderr)
    assert before == settings.read_bytes()
    assert 0 == run("init", str(tmp_path / "other")).returncode
    assert before != (tmp_path / "other" / "mailroom.env").read_bytes()


@pytest.mark.parametrize(
    ("words", "completed"), [("mailroom mig", "migrate"), ("mailroom why zoe --help --js", "--json")]
)
def test_bash_completes_a_word(words: str, completed: str) -> None:
    script = (
        f'eval "$(_MAILROOM_COMPLETE=bash_source mailroom)"; COMP_WORDS=({words});'
        " COMP_CWORD=$((${#COMP_WORDS[@]} - 1));"
        ' _mailroom_completion mailroom; echo "${COMPREPLY[@]}"'
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], env={"PATH": path}, capture_output=True, text=True, check=False
    )
    assert (f"{completed}\n", "") == (done.stdout, done.stderr)


def test_logs_can_be_json(tmp_path: Path) -> None:
    done = run(
        "--log-format", "json", "collector",
        DATABASE_URL="postgresql://127.0.0.1:1/nowhere?sslmode=perhaps", SECRET_KEY=KEY,
    )  # fmt: skip
    assert 78 == done.returncode
    assert "sslmode" in done.stderr


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("key", "new"), ("migrate", "--help")])
def test_a_full_disk_behind_standard_output_is_reported(arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mailroom", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (69, "Error: cannot write to standard output: No space left on device\n") == (
        done.returncode,
        done.stderr,
    )


def test_a_reader_that_leaves_is_no_news() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "mailroom", "--help"],
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (69, "") == (done.returncode, done.stderr)


def test_verifying_from_a_closed_input_is_refused() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -m mailroom token verify - --action activation <&-', sys.executable],
        env=os.environ | {"MAILROOM_SECRET_KEY": KEY},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (65, False) == (done.returncode, "Traceback" in done.stderr)
