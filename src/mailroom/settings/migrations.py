"""The settings of ``mailroom migrate``."""

from __future__ import annotations

from dataclasses import dataclass

from mailroom.settings.collector import MAX_NAME_BYTES, DatabaseSettings
from mailroom.settings.variables import variable


def _table(text: str) -> str:
    parts = text.split(".")
    if len(parts) > 2 or not all(0 < len(part.encode()) <= MAX_NAME_BYTES for part in parts):
        raise ValueError(
            f"{text!r} is neither a table's name nor schema.table, each of at most {MAX_NAME_BYTES} bytes"
        )
    return text


@dataclass(frozen=True)
class VersionTableSettings:
    """The table of versions."""

    table: str = variable(
        "MAILROOM_MIGRATIONS_TABLE",
        "schema_migrations",
        "the table that has the version of Mailroom's schema, in the first schema of search_path, or as"
        " schema.table",
        _table,
    )


@dataclass(frozen=True)
class MigrationSettings(VersionTableSettings, DatabaseSettings):
    """The database, and its table of versions."""
