"""Puts actions of the catalogue into a database, as ``mailroom actions apply`` does."""

from __future__ import annotations

from typing import Any

import psycopg

from mailroom.actions import load_actions
from mailroom.operations.actions import apply


def add_actions(db: psycopg.Connection[Any], *names: str) -> None:
    """Add actions. The connection is in autocommit mode."""
    known = load_actions()
    apply(db, {name: known[name] for name in names})
