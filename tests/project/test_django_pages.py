"""The pages of ``mailroom.contrib.django``: what they tell whom, and in which language."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import psycopg
import pytest
from babel.messages.extract import extract_from_dir
from babel.messages.pofile import read_po

import mailroom.contrib.django
from mailroom import sign
from project.test_django import PASSWORD, SETTINGS, URLS
from support.django_project import Project, submit
from support.processes import KEY
from support.queue_sql import Db

FOLDER = Path(mailroom.contrib.django.__file__).parent

# A model whose address is unique, beside a name.
MEMBERS = """
from django.contrib.auth.models import AbstractUser
from django.db import models

class Member(AbstractUser):
    email = models.EmailField(unique=True)
"""
LOCALES = "MIDDLEWARE.insert(2, 'django.middleware.locale.LocaleMiddleware')"


class Site(NamedTuple):
    """A project, its server and its database. No worker sends the mails."""

    project: Project
    browser: httpx.Client
    db: Db

    def sign_up(self, name: str, email: str) -> httpx.Response:
        passwords = {"password1": PASSWORD, "password2": PASSWORD}
        return submit(self.browser, "/sign-up", username=name, email=email, **passwords)

    def mails(self, email: str) -> int:
        """How many mails to an address wait."""
        (count,) = self.db.execute(
            "SELECT count(*) FROM tokens WHERE email = %s AND ended_at IS NULL", [email]
        ).fetchone() or (0,)
        return int(count)

    def link(self, email: str) -> str:
        """The link in the last mail to an address."""
        (secret,) = self.db.execute(
            "SELECT secret FROM tokens WHERE email = %s ORDER BY id DESC LIMIT 1", [email]
        ).fetchone() or (b"",)
        return f"/activate?token={sign(secret, 'activation', keys=bytes.fromhex(KEY))}"


@pytest.fixture(params=["auth.User"])
def site(request: pytest.FixtureRequest, empty_database: str, tmp_path: Path) -> Iterator[Site]:
    project = Project(tmp_path / "acme", empty_database)
    if request.param != "auth.User":
        project.add("members/__init__.py", "")
        project.add("members/models.py", MEMBERS)
        project.add("acme/settings.py", f"INSTALLED_APPS += ['members']\nAUTH_USER_MODEL = '{request.param}'")
        project.manage("makemigrations", "members")
    project.add("acme/settings.py", f"{SETTINGS}\n{LOCALES}")
    project.add("acme/urls.py", URLS)
    project.manage("migrate")
    with project.served() as browser, psycopg.connect(empty_database, autocommit=True) as db:
        yield Site(project, browser, db)


@pytest.mark.slow
@pytest.mark.parametrize("site", ["auth.User", "members.Member"], indirect=True)
def test_a_name_does_not_tell_whether_an_address_is_known(site: Site) -> None:
    site.sign_up("zoe", "zoe@example.com")
    probes = {"one": "zoe@example.com", "two": "ZOE@example.com", "three": "new@example.com"}
    first = {site.sign_up(name, email).text for name, email in probes.items()}
    assert 1 == len(first)
    assert (1, 0, 1) == (
        site.mails("zoe@example.com"),
        site.mails("ZOE@example.com"),
        site.mails("new@example.com"),
    )
    again = [site.sign_up(name, f"other-{name}@example.com").text for name in probes]
    assert 3 == sum("already exists" in page for page in again)
    code = """
