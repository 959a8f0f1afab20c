"""The settings of the reader of SES's events."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from mailroom.settings.collector import DatabaseSettings
from mailroom.settings.variables import variable

_NAME = r"[A-Za-z0-9_-]{1,80}(\.fifo)?"


def _queue(text: str) -> str:
    if not text or re.fullmatch(_NAME, text):
        return text
    try:
        url = urlsplit(text)
        is_url = url.scheme in {"https", "http"} and bool(url.hostname) and not (url.username or url.query)
    except ValueError:
        is_url = False
    if not is_url or not re.fullmatch(rf"/([^/\s]+/)*{_NAME}", url.path):
        shown = "the value" if "@" in text else repr(text)  # it may hold a password
        raise ValueError(
            f"{shown} is neither the name nor the URL of an SQS queue; write mailroom-events, or"
            " https://sqs.eu-west-1.amazonaws.com/123456789012/mailroom-events"
        )
    return text


@dataclass(frozen=True)
class EventsSettings:
    """The queue that SES's events arrive in; empty if they are not read."""

    queue: str = variable(
        "MAILROOM_EVENTS",
        "",
        "the SQS queue of SES's events, by its name or its URL; without one no events are read",
        _queue,
    )


@dataclass(frozen=True)
class ReaderSettings(EventsSettings, DatabaseSettings):
    """The settings of ``mailroom events``."""
