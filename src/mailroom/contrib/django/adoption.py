"""Runs Mailroom's migrations and adopts the table of users, inside Django's migrations.

The SQL is the one that ``mailroom migrate up`` and ``mailroom adopt`` run, in the transaction of the
migration. A database that has no users is left alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.exceptions import FieldDoesNotExist
from django.core.management.base import CommandError
from django.db import router

from mailroom.contrib.django.configuration import setting
from mailroom.database import migrate
from mailroom.errors import AdoptionError, MailroomError
from mailroom.operations import adoption
from mailroom.settings.migrations import VersionTableSettings
from mailroom.settings.variables import read_settings


def _table() -> str:
    return read_settings(VersionTableSettings, os.environ).table


def make_schema(apps: Any, schema_editor: Any) -> None:
    """Apply Mailroom's migrations; those that are applied already stay."""
    with _connected(apps, schema_editor) as connection:
        if connection:
            migrate.up(connection, None, _silent, table=_table())


def drop_schema(apps: Any, schema_editor: Any) -> None:
    """Revert all of Mailroom's migrations."""
    with _connected(apps, schema_editor) as connection:
        if connection:
            migrate.down(connection, len(migrate.shipped()), _silent, table=_table())


def adopt_users(apps: Any, schema_editor: Any) -> None:
    """Adopt the table of ``AUTH_USER_MODEL``, as its model is at this point of the migrations."""
    with _connected(apps, schema_editor) as connection:
        if connection:
            model = apps.get_model(settings.AUTH_USER_MODEL)
            table = schema_editor.quote_name(model._meta.db_table)
            wish = _wish(model, schema_editor)
            adoption.apply(connection, adoption.plan(connection, table, wish))


def release_users(apps: Any, schema_editor: Any) -> None:
    """Take the adoption back."""
    with _connected(apps, schema_editor) as connection:
        if connection:
            model = apps.get_model(settings.AUTH_USER_MODEL)
            adoption.drop(connection, schema_editor.quote_name(model._meta.db_table))


def _wish(model: Any, schema_editor: Any) -> adoption.Wish:
    """What the columns of a model of users mean."""
    # The model at this point of the migrations has the fields, and not the attributes.
    users = get_user_model()
    email = users.get_email_field_name()
    quoted = {
        field.name: schema_editor.quote_name(field.column) for field in model._meta.local_concrete_fields
    }
    try:
        email_column = model._meta.get_field(email).column
    except FieldDoesNotExist:
        raise AdoptionError(
            f"{model._meta.label} has no field {email} at this point of the migrations",
            hint='write run_before = [("mailroom", "0002_adopt_users")] into the migration that adds it',
        ) from None
    login = None if email == users.USERNAME_FIELD else model._meta.get_field(users.USERNAME_FIELD).column
    active = quoted.get("is_active")
    known = adoption.Wish(
        key=model._meta.pk.column,
        email=email_column,
        login=login,
        pending_when=f"NOT {active} AND {quoted['last_login']} IS NULL"
        if active and "last_login" in quoted
        else None,
        active_when=active,
        on_activation=f"{active} = true" if active else None,
    )
    said = adoption.Wish(
        locale=setting("LOCALE"),
        pending_when=setting("PENDING_WHEN"),
        active_when=setting("ACTIVE_WHEN"),
        on_activation=setting("ON_ACTIVATION"),
    )
    return said.over(known)


@contextmanager
def _connected(apps: Any, schema_editor: Any) -> Iterator[psycopg.Connection | None]:
    """The connection of psycopg that Django uses; None for a database without users."""
    connection = schema_editor.connection
    users = apps.get_model(settings.AUTH_USER_MODEL)
    if not router.allow_migrate_model(connection.alias, users):
        yield None
        return
    # psycopg begins the transaction with it. A block of psycopg's would otherwise commit at its end.
    with connection.cursor() as cursor:
        cursor.execute("SELECT")
    try:
        yield connection.connection
    except MailroomError as error:
        raise CommandError(f"{error}. Try: {error.hint}" if error.hint else str(error)) from error


def _silent(_: str) -> None:
    """Report nothing: ``manage.py migrate`` names the migration itself."""
