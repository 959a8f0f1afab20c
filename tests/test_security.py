"""Security: what is fuzzed, compared, excused and logged."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.processes import KEY, PATIENCE_S, environment
from support.secrets import Watch, leaks

ROOT = Path(__file__).parent.parent
FUZZ_S = 5
ATHERIS = ROOT / ".venv" / "atheris"  # where `make fuzz` puts it
TOKEN = "Ab-_" * 21 + "Ab"


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


@pytest.mark.parametrize(
    ("leak", "what"),
    [(KEY, "the secret key"), ("hunter2", "the database's password"), (TOKEN, "a signed token")],
)
@pytest.mark.parametrize("into", ["file", "pipe"])
def test_a_secret_on_stderr_is_caught(
    leak: str, what: str, into: str, tmp_path: Path, no_secret_in_logs: Watch
) -> None:
    variables = environment("postgresql://ada:hunter2@localhost/mail")
    command = [sys.executable, "-c", f"import sys; 'mailroom'; sys.stderr.write('reason={leak}')"]
    if into == "pipe":
        subprocess.run(command, env=variables, capture_output=True, check=True)
    else:
        with (tmp_path / "log").open("wb") as log:
            subprocess.run(command, env=variables, stderr=log, check=True)
    assert [f"{'stderr' if into == 'pipe' else 'log'} holds {what}"] == no_secret_in_logs.end()


def test_what_is_no_secret_passes() -> None:
    assert [] == leaks(f"batch count=1 {TOKEN}x {TOKEN[1:]}", {KEY: "the secret key"})
