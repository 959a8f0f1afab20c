"""A Django application: the users of the project sign up and recover their passwords with Mailroom's mails.

Add ``mailroom.contrib.django`` to ``INSTALLED_APPS`` and include ``mailroom.contrib.django.urls``. The
application's migrations make Mailroom's schema and adopt the table of ``AUTH_USER_MODEL``. ``consume`` and
``send`` run on the connection of Django's ORM, in its transaction.

It needs the extra ``django``, and PostgreSQL through psycopg 3.
"""

from mailroom.contrib.django.tokens import consume, send

__all__ = ["consume", "send"]
