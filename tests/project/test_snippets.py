"""The snippets of docs/verify-elsewhere.md judge tokens as ``mailroom.verify`` does."""

from __future__ import annotations

import base64
import hmac
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

import mailroom
from mailroom.actions import Action
from mailroom.tokens import new_key, parse_keys, sign
from support.queue_sql import Db

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "verify-elsewhere.md").read_text()
REFERENCE = json.loads((ROOT / "tests" / "vectors" / "reference.json").read_text())
KEYS = f"{new_key()}, {REFERENCE['secret_key']},{new_key()}"
# Actions of one's own, beside the two that the snippets name.
PAIRING = Action("pairing", 42, b"/pair", needs_code=True)
OPENING = Action("opening", 43, b"/open")
ACTIONS: dict[str, Action | str] = {
    "activation": "activation",
    "password_recovery": "password_recovery",
    "pairing": PAIRING,
    "opening": OPENING,
}


class Case(NamedTuple):
    token: str
    action: str
    code: str


def cases() -> list[Case]:
    """Genuine ones, and each way of being none."""
    found = []
    for row in REFERENCE["rows"]:
        code = row["code"] if row["action"] == "password_recovery" else ""
        found.append(Case(row["token"], row["action"], code))
    secret = bytes(range(224, 256))  # every character of base64url's own
    for key in (*KEYS.split(","), new_key()):
        for action, code in zip(ACTIONS, ("", "01234", "98765", ""), strict=True):
            found.append(Case(sign(secret, ACTIONS[action], keys=key.strip(), code=code), action, code))
    activation = next(case for case in found if case.action == "activation")
    recovery = next(case for case in found if case.action == "password_recovery")
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for case in (activation, recovery):
        token = case.token
        other = last[last.index(token[-1]) ^ 1]  # bits that encoding leaves zero
        changes = [f"{token[:-1]}{other}", token[:-1], f"{token}=", f"{token}==", f"{token}A", f"{token}\n"]
        changes += [f" {token}", token.replace("-", "+").replace("_", "/"), "", "A" * 86]
        changes += [f"{token[:40]}é{token[41:]}", f"{token[:40]}\n{token[40:]}"]
        changes += [f"{token[:at]}{'B' if token[at] == 'A' else 'A'}{token[at + 1 :]}" for at in (0, 50)]
        for changed in changes:
            found.append(case._replace(token=changed))
    found.append(activation._replace(action="password_recovery", code="12345"))
    found.append(recovery._replace(action="activation", code=""))
    found.append(recovery._replace(action="pairing"))
    found.append(activation._replace(action="opening"))
    for code in ("", "00000", "1234", "123456", "12a45", f"{recovery.code}\n", "١٢٣٤٥"):
        found.append(recovery._replace(code=code))
    return found


CASES = cases()


def expected(case: Case) -> str:
    try:
        return mailroom.verify(case.token, ACTIONS[case.action], keys=KEYS, code=case.code or None).hex()
    except mailroom.TokenError:
        return "-"


EXPECTED = [expected(case) for case in CASES]


# Each would let somebody sign, or is a slip that nobody should find out by links that do not work.
NO_KEYS = ("", f"{new_key()},", new_key()[:62], "z" * 64)


def signed_with(key: bytes) -> str:
    """An activation's token, signed with an empty key."""
    secret = bytes(range(32))
    signature = hmac.digest(key, b"/activate" + secret, "sha256")
    return base64.urlsafe_b64encode(secret + signature).rstrip(b"=").decode()


def snippet(language: str) -> str:
    """With a line for each action of one's own, as the page says."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)
    (line,) = re.findall(r"^.*password_recovery.*/recover.*$", found, re.MULTILINE)
    pairing = f"{line.removesuffix(',')},".replace("password_recovery", "pairing").replace(
        "/recover", "/pair"
    )
    opening = pairing.replace("pairing", "opening").replace("/pair", "/open").replace("true", "false")
    return str(found).replace(line, "\n".join([pairing, opening, line]))


def judged(
    command: list[str], folder: Path, cases: list[Case] = CASES, keys: str = KEYS
) -> subprocess.CompletedProcess[str]:
    """A program prints for each case: the secret, or a dash."""
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"MAILROOM_SECRET_KEY": keys, "GOFLAGS": "-mod=mod", "GO111MODULE": "off"},
        input=json.dumps([case._asdict() for case in cases]),
        capture_output=True,
        text=True,
        check=False,
    )


DRIVERS = {
    "js": ("node", "verify.js", """
