"""What the collector and the tools beside it run on: the environment as frozen dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from mailroom.settings.variables import MAX_MS, Reader, Variable
from mailroom.tokens import parse_keys
from mailroom.wire import MAX_MESSAGES

NO_KEYS: Final[tuple[bytes, ...]] = ()

DATABASE_URL: Final = Variable(
    "MAILROOM_DATABASE_URL",
    None,
    "PostgreSQL, as libpq reads it: postgresql://user:password@host/database, or host=… dbname=…",
    secret=True,
)
SECRET_KEY: Final = Variable(
    "MAILROOM_SECRET_KEY",
    None,
    "HMAC keys in hexadecimal, at least 32 bytes each, separated by commas; the first signs, all verify",
    secret=True,
)
CHANNEL_NAME: Final = Variable(
    "MAILROOM_CHANNEL_NAME", "token_insert", "the channel that the trigger tokens_ring rings"
)
QUEUE_NAME: Final = Variable(
    "MAILROOM_QUEUE_NAME", "mailroom", "the queue's name; a database has one queue, called mailroom"
)
HEALTHCHECK_INTERVAL: Final = Variable(
    "MAILROOM_HEALTHCHECK_INTERVAL",
    "270000",
    "a dead connection is noticed within so many milliseconds; an answer may take a third, at most 30 s",
    bounds=(1000, MAX_MS),
)
BATCH_TIMEOUT: Final = Variable(
    "MAILROOM_BATCH_TIMEOUT",
    "5000",
    "a batch waits at most so many milliseconds for more tokens; 0 is not at all",
    bounds=(0, MAX_MS),
)
BATCH_LIMIT: Final = Variable(
    "MAILROOM_BATCH_LIMIT", "10", "a batch has at most so many tokens", bounds=(1, MAX_MESSAGES)
)

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
    healthcheck_interval_ms: int
    batch_timeout_ms: int
    batch_limit: int


def collector_settings(environment: Mapping[str, str]) -> CollectorSettings:
    """Read the collector's settings.

    Raises:
        SettingsError: with every fault there is.
    """
    reader = Reader(environment)
    reader.read(QUEUE_NAME, _the_one_queue, "")
    settings = CollectorSettings(
        database_url=reader.read(DATABASE_URL, _conninfo, ""),
        keys=reader.read(SECRET_KEY, parse_keys, NO_KEYS),
        channel_name=reader.read(CHANNEL_NAME, _name, ""),
        healthcheck_interval_ms=reader.whole(HEALTHCHECK_INTERVAL),
        batch_timeout_ms=reader.whole(BATCH_TIMEOUT),
        batch_limit=reader.whole(BATCH_LIMIT),
    )
    reader.finish()
    return settings


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """Where the queue is."""

    database_url: str = field(repr=False)
    channel_name: str


def queue_settings(environment: Mapping[str, str]) -> QueueSettings:
    """Read where the queue is.

    Raises:
        SettingsError: with every fault there is.
    """
    reader = Reader(environment)
    settings = QueueSettings(
        database_url=reader.read(DATABASE_URL, _conninfo, ""),
        channel_name=reader.read(CHANNEL_NAME, _name, ""),
    )
    reader.finish()
    return settings


def database_url(environment: Mapping[str, str]) -> str:
    """Read the database's address alone.

    Raises:
        SettingsError: it is missing or not one.
    """
    reader = Reader(environment)
    url = reader.read(DATABASE_URL, _conninfo, "")
    reader.finish()
    return url


def secret_keys(environment: Mapping[str, str]) -> tuple[bytes, ...]:
    """Read the keys alone.

    Raises:
        SettingsError: they are missing, or one is not a key.
    """
    reader = Reader(environment)
    keys = reader.read(SECRET_KEY, parse_keys, NO_KEYS)
    reader.finish()
    return keys


def _name(text: str) -> str:
    if len(text.encode()) > 63 or "\x00" in text:
        raise ValueError(f"{text!r} is longer than the 63 bytes of a PostgreSQL name")
    return text


def _the_one_queue(text: str) -> str:
    if text != QUEUE_NAME.default:
        raise ValueError(
            f"a database has one queue, called {QUEUE_NAME.default}, and not {text!r}; leave the variable out"
            " and use a database for each queue (see docs/how-to/scaling-out.md)"
        )
    return text


def _conninfo(text: str) -> str:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        given = {name: str(value) for name, value in conninfo_to_dict(text).items() if value is not None}
    except psycopg.ProgrammingError:
        # libpq's own words may quote the password.
        raise ValueError(
            "not a connection string; write postgresql://user:password@host:5432/database"
            " (with special characters percent-encoded), or host=… dbname=… user=…"
        ) from None
    if (
        "@" in given.get("host", "")[1:]  # a socket's abstract name may begin with one
        or not given.get("port", "0").replace(",", "").isdigit()
        or ("@" in given.get("dbname", "") and "user" not in given)
    ):
        raise ValueError(
            "libpq would take a part of the password for the host, the port or the database;"
            " percent-encode special characters: %40 for @, %2F for /, %3A for :"
        )
    return text
