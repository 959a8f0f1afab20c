"""Sends through version 1 of AWS SES's API: each ``send`` is one ``SendBulkTemplatedEmail``, tried once.

The templates are in SES, where ``mailroom templates push`` puts them. See ``ses_calls`` for the calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from mailroom.actions import Action
from mailroom.answers import Answer
from mailroom.settings.sender import SenderSettings
from mailroom.templates import mails
from mailroom.transports import ses_calls
from mailroom.transports.aws_client import Client
from mailroom.transports.preparing import prepare
from mailroom.transports.ses_calls import RECIPIENTS_PER_CALL, SesCalls
from mailroom.transports.ses_templates import SesTemplate, SesTemplates
from mailroom.wire import Message

OPERATION: Final = "SendBulkTemplatedEmail"
NO_TEMPLATE: Final = "TemplateDoesNotExist"  # and with Exception, in some versions of SES


def request(
    settings: SenderSettings, action: Action, template: str, destinations: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The parameters of the call for an action's mails from a template, each as ``prepared``."""
    parameters: dict[str, Any] = {
        "Source": ses_calls.header_address(settings.source),
        "Template": template,
        "DefaultTemplateData": ses_calls.default_data(action),
        "Destinations": destinations,
        **ses_calls.reply_to(settings),
    }
    if settings.config_set:  # without one SES publishes no events
        parameters["ConfigurationSetName"] = settings.config_set
        parameters["DefaultTags"] = ses_calls.action_tags(action)
    return parameters


def prepared(
    settings: SenderSettings, messages: Sequence[Message], language: str
) -> list[dict[str, Any] | Answer]:
    """For each message its entry in the call, or the rejection of what cannot be prepared."""
    return [prepare(partial(_entry, settings, message, language), message) for message in messages]


def _entry(settings: SenderSettings, message: Message, language: str) -> dict[str, Any]:
    return {
        "Destination": ses_calls.destination(message),
        "ReplacementTemplateData": mails.ses_data(message, language),
        **ses_calls.own_tags(settings, message),
    }


class SesTransport:
    """Sends through version 1 of SES's API; a ``Transport``."""

    name = "ses"
    recipients_per_call = RECIPIENTS_PER_CALL

    def __init__(self, settings: SenderSettings) -> None:
        self._settings = settings
        self._calls = SesCalls(settings, "SES", lambda client: client.get_send_quota())
        self._templates = SesTemplates(settings, self._calls.learn)

    def check(self) -> Answer | None:
        """Check that there are credentials. Each template is checked before its first mail."""
        return self._calls.check()

    def quota(self) -> float | None:
        """Recipients a second that the account may send to; None when SES does not say."""
        return self._calls.quota()

    def send(self, messages: Sequence[Message]) -> list[Answer]:
        """See ``Transport.send``."""
        action, locale = messages[0].action, messages[0].locale
        client = self._calls.client()
        if isinstance(client, Answer):
            return [client] * len(messages)
        template = self._templates.choose(client, action, locale)
        if isinstance(template, Answer):
            return [template] * len(messages)
        answers = self._send_from(client, template, messages)
        if template.is_translation and any(one.detail.startswith(NO_TEMPLATE) for one in answers):
            self._templates.note_absent(action, template)
            return self.send(messages)
        return answers

    def close(self) -> None:
        """Close the connections."""
        self._calls.close()

    def _send_from(self, client: Client, template: SesTemplate, messages: Sequence[Message]) -> list[Answer]:
        ready = prepared(self._settings, messages, template.language)
        good = [one for one in ready if not isinstance(one, Answer)]
        called = [
            message for message, one in zip(messages, ready, strict=True) if not isinstance(one, Answer)
        ]
        sent = iter(self._call(client, template.name, called, good) if good else ())
        answers = [one if isinstance(one, Answer) else next(sent) for one in ready]
        return [one.of_template(template.name, template.language) for one in answers]

    def _call(
        self,
        client: Client,
        template: str,
        messages: Sequence[Message],
        destinations: Sequence[Mapping[str, Any]],
    ) -> list[Answer]:
        parameters = request(self._settings, messages[0].action, template, destinations)
        return self._calls.bulk(client, OPERATION, parameters, messages, "Status")
