"""AWS SES over botocore: one ``SendBulkTemplatedEmail`` a call, and one attempt.

botocore's own retries are off, since a bulk call that is made again mails people twice. Credentials,
region, profile, proxy and endpoint are found as botocore finds them. Every answer that is not a clean
success is saved whole (see ``responses``), without credentials.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from email.utils import formataddr, parseaddr
from functools import partial
from typing import Any, Final

import botocore.session

from mailroom.actions import ACTIONS, BY_NAME, Action
from mailroom.answers import Answer, Result, Scope
from mailroom.errors import TemplateError
from mailroom.logs import EventLogger
from mailroom.settings.sender import MAX_RATE, TEMPLATE_NAMES, SenderSettings
from mailroom.templates import checks, mails, remote
from mailroom.transports import ses_answers
from mailroom.transports.addresses import wire_address
from mailroom.transports.redaction import as_told
from mailroom.transports.saved_answers import Responses
from mailroom.transports.ses_client import DENIED, asked, code_of, name_of, open_client
from mailroom.wire import Message

RECIPIENTS_PER_CALL: Final = 50  # "up to 50 destinations": SES's API reference
LOWEST_RATE: Final = 0.01
OPERATION: Final = "SendBulkTemplatedEmail"

log = EventLogger("ses")


def request(settings: SenderSettings, messages: Sequence[Message]) -> dict[str, Any]:
    """The parameters of the call for messages of one action, with addresses that are good."""
    action = BY_NAME[messages[0].action]
    names = [*action.fields, *mails.escaped_names(action)]
    parameters: dict[str, Any] = {
        "Source": _source(settings.source),
        "Template": settings.templates.names[action.name],
        "DefaultTemplateData": json.dumps(dict.fromkeys(names, "")),
        "Destinations": [
            {
                "Destination": {"ToAddresses": ["@".join(wire_address(message.email))]},
                "ReplacementTemplateData": mails.ses_data(action, message),
            }
            for message in messages
        ],
    }
    if settings.config_set:
        parameters["ConfigurationSetName"] = settings.config_set
    return parameters


def bad_addresses(messages: Sequence[Message]) -> list[Answer | None]:
    """For each message the rejection of its address, where that could stand for another's or for several."""
    outcomes: list[Answer | None] = []
    for message in messages:
        try:
            wire_address(message.email)
        except ValueError as error:
            outcomes.append(Answer(Result.REJECTED, str(error), is_ours=True))
        else:
            outcomes.append(None)
    return outcomes


