"""The settings of ``mailroom actions``: the folder, and the database."""

from __future__ import annotations

from dataclasses import dataclass

from mailroom.settings.collector import DatabaseSettings
from mailroom.settings.sender import FolderSettings


@dataclass(frozen=True)
class ActionsSettings(FolderSettings, DatabaseSettings):
    """The folder of actions, and the database that they are applied to."""