for (const one of JSON.parse(require("node:fs").readFileSync(0, "utf8"))) {
  const secret = verify(one.token, one.action, one.code);
  console.log(secret ? secret.toString("hex") : "-");
}
"""),
    "go": ("go", "verify.go", ""),
    "ruby": ("ruby", "verify.rb", """
require "json"
JSON.parse($stdin.read.force_encoding("UTF-8")).each do |one|
  secret = verify(one["token"], one["action"], one["code"])
  puts secret ? secret.unpack1("H*") : "-"
end
"""),
    "php": ("php", "verify.php", """
foreach (json_decode(stream_get_contents(STDIN), true) as $one) {
    $secret = verify($one['token'], $one['action'], $one['code']);
    echo $secret === null ? '-' : bin2hex($secret), "\\n";
}
"""),
}  # fmt: skip
GO_MAIN = """
package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
)

func main() {
	var cases []struct{ Token, Action, Code string }
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	for _, one := range cases {
		if secret := verify(one.Token, one.Action, one.Code); secret != nil {
			fmt.Println(hex.EncodeToString(secret))
		} else {
			fmt.Println("-")
		}
	}
}
"""


def test_there_are_cases_of_both_kinds() -> None:
    assert 30 < EXPECTED.count("-")
    genuine = {case.action for case, ours in zip(CASES, EXPECTED, strict=True) if ours != "-"}
    assert set(ACTIONS) == genuine
    assert len(REFERENCE["rows"]) + 12 <= len(EXPECTED) - EXPECTED.count("-")


@pytest.mark.slow
@pytest.mark.parametrize("language", list(DRIVERS))
def test_another_language_judges_as_we_do(language: str, tmp_path: Path) -> None:
    program, name, driver = DRIVERS[language]
    if not shutil.which(program):
        pytest.skip(f"there is no {program}")
    (tmp_path / name).write_text(snippet(language) + driver)
    command = [program, name]
    if language == "go":
        (tmp_path / "main.go").write_text(GO_MAIN)
        command = [program, "run", "main.go", name]
    done = judged(command, tmp_path)
    assert (0, "") == (done.returncode, done.stderr)
    found = done.stdout.split()
    assert len(CASES) == len(found)
    for case, ours, theirs in zip(CASES, EXPECTED, found, strict=True):
        assert ours == theirs, case

    for keys in NO_KEYS:
        forged = Case(signed_with(b""), "activation", "")
        done = judged(command, tmp_path, [forged], keys)
        told = done.stderr + done.stdout  # Ruby splits an empty text into no keys, of which none fits
        assert "MAILROOM_SECRET_KEY holds no key" in told or (keys, "-\n") == ("", told)


def test_sql_takes_no_key_that_is_too_short(db: Db) -> None:
    db.execute(snippet("postgresql").encode())
    for key in (b"", b"k" * 31):
        row = db.execute(
            "SELECT verify_token(%s, 'activation', '', %s)", [signed_with(key), [key, b"k" * 32]]
        ).fetchone()
        assert (None,) == row


def test_sql_judges_as_we_do(db: Db) -> None:
    db.execute(snippet("postgresql").encode())
    for key in (bytes(range(64)), bytes(range(200)), b"k" * 32):  # a long one is hashed first
        row = db.execute("SELECT hmac_sha256(%s, %s)", [b"message", key]).fetchone()
        assert (hmac.digest(key, b"message", "sha256"),) == row
    for case, ours in zip(CASES, EXPECTED, strict=True):
        row = db.execute("SELECT verify_token(%s, %s, %s, %s)", [*case, list(parse_keys(KEYS))]).fetchone()
        assert row
        assert ours == (row[0].hex() if row[0] else "-"), case


def test_the_statements_that_consume_are_right(db: Db) -> None:
    texts = re.findall(r"^```sql\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    statements = [each for text in texts for each in text.split(";") if each.strip()]
    assert ["unknown"] * 3 == [db.execute(each.encode()).fetchall()[0][0] for each in statements]


def test_every_snippet_is_run() -> None:
    languages = set(re.findall(r"^```(\w+)$", DOCUMENT, re.MULTILINE))
    assert {*DRIVERS, "postgresql", "sql"} == languages