def _source(source: str) -> str:
    """The sender's address, as a header has it."""
    name, address = parseaddr(source)
    try:
        return formataddr((name, "@".join(wire_address(address))))
    except ValueError:
        return source


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
        self._unchecked = {action.name for action in ACTIONS}
        self._last_credentials: list[str] = []
        self._told: set[tuple[str, ...]] = set()
        self._client.meta.events.register(f"before-parse.ses.{OPERATION}", self._keep_answer)

    def check(self) -> None:
        """See that SES's templates show just what their mails have.

        Raises:
            TemplateError: one does not: SES would accept its mails and send nothing.
        """
        for action in ACTIONS:
            trouble = self._check_template(action)
            if trouble and trouble.result is Result.REJECTED:
                raise TemplateError(
                    trouble.detail,
                    hint="`mailroom templates push` replaces it, `mailroom templates diff` compares them,"
                    f" and {TEMPLATE_NAMES[action.name].name} names another",
                )

    def quota(self) -> float | None:
        """Recipients a second that the account may send to; None when SES does not say."""
        try:
            rate = float(self._client.get_send_quota()["MaxSendRate"])
        except Exception as error:  # noqa: BLE001 - no answer to this may end the sending
            if self._quota_fault != (fault := name_of(error)):
                log.warning("quota_unknown", reason=fault)
            self._quota_fault = fault
            return None
        self._quota_fault = ""
        return rate if LOWEST_RATE <= rate <= MAX_RATE else None

    def send(self, messages: Sequence[Message]) -> list[Answer]:
        """See ``Transport.send``."""
        action = BY_NAME[messages[0].action]
        if action.name in self._unchecked and (trouble := self._check_template(action)):
            if trouble.result is Result.REJECTED:  # the template, and not those who would get it
                trouble = replace(trouble, result=Result.PAUSED)
            return [trouble] * len(messages)
        outcomes = bad_addresses(messages)
        good = [message for message, outcome in zip(messages, outcomes, strict=True) if outcome is None]
        sent = iter(self._send(good) if good else ())
        return [outcome or next(sent) for outcome in outcomes]

    def close(self) -> None:
        """Let go of connections."""
        self._client.close()

    def _check_template(self, action: Action) -> Answer | None:
        """What keeps the action's template from being used; None for nothing that we know of.

        One that is not there, or that may not be looked at, is left to the call itself. One that SES
        does not show for now is looked at again before the next mail.
        """
        name = self._settings.templates.names[action.name]
        self._unchecked.add(action.name)
        try:
            parts = asked(partial(remote.fetch, self._client, name))
        except Exception as error:  # noqa: BLE001 - what it is decides what happens to the mail
            self._tell_once("template_not_checked", template=name, reason=name_of(error))
            if code_of(error) in DENIED:
                self._unchecked.discard(action.name)
            if ses_answers.of_exception(error, self._settings.source, 0).result is Result.PAUSED:
                return None  # a call will meet it too, or does without the permission
            detail = f"the template {name!r} cannot be looked at: {name_of(error)}"
            return Answer(Result.TRANSIENT, detail, scope=Scope.ACCOUNT)
        if parts is None:
            self._tell_once(
                "template_missing", template=name, reason=f"`mailroom templates push {action.name}`"
            )
            return None
        findings = checks.check_fetched(parts, action)
        for finding in findings.warnings:
            self._tell_once("template_warning", template=name, reason=finding)
        if findings.faults:
            detail = f"the template {name!r} in SES does not fit {action.name}: {'; '.join(findings.faults)}"
            return Answer(Result.REJECTED, detail, scope=Scope.ACTION)
        self._unchecked.discard(action.name)
        return None

    def _tell_once(self, event: str, **fields: str) -> None:
        told_before = (event, *fields.values())
        if told_before not in self._told:
            self._told.add(told_before)
            log.warning(event, **fields)

    def _send(self, messages: Sequence[Message]) -> list[Answer]:
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
                outcomes = [Answer(Result.UNKNOWN, detail, scope=Scope.ACCOUNT)] * len(messages)
        except Exception as error:  # noqa: BLE001 - what it is decides what happens to the mail
            status = self._answer.kept[0] if self._answer.kept else 0
            outcomes = [ses_answers.of_exception(error, self._settings.source, status)] * len(messages)
        if all(outcome.result is Result.SENT for outcome in outcomes):
            return outcomes
        # SES quotes parts of the request when it doubts the signature or the data.
        secrets = [*self._credentials()]
        secrets += [word for message in messages for word in (message.token, message.code)]
        if self._answer.kept:
            status, headers, body = self._answer.kept
            self._responses.save(messages[0].action, status, headers, body, secrets)
        return [replace(outcome, detail=as_told(outcome.detail, secrets)) for outcome in outcomes]

    def _credentials(self) -> list[str]:
        """Those that were signed with last, even where none can be had any more."""
        with suppress(Exception):  # which the call has met too, and told
            if credentials := self._session.get_credentials():
                frozen = credentials.get_frozen_credentials()
                self._last_credentials = [
                    word for word in (frozen.access_key, frozen.secret_key, frozen.token) if word
                ]
        return self._last_credentials

    def _keep_answer(self, response_dict: dict[str, Any], **_: object) -> None:
        self._answer.kept = (
            response_dict["status_code"],
            dict(response_dict["headers"]),
            response_dict["body"],
        )
