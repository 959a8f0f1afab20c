"""Reads what Django's settings say to Mailroom.

``MAILROOM`` is a mapping, and every key of it is optional: ``SECRET_KEY`` in place of the environment's
``MAILROOM_SECRET_KEY``, and ``PENDING_WHEN``, ``ACTIVE_WHEN``, ``ON_ACTIVATION`` and ``LOCALE`` in place of
what is known about the columns of Django's own users.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from django.apps import apps
from django.conf import settings
from django.core import checks
from django.db import connections, router

from mailroom.errors import SettingsError
from mailroom.settings.collector import KeySettings
from mailroom.settings.variables import read_settings

KEY: Final = "SECRET_KEY"
COLUMNS: Final = ("PENDING_WHEN", "ACTIVE_WHEN", "ON_ACTIVATION", "LOCALE")


def setting(name: str) -> str | None:
    """The value of a key of ``MAILROOM``; None if it is not set."""
    return getattr(settings, "MAILROOM", {}).get(name)


def keys() -> Sequence[bytes]:
    """The keys that sign and verify tokens.

    Raises:
        SettingsError: they are missing, or one is not valid.
    """
    given = setting(KEY)
    return read_settings(KeySettings, os.environ if given is None else {"MAILROOM_SECRET_KEY": given}).keys


def users_database() -> str:
    """The alias of the database where the users are written."""
    return router.db_for_write(apps.get_model(settings.AUTH_USER_MODEL))


def check(**_: object) -> list[checks.CheckMessage]:
    """The faults that ``manage.py check`` reports."""
    faults: list[checks.CheckMessage] = []
    connection = connections[users_database()]
    if connection.vendor != "postgresql":
        faults.append(
            checks.Error(
                f"The users are in a database of {connection.display_name}, and Mailroom needs PostgreSQL.",
                hint="Set ENGINE to django.db.backends.postgresql in DATABASES.",
                id="mailroom.E001",
            )
        )
    try:
        keys()
    except SettingsError as error:
        faults.append(checks.Error(str(error), hint=error.hint, id="mailroom.E002"))
    if unknown := set(getattr(settings, "MAILROOM", {})) - {KEY, *COLUMNS}:
        faults.append(
            checks.Error(
                f"MAILROOM has the unknown keys {', '.join(sorted(unknown))}.",
                hint=f"The keys are {', '.join((KEY, *COLUMNS))}.",
                id="mailroom.E003",
            )
        )
    return faults
