"""``mailroom.contrib.django``: projects made by ``startproject``, with Django's own users and with others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
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
ADDRESSES = ("Zoe@example.com", "nobody@example.com")
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


def in_the_admin(site: Site, browser: httpx.Client, email: str) -> str:
    """The address of a user's page in the admin."""
    code = f"""
from django.contrib.auth import get_user_model
from django.urls import reverse
user = get_user_model().objects.get(email="{email}")
print(reverse(f"admin:{{user._meta.app_label}}_{{user._meta.model_name}}_change", args=[user.pk]))
"""
    return site.project.run(code).split()[-1]


def test_the_users_of_a_project_get_their_mails(site: Site) -> None:
    own = [line for line in (SETTINGS + "\n" + URLS).splitlines() if line.strip()]
    assert 10 >= len(own)
    with site.project.served() as browser:
        known = "username" in browser.get("/sign-up").text

        def sign_up(name: str) -> str:
            person = {"username": name} if known else {}
            passwords = {"password1": PASSWORD, "password2": PASSWORD}
            return submit(browser, "/sign-up", email=f"{name}@example.com", **passwords, **person).text

        first = sign_up("zoe")
        mail = site.mailed(1)
        assert "zoe@example.com" == mail.recipient
        assert [False] == is_active(site)
        page = browser.get(mail.link)
        assert "same-origin" == page.headers["referrer-policy"]
        assert "no-store" in page.headers["cache-control"]
        assert [False] == is_active(site)
        assert "Your account is active" in submit(browser, mail.link).text
        assert [True] == is_active(site)
        again = submit(browser, mail.link)
        assert (403, True) == (again.status_code, "used before" in again.text)

        # Recovery: the answer for an unknown address is the same.
        answers = [submit(browser, "/password_reset/", email=email).text for email in ADDRESSES]
        assert answers[0] == answers[1]
        mail = site.mailed(2)
        passwords = {"new_password1": PASSWORD + "!", "new_password2": PASSWORD + "!"}
        wrong = submit(browser, mail.link, code=other(mail.code), **passwords)
        assert "The code is wrong. You have 4 more tries." in wrong.text
        weak = submit(browser, mail.link, code=mail.code, new_password1="zoe", new_password2="zoe")
        assert "This password is too short" in weak.text
        done = submit(browser, mail.link, code=mail.code, **passwords)
        assert "Your password is set" in done.text
        assert 403 == submit(browser, mail.link, code=mail.code, **passwords).status_code

        # A known address makes no user and gets no mail.
        if not known:
            assert first == sign_up("zoe")
        sign_up("max")
        mail = site.mailed(3)
        assert "max@example.com" == mail.recipient

        # The admin changes the address: the old link is dead, and a new one is mailed there.
        name = ["--username", "admin"] if known else []
        create = ["createsuperuser", "--noinput", "--email", "admin@x.example", *name]
        site.project.manage(*create, DJANGO_SUPERUSER_PASSWORD=PASSWORD)
        login = {"username": "admin" if known else "admin@x.example", "password": PASSWORD}
        assert "/password_reset/" in browser.get("/admin/").text
        assert "Site administration" in submit(browser, "/admin/", **login).text
        changed = submit(
            browser, in_the_admin(site, browser, "max@example.com"), email="moritz@example.com", _save="Save"
        )
        assert "was changed successfully" in changed.text
        assert "has expired" in submit(browser, mail.link).text
        mail = site.mailed(4)
        assert "moritz@example.com" == mail.recipient
        assert "Your account is active" in submit(browser, mail.link).text

        # The admin deactivates a user: what is pending ends.
        submit(browser, "/password_reset/", email="moritz@example.com")
        mail = site.mailed(5)
        moritz = in_the_admin(site, browser, "moritz@example.com")
        assert "was changed successfully" in submit(browser, moritz, without="is_active", _save="Save").text
        refused = submit(browser, mail.link, code=mail.code, **passwords)
        assert (403, True) == (refused.status_code, "has expired" in refused.text)
        submit(browser, "/password_reset/", email="moritz@example.com")
        assert [True, False] == is_active(site)

        # The user's page shows the mails, with masked addresses.
        (mails,) = re.findall("<pre.*?</pre>", browser.get(moritz).text, re.DOTALL)
        assert ["password_recovery", "activation", "activation"] == re.findall(r"token \d+: (\w+)", mails)
        assert {"m…@example.com"} == set(re.findall(r"\w…?\w*@example.com", mails))
        assert 5 == site.ses.inbox.counts.accepted


def other(code: str) -> str:
    """A code that is not this one."""
    return f"{(int(code) + 1) % 100_000:05d}"
