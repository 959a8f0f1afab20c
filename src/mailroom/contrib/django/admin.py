"""Shows a user's mails on the user's page in Django's admin: what ``mailroom why`` prints.

The page's own permissions hold: who may see the user may see the mails. Addresses are masked.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from django.apps import apps
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.db import DatabaseError, connections, transaction
from django.utils.html import format_html
from django.utils.module_loading import module_has_submodule
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from mailroom.contrib.django.configuration import users_database
from mailroom.contrib.django.tokens import last_tokens
from mailroom.errors import MailroomError
from mailroom.operations.reports import MAX_TOKENS, stories

FIELD = "mailroom_mails"


class MailsMixin:
    """Adds the last mails of a user to an admin page of users."""

    def get_readonly_fields(self, request: Any, obj: Any = None) -> Any:
        """The page's fields and, for a user who exists, the mails."""
        found = super().get_readonly_fields(request, obj)  # type: ignore[misc]
        return (*found, FIELD) if obj else found

    def get_fieldsets(self, request: Any, obj: Any = None) -> Any:
        """The page's sections and, for a user who exists, the mails."""
        found = super().get_fieldsets(request, obj)  # type: ignore[misc]
        if not obj or FIELD in admin.utils.flatten_fieldsets(found):
            return found
        return [*found, (_("Mails"), {"fields": [FIELD]})]

    @admin.display(description=_("Mails"))
    def mailroom_mails(self, user: Any) -> str:
        """What happened to the user's last mails, newest first."""
        return format_html('<pre style="white-space: pre-wrap">{}</pre>', _mails(user))


def _mails(user: Any) -> str:
    alias = users_database()
    try:
        # If a statement fails, the rest of the page still needs the transaction.
        with transaction.atomic(using=alias):
            tokens = last_tokens(user, MAX_TOKENS)
            below = connections[alias].connection
            found = [story.text() for token in tokens for story in stories(below, str(token))]
    except (DatabaseError, MailroomError) as error:
        return str(error)
    return "\n\n".join(found) or gettext("No mail was requested yet, or all were pruned.")


def _extend() -> None:
    """Add the mails to the page that the project registered for users."""
    user = get_user_model()
    config = apps.get_app_config(user._meta.app_label)
    if module_has_submodule(config.module, "admin"):
        import_module(f"{config.name}.admin")
    if admin.site.is_registered(user):
        page = type(admin.site.get_model_admin(user))
        admin.site.unregister(user)
        admin.site.register(user, type(page.__name__, (MailsMixin, page), {}))


_extend()
