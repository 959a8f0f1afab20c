"""The pages behind links, and those that request mails.

A GET shows a page and consumes nothing, since mail scanners open links. A POST consumes the token. Links hold
tokens, so no page is cached and none tells its address to another site.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth import views as auth_views
from django.contrib.auth.decorators import login_not_required
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render, resolve_url
from django.urls import NoReverseMatch, is_valid_path, reverse, reverse_lazy
from django.utils.decorators import method_decorator
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.debug import sensitive_post_parameters
from django.views.generic import FormView, TemplateView

from mailroom.contrib.django import forms
from mailroom.contrib.django.configuration import keys, users_database
from mailroom.contrib.django.tokens import consume, is_of_the_user_model
from mailroom.errors import TokenError, UnknownToken, WrongCode
from mailroom.tokens import split, verify

# A stricter policy would remove the Origin that Django's protection against CSRF looks at.
REFERRER_POLICY: Final = "same-origin"
# By a TokenError's ``reason``. The others say nothing that helps a visitor.
REFUSALS: Final[Mapping[str, Any]] = {
    "used": _("The link was used before."),
    "expired": _("The link has expired."),
    "suspended": _("The account is suspended."),
    "ineligible": _("The account cannot use this link now."),
    "exhausted": _("Five wrong codes were typed, so the link does not work any more."),
}
NOT_VALID: Final = _("The link is not valid. Check that it was copied as a whole.")


@method_decorator(login_not_required, name="dispatch")
class PageView(auth_views.PasswordContextMixin, TemplateView):
    """A page that says what happened."""

    title = ""

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        """The page's variables."""
        context: dict[str, Any] = super().get_context_data(**kwargs)
        login = resolve_url(settings.LOGIN_URL)
        return context | {
            "login_url": login if is_valid_path(login) else "",
            "again_url": _url("activation_again"),
        }


@method_decorator(login_not_required, name="dispatch")
class LinkView(auth_views.PasswordContextMixin, FormView):
    """The page behind the links of an action.

    Attributes:
        action: the action's name.
        again: the name of the address where a new mail can be requested.
        refused_template_name: the page for a token that is refused, with the status 403.
    """

    action = ""
    again = ""
    title = ""
    refused_template_name = "mailroom/refused.html"

    @method_decorator([sensitive_post_parameters(), never_cache, csrf_protect])
    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Answer, with a page for a token that is refused."""
        try:
            response: HttpResponse = super().dispatch(request, *args, **kwargs)
        except TokenError as error:
            context = {
                "title": _("This link does not work"),
                "error": error,
                "reason": REFUSALS.get(error.reason, NOT_VALID),
                "again_url": _url(self.again),
            }
            response = render(request, self.refused_template_name, context, status=403)
        response.headers["Referrer-Policy"] = REFERRER_POLICY
        return response

    def get_initial(self) -> dict[str, Any]:
        """The token of the link."""
        return super().get_initial() | {"token": self.request.GET.get("token", "")}


class ActivationView(LinkView):
    """Shows a button, which activates the user."""

    again = "activation_again"
    form_class = forms.TokenForm
    success_url = reverse_lazy("activation_complete")
    template_name = "mailroom/activation.html"
    title = _("Activate your account")

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Show the button, for a token that was signed for this action."""
        verify(request.GET.get("token", ""), self.action, keys=keys())
        return super().get(request, *args, **kwargs)

    def form_valid(self, form: Any) -> HttpResponse:
        """Consume the token."""
        consume(form.cleaned_data["token"], self.action)
        return super().form_valid(form)


class PasswordResetConfirmView(LinkView):
    """Takes the code of the mail and a new password. A password that is refused consumes nothing."""

    again = "password_reset"
    form_class = forms.PasswordRecoveryForm
    success_url = reverse_lazy("password_reset_complete")
    template_name = "mailroom/password_reset_confirm.html"
    title = _("Enter new password")

    def get_form_kwargs(self) -> dict[str, Any]:
        """The form's arguments; who the user is, only the consumed token says."""
        return super().get_form_kwargs() | {"user": None}

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Show the form, for a well-formed token."""
        split(request.GET.get("token", ""))
        return super().get(request, *args, **kwargs)

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Consume the token and set the password, or neither."""
        form = self.get_form()
        if not {"token", "code"} & form.errors.keys():
            try:
                self._recover(form)
            except WrongCode as wrong:
                text = ngettext(
                    "The code is wrong. You have %(left)d more try.",
                    "The code is wrong. You have %(left)d more tries.",
                    wrong.codes_left,
                )
                form.add_error("code", text % {"left": wrong.codes_left})
        return self.form_valid(form) if form.is_valid() else self.form_invalid(form)

    def _recover(self, form: Any) -> None:
        alias, (token, code) = users_database(), (form.cleaned_data[name] for name in ("token", "code"))
        with transaction.atomic(using=alias):
            used = consume(token, self.action, code=code)
            if not is_of_the_user_model(used):
                raise UnknownToken("the token is not for a user of this site", hint="ask for a new mail")
            form.user = get_user_model()._base_manager.using(alias).get(pk=used.subject)
            form.full_clean()
            if form.is_valid():
                form.save()
            else:
                transaction.set_rollback(True, using=alias)


class PasswordResetView(auth_views.PasswordResetView):
    """Takes an address and requests the mail. The answer is the same for an unknown address.

    Attributes:
        action: the name of the mail's action, whose limit for one recipient holds.
    """

    action = ""
    form_class = forms.PasswordResetForm
    template_name = "mailroom/password_reset_form.html"

    def form_valid(self, form: Any) -> HttpResponse:
        """Request the mail."""
        form.save(action=self.action)
        return HttpResponseRedirect(self.get_success_url())


@method_decorator(login_not_required, name="dispatch")
class ActivationAgainView(auth_views.PasswordContextMixin, FormView):
    """Takes an address and requests another activation mail. The answer is the same for an unknown address.

    Attributes:
        action: the name of the mail's action.
        interval: a user gets one mail in it at most. Not longer than the mail's link is valid, so that a user
            whose link has expired gets another one.
    """

    action = ""
    interval = timedelta(minutes=15)
    form_class = forms.ActivationAgainForm
    success_url = reverse_lazy("activation_again_done")
    template_name = "mailroom/activation_again.html"
    title = _("Ask for a new link")

    @method_decorator(csrf_protect)
    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Answer."""
        response: HttpResponse = super().dispatch(request, *args, **kwargs)
        return response

    def form_valid(self, form: Any) -> HttpResponse:
        """Request the mail."""
        form.save(action=self.action, interval=self.interval)
        return super().form_valid(form)


@method_decorator(login_not_required, name="dispatch")
class SignUpView(auth_views.PasswordContextMixin, FormView):
    """Makes a pending user. The answer is the same for a known address."""

    form_class = forms.SignUpForm
    success_url = reverse_lazy("sign_up_done")
    template_name = "mailroom/sign_up.html"
    title = _("Sign up")

    @method_decorator([sensitive_post_parameters(), csrf_protect])
    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Answer."""
        response: HttpResponse = super().dispatch(request, *args, **kwargs)
        return response

    def form_valid(self, form: Any) -> HttpResponse:
        """Make the user."""
        form.save()
        return super().form_valid(form)


def _url(name: str) -> str:
    """The address of a name; empty if the project does not include it."""
    try:
        return reverse(name)
    except NoReverseMatch:
        return ""
