"""The settings of the collector, and the parts of them that other commands need."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from mailroom.settings.variables import variable, whole
from mailroom.tokens import parse_keys
from mailroom.wire import MAX_MESSAGES, LineFormat

MAX_NAME_BYTES: Final = 63
THE_QUEUE: Final = "mailroom"


def _name(text: str) -> str:
    if len(text.encode()) > MAX_NAME_BYTES or "\x00" in text:
        raise ValueError(f"{text!r} is longer than the {MAX_NAME_BYTES} bytes of a PostgreSQL name")
    return text


def _the_one_queue(text: str) -> str:
    if text != THE_QUEUE:
        raise ValueError(
            f"a database has one queue, called {THE_QUEUE}, not {text!r}; unset the variable,"
            " and use a database for each queue (see docs/how-to/scaling-out.md)"
        )
    return text


def _line_format(text: str) -> LineFormat:
    if text == "csv":
        return "csv"
    if text == "json":
        return "json"
    raise ValueError(f"{text!r} is neither csv nor json")


def _conninfo(text: str) -> str:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    if re.match(r"postgres(ql)?://", text) and re.search(r"\s", text):
        raise ValueError("the value contains a blank; in a password, write %20 for it")
    try:
        given = {name: str(value) for name, value in conninfo_to_dict(text).items() if value is not None}
    except psycopg.ProgrammingError:
        # libpq's own message may quote the password.
        raise ValueError(
            "not a connection string; write postgresql://user:password@host:5432/database"
            " (with special characters percent-encoded, and libpq's own options only),"
            " or host=… dbname=… user=…"
        ) from None
    if (
        "@" in given.get("host", "")[1:]  # the abstract name of a socket may begin with one
        or not re.fullmatch(r"[0-9,]*", given.get("port", ""))
        or ("@" in given.get("dbname", "") and "user" not in given)
        or "://" in given.get("dbname", "")
    ):
        raise ValueError(
            "libpq would read a part of the password, or a second address, as the host, the port or the"
            " database; write one address, and percent-encode special characters: %40 for @, %2F for /,"
            " %3A for :"
        )
    return text


@dataclass(frozen=True)
class DatabaseSettings:
    """The database."""

    database_url: str = variable(
        "MAILROOM_DATABASE_URL",
        None,
        "the database, as libpq reads it: postgresql://user:password@host/database, or host=… dbname=…",
        _conninfo,
        secret=True,
    )


@dataclass(frozen=True)
class QueueSettings(DatabaseSettings):
    """The database, and the channel that announces new tokens."""

    channel_name: str = variable(
        "MAILROOM_CHANNEL_NAME", "token_insert", "the channel that the trigger tokens_ring notifies", _name
    )


@dataclass(frozen=True)
class KeySettings:
    """The keys that sign and verify tokens."""

    keys: tuple[bytes, ...] = variable(
        "MAILROOM_SECRET_KEY",
        None,
        "HMAC keys in hexadecimal, at least 32 bytes each, separated by commas; the first signs, all verify",
        parse_keys,
        secret=True,
    )


def batch_timeout(default_ms: int) -> int:
    """The field for how long a batch waits."""
    return whole(
        "MAILROOM_BATCH_TIMEOUT",
        default_ms,
        "a batch waits at most this many milliseconds for more tokens; 0 means no wait",
        least=0,
    )


@dataclass(frozen=True)
class CollectorSettings(KeySettings, QueueSettings):
    """The settings of ``mailroom collector``. Durations are in milliseconds, as in the environment.

    Attributes:
        queue_name: always ``THE_QUEUE``; see docs/how-to/moving-from-the-reference.md.
    """

    queue_name: str = variable(
        "MAILROOM_QUEUE_NAME",
        THE_QUEUE,
        f"the queue's name; a database has one queue, called {THE_QUEUE}",
        _the_one_queue,
    )
    healthcheck_interval_ms: int = whole(
        "MAILROOM_HEALTHCHECK_INTERVAL",
        270_000,
        "a lost connection is detected within this many milliseconds; a check may take a third of them,"
        " at most 30 s",
        least=1000,
    )
    batch_timeout_ms: int = batch_timeout(5000)
    line_format: LineFormat = variable(
        "MAILROOM_LINE_FORMAT",
        "csv",
        "the format of the collector's lines: csv with five fields, or json, which carries every mail",
        _line_format,
    )
    batch_limit: int = whole(
        "MAILROOM_BATCH_LIMIT", 10, "the maximum number of tokens in a batch", least=1, most=MAX_MESSAGES
    )