from django.contrib.auth import get_user_model
users = get_user_model().objects.filter(username__in=["one", "two"])
print([(user.is_active, user.has_usable_password(), "@" in user.email) for user in users])
"""
    assert [(False, False, False)] * 2 == eval(site.project.run(code).splitlines()[-1])  # noqa: S307 - our text


@pytest.mark.slow
def test_a_new_link_can_be_requested_once_while_it_is_valid(site: Site) -> None:
    def quarter() -> object:
        return site.db.execute("SELECT floor(extract(epoch FROM now()) / 900)").fetchone()

    def ask(email: str) -> str:
        return submit(site.browser, "/activate/again/", email=email).text

    site.sign_up("zoe", "zoe@example.com")
    site.db.execute("UPDATE tokens SET expires_at = now()")
    refused = submit(site.browser, site.link("zoe@example.com"))
    assert (403, True) == (refused.status_code, "The link has expired." in refused.text)
    assert 'href="/activate/again/"' in refused.text

    # The answer is the same for an unknown address, and for the second of two requests.
    while True:
        start, before = quarter(), site.mails("zoe@example.com")
        answers = {ask(email) for email in ("Zoe@example.com", "zoe@example.com", "nobody@example.com")}
        assert 1 == len(answers)
        if start == quarter():
            break
    assert before + 1 == site.mails("zoe@example.com")
    assert 0 == site.mails("nobody@example.com")
    site.sign_up("max", "max@example.com")
    ask("max@example.com")
    assert 2 == site.mails("max@example.com")

    # The interval is no longer than a link is valid, so a user whose link has expired gets another one.
    seconds = site.project.run(
        "from mailroom.contrib.django.views import ActivationAgainView as view\nprint(view.interval.seconds)"
    ).split()[-1]
    lifetime = "SELECT extract(epoch FROM lifetime)::integer FROM mailroom.actions WHERE activates"
    assert (int(seconds),) == site.db.execute(lifetime).fetchone()

    # The new link works, and an active user gets no other.
    assert "Your account is active" in submit(site.browser, site.link("zoe@example.com")).text
    before = site.mails("zoe@example.com")
    site.db.execute("UPDATE tokens SET key = NULL")  # as if 15 minutes had gone by
    ask("zoe@example.com")
    assert before == site.mails("zoe@example.com")


@pytest.mark.slow
def test_the_pages_are_in_the_language_of_the_browser(site: Site) -> None:
    site.browser.headers["Accept-Language"] = "de"
    page = site.browser.get("/sign-up").text
    assert '<html lang="de">' in page
    assert "<h1>Registrieren</h1>" in page
    done = site.sign_up("zoe", "zoe@example.com").text
    assert "Falls diese Adresse neu ist, ist eine E-Mail mit einem Link unterwegs." in done
    link = site.link("zoe@example.com")
    assert "Ihr Konto ist aktiv." in submit(site.browser, link).text
    assert "Der Link wurde schon benutzt." in submit(site.browser, link).text
    site.browser.headers["Accept-Language"] = "xx"
    assert "<h1>Sign up</h1>" in site.browser.get("/sign-up").text


@pytest.mark.slow
def test_staff_see_mails_only_with_the_permission_to_see_the_user(site: Site) -> None:
    site.sign_up("zoe", "zoe@example.com")
    code = f"""
from django.contrib.auth.models import Permission, User
for name in ("none", "groups", "viewer"):
    user = User.objects.create_user(name, f"{{name}}@example.com", "{PASSWORD}", is_staff=True)
    if name != "none":
        which = {{"groups": "view_group", "viewer": "view_user"}}[name]
        user.user_permissions.add(Permission.objects.get(codename=which))
print(User.objects.get(username="zoe").pk)
"""
    path = f"/admin/auth/user/{site.project.run(code).split()[-1]}/change/"
    seen = {}
    for name in ("none", "groups", "viewer"):
        site.browser.cookies.clear()
        assert "Log out" in submit(site.browser, "/admin/", username=name, password=PASSWORD).text
        page = site.browser.get(path)
        seen[name] = page.status_code, "activation for zoe" in page.text
    assert {"none": (403, False), "groups": (403, False), "viewer": (200, True)} == seen
    site.browser.cookies.clear()
    assert "activation for zoe" not in site.browser.get(path).text


def test_the_german_catalogue_is_complete() -> None:
    used = {
        text
        for _, _, found, _, _ in extract_from_dir(
            FOLDER,
            method_map=[("**.py", "python")],
            keywords={"_": None, "gettext": None, "ngettext": (1, 2)},
        )
        for text in ([found] if isinstance(found, str) else found)
    }
    for page in (FOLDER / "templates").rglob("*.html"):
        text = page.read_text()
        used |= set(re.findall(r'{% translate "([^"]*)" %}', text))
        visible = re.sub(r"<style>.*?</style>|{[%{].*?[%}]}|<[^>]*>", "", text, flags=re.DOTALL)
        assert "" == visible.strip(), page.name
    with (FOLDER / "locale/de/LC_MESSAGES/django.po").open("rb") as file:
        catalogue = read_po(file, locale="de", abort_invalid=True)
    known = set()
    for message in catalogue:
        texts = message.string if isinstance(message.string, tuple | list) else [message.string]
        assert not message.fuzzy or not message.id, message.id
        assert all(texts), message.id
        assert [] == list(message.check(catalogue)), message.id
        known |= set(message.id if isinstance(message.id, tuple | list) else [message.id])
    assert used == known - {""}
