"""``mailroom.contrib.django``: projects made by ``startproject``, with Django's own users and with others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest

from mailroom.inbox.server import InboxServer
from support import processes, senders
from support.django_project import Project, submit
from support.queue_sql import Db
from support.runs import RunProcess

pytestmark = pytest.mark.slow

SETTINGS = "INSTALLED_APPS += ['mailroom.contrib.django']"
URLS = """\
from django.urls import include
from mailroom.contrib.django.views import SignUpView
urlpatterns += [
    path("sign-up", SignUpView.as_view()),
    path("", include("mailroom.contrib.django.urls")),
]
"""
PASSWORD = "correct horse battery"

# The application's own users, as they were before Mailroom.
PEOPLE = """
import uuid
from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.models import PermissionsMixin
from django.db import models

class PersonManager(BaseUserManager):
    def create_superuser(self, email, password, **fields):
        person = self.model(email=email, is_staff=True, is_superuser=True, **fields)
        person.set_password(password)
        person.save()
        return person

class Person(AbstractBaseUser, PermissionsMixin):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    email = models.EmailField(unique=True, db_column="Address")
    is_active = models.BooleanField(default=True)
    is_staff = models.BooleanField(default=False)
    objects = PersonManager()
    USERNAME_FIELD = "email"
"""
PEOPLE_ADMIN = """
from django.contrib import admin
from people.models import Person
admin.site.register(Person)
"""


class Mailed(NamedTuple):
    """A mail of a test: its recipient and what the link and the code are."""

    recipient: str
    link: str
    token: str
    code: str


class Site(NamedTuple):
    """A project with its users' model, whose mails a worker sends to an inbox."""

    project: Project
    db: Db
    ses: InboxServer

    def mailed(self, count: int) -> Mailed:
        """Wait until this many mails were sent, and return the last one."""
        self.ses.wait_for(lambda inbox: inbox.counts.accepted >= count)
        assert count == self.ses.inbox.counts.accepted
        mail = self.ses.inbox.mails.find()[-1]
        rendered = self.ses.inbox.render(mail)
        assert rendered
        ((link, token),) = re.findall(r"https://acme.example(\S+token=([\w-]{86}))", rendered.text)
        return Mailed(
            mail.recipient, link, token, "".join(re.findall(r"^\d{5}$", rendered.text, re.MULTILINE))
        )


def is_active(site: Site) -> list[bool]:
    """Of each user who is not of the staff."""
    code = """
from django.contrib.auth import get_user_model
print([user.is_active for user in get_user_model().objects.filter(is_staff=False)])
"""
    return [word == "True" for word in re.findall("True|False", site.project.run(code))]


@pytest.fixture(params=["auth.User", "people.Person"])
def site(
    request: pytest.FixtureRequest, empty_database: str, ses: InboxServer, tmp_path: Path
) -> Iterator[Site]:
    project = Project(tmp_path / "acme", empty_database)
    if request.param != "auth.User":
        project.add("people/__init__.py", "")
        project.add("people/models.py", PEOPLE)
        project.add("people/admin.py", PEOPLE_ADMIN)
        project.add("acme/settings.py", f"INSTALLED_APPS += ['people']\nAUTH_USER_MODEL = '{request.param}'")
        project.manage("makemigrations", "people")
    project.manage("migrate")
    project.add("acme/settings.py", SETTINGS)
    project.add("acme/urls.py", URLS)
    project.manage("migrate")
    variables = processes.environment(empty_database, BATCH_TIMEOUT=0)
    variables |= senders.environment(tmp_path / "output", SEND_RATE=10_000) | senders.aws(ses.url)
    with (
        psycopg.connect(empty_database, autocommit=True) as db,
        RunProcess(variables, tmp_path / "run", {}),
    ):
        yield Site(project, db, ses)


def test_the_users_of_a_project_get_their_mails(site: Site) -> None:
    own = [line for line in (SETTINGS + URLS).splitlines() if line.strip()]
    assert 10 >= len(own)
    with site.project.served() as browser:
        known = "username" in browser.get("/sign-up").text
        person = {"username": "zoe"} if known else {}
        answer = submit(
            browser, "/sign-up", email="zoe@example.com", password1=PASSWORD, password2=PASSWORD, **person
        )
        assert "on its way" in answer.text
        mail = site.mailed(1)
        assert "zoe@example.com" == mail.recipient
        assert [False] == is_active(site)
        page = browser.get(mail.link)
        assert ("same-origin", "max-age=0") == (
            page.headers["referrer-policy"],
            page.headers["cache-control"].split(", ")[0],
        )
        assert [False] == is_active(site)
        assert "Your account is active" in submit(browser, mail.link, token=mail.token).text
        assert [True] == is_active(site)
        again = submit(browser, mail.link, token=mail.token)
        assert (403, True) == (again.status_code, "used before" in again.text)

        answers = {
            submit(browser, "/password_reset/", email=email).text
            for email in ("Zoe@example.com", "nobody@example.com")
        }
        assert 1 == len(answers)
        mail = site.mailed(2)
        passwords = {"new_password1": PASSWORD + "!", "new_password2": PASSWORD + "!"}
        wrong = submit(browser, mail.link, token=mail.token, code=other(mail.code), **passwords)
        assert "The code is wrong. You have 4 more tries." in wrong.text
        done = submit(browser, mail.link, token=mail.token, code=mail.code, **passwords)
        assert "Your password is set" in done.text


def other(code: str) -> str:
    """A code that is not this one."""
    return f"{(int(code) + 1) % 100_000:05d}"
