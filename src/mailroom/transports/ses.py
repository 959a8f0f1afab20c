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
from mailroom.errors import TemplateError
from mailroom.logs import EventLogger
from mailroom.settings.sender import MAX_RATE, SenderSettings
from mailroom.templates import checks, mails, remote, sources
from mailroom.transports import ses_answers
from mailroom.transports.preparing import prepare
from mailroom.transports.redaction import shortened
from mailroom.transports.saved_answers import SavedAnswers
from mailroom.transports.ses_client import DENIED, Client, asked, code_of, name_of
from mailroom.transports.ses_credentials import REFUSED, SesSession, no_credentials
from mailroom.wire import Message

RECIPIENTS_PER_CALL: Final = 50  # "up to 50 destinations": SES's API reference
LOWEST_RATE: Final = 0.01
OPERATION: Final = "SendBulkTemplatedEmail"

log = EventLogger("ses")


def request(
    settings: SenderSettings, action: Action, destinations: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The parameters of the call for an action's mails, each as ``prepared``."""
    names = [*mails.shown(action), *mails.escaped_names(action)]
    parameters: dict[str, Any] = {
        "Source": _source(settings.source),
        "Template": settings.templates.name_of(action),
        "DefaultTemplateData": json.dumps(dict.fromkeys(names, "")),
        "Destinations": destinations,
    }
    if settings.config_set:
        parameters["ConfigurationSetName"] = settings.config_set
    return parameters


def prepared(action: Action, messages: Sequence[Message]) -> list[dict[str, Any] | Answer]:
    """For each message of one action its entry in the call, or the rejection of what cannot be prepared.

    SES would read some malformed addresses as a different address, or as several.
    """
    return [prepare(partial(_destination, action, message), message) for message in messages]


def _destination(action: Action, message: Message) -> dict[str, Any]:
    return {
        "Destination": {"ToAddresses": ["@".join(wire_address(message.email))]},
        "ReplacementTemplateData": mails.ses_data(action, message),
    }


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
        self._session = SesSession(
            send_timeout_ms=settings.send_timeout_ms,
            connections=settings.send_concurrency,
            before_parse=self._keep_reply,
            operation=OPERATION,
        )
        self._saved_answers = SavedAnswers(settings.output_path, "ses")
        self._reply = threading.local()
        self._quota_fault = ""
        self._checked: set[str] = set()  # names of actions
        self._warned: set[tuple[str, ...]] = set()

    def check(self) -> Answer | None:
        """Check that there are credentials, and that each template in SES uses the fields of its action.

        Raises:
            TemplateError: one does not, so SES would accept its mails and send nothing.
        """
        try:
            client = self._session.client()
        except Exception as error:  # noqa: BLE001 - its class decides what happens to the mail
            return self._clean(no_credentials(error))
        for action in sources.actions_of(self._settings.templates.folder):
            trouble = self._check_template(client, action)
            if trouble and trouble.result is Result.REJECTED:
                raise TemplateError(
                    trouble.detail,
                    hint="`mailroom templates push` replaces it, `mailroom templates diff` compares them,"
                    f" and MAILROOM_TEMPLATE_{action.name.upper()} names another",
                )
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
        action = messages[0].action
        try:
            client = self._session.client()
        except Exception as error:  # noqa: BLE001 - its class decides what happens to the mail
            return [self._clean(no_credentials(error))] * len(messages)
        if action.name not in self._checked and (trouble := self._check_template(client, action)):
            if trouble.result is Result.REJECTED:  # the template is at fault, not the recipients
                trouble = replace(trouble, result=Result.PAUSED)
            return [trouble] * len(messages)
        ready = prepared(action, messages)
        good = [one for one in ready if not isinstance(one, Answer)]
        called = [
            message for message, one in zip(messages, ready, strict=True) if not isinstance(one, Answer)
        ]
        sent = iter(self._send(client, action, called, good) if good else ())
        return [one if isinstance(one, Answer) else next(sent) for one in ready]

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _check_template(self, client: Client, action: Action) -> Answer | None:
        """Why the action's template cannot be used; None when no reason is known.

        A template that is missing, or that the role may not read, is left to the call itself. A template
        that SES does not return for now is checked again before the next mail.
        """
        name = self._settings.templates.name_of(action)
        self._checked.discard(action.name)
        try:
            parts = asked(partial(remote.fetch, client, name))
        except Exception as error:  # noqa: BLE001 - its class decides what happens to the mail
            self._learn(client, error)
            self._warn_once("template_not_checked", template=name, reason=name_of(error))
            if code_of(error) in DENIED:
                self._checked.add(action.name)
            if ses_answers.of_exception(error, _source(self._settings.source), 0).result is Result.PAUSED:
                return None  # the call will get it too, or does not need the permission
            detail = f"the template {name!r} cannot be read: {name_of(error)}"
            return Answer(Result.TRANSIENT, detail, scope=Scope.ACCOUNT)
        if parts is None:
            self._warn_once(
                "template_missing", template=name, reason=f"`mailroom templates push {action.name}`"
            )
            return None
        findings = checks.check_fetched(parts, action)
        for finding in findings.warnings:
            self._warn_once("template_warning", template=name, reason=finding)
        if findings.faults:
            detail = (
                f"the template {name!r} in SES does not match {action.name}: {'; '.join(findings.faults)}"
            )
            return Answer(Result.REJECTED, detail, scope=Scope.ACTION)
        self._checked.add(action.name)
        return None

    def _warn_once(self, event: str, **fields: str) -> None:
        warning = (event, *fields.values())
        if warning not in self._warned:
            self._warned.add(warning)
            log.warning(event, **fields)

    def _send(
        self,
        client: Client,
        action: Action,
        messages: Sequence[Message],
        destinations: Sequence[Mapping[str, Any]],
    ) -> list[Answer]:
        self._reply.kept = None
        parameters = request(self._settings, action, destinations)
        try:
            reply = client.send_bulk_templated_email(**parameters)
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

    def _keep_reply(self, response_dict: dict[str, Any], **_: object) -> None:
        self._reply.kept = (
            response_dict["status_code"],
            dict(response_dict["headers"]),
            response_dict["body"],
        )
