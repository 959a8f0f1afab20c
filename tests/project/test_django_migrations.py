"""The migrations and the checks of ``mailroom.contrib.django``."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import psycopg
import pytest

from mailroom.database import migrate
from project.test_django import PEOPLE, SETTINGS
from project.test_django_transactions import project_with
from support import commands
from support.django_project import Project

WITHOUT_AN_ADDRESS = """
from django.contrib.auth.base_user import AbstractBaseUser
from django.db import models

class Person(AbstractBaseUser):
    name = models.TextField(unique=True)
    is_active = models.BooleanField(default=True)
    USERNAME_FIELD = "name"
"""
ADDRESS_ADDED = """
from django.db import migrations, models

class Migration(migrations.Migration):
    dependencies = [("people", "0001_initial")]
    {run_before}
    operations = [migrations.AddField("person", "email", models.EmailField(default=""))]
"""
OBJECTS = """
SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname = 'mailroom'
UNION ALL SELECT 'table ' || tablename FROM pg_tables WHERE tablename IN ('tokens', 'accounts', 'jobs')
UNION ALL SELECT 'trigger ' || tgname FROM pg_trigger
WHERE tgrelid = to_regclass('auth_user') AND NOT tgisinternal
"""
# The tests of the project: they run in transactions that are rolled back.
TESTS = """
from django.contrib.auth import get_user_model
from django.db import connection
from django.test import TestCase
import mailroom
from mailroom.contrib.django import consume, send

class Tests(TestCase):
    def test_recovery(self):
        user = get_user_model().objects.create_user("zoe", "zoe@example.com", "correct horse")
        token = send("password_recovery", user)
        with connection.cursor() as cursor:
            cursor.execute("SELECT secret, code FROM tokens WHERE id = %s", [token])
            ((secret, code),) = cursor.fetchall()
        token = mailroom.sign(secret, "password_recovery", keys="{key}", code=code)
        for left in (4, 3, 2, 1):
            with self.assertRaises(mailroom.WrongCode) as refused:
                consume(token, "password_recovery", code="99999" if code == "00000" else "00000")
            self.assertEqual(left, refused.exception.codes_left)
        self.assertEqual(str(user.pk), consume(token, "password_recovery", code=code).subject)

    def test_pages(self):
        answer = self.client.post("/password_reset/", {{"email": "zoe@example.com"}})
        self.assertRedirects(answer, "/password_reset/done/")

    async def test_an_asynchronous_view(self):
        from asgiref.sync import sync_to_async
        with self.assertRaises(mailroom.UnknownToken):
            token = mailroom.sign(bytes(32), "activation", keys="{key}")
            await sync_to_async(consume)(token, "activation")
