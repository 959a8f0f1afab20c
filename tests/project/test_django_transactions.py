"""``mailroom.contrib.django.consume`` in the transactions of Django."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psycopg
import pytest

from mailroom import sign
from mailroom.operations import adoption
from project.test_django import SETTINGS, URLS, other
from support.django_project import Project, submit
from support.processes import KEY
from support.queue_sql import Db

pytestmark = pytest.mark.slow

# The application's own pages: one lets the error end the request, the other locks the user before.
VIEWS = """
from django.contrib.auth import get_user_model
from django.http import HttpResponse
from django.views.decorators.csrf import csrf_exempt
from mailroom.contrib.django import consume

@csrf_exempt
def fails(request):
    consume(request.POST["token"], "password_recovery", code=request.POST["code"])
    return HttpResponse("recovered")

@csrf_exempt
def locks(request):
    get_user_model().objects.select_for_update().get()
    return fails(request)

urlpatterns += [path("fails", fails), path("locks", locks)]
"""
ROLLED_BACK = """
from django.contrib.auth import get_user_model
from django.db import connection, transaction
from mailroom import TokenUsed
from mailroom.contrib.django import consume, send
users = get_user_model().objects
class Undo(Exception):
    pass
def attempt(undo):
    try:
        with transaction.atomic():
            {before}
            subject = consume("{token}", "activation").subject
            assert subject == str(users.get().pk)
            assert users.get().is_active
            if undo:
                raise Undo
    except Undo:
        pass
attempt(True)
assert not users.get().is_active
assert users.get().first_name == ""
attempt(False)
assert users.get().is_active
try:
    attempt(False)
except TokenUsed:
    print("used")
"""


def project_with(folder: Path, database: str, options: str = "") -> Project:
    """A project with Django's own users."""
    project = Project(folder / "acme", database)
    project.add("acme/settings.py", f"{SETTINGS}\nALLOWED_HOSTS = ['127.0.0.1']\n{options}")
    project.add("acme/urls.py", URLS + VIEWS)
    project.manage("migrate")
    return project


def activation(db: Db) -> str:
    """The link's token of a new user."""
    db.execute(
        "INSERT INTO auth_user (username, first_name, last_name, email, password, is_superuser, is_staff,"
        " is_active, date_joined) VALUES ('zoe', '', '', 'zoe@example.com', '!', false, false, false, now())"
    )
    ((secret,),) = db.execute("SELECT secret FROM tokens").fetchall()
    return sign(secret, "activation", keys=KEY)


def recovery(db: Db) -> tuple[str, str]:
    """The token and the code of a new mail for the only user."""
    db.execute("UPDATE auth_user SET is_active = true")
    db.execute("SELECT mailroom.send('password_recovery', user_id => id::text) FROM auth_user")
    ((secret, code),) = db.execute("SELECT secret, code FROM tokens ORDER BY id DESC LIMIT 1").fetchall()
    return sign(secret, "password_recovery", keys=KEY, code=code), code


@pytest.mark.parametrize(
    "before", ["pass", "users.update(first_name='Zoe')", "send('activation', users.get())"]
)
def test_nothing_is_consumed_when_the_block_is_rolled_back(
    empty_database: str, tmp_path: Path, before: str
) -> None:
    project = project_with(tmp_path, empty_database)
    with psycopg.connect(empty_database, autocommit=True) as db:
        token = activation(db)
        assert "used" in project.run(ROLLED_BACK.format(before=before, token=token))


def test_a_link_of_another_adopted_table_recovers_nobody(empty_database: str, tmp_path: Path) -> None:
    project = project_with(tmp_path, empty_database)
    with psycopg.connect(empty_database, autocommit=True) as db:
        activation(db)
        db.execute("UPDATE auth_user SET is_active = true")
        db.execute("CREATE TABLE customers (id serial PRIMARY KEY, email text)")
        adoption.apply(db, adoption.plan(db, "customers", adoption.Wish()))
        db.execute("INSERT INTO customers (email) VALUES ('mallory@example.com')")
        db.execute("SELECT mailroom.send('password_recovery', user_id => '1', user_table => 'customers')")
        ((secret, code),) = db.execute(
            "SELECT secret, code FROM tokens WHERE user_table = 'customers'::regclass"
        ).fetchall()
        token = sign(secret, "password_recovery", keys=KEY, code=code)
        words = {"new_password1": "mallorys-Pass-99", "new_password2": "mallorys-Pass-99"}
        with project.served() as browser:
            answer = submit(browser, f"/recover?token={token}", code=code, **words)
        assert 403 == answer.status_code
        assert [("!",)] == db.execute("SELECT password FROM auth_user").fetchall()


@pytest.mark.parametrize(
    "options",
    [
        "",
        "DATABASES['default']['OPTIONS']['pool'] = {'min_size': 1, 'max_size': 1}",
        "DATABASES['default']['OPTIONS']['server_side_binding'] = True",
    ],
)
def test_twelve_wrong_codes_are_five_tries(empty_database: str, tmp_path: Path, options: str) -> None:
    atomic = "DATABASES['default']['ATOMIC_REQUESTS'] = True\n" + options
    project = project_with(tmp_path, empty_database, atomic)
    with psycopg.connect(empty_database, autocommit=True) as db, project.served() as browser:
        activation(db)
        passwords = {"new_password1": "correct horse battery", "new_password2": "correct horse battery"}

        def tries() -> int:
            ((count,),) = db.execute("SELECT wrong_codes FROM tokens ORDER BY id DESC LIMIT 1").fetchall()
            return int(count)

        def page(code: str) -> httpx.Response:
            return submit(browser, f"/recover?token={token}", code=code, **passwords)

        token, code = recovery(db)
        for number in range(1, 13):
            answer = page(other(code))
            assert (403 if number >= 5 else 200) == answer.status_code
            assert min(number, 5) == tries()
        assert "Five wrong codes" in page(code).text

        for path in ("/fails", "/locks"):
            token, code = recovery(db)
            right, wrong = {"token": token, "code": code}, {"token": token, "code": other(code)}
            for number in range(1, 13):
                assert 500 == browser.post(path, data=wrong).status_code
                assert min(number, 5) == tries()
            assert 500 == browser.post(path, data=right).status_code
            token, code = recovery(db)
            assert "recovered" == browser.post(path, data={"token": token, "code": code}).text

        token, code = recovery(db)
        wrong = {"token": token, "code": other(code)}
        with ThreadPoolExecutor(12) as pool:
            list(pool.map(lambda _: browser.post("/fails", data=wrong), range(12)))
        assert 5 == tries()
        assert 500 == browser.post("/fails", data={"token": token, "code": code}).status_code
