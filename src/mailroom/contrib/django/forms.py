"""The forms behind links, and those that request mails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any
from uuid import uuid4

from django import forms
from django.contrib.auth import forms as auth_forms
from django.contrib.auth import get_user_model
from django.db import DataError, IntegrityError, transaction
from django.utils.translation import gettext_lazy as _

from mailroom.contrib.django.configuration import setting, users_database
from mailroom.contrib.django.tokens import send, send_again

log = logging.getLogger(__name__)

User = get_user_model()
EMAIL = User.get_email_field_name()


class PasswordResetForm(auth_forms.PasswordResetForm):
    """Takes an address, and requests a mail to each active user who has it."""

    def save(self, *, action: str) -> None:
        """Request the mails; nothing happens for an unknown address."""
        _mail(self.get_users(self.cleaned_data["email"]), lambda user: send(action, user))


class ActivationAgainForm(forms.Form):
    """Takes an address, and requests another mail to each user who has it and waits for activation."""

    email = forms.EmailField(
        label=_("Email"), max_length=254, widget=forms.EmailInput(attrs={"autocomplete": "email"})
    )

    def save(self, *, action: str, interval: timedelta) -> None:
        """Request the mails; nothing happens for an unknown address, or a second time in the interval.

        For a user who does not wait for activation the database ends the token at once, and mails nothing.
        """
        users = User._base_manager.filter(**{f"{EMAIL}__iexact": self.cleaned_data["email"]})
        _mail(users, lambda user: send_again(action, user, interval))


def _mail(users: Iterable[Any], request: Callable[[Any], int]) -> None:
    for user in users:
        try:
            with transaction.atomic(using=users_database()):
                request(user)
        except (DataError, IntegrityError):
            # Django takes addresses that no mail can go to. The answer must not tell who has an account.
            log.warning("no mail can go to the address of the user %s", user.pk)


class TokenForm(forms.Form):
    """Carries the token of a link."""

    token = forms.CharField(widget=forms.HiddenInput)


class PasswordRecoveryForm(auth_forms.SetPasswordForm):
    """Carries the token of a link, and takes the code of the same mail and the new password, twice."""

    token = forms.CharField(widget=forms.HiddenInput)
    code = forms.RegexField(
        r"\A[0-9]{5}\Z",
        label=_("Code"),
        error_messages={"invalid": _("Type the five digits from the mail.")},
        widget=forms.TextInput(
            attrs={"autocomplete": "one-time-code", "inputmode": "numeric", "autofocus": True}
        ),
    )
    field_order = ("token", "code", "new_password1", "new_password2")


class SignUpForm(auth_forms.UserCreationForm):
    """Makes a pending user, which requests the activation mail in the same transaction.

    A known address is not an error, since that would tell who has an account. Then the user who is made has
    no address and no password, so that the name is taken either way.
    """

    class Meta(auth_forms.UserCreationForm.Meta):
        """The fields that every user needs."""

        model = User
        fields = tuple(dict.fromkeys([User.USERNAME_FIELD, EMAIL, *User.REQUIRED_FIELDS]))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields[EMAIL].required = True

    def _get_validation_exclusions(self) -> set[str]:
        return {*super()._get_validation_exclusions(), EMAIL}

    def save(self, commit: bool = True) -> Any:
        """The new user; None if a user has the address already and only the name was taken."""
        if setting("PENDING_WHEN") is None:
            self.instance.is_active = False
        # It hashes the password, so that the answer takes as long for a known address.
        user = super().save(commit=False)
        if User._base_manager.filter(**{f"{EMAIL}__iexact": self.cleaned_data[EMAIL]}).exists():
            if commit and User.USERNAME_FIELD != EMAIL:
                self._take_the_name(user)
            return None
        if commit:
            user.save()
        return user

    def _take_the_name(self, user: Any) -> None:
        """Save the user with the first of these as the address that the model's constraints allow."""
        user.set_unusable_password()
        for nothing in (None, "", f"none {uuid4()}"):
            setattr(user, EMAIL, nothing)
            try:
                with transaction.atomic(using=users_database()):
                    user.save(force_insert=True)
            except IntegrityError:
                continue
            return
