"""Security: what is fuzzed, compared, excused and logged."""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mailroom.logs import EventLogger
from mailroom.settings.transports import SmtpServer
from support import commands
from support.processes import KEY, PATIENCE_S
from support.secrets import Watch, leaks, secrets_of
from support.senders import AWS_SECRET, AWS_TOKEN

ROOT = Path(__file__).parents[2]
FUZZ_S = 5
ATHERIS = Path(sys.prefix) / "atheris"  # where `make fuzz` puts it, for this Python
TOKEN = "Ab-_" * 21 + "Ab"


@pytest.mark.slow
@pytest.mark.parametrize("target", ["line", "inbox"])
def test_no_bytes_break_a_parser(target: str, tmp_path: Path) -> None:
    path = os.pathsep.join(map(str, [ROOT / "tests", *[ATHERIS] * ATHERIS.is_dir()]))
    done = subprocess.run(
        [sys.executable, "-m", "fuzz", target, str(FUZZ_S)],
        capture_output=True,
        text=True,
        env=dict(os.environ) | {"PYTHONPATH": path, "TMPDIR": str(tmp_path)},
        timeout=PATIENCE_S,
    )
    assert 0 == done.returncode, done.stderr[-3000:]
    assert re.search("^driver=(atheris|random reason='atheris is not installed')", done.stdout)


def functions() -> dict[str, ast.FunctionDef]:
    tree = ast.parse((ROOT / "src" / "mailroom" / "tokens.py").read_text())
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_key_is_tried_in_constant_time() -> None:
    (loop,) = [node for node in ast.walk(functions()["_signed_by_any"]) if isinstance(node, ast.For)]
    (step,) = loop.body
    assert isinstance(step, ast.AugAssign)
    assert isinstance(step.op, ast.BitOr)  # not `or`, which would not compare after the first that fits
    assert isinstance(step.value, ast.Call)
    assert "hmac.compare_digest" == ast.unparse(step.value.func)
    assert "keys" == ast.unparse(loop.iter)
    forbidden = ast.BoolOp | ast.IfExp | ast.If | ast.Break | ast.Continue | ast.Return
    assert not [node for node in ast.walk(loop) if isinstance(node, forbidden)]


def test_signatures_are_compared_nowhere_else() -> None:
    every = functions()
    calls = [
        name
        for name, function in every.items()
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("compare_digest")
    ]
    assert ["_signed_by_any"] == calls
    compared = [
        ast.unparse(side)
        for function in every.values()
        for node in ast.walk(function)
        if isinstance(node, ast.Compare)
        for side in (node.left, *node.comparators)
    ]
    assert compared
    assert not [text for text in compared if re.search("signature|digest|hmac", text)]
    names = [node.id for node in ast.walk(every["verify"]) if isinstance(node, ast.Name)]
    assert 2 == names.count("_signed_by_any")
    assert 3 == names.count("signature")  # split's, and handed on twice


def test_an_excuse_from_a_security_rule_has_a_reason() -> None:
    excuses = [
        (path.name, line.strip())
        for path in (ROOT / "src").rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"#\s*noqa:[^#]*\bS\d{3}", line)
    ]
    assert excuses
    assert not [one for one in excuses if not re.search(r"noqa: [A-Z0-9, ]+ - \S+ ?\S+", one[1])]


LEAKS = [
    (KEY, "the secret key"),
    ("hunter2", "the database's password"),
    ("p@ss word", "the SMTP password"),
    ("p%40ss%20word", "the SMTP password"),
    (AWS_SECRET, "the AWS_SECRET_ACCESS_KEY"),
    (AWS_TOKEN, "the AWS_SESSION_TOKEN"),
    ("ada@example.com", "an address"),
    ('"ada l"@example.com', "an address"),
    ("code=12345", "a code"),
    ("('activation', '12345')", "a code"),
    ('{"code": "12345"}', "a code"),
    ("wrong 01234", "a code"),
    (TOKEN, "a signed token"),
]
ENCODINGS: dict[str, Callable[[bytes], str]] = {
    "hex": bytes.hex,
    "bytea": lambda raw: rf"\x{raw.hex()}",
    "repr": repr,
    "JSON": lambda raw: json.dumps(repr(raw)),
    "base64": lambda raw: base64.b64encode(raw).decode(),
    "base64url": lambda raw: base64.urlsafe_b64encode(raw).decode(),
    "base64url without padding": lambda raw: base64.urlsafe_b64encode(raw).decode().rstrip("="),
}
SECRETS = {
    "MAILROOM_SECRET_KEY": KEY,
    "MAILROOM_DATABASE_URL": "postgresql://ada:hunter2@localhost/mail",
    "MAILROOM_TRANSPORT": "smtp://ada:p%40ss%20word@mail.example",
    "AWS_SECRET_ACCESS_KEY": AWS_SECRET,
    "AWS_SESSION_TOKEN": AWS_TOKEN,
}
# What is no log, with all that a log must not hold, and a log of honest events.
PRINTED = f"ada@example.com  {TOKEN}  code 12345\n"
HONEST = f"""\
2026-01-02T03:04:05.012345Z info health.serving address=127.0.0.1:41234
2026-01-02T03:04:05.678Z info run.started worker=host-12345-{"ab" * 8}
2026-01-02T03:04:05.678Z info run.settled sent=10000 retried=20480 waited=12345.6s
2026-01-02T03:04:05.678Z warning run.rejected token=54321 reason="550 …@example.com: unknown, 5.1.1"
{{"time": "2026-01-02T03:04:05.678Z", "level": "warning", "event": "queue.lease_lost", "lease": 31337}}
2026-01-02T03:04:05.678Z warning ses.failed reason="{"0100" * 4}-{"ab" * 4}-{TOKEN[1:]} {TOKEN}x"
Error: cannot listen on 127.0.0.1:50505: /tmp/{"a_long_name_" * 4}/socket: code 98
"""


