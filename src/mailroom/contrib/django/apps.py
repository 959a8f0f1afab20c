"""The application's configuration."""

from django.apps import AppConfig
from django.core import checks

from mailroom.contrib.django.configuration import check


class MailroomConfig(AppConfig):
    """Mailroom, as Django lists it."""

    name = "mailroom.contrib.django"
    label = "mailroom"
    verbose_name = "Mailroom"

    def ready(self) -> None:
        """Let ``manage.py check`` look at the settings."""
        checks.register(check)
