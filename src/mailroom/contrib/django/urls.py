"""The pages behind links, and those that take the place of Django's password reset.

Include them where ``MAILROOM_APP_URL`` points, before ``django.contrib.auth.urls``. The names are Django's.
"""

from django.urls import path
from django.utils.translation import gettext_lazy as _

from mailroom.contrib.django import views

_reset = views.PasswordResetView.as_view(action="password_recovery")

urlpatterns = [
    path("activate", views.ActivationView.as_view(action="activation"), name="activate"),
    path(
        "activate/done/",
        views.PageView.as_view(
            template_name="mailroom/activation_complete.html", title=_("Account activated")
        ),
        name="activation_complete",
    ),
    path(
        "activate/again/",
        views.ActivationAgainView.as_view(action="activation"),
        name="activation_again",
    ),
    path(
        "activate/again/done/",
        views.PageView.as_view(
            template_name="mailroom/activation_again_done.html", title=_("Check your mails")
        ),
        name="activation_again_done",
    ),
    path(
        "password_reset/", _reset, name="admin_password_reset"
    ),  # the admin's login page looks for this name
    path("password_reset/", _reset, name="password_reset"),
    path(
        "password_reset/done/",
        views.PageView.as_view(
            template_name="mailroom/password_reset_done.html", title=_("Password reset sent")
        ),
        name="password_reset_done",
    ),
    path(
        "recover",
        views.PasswordResetConfirmView.as_view(action="password_recovery"),
        name="password_reset_confirm",
    ),
    path(
        "reset/done/",
        views.PageView.as_view(
            template_name="mailroom/password_reset_complete.html", title=_("Password reset complete")
        ),
        name="password_reset_complete",
    ),
    path(
        "sign-up/done/",
        views.PageView.as_view(template_name="mailroom/sign_up_done.html", title=_("Check your mails")),
        name="sign_up_done",
    ),
]
