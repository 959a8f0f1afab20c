"""Sign-up, activation and recovery for Django's own users: a whole project in one file.

    pip install 'mailroom-postgresql[django]'
    python app.py migrate
    python app.py runserver 8000

It reads MAILROOM_DATABASE_URL and MAILROOM_SECRET_KEY, as Mailroom does. What your own project needs are the
lines with mailroom.contrib.django: see docs/how-to/django.md.
"""

import os
import sys

import django
from django.conf import settings
from django.core.management import execute_from_command_line
from django.urls import include, path
from psycopg.conninfo import conninfo_to_dict

if not settings.configured:
    given = conninfo_to_dict(os.environ["MAILROOM_DATABASE_URL"])
    settings.configure(
        SECRET_KEY=os.environ.get("DJANGO_SECRET_KEY", os.urandom(32).hex()),
        ALLOWED_HOSTS=["127.0.0.1", "localhost", "testserver"],
        ROOT_URLCONF=__name__,
        INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "mailroom.contrib.django"],
        MIDDLEWARE=[
            "django.middleware.security.SecurityMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
        ],
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": given.pop("dbname"),
                "OPTIONS": given,
                "ATOMIC_REQUESTS": True,
            }
        },
    )
    django.setup()

from mailroom.contrib.django.views import SignUpView  # needs the settings

urlpatterns = [
    path("sign-up", SignUpView.as_view()),
    path("", include("mailroom.contrib.django.urls")),
]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
