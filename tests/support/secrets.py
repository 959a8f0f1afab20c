"""Watches what the tests' ``mailroom`` logs: no secret may be in it, and no whole address.

Seen: the stderr of every ``mailroom`` that a test starts, in a file, in a pipe (however it is read) or
inherited, that of every command that ``support.commands`` runs, and every event of this process, whatever its
level. Where stdout is in it too, only lines that look like a log's count: what a command prints for a
person is no log. An address that the command was given as an argument may be in it.

Not seen: what a pipe still held when nobody read on, a stderr that is a bare descriptor (the demo's
terminal), what the demo's programs write into files of theirs, a code that is neither in quotes nor
behind the word "code" and has no zero in front, and half a secret.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import unquote, urlsplit

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from mailroom.logs import EventLogger, _TextFormatter
from mailroom.settings.transports import SmtpServer
from support import commands
from support.processes import KEY
from support.senders import AWS_SECRET, AWS_TOKEN

ROOT: Final = str(Path(__file__).parents[2])  # may have mailroom in its name
SHORTEST: Final = 6
EXAMPLE: Final = "user:password@host"  # as the settings' own descriptions have it
INHERITED: Final = "an inherited stderr"
OURS: Final = {
    "MAILROOM_SECRET_KEY": KEY,
    "AWS_SECRET_ACCESS_KEY": AWS_SECRET,
    "AWS_SESSION_TOKEN": AWS_TOKEN,
}

# What follows an event, an error or a traceback and is indented belongs to it.
_LOGGED: Final = re.compile(
    r"""^(?:\S+Z\ (?:debug|info|warning|error)\ |\{"time":|Error:|Try:).*(?:\n[ ].*)*
      | ^Traceback\ .*(?:\n[ ].*)*(?:\n.*)?""",
    re.MULTILINE | re.VERBOSE,
)


def _alone(digits: str, *shapes: str) -> re.Pattern[str]:
    """These shapes, with no more of the digits on either side."""
    return re.compile(f"(?<![{digits}])(?:{'|'.join(shapes)})(?![{digits}])")


def _as_bytes(slash: str) -> re.Pattern[str]:
    """What Python shows of bytes, as many as a secret has."""
    byte = rf"""(?>{slash}(?:x[0-9a-f]{{2}}|{slash}|[^x\\\n])|\\"|[^\\\n])"""
    return re.compile(rf"""b\\?(["'])(?=[^\n]{{0,255}}\\x)(?:{byte}{{32}}){{1,2}}\\?\1""")


# A secret has 32 bytes, with its signature 64.
_SHAPES: Final = {
    # A masked one has an ellipsis before the @.
    "an address": [re.compile(r"[^\s@…<>(),;:='/]@[\w\[]")],
    # In quotes, behind the word, or with a zero in front, which no count, port or number has.
    "a code": [
        re.compile(r"""(?<!port: )(["'])[0-9]{5}\\?\1"""),
        re.compile(r"""(?i:(?<![a-z])codes?)[^\w\n]{1,4}[0-9]{5}(?!\w)"""),
        re.compile(r"(?<![\w.,:+-])0[0-9]{4}(?![\w:.-])"),
    ],
    "a secret": [
        _alone("0-9A-Fa-f", "[0-9A-Fa-f]{64}", "[0-9A-Fa-f]{128}"),
        # Random ones have capitals, small letters and digits: a name has not all of them.
        _alone("A-Za-z0-9+/", r"(?=\S{0,42}[A-Z])(?=\S{0,42}[a-z])(?=\S{0,42}[0-9])[A-Za-z0-9+/]{43}="),
        _alone("A-Za-z0-9+/", "[A-Za-z0-9+/]{86}=="),
        _alone("A-Za-z0-9_-", r"(?=\S{0,42}[A-Z])(?=\S{0,42}[a-z])(?=\S{0,42}[0-9])[A-Za-z0-9_-]{43}"),
        *map(_as_bytes, (r"\\", r"\\\\")),  # as it is, and within JSON
    ],
    "a signed token": [_alone("A-Za-z0-9_-", "[A-Za-z0-9_-]{86}")],
}


def secrets_of(variables: Mapping[str, str]) -> dict[str, str]:
    """The secrets in a process's environment, with what each is; those too short to tell are left out."""

    def given(name: str) -> str:
        path = Path(variables.get(f"{name}_FILE") or "/nonexistent")
        return path.read_text(errors="replace").strip() if path.is_file() else variables.get(name, "")

    found = {key.strip(): "the secret key" for key in given("MAILROOM_SECRET_KEY").split(",")}
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        found[given(name)] = f"the {name}"
    try:
        address = conninfo_to_dict(given("MAILROOM_DATABASE_URL"))
    except psycopg.Error:
        address = {}
    password = str(address.get("password") or "")
    if password not in (address.get("user"), address.get("dbname")):
        found[password] = "the database's password"
    try:
        password = urlsplit(given("MAILROOM_TRANSPORT")).password or ""
    except ValueError:
        password = ""
    found |= dict.fromkeys([password, unquote(password)], "the SMTP password")
    return {secret: what for secret, what in found.items() if len(secret) >= SHORTEST}


def leaks(text: str, secrets: Mapping[str, str]) -> list[str]:
    """What a log holds that it must not; never the secret itself."""
    found = []
    for secret, what in secrets.items():
        if secret in text:
            found.append(what)
            text = text.replace(secret, "…")  # the key has a secret's shape
    return found + [what for what, shapes in _SHAPES.items() if any(shape.search(text) for shape in shapes)]


@dataclass
class _Log:
    """What one process wrote, or several into one file."""

    name: str
    secrets: dict[str, str]
    is_mixed: bool = False
    arguments: set[str] = field(default_factory=set)
    heard: list[str] = field(default_factory=list)
    file: IO[bytes] | None = None

    def hear(self, text: str | bytes) -> None:
        self.heard.append(text if isinstance(text, str) else text.decode(errors="replace"))

    def leaks(self) -> list[str]:
        text = "".join(self.heard)
        if self.is_mixed:
            text = "\n".join(found[0] for found in _LOGGED.finditer(text))
        for told in (*self.arguments, EXAMPLE):
            text = text.replace(told, "…")
        return [f"{self.name} holds {what}" for what in leaks(text, self.secrets)]


class _Overheard:
    """A pipe that is heard when it is read."""

    def __init__(self, pipe: IO[Any], log: _Log) -> None:
        self._pipe = pipe
        self._log = log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)

    def __enter__(self) -> _Overheard:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.readline, self._pipe.read(0))

    def __next__(self) -> Any:
        return next(iter(self))

    def read(self, *size: int) -> Any:
        return self._told(self._pipe.read(*size))

    def readline(self, *size: int) -> Any:
        return self._told(self._pipe.readline(*size))

    def readlines(self) -> list[Any]:
        return list(self)

    def _told(self, text: Any) -> Any:
        self._log.hear(text)
        return text


