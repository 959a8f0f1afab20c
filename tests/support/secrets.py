"""Watches what the tests' ``mailroom`` processes write to stderr, which is where logs go: no secret may.

Every ``subprocess.Popen`` passes here, and so does ``subprocess.run``. What is written into a file is
read when the test is over, what ``communicate`` reads when it does. A pipe that a test reads by itself
is not seen.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

SIGNED: Final = re.compile(r"(?<![A-Za-z0-9_-])[A-Za-z0-9_-]{86}(?![A-Za-z0-9_-])")
SHORTEST: Final = 6


def secrets_of(variables: Mapping[str, str]) -> dict[str, str]:
    """The secrets in a process's environment, with what each is; those too short to tell are left out."""
    found = {
        key.strip(): "the secret key" for key in variables.get("MAILROOM_SECRET_KEY", "").split(",") if key
    }
    try:
        address = conninfo_to_dict(variables.get("MAILROOM_DATABASE_URL", ""))
    except psycopg.Error:
        address = {}
    password = str(address.get("password") or "")
    if password not in (address.get("user"), address.get("dbname")):
        found[password] = "the database's password"
    return {secret: what for secret, what in found.items() if len(secret) >= SHORTEST}


def leaks(text: str, secrets: Mapping[str, str]) -> list[str]:
    """What a text holds that it must not; never the secret itself."""
    found = [what for secret, what in secrets.items() if secret in text]
    return found + (["a signed token"] if SIGNED.search(text) else [])


class Watch:
    """Once ``begin`` was called, ``end`` gives back what leaked since."""

    def __init__(self) -> None:
        self._logs: list[tuple[Path, dict[str, str]]] = []
        self._found: list[str] = []

    def begin(self, patch: pytest.MonkeyPatch) -> None:
        start, communicate, watch = subprocess.Popen.__init__, subprocess.Popen.communicate, self

        def started(process: Any, args: Any, *rest: Any, **options: Any) -> None:
            words = [args] if isinstance(args, str | bytes | os.PathLike) else args
            process.of_mailroom = any("mailroom" in str(word) for word in words)
            process.secrets = secrets_of(options.get("env") or os.environ)
            name = getattr(options.get("stderr"), "name", None)
            if process.of_mailroom and isinstance(name, str):
                watch._logs.append((Path(name).absolute(), process.secrets))
            start(process, args, *rest, **options)

        def communicated(process: Any, *rest: Any, **options: Any) -> Any:
            told = communicate(process, *rest, **options)
            if process.of_mailroom and (stderr := told[1]):
                text = stderr if isinstance(stderr, str) else stderr.decode(errors="replace")
                watch._found += [f"stderr holds {what}" for what in leaks(text, process.secrets)]
            return told

        patch.setattr(subprocess.Popen, "__init__", started)
        patch.setattr(subprocess.Popen, "communicate", communicated)

    def end(self) -> list[str]:
        for path, secrets in self._logs:
            if path.is_file():
                text = path.read_text(errors="replace")
                self._found += [f"{path.name} holds {what}" for what in leaks(text, secrets)]
        found, self._found, self._logs = self._found, [], []
        return found
