"""Sign-up, activation and recovery in Django, without signals: a trigger in the database adds the token.

    pip install django psycopg[binary]
    python app.py runserver 8000

In your project, move the two models to an application's models.py, and the views to its views.py. The example
has no passwords and no sessions; `examples/signup` is an application with both.
"""

import os
import sys

import django
from django.conf import settings
from django.core.management import execute_from_command_line
from django.db import connection, models, transaction
from django.http import HttpResponse, JsonResponse
from django.urls import path
from django.utils.html import format_html
from django.views.decorators.http import require_http_methods, require_POST
from psycopg.conninfo import conninfo_to_dict

import mailroom

KEYS = os.environ["MAILROOM_SECRET_KEY"]
PAGE = """\
<form method="post"><input type="hidden" name="token" value="{}"><button>Activate</button></form>
"""

if not settings.configured:
    given = conninfo_to_dict(os.environ["MAILROOM_DATABASE_URL"])
    settings.configure(
        SECRET_KEY=os.environ.get("DJANGO_SECRET_KEY", os.urandom(32).hex()),
        ALLOWED_HOSTS=["127.0.0.1", "localhost", "testserver"],
        ROOT_URLCONF=__name__,
        SECURE_REFERRER_POLICY="no-referrer",
        MIDDLEWARE=["django.middleware.security.SecurityMiddleware", f"{__name__}.refusals"],
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": given.pop("dbname"),
                "OPTIONS": given,
            }
        },
    )
    django.setup()


class Account(models.Model):
    """Mailroom's table. `mailroom migrate` makes it, so `managed` is false and Django never changes it."""

    email = models.TextField()
    login = models.TextField()
    status = models.TextField(db_default="provisioned")

    class Meta:
        app_label = "mail"
        managed = False
        db_table = "accounts"


class Token(models.Model):
    """Mailroom's other table. The database fills in secret, code and expiry."""

    action = models.TextField()
    account = models.ForeignKey(Account, models.CASCADE, db_column="account")

    class Meta:
        app_label = "mail"
        managed = False
        db_table = "tokens"


def refusals(get_response):
    """A middleware that answers a refused token."""

    def middleware(request):
        return get_response(request)

    def process_exception(request, error):
        if isinstance(error, mailroom.TokenError):
            return JsonResponse({"error": error.reason, "message": str(error)}, status=403)
        return None

    middleware.process_exception = process_exception
    return middleware


def consume(token, action, code=None):
    """Consume on Django's connection. It commits by itself, except inside `atomic`: commit that one."""
    connection.ensure_connection()
    return mailroom.consume(connection.connection, token, action, keys=KEYS, code=code)


@require_POST
def sign_up(request):
    email, login = request.POST["email"], request.POST["login"]
    with transaction.atomic():  # the mail is sent only if this commits
        if not Account.objects.filter(email__iexact=email).exists():
            Account.objects.create(email=email, login=login)
    return JsonResponse({"message": "If that address is new, a mail is on its way."})


@require_http_methods(["GET", "POST"])
def activate(request):
    if request.method == "POST":
        return JsonResponse({"active": consume(request.POST["token"], "activation").account})
    token = request.GET["token"]
    mailroom.verify(token, "activation", keys=KEYS)
    return HttpResponse(format_html(PAGE, token))


@require_POST
def forgot(request):
    account = Account.objects.filter(email__iexact=request.POST["email"], status="active").first()
    if account:
        Token.objects.create(action="password_recovery", account=account)
    return JsonResponse({"message": "If there is such an account, a mail is on its way."})


@require_POST
def recover(request):
    used = consume(request.POST["token"], "password_recovery", request.POST["code"])
    # Here: store the hash of the new password of used.account, and end its sessions.
    return JsonResponse({"recovered": used.account})


urlpatterns = [
    path("sign-up", sign_up),
    path("activate", activate),
    path("forgot", forgot),
    path("recover", recover),
]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
