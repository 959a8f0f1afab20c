"""Sends through version 2 of AWS SES's API: ``SendBulkEmail`` with the mail's content in each call.

The content is that of the local template, so nothing is pushed to SES and nothing there can differ. A changed
file is used within a second, as with SMTP. See ``ses_calls`` for the calls.

Mails that differ in which fields are empty may need different content (see ``templates.inline``). They then
go in several calls, one after the other. After a trouble that affects every mail, the rest gets the same
answer without a call; mails that were sent before it keep their answers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from mailroom.actions import Action, load_actions
from mailroom.answers import Answer, Result, Scope
from mailroom.errors import TemplateError
from mailroom.logs import EventLogger
from mailroom.settings.sender import SenderSettings
from mailroom.templates import checks, mails, sources
from mailroom.templates.inline import InlineContent, fields_tested, inline_content
from mailroom.transports import ses_calls
from mailroom.transports.aws_client import Client
from mailroom.transports.preparing import no_template, prepare
from mailroom.transports.ses_calls import RECIPIENTS_PER_CALL, SesCalls
from mailroom.wire import Message

OPERATION: Final = "SendBulkEmail"
# The caller gives up later than this many time-outs, and no call may begin after that.
MAX_WAITS: Final = 2

log = EventLogger("ses")

Ready = tuple[tuple[str, ...], dict[str, Any]]
"""Which of the fields that the template tests are empty in a mail, and the mail's entry in the call."""


class SesV2Transport:
    """Sends through version 2 of SES's API; a ``Transport``.

    Raises:
        ActionsError: the folder's actions cannot be used.
    """

    name = "sesv2"
    recipients_per_call = RECIPIENTS_PER_CALL

    def __init__(self, settings: SenderSettings) -> None:
        self._settings = settings
        self._calls = SesCalls(settings, "SESV2", lambda client: client.get_account()["SendQuota"])
        self._folder = sources.TemplateFolder(settings.templates.folder, settings.templates.constants)

    def check(self) -> Answer | None:
        """Check the templates, log each action that has one which cannot be used, and look for credentials.

        Raises:
            TemplateError: no action has one that can be used.
        """
        actions = load_actions(self._settings.templates.folder)
        checks.check_folder(self._folder, actions, lambda **why: log.error("template_unusable", **why))
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
        try:
            template = checks.usable(self._folder, action, locale)
        except TemplateError as error:
            return [no_template(error)] * len(messages)
        make = partial(self._ready, template.language, fields_tested(template))
        ready = [prepare(partial(make, message), message) for message in messages]
        answers = self._send(client, template, messages, ready)
        return [one.of_template(template.name, template.language) for one in answers]

    def close(self) -> None:
        """Close the connections."""
        self._calls.close()

    def _ready(self, language: str, tested: Sequence[str], message: Message) -> Ready:
        data = mails.fields(message, language)
        entry = {
            "Destination": ses_calls.destination(message),
            "ReplacementEmailContent": {
                "ReplacementTemplate": {"ReplacementTemplateData": mails.as_json(data)}
            },
            **ses_calls.own_tags(self._settings, message),
        }
        return tuple(name for name in tested if not data.get(name)), entry

    def _send(
        self,
        client: Client,
        template: sources.Template,
        messages: Sequence[Message],
        ready: Sequence[Ready | Answer],
    ) -> list[Answer]:
        """Make a call for each content."""
        found = {at: one for at, one in enumerate(ready) if isinstance(one, Answer)}
        alike: dict[tuple[str, ...], dict[int, dict[str, Any]]] = {}
        for at, one in enumerate(ready):
            if not isinstance(one, Answer):
                empty, entry = one
                alike.setdefault(empty, {})[at] = entry
        last = time.monotonic() + MAX_WAITS * self._settings.send_timeout_ms / 1000
        trouble: Answer | None = None
        for empty, entries in alike.items():
            try:
                content = inline_content(template, empty)
            except TemplateError as error:
                found |= dict.fromkeys(entries, no_template(error))
                continue
            if trouble is None and time.monotonic() >= last:
                trouble = Answer(Result.TRANSIENT, "not begun: SES is slow")
            if trouble:
                found |= dict.fromkeys(entries, trouble)
                continue
            called = [messages[at] for at in entries]
            parameters = self._request(called[0].action, content, list(entries.values()))
            answers = self._calls.bulk(client, OPERATION, parameters, called, "BulkEmailEntryResults")
            found |= dict(zip(entries, answers, strict=True))
            trouble = next((_of_the_rest(one) for one in answers if one.scope is Scope.ACCOUNT), None)
        return [found[at] for at in range(len(messages))]

    def _request(
        self, action: Action, content: InlineContent, entries: Sequence[dict[str, Any]]
    ) -> dict[str, Any]:
        """The parameters of a call for an action's mails."""
        parameters: dict[str, Any] = {
            "FromEmailAddress": ses_calls.header_address(self._settings.source),
            "DefaultContent": {
                "Template": {
                    "TemplateContent": {
                        "Subject": content.subject,
                        "Text": content.text,
                        "Html": content.html,
                    },
                    "TemplateData": ses_calls.default_data(action),
                }
            },
            "BulkEmailEntries": entries,
            **ses_calls.reply_to(self._settings),
        }
        if self._settings.config_set:  # without one SES publishes no events
            parameters["ConfigurationSetName"] = self._settings.config_set
            parameters["DefaultEmailTags"] = ses_calls.action_tags(action)
        return parameters


def _of_the_rest(answer: Answer) -> Answer:
    """The answer to mails that are in no call because of another's trouble: they were not sent."""
    return replace(answer, result=Result.TRANSIENT) if answer.result is Result.UNKNOWN else answer