class _Events(logging.Handler):
    """Hears this process's events as its log would show them."""

    def __init__(self, log: _Log) -> None:
        super().__init__()
        self.setFormatter(_TextFormatter())
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.hear(self.format(record) + "\n")


class Watch:
    """After ``begin``, ``end`` returns what leaked since."""

    def __init__(self) -> None:
        self._here = _Log("an event", secrets_of(os.environ) | secrets_of(OURS))
        self._logs: dict[object, _Log] = {}

    def begin(self, patch: pytest.MonkeyPatch) -> None:
        self._watch_processes(patch)
        self._watch_events(patch)
        patch.setattr(commands, "heard", self._hear_command)
        make, here = SmtpServer.__init__, self._here

        def made(server: SmtpServer, *arguments: Any, **named: Any) -> None:
            make(server, *arguments, **named)
            if len(server.password) >= SHORTEST:
                here.secrets[server.password] = "the SMTP password"

        patch.setattr(SmtpServer, "__init__", made)

    def end(self) -> list[str]:
        for log in self._logs.values():
            if log.file:
                log.file.seek(0)
                log.hear(log.file.read())
                log.file.close()
                if log.name == INHERITED:
                    sys.stderr.write("".join(log.heard))
            self._here.secrets |= log.secrets
        found = [leak for log in [*self._logs.values(), self._here] for leak in log.leaks()]
        self._logs, self._here.heard = {}, []
        return list(dict.fromkeys(found))

    def _hear_command(self, words: tuple[str, ...], env: Mapping[str, str], stderr: bytes) -> None:
        arguments = {word for word in words if "@" in word}
        log = self._logs.setdefault(object(), _Log("stderr", secrets_of(env), arguments=arguments))
        log.hear(stderr)

    def _watch_events(self, patch: pytest.MonkeyPatch) -> None:
        emit, handler, logger = EventLogger._emit, _Events(self._here), logging.getLogger("mailroom")

        def emitted(
            events: EventLogger,
            level: int,
            event: str,
            fields: dict[str, object],
            error: BaseException | None = None,
        ) -> None:
            if not events._logger.isEnabledFor(level):  # which a process may show, on another level
                name = f"{events._name}.{event}"
                record = logging.LogRecord(f"mailroom.{name}", level, __file__, 0, name, (), None)
                record.fields = fields
                handler.handle(record)
            emit(events, level, event, fields, error)

        patch.setattr(EventLogger, "_emit", emitted)
        patch.setattr(logger, "handlers", [*logger.handlers, handler])

    def _watch_processes(self, patch: pytest.MonkeyPatch) -> None:
        start, communicate, watch = subprocess.Popen.__init__, subprocess.Popen.communicate, self

        def started(process: Any, args: Any, *rest: Any, **options: Any) -> None:
            words = [args] if isinstance(args, str | bytes | os.PathLike) else args
            process.log = None
            if any("mailroom" in str(word).replace(ROOT, "") for word in words):
                process.log = watch._log_of(options)
                process.log.arguments |= {word for word in map(str, words) if "@" in word}
            start(process, args, *rest, **options)
            for name in ("stdout", "stderr"):
                log, pipe = process.log, getattr(process, name)
                if log and pipe and not log.file and (name == "stderr" or log.is_mixed):
                    setattr(process, name, _Overheard(pipe, log))

        def communicated(process: Any, *rest: Any, **options: Any) -> Any:
            told = communicate(process, *rest, **options)
            log = getattr(process, "log", None)  # none where it was started before
            if log and log.file is None:
                log.hear((told[0] if log.is_mixed else told[1]) or "")
            return told

        patch.setattr(subprocess.Popen, "__init__", started)
        patch.setattr(subprocess.Popen, "communicate", communicated)

    def _log_of(self, options: dict[str, Any]) -> _Log:
        """The log of a process that is about to start; one that would be the tests' own is put aside."""
        secrets = secrets_of(options.get("env") or os.environ)
        out, err = options.get("stdout"), options.get("stderr")
        is_mixed = err == subprocess.STDOUT or (err is not None and err not in (-1, -3) and err is out)
        target = out if err == subprocess.STDOUT else err
        if target is None and not is_mixed:
            options["stderr"] = file = tempfile.TemporaryFile()  # noqa: SIM115 - `end` closes it
            return self._logs.setdefault(file, _Log(INHERITED, secrets, file=file))
        name = getattr(target, "name", None)
        if not isinstance(name, str):
            return self._logs.setdefault(object(), _Log("stderr", secrets, is_mixed))
        path = Path(name).absolute()
        log = self._logs.setdefault(path, _Log(path.name, {}))
        log.file = log.file or path.open("rb")  # before it is deleted
        log.secrets |= secrets
        log.is_mixed |= is_mixed
        return log