"""


def test_the_newest_migration_of_the_schema_is_one_of_djangos() -> None:
    names = [entry.name for entry in files("mailroom.contrib.django.migrations").iterdir()]
    schemas = [int(found[1]) for name in names if (found := re.fullmatch(r"\d{4}_schema_(\d+)\.py", name))]
    assert migrate.shipped()[-1].version == max(schemas)


@pytest.mark.slow
def test_the_migrations_are_taken_back_and_applied_again(empty_database: str, tmp_path: Path) -> None:
    project = project_with(tmp_path, empty_database)
    with psycopg.connect(empty_database, autocommit=True) as db:
        made = set(db.execute(OBJECTS).fetchall())
        assert {("schema mailroom",), ("table tokens",), ("trigger mailroom_insert",)} <= made
        project.manage("migrate", "mailroom", "0001")
        assert {("schema mailroom",), ("table tokens",), ("table accounts",), ("table jobs",)} == set(
            db.execute(OBJECTS).fetchall()
        )
        project.manage("migrate", "mailroom", "zero")
        assert [] == db.execute(OBJECTS).fetchall()
        project.manage("migrate")
        assert made == set(db.execute(OBJECTS).fetchall())
        assert "No changes detected" in project.manage("makemigrations", "--check", "--dry-run")


@pytest.mark.slow
def test_the_table_of_versions_that_the_commands_count_in(empty_database: str, tmp_path: Path) -> None:
    table = "mailroom_migrations"
    variables = {"MAILROOM_DATABASE_URL": empty_database, "MAILROOM_MIGRATIONS_TABLE": table}
    done = commands.run("migrate", "up", env=variables)
    assert 0 == done.returncode, done.stderr
    project = Project(tmp_path / "acme", empty_database)
    project.add("acme/settings.py", SETTINGS)
    project.manage("migrate", MAILROOM_MIGRATIONS_TABLE=table)
    with psycopg.connect(empty_database, autocommit=True) as db:
        assert [(None,)] == db.execute("SELECT to_regclass('schema_migrations')").fetchall()
    project.manage("migrate", "mailroom", "zero", MAILROOM_MIGRATIONS_TABLE=table)


@pytest.mark.slow
def test_an_address_that_a_later_migration_adds(empty_database: str, tmp_path: Path) -> None:
    project = Project(tmp_path / "acme", empty_database)
    project.add("people/__init__.py", "")
    project.add("people/models.py", WITHOUT_AN_ADDRESS)
    people = "INSTALLED_APPS += ['people']\nAUTH_USER_MODEL = 'people.Person'\n"
    without_admin = "INSTALLED_APPS.remove('django.contrib.admin')\n"
    project.add("acme/settings.py", people + without_admin)
    (project.folder / "acme" / "urls.py").write_text("urlpatterns = []\n")
    project.manage("makemigrations", "people")
    project.add("people/models.py", "    email = models.EmailField(default='')")
    added = project.folder / "people" / "migrations" / "0002_email.py"
    added.write_text(ADDRESS_ADDED.format(run_before=""))
    project.add("acme/settings.py", SETTINGS)
    refused = project.manage("migrate", expected=1)
    assert "CommandError: people.Person has no field email at this point of the migrations" in refused
    (line,) = re.findall(r"write (run_before = \[.*?\]) into", refused)
    added.write_text(ADDRESS_ADDED.format(run_before=line))
    project.manage("migrate")


@pytest.mark.slow
def test_other_users_by_settings(empty_database: str, tmp_path: Path) -> None:
    project = Project(tmp_path / "acme", empty_database)
    project.add("people/__init__.py", "")
    own = "    confirmed_at = models.DateTimeField(null=True)\n    language = models.TextField(default='de')"
    project.add("people/models.py", PEOPLE.replace("    objects =", f"{own}\n    objects ="))
    said = {
        "PENDING_WHEN": "confirmed_at IS NULL",
        "ON_ACTIVATION": "confirmed_at = now()",
        "LOCALE": "language",
    }
    project.add(
        "acme/settings.py",
        f"INSTALLED_APPS += ['people']\nAUTH_USER_MODEL = 'people.Person'\n{SETTINGS}\nMAILROOM = {said}",
    )
    project.manage("makemigrations", "people")
    project.manage("migrate")
    with psycopg.connect(empty_database, autocommit=True) as db:
        project.run("from people.models import Person; Person.objects.create(email='zoe@example.com')")
        ((action, email, locale, secret),) = db.execute(
            "SELECT action::text, email, locale, secret FROM tokens"
        ).fetchall()
        assert ("activation", "zoe@example.com", "de") == (action, email, locale)
        db.execute("SELECT mailroom.consume(%s, 'activation')", [secret])
        assert [(False,)] == db.execute("SELECT confirmed_at IS NULL FROM people_person").fetchall()


@pytest.mark.slow
def test_the_tests_of_a_project(empty_database: str, tmp_path: Path) -> None:
    from support.processes import KEY

    project = project_with(tmp_path, empty_database)
    project.add("acme/tests.py", TESTS.format(key=KEY))
    assert "Ran 3 tests" in project.manage("test", "--noinput")


@pytest.mark.slow
def test_faults_of_the_settings(empty_database: str, tmp_path: Path) -> None:
    project = Project(tmp_path / "acme", empty_database)
    project.add("acme/settings.py", SETTINGS)
    missing = project.manage("check", expected=1, MAILROOM_SECRET_KEY="")
    assert "(mailroom.E002)" in missing
    assert "mailroom key new" in missing
    project.manage("check")
    project.add("acme/settings.py", "MAILROOM = {'PENDING': 'true', 'SECRET_KEY': 'beef' * 16}")
    unknown = project.manage("check", expected=1, MAILROOM_SECRET_KEY="")
    assert "MAILROOM has the unknown keys PENDING." in unknown
    assert "E002" not in unknown
    project.add(
        "acme/settings.py", "DATABASES['default'] = {'ENGINE': 'django.db.backends.sqlite3', 'NAME': 'x'}"
    )
    assert "SQLite, and Mailroom needs PostgreSQL" in project.manage("check", expected=1)
