"""Sends through AWS SES with botocore: each ``send`` is one ``SendBulkTemplatedEmail``, tried once.

botocore's own retries are off, since a repeated bulk call mails people twice. Credentials, region, profile,
proxy and endpoint come from botocore's usual settings. Every reply that is not a complete success is saved
(see ``saved_answers``), without credentials.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from email.utils import formataddr, parseaddr
from functools import partial
from typing import Any, Final

from mailroom.actions import Action
from mailroom.addresses import wire_address
from mailroom.answers import Answer, Result, Scope
from mailroom.logs import EventLogger
from mailroom.settings.sender import MAX_RATE, SenderSettings
from mailroom.templates import mails
from mailroom.transports import ses_answers, tags
from mailroom.transports.aws_client import Client, code_of, name_of
from mailroom.transports.aws_credentials import REFUSED, AwsSession, no_credentials
from mailroom.transports.preparing import prepare
from mailroom.transports.redaction import shortened
from mailroom.transports.saved_answers import SavedAnswers
from mailroom.transports.ses_templates import SesTemplate, SesTemplates
from mailroom.wire import Message

RECIPIENTS_PER_CALL: Final = 50  # "up to 50 destinations": SES's API reference
LOWEST_RATE: Final = 0.01
OPERATION: Final = "SendBulkTemplatedEmail"
NO_TEMPLATE: Final = "TemplateDoesNotExist"  # and with Exception, in some versions of SES

log = EventLogger("ses")


def request(
    settings: SenderSettings, action: Action, template: str, destinations: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The parameters of the call for an action's mails from a template, each as ``prepared``."""
    parameters: dict[str, Any] = {
        "Source": _source(settings.source),
        "Template": template,
        "DefaultTemplateData": json.dumps(dict.fromkeys(mails.field_names(action), "")),
        "Destinations": destinations,
    }
    if settings.config_set:  # without one SES publishes no events
        parameters["ConfigurationSetName"] = settings.config_set
        parameters["DefaultTags"] = [_tag(tags.ACTION, action.name)]
    return parameters


def prepared(
    settings: SenderSettings, messages: Sequence[Message], language: str
) -> list[dict[str, Any] | Answer]:
    """For each message its entry in the call, or the rejection of what cannot be prepared.

    SES would read some malformed addresses as a different address, or as several.
    """
    return [prepare(partial(_destination, settings, message, language), message) for message in messages]


def _destination(settings: SenderSettings, message: Message, language: str) -> dict[str, Any]:
    destination: dict[str, Any] = {
        "Destination": {"ToAddresses": ["@".join(wire_address(message.email))]},
        "ReplacementTemplateData": mails.ses_data(message, language),
    }
    if settings.config_set and message.reference:
        named = tags.written(message.reference)
        destination["ReplacementTags"] = [_tag(name, value) for name, value in named.items()]
    return destination


def _tag(name: str, value: str) -> dict[str, str]:
    return {"Name": name, "Value": value}


def _source(source: str) -> str:
    """The sender's address, as written in a header."""
    name, address = parseaddr(source)
    return formataddr((name, "@".join(wire_address(address))))


class SesTransport:
    """Sends through SES; a ``Transport``."""

    name = "ses"
    recipients_per_call = RECIPIENTS_PER_CALL

    def __init__(self, settings: SenderSettings) -> None:
        self._settings = settings
        self._session = AwsSession(
            "SES",
            answer_timeout_ms=settings.send_timeout_ms,
            connections=settings.send_concurrency,
            see_reply=self._keep_reply,
        )
        self._saved_answers = SavedAnswers(settings.output_path, "ses")
        self._reply = threading.local()
        self._quota_fault = ""
        self._templates = SesTemplates(settings, self._learn)

    def check(self) -> Answer | None:
        """Check that there are credentials. Each template is checked before its first mail."""
        try:
            self._session.client()
        except Exception as error:  # noqa: BLE001 - its class decides what happens to the mail
            return self._clean(no_credentials(error))
        return None

    def quota(self) -> float | None:
        """Recipients a second that the account may send to; None when SES does not say."""
        try:
            rate = float(self._ask_quota()["MaxSendRate"])
        except Exception as error:  # noqa: BLE001 - no failure of this call may end the sending
            if self._quota_fault != (fault := name_of(error)):
                log.warning("quota_unknown", reason=fault)
            self._quota_fault = fault
            return None
        self._quota_fault = ""
        return rate if LOWEST_RATE <= rate <= MAX_RATE else None

    def send(self, messages: Sequence[Message]) -> list[Answer]:
        """See ``Transport.send``."""
        action, locale = messages[0].action, messages[0].locale
        try:
            client = self._session.client()
        except Exception as error:  # noqa: BLE001 - its class decides what happens to the mail
            return [self._clean(no_credentials(error))] * len(messages)
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
        self._session.close()

    def _send_from(self, client: Client, template: SesTemplate, messages: Sequence[Message]) -> list[Answer]:
        ready = prepared(self._settings, messages, template.language)
        good = [one for one in ready if not isinstance(one, Answer)]
        called = [
            message for message, one in zip(messages, ready, strict=True) if not isinstance(one, Answer)
        ]
        sent = iter(self._call(client, template.name, called, good) if good else ())
        answers = [one if isinstance(one, Answer) else next(sent) for one in ready]
        return [replace(one, template=template.name, language=template.language) for one in answers]

    def _call(
        self,
        client: Client,
        template: str,
        messages: Sequence[Message],
        destinations: Sequence[Mapping[str, Any]],
    ) -> list[Answer]:
        self._reply.kept = None
        action = messages[0].action
        parameters = request(self._settings, action, template, destinations)
        try:
            reply = self._session.call(client, OPERATION, parameters)
            answers = [
                ses_answers.of_status(
                    entry.get("Status", ""), entry.get("Error", ""), entry.get("MessageId", "")
                )
                for entry in reply.get("Status", ())
            ]
            if len(answers) != len(messages):
                detail = f"SES answered for {len(answers)} of {len(messages)} recipients"
                answers = [Answer(Result.UNKNOWN, detail, scope=Scope.ACCOUNT)] * len(messages)
        except Exception as error:  # noqa: BLE001 - its class decides what happens to the mail
            status = self._reply.kept[0] if self._reply.kept else 0
            self._learn(client, error, status)
            answers = [ses_answers.of_exception(error, _source(self._settings.source), status)] * len(
                messages
            )
        if all(answer.result is Result.SENT for answer in answers):
            return answers
        # SES quotes parts of the request when it rejects the signature or the data.
        secrets = [*self._session.secrets]
        secrets += [word for message in messages for word in (message.token, message.code)]
        if self._reply.kept:
            status, headers, body = self._reply.kept
            self._saved_answers.save(action.name, status, headers, body, secrets)
        return [replace(answer, detail=shortened(answer.detail, secrets)) for answer in answers]

    def _ask_quota(self) -> Any:
        client = self._session.client()
        try:
            return client.get_send_quota()
        except Exception as error:
            self._learn(client, error)
            raise

    def _learn(self, client: Client, error: Exception, status: int = 0) -> None:
        """Note that a call was refused for its credentials, or because their user may not make it."""
        if code_of(error) in REFUSED or status in {401, 403}:
            self._session.expire(client)

    def _clean(self, answer: Answer) -> Answer:
        return replace(answer, detail=shortened(answer.detail, self._session.secrets))

    def _keep_reply(self, reply: dict[str, Any]) -> None:
        self._reply.kept = (reply["status_code"], dict(reply["headers"]), reply["body"])
