"""Logs events with fields to standard error, as text or as JSON lines.

``collector.batch count=10 waited=1.2s`` or ``{"event": "collector.batch", "count": 10, …}``. A field is a
number, a name or a reason, never a token, a code, a key or a whole address. Warnings of other libraries
go through the same handler, as events named after the library.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Final, TextIO

_ADDRESS: Final = re.compile(r"""(?:"[^"]*"|[^\s@<>,;:"'()]+)@(?=[^\s@])""")


class EventLogger:
    """Logs events under one name: ``EventLogger("collector").info("batch", count=10)``."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._logger = logging.getLogger(f"mailroom.{name}")

    def debug(self, event: str, **fields: object) -> None:
        """Log an event that helps to find a fault."""
        self._emit(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Log an event of normal work."""
        self._emit(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Log an event that needs no action unless it happens often."""
        self._emit(logging.WARNING, event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Log an event that needs a person."""
        self._emit(logging.ERROR, event, fields)

    def failure(self, event: str, error: BaseException) -> None:
        """Log an error that ends the work, with its traceback."""
        self._emit(logging.ERROR, event, {"reason": type(error).__name__}, error)

    def _emit(
        self, level: int, event: str, fields: dict[str, object], error: BaseException | None = None
    ) -> None:
        if self._logger.isEnabledFor(level):
            name = f"{self._name}.{event}"
            # The message has the fields too, for the formatters of an application.
            message = " ".join([name, *_words(fields)])
            self._logger.log(level, message, exc_info=error, extra={"event": name, "fields": fields})


def without_addresses(text: str) -> str:
    """A text with every address reduced to its domain."""
    return _ADDRESS.sub("…@", text)


def set_up(log_format: str, level: str, stream: TextIO | None = None) -> None:
    """Log to ``stream``, by default standard error, in this format."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("mailroom").setLevel(level.upper())
    # botocore would log every failed refresh of credentials, with a traceback.
    logging.getLogger("botocore").setLevel(logging.CRITICAL)
    logging.captureWarnings(capture=True)


def _parts(record: logging.LogRecord) -> tuple[str, dict[str, object]]:
    fields = getattr(record, "fields", None)
    if fields is not None:
        return getattr(record, "event", record.getMessage()), fields
    return record.name, {"message": record.getMessage()}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        event, fields = _parts(record)
        words = [_time(record), record.levelname.lower(), event]
        words += _words(fields)
        if record.exc_info:
            words.append("\n" + self.formatException(record.exc_info))
        return " ".join(words)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        event, fields = _parts(record)
        entry = {"time": _time(record), "level": record.levelname.lower(), "event": event} | fields
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str, ensure_ascii=False)


def _words(fields: dict[str, object]) -> list[str]:
    return [f"{name}={_word(value)}" for name, value in fields.items()]


def _word(value: object) -> str:
    text = str(value)
    plain = text.isprintable() and text and not set(text) & set(' "=')
    return text if plain else json.dumps(text, ensure_ascii=False)
