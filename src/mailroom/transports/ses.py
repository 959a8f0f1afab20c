"""AWS SES over botocore: one ``SendBulkTemplatedEmail`` a call, and one attempt.

botocore's own retries are off, since a bulk call that is made again mails people twice. Credentials,
region, profile, proxy and endpoint are found as botocore finds them. Every answer that is not a clean
success is saved whole (see ``responses``), without credentials.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import botocore.session

from mailroom import templates
from mailroom.actions import ACTIONS, BY_NAME
from mailroom.errors import TemplateError
from mailroom.logs import EventLogger
from mailroom.outcomes import Outcome, Result, Scope
from mailroom.responses import Responses, redacted
from mailroom.sender_settings import TEMPLATE_NAMES, SenderSettings
from mailroom.transports import ses_answers
from mailroom.transports.addresses import ascii_domain
from mailroom.transports.ses_client import ERRORS, asked, name_of, open_client
from mailroom.wire import Message

RECIPIENTS_PER_CALL: Final = 50  # "up to 50 destinations": SES's API reference
OPERATION: Final = "SendBulkTemplatedEmail"

log = EventLogger("ses")


def request(settings: SenderSettings, messages: Sequence[Message]) -> dict[str, Any]:
    """The parameters of the call for messages of one action."""
    action = BY_NAME[messages[0].action]
    names = [*action.fields, *templates.escaped_names(action)]
    parameters: dict[str, Any] = {
        "Source": settings.source,
        "Template": settings.templates.names[action.name],
        "DefaultTemplateData": json.dumps(dict.fromkeys(names, "")),
        "Destinations": [
            {
                "Destination": {"ToAddresses": [_address(message.email)]},
                "ReplacementTemplateData": templates.ses_data(action, message),
            }
            for message in messages
        ],
    }
    if settings.config_set:
        parameters["ConfigurationSetName"] = settings.config_set
    return parameters


def _address(address: str) -> str:
    """An address with its domain in ASCII; itself where it has none, for SES to reject."""
    try:
        return "@".join(ascii_domain(address))
    except ValueError:
        return address


class SesTransport:
    """Sends through SES; a ``Transport``."""

    name = "ses"
    recipients_per_call = RECIPIENTS_PER_CALL

    def __init__(self, settings: SenderSettings) -> None:
        self._settings = settings
        self._session = botocore.session.get_session()
        self._client = open_client(
            session=self._session,
            connect_timeout_ms=settings.connect_timeout_ms,
            send_timeout_ms=settings.send_timeout_ms,
            connections=settings.send_concurrency,
        )
        self._responses = Responses(settings.output_path, "ses")
        self._answer = threading.local()
        self._quota_fault = ""
        self._client.meta.events.register(f"before-parse.ses.{OPERATION}", self._keep_answer)

    def check(self) -> None:
        """See that SES's templates show just what their mails have.

        Raises:
            TemplateError: one does not: SES would accept its mails and send nothing.
        """
        for action in ACTIONS:
            name = self._settings.templates.names[action.name]
            try:
                parts = asked(partial(templates.fetch, self._client, name))
            except ERRORS as error:
                log.warning("template_not_checked", template=name, reason=name_of(error))
                continue
            if parts is None:
                log.error("template_missing", template=name, action=action.name)
                continue
            findings = templates.check_fetched(parts, action)
            for finding in findings.warnings:
                log.warning("template_warning", template=name, warning=finding)
            if findings.faults:
                raise TemplateError(
                    f"the template {name!r} in SES does not fit {action.name}: {'; '.join(findings.faults)}",
                    hint="`mailroom templates push` replaces it, `mailroom templates diff` compares them,"
                    f" and {TEMPLATE_NAMES[action.name].name} names another",
                )

    def quota(self) -> float | None:
        """Recipients a second that the account may send to; None when SES does not say."""
        try:
            rate = self._client.get_send_quota().get("MaxSendRate", 0.0)
        except ERRORS as error:
            if self._quota_fault != (fault := name_of(error)):
                log.warning("quota_unknown", reason=fault)
            self._quota_fault = fault
            return None
        self._quota_fault = ""
        return rate if rate > 0 else None

    def send(self, messages: Sequence[Message]) -> list[Outcome]:
        """See ``Transport.send``."""
        self._answer.kept = None
        parameters = request(self._settings, messages)
        try:
            answer = self._client.send_bulk_templated_email(**parameters)
            outcomes = [
                ses_answers.of_status(
                    entry.get("Status", ""), entry.get("Error", ""), entry.get("MessageId", "")
                )
                for entry in answer.get("Status", ())
            ]
            if len(outcomes) != len(messages):
                detail = f"SES answered for {len(outcomes)} of {len(messages)} recipients"
                outcomes = [Outcome(Result.UNKNOWN, detail, scope=Scope.ACCOUNT)] * len(messages)
        except Exception as error:  # noqa: BLE001 - what it is decides what happens to the mail
            outcomes = [ses_answers.of_exception(error, self._settings.source)] * len(messages)
        if all(outcome.result is Result.SENT for outcome in outcomes):
            return outcomes
        # SES quotes parts of the request when it doubts the signature.
        credentials = self._session.get_credentials()
        secrets = [credentials.access_key, credentials.secret_key, credentials.token] if credentials else []
        if self._answer.kept:
            status, headers, body = self._answer.kept
            self._responses.save(messages[0].action, status, headers, body, secrets)
        return [replace(outcome, detail=redacted(outcome.detail, secrets)) for outcome in outcomes]

    def close(self) -> None:
        """Let go of connections."""
        self._client.close()

    def _keep_answer(self, response_dict: dict[str, Any], **_: object) -> None:
        self._answer.kept = (
            response_dict["status_code"],
            dict(response_dict["headers"]),
            response_dict["body"],
        )
