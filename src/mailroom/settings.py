"""The environment, read once, as frozen dataclasses.

Every fault is found before any is told: the error lists all of them, each with the variable's name
and what would be right. Values of secrets are never part of a message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from mailroom.errors import SettingsError
from mailroom.tokens import parse_keys

Value = TypeVar("Value")

NO_KEYS: Final[tuple[bytes, ...]] = ()
MAX_MS: Final = 24 * 60 * 60 * 1000
MAX_BATCH_LIMIT: Final = 10_000


@dataclass(frozen=True, slots=True)
class Variable:
    """One documented variable: its name, its default and what it is for."""

    name: str
    default: str | None
    purpose: str
    secret: bool = False


DATABASE_URL: Final = Variable(
    "MAILROOM_DATABASE_URL", None, "PostgreSQL: a URL or host=… dbname=…, as libpq reads it", secret=True
)
SECRET_KEY: Final = Variable(
    "MAILROOM_SECRET_KEY", None, "HMAC keys in hexadecimal, separated by commas; the first signs", secret=True
)
CHANNEL_NAME: Final = Variable(
    "MAILROOM_CHANNEL_NAME", "token_insert", "the channel that the trigger on tokens rings"
)
QUEUE_NAME: Final = Variable("MAILROOM_QUEUE_NAME", "mailroom", "the row of jobs that keeps the cursor")
HEALTHCHECK_INTERVAL: Final = Variable(
    "MAILROOM_HEALTHCHECK_INTERVAL",
    "270000",
    "a dead connection is noticed within so many milliseconds",
)
BATCH_TIMEOUT: Final = Variable(
    "MAILROOM_BATCH_TIMEOUT",
    "5000",
    "a batch waits at most so many milliseconds for more tokens; 0 is not at all",
)
BATCH_LIMIT: Final = Variable("MAILROOM_BATCH_LIMIT", "10", "a batch has at most so many tokens")

COLLECTOR_VARIABLES: Final = (
    DATABASE_URL,
    SECRET_KEY,
    CHANNEL_NAME,
    QUEUE_NAME,
    HEALTHCHECK_INTERVAL,
    BATCH_TIMEOUT,
    BATCH_LIMIT,
)


@dataclass(frozen=True, slots=True)
class CollectorSettings:
    """What ``mailroom collector`` runs on. Durations are in milliseconds, as in the environment."""

    database_url: str = field(repr=False)
    keys: tuple[bytes, ...] = field(repr=False)
    channel_name: str
    queue_name: str
    healthcheck_interval_ms: int
    batch_timeout_ms: int
    batch_limit: int


def collector_settings(environment: Mapping[str, str]) -> CollectorSettings:
    """Read the collector's settings.

    Raises:
        SettingsError: with every fault there is.
    """
    reader = _Reader(environment)
    settings = CollectorSettings(
        database_url=reader.read(DATABASE_URL, _conninfo, ""),
        keys=reader.read(SECRET_KEY, parse_keys, NO_KEYS),
        channel_name=reader.read(CHANNEL_NAME, _name, ""),
        queue_name=reader.read(QUEUE_NAME, _name, ""),
        healthcheck_interval_ms=reader.read(HEALTHCHECK_INTERVAL, _whole(1000, MAX_MS), 0),
        batch_timeout_ms=reader.read(BATCH_TIMEOUT, _whole(0, MAX_MS), 0),
        batch_limit=reader.read(BATCH_LIMIT, _whole(1, MAX_BATCH_LIMIT), 0),
    )
    reader.finish()
    return settings


def database_url(environment: Mapping[str, str]) -> str:
    """Read the database's address alone.

    Raises:
        SettingsError: it is missing or not one.
    """
    reader = _Reader(environment)
    url = reader.read(DATABASE_URL, _conninfo, "")
    reader.finish()
    return url


def secret_keys(environment: Mapping[str, str]) -> tuple[bytes, ...]:
    """Read the keys alone.

    Raises:
        SettingsError: they are missing, or one is not a key.
    """
    reader = _Reader(environment)
    keys = reader.read(SECRET_KEY, parse_keys, NO_KEYS)
    reader.finish()
    return keys


class _Reader:
    """Reads variables and gathers faults."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._faults: list[str] = []

    def read(self, variable: Variable, convert: Callable[[str], Value], otherwise: Value) -> Value:
        """The converted value; after a fault the last argument, which ``finish`` keeps from use."""
        try:
            return convert(self._text(variable))
        except ValueError as fault:
            self._faults.append(f"{variable.name}: {fault}")
            return otherwise

    def finish(self) -> None:
        if self._faults:
            raise SettingsError(self._faults)

    def _text(self, variable: Variable) -> str:
        text = self._environment.get(variable.name, "")
        path = self._environment.get(f"{variable.name}_FILE", "") if variable.secret else ""
        if path and text:
            raise ValueError(f"set it or {variable.name}_FILE, not both")
        if path:
            try:
                text = Path(path).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                why = error.strerror if isinstance(error, OSError) else "not UTF-8"
                raise ValueError(f"cannot read {path!r}, which {variable.name}_FILE names: {why}") from None
            if not text:
                raise ValueError(f"{path!r}, which {variable.name}_FILE names, is empty")
        text = text or variable.default or ""
        if not text:
            raise ValueError(f"not set; it is {variable.purpose}")
        return text


def _whole(least: int, most: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        number = int(text) if text.isascii() and text.strip().isdigit() and len(text) < 20 else -1
        if not least <= number <= most:
            raise ValueError(f"{text!r} is not a whole number from {least} to {most}")
        return number

    return convert


def _name(text: str) -> str:
    if len(text.encode()) > 63 or "\x00" in text:
        raise ValueError(f"{text!r} is longer than the 63 bytes of a PostgreSQL name")
    return text


def _conninfo(text: str) -> str:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        conninfo_to_dict(text)
    except psycopg.ProgrammingError:
        # libpq's own words may quote the password.
        raise ValueError(
            "not a connection string; write postgresql://user:password@host:5432/database"
            " (with special characters percent-encoded), or host=… dbname=… user=…"
        ) from None
    return text