@pytest.mark.parametrize("into", ["communicate", "read", "lines", "mixed", "file", "mixed file", "inherited"])
def test_what_a_process_logs_is_watched(into: str, tmp_path: Path, no_secret_in_logs: Watch) -> None:
    script = f"import sys; 'mailroom'; sys.stdout.write({PRINTED!r}); sys.stdout.flush()"
    script += "; sys.stderr.write('Error: ada@example.com\\n')"
    command, quiet = [sys.executable, "-c", script], subprocess.DEVNULL
    name = "stderr"
    if into == "communicate":
        subprocess.run(command, capture_output=True, check=True)
    elif into in ("read", "lines"):
        with subprocess.Popen(command, stdout=quiet, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr
            assert ["Error: ada@example.com\n"] == (
                list(process.stderr) if into == "lines" else [process.stderr.read()]
            )
    elif into == "mixed":
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            assert process.stdout
            assert process.stdout.read().startswith(PRINTED.encode())
    elif into == "inherited":
        subprocess.run(command, check=True, stdout=quiet)
        name = "an inherited stderr"
    else:
        name = "log"
        with (tmp_path / name).open("wb") as log:
            subprocess.run(command, stdout=log if into == "mixed file" else quiet, stderr=log, check=True)
        (tmp_path / name).unlink()
    assert [f"{name} holds an address"] == no_secret_in_logs.end()


def test_what_a_command_in_this_process_logs_is_watched(no_secret_in_logs: Watch) -> None:
    assert 64 == commands.run("nonsense", env={"MAILROOM_SECRET_KEY": KEY}).returncode
    assert [] == no_secret_in_logs.end()
    refused = commands.run("collector", env={"MAILROOM_SECRET_KEY": f"{KEY},nonsense"})
    assert (78, "") == (refused.returncode, refused.stdout)
    assert [] == no_secret_in_logs.end()
    commands.run(TOKEN, env={})
    assert ["stderr holds a signed token"] == no_secret_in_logs.end()


@pytest.mark.parametrize("other", [False, True])
def test_an_address_that_was_an_argument_may_be_shown(other: bool, no_secret_in_logs: Watch) -> None:
    script = "import sys; 'mailroom'; sys.stderr.write(f'Error: no {sys.argv[1]}')"
    script += other * "; sys.stderr.write(' bob@example.com')"
    subprocess.run([sys.executable, "-c", script, "ada@example.com"], capture_output=True, check=True)
    assert other * ["stderr holds an address"] == no_secret_in_logs.end()


@pytest.mark.parametrize("level", ["debug", "error"])
def test_what_this_process_logs_is_watched(level: str, no_secret_in_logs: Watch) -> None:
    getattr(EventLogger("test"), level)("happened", code="12345")
    assert ["an event holds a code"] == no_secret_in_logs.end()


def test_a_key_of_this_process_is_watched(no_secret_in_logs: Watch) -> None:
    SmtpServer("mail.example", 25, "ada", "hunter2", tls=False, require_tls=False)
    for secret in (KEY, AWS_SECRET, AWS_TOKEN, "hunter2"):
        EventLogger("test").info("happened", reason=f"no {secret}")
        assert 1 == len(no_secret_in_logs.end())


@pytest.mark.parametrize(("leak", "what"), LEAKS)
def test_every_leak_is_found(leak: str, what: str) -> None:
    assert [what] == leaks(f"{HONEST}2026-01-02T03:04:05Z info a.b c=1 d={leak}\n", secrets_of(SECRETS))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("is_signed", [False, True])
def test_a_secret_is_found_however_it_is_written(encoding: str, is_signed: bool) -> None:
    for number in range(200):
        secret = hashlib.sha256(b"%d" % number).digest()
        shown = ENCODINGS[encoding](secret + is_signed * hashlib.sha256(secret).digest())
        for text in (f"secret={shown}", f"Claimed(7, {shown}, 'ada')"):
            found = leaks(f"2026-01-02T03:04:05Z info a.b {text}\n", {})
            assert {"a secret", "a signed token"} & set(found)


def test_a_secret_in_a_file_is_known(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    assert {KEY: "the secret key"} == secrets_of({"MAILROOM_SECRET_KEY_FILE": str(tmp_path / "key")})


def test_what_is_honest_passes() -> None:
    assert [] == leaks(HONEST, secrets_of(SECRETS))
