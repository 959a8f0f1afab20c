"""Makes the calls of SES's two APIs, each tried once, and keeps what both have in common.

botocore's own retries are off, since a repeated bulk call mails people twice. Credentials, region, profile,
proxy and endpoint come from botocore's usual settings. Every reply that is not a complete success is saved
(see ``saved_answers``), without credentials.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from email.utils import formataddr, parseaddr
from typing import Any, Final, Literal

from mailroom.actions import Action
from mailroom.addresses import wire_address
from mailroom.answers import Answer, Result, Scope
from mailroom.logs import EventLogger
from mailroom.settings.sender import MAX_RATE, SenderSettings
from mailroom.templates import mails
from mailroom.transports import ses_answers, tags
from mailroom.transports.aws_client import Client, code_of, name_of
from mailroom.transports.aws_credentials import REFUSED, AwsSession, no_credentials
from mailroom.transports.redaction import shortened
from mailroom.transports.saved_answers import SavedAnswers
from mailroom.wire import Message

RECIPIENTS_PER_CALL: Final = 50  # "up to 50 destinations": SES's API reference, of both versions
LOWEST_RATE: Final = 0.01

log = EventLogger("ses")


def destination(message: Message) -> dict[str, Any]:
    """Whom a mail goes to.

    Raises:
        ValueError: SES would read the malformed address as a different address, or as several.
    """
    return {"ToAddresses": ["@".join(wire_address(message.email))]}


def header_address(text: str) -> str:
    """An address of the settings, as written in a header."""
    name, address = parseaddr(text)
    return formataddr((name, "@".join(wire_address(address))))


def reply_to(settings: SenderSettings) -> dict[str, Any]:
    """The parameter for the address that answers go to, which both APIs name alike."""
    return {"ReplyToAddresses": [header_address(settings.reply_to)]} if settings.reply_to else {}


def action_tags(action: Action) -> list[dict[str, str]]:
    """The tags of all mails of a call."""
    return [_tag(tags.ACTION, action.name)]


def own_tags(settings: SenderSettings, message: Message) -> dict[str, Any]:
    """The parameter for a mail's own tags; nothing without a configuration set, as there are no events."""
    if not settings.config_set or not message.reference:
        return {}
    named = tags.written(message.reference)
    return {"ReplacementTags": [_tag(name, value) for name, value in named.items()]}


def default_data(action: Action) -> str:
    """The data of a field that a mail's own data does not have."""
    return json.dumps(dict.fromkeys(mails.field_names(action), ""))


def _tag(name: str, value: str) -> dict[str, str]:
    return {"Name": name, "Value": value}


class SesCalls:
    """Makes the calls of one of the APIs. Several threads may use it.

    Args:
        settings: the sender's.
        service: the API.
        ask_quota: returns the account's ``SendQuota`` from a client.
    """

    def __init__(
        self,
        settings: SenderSettings,
        service: Literal["SES", "SESV2"],
        ask_quota: Callable[[Client], Mapping[str, Any]],
    ) -> None:
        self._source = header_address(settings.source)
        self._session = AwsSession(
            service,
            answer_timeout_ms=settings.send_timeout_ms,
            connections=settings.send_concurrency,
            see_reply=self._keep_reply,
        )
        self._quota_of = ask_quota
        self._saved_answers = SavedAnswers(settings.output_path, "ses")
        self._reply = threading.local()
        self._quota_fault = ""

    def client(self) -> Client | Answer:
        """The client for the next call, or the answer to all mails while there are no credentials."""
        try:
            return self._session.client()
        except Exception as error:  # noqa: BLE001 - its class decides what happens to the mail
            answer = no_credentials(error)
            return replace(answer, detail=shortened(answer.detail, self._session.secrets))

    def check(self) -> Answer | None:
        """Check that there are credentials."""
        found = self.client()
        return found if isinstance(found, Answer) else None

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

    def bulk(
        self,
        client: Client,
        operation: str,
        parameters: Mapping[str, Any],
        messages: Sequence[Message],
        results: str,
    ) -> list[Answer]:
        """Make a call that sends mails.

        Args:
            client: one that ``client`` returned.
            operation: the call's name.
            parameters: what it sends.
            messages: the mails in it, of one action.
            results: the name of the list in the reply, which has an entry for each mail.

        Returns:
            An answer for each mail.
        """
        self._reply.kept = None
        try:
            reply = self._session.call(client, operation, parameters)
            answers = [
                ses_answers.of_status(
                    entry.get("Status", ""), entry.get("Error", ""), entry.get("MessageId", "")
                )
                for entry in reply.get(results, ())
            ]
            if len(answers) != len(messages):
                detail = f"SES answered for {len(answers)} of {len(messages)} recipients"
                answers = [Answer(Result.UNKNOWN, detail, scope=Scope.ACCOUNT)] * len(messages)
        except Exception as error:  # noqa: BLE001 - its class decides what happens to the mail
            status = self._reply.kept[0] if self._reply.kept else 0
            self.learn(client, error, status)
            answers = [ses_answers.of_exception(error, self._source, status)] * len(messages)
        if all(answer.result is Result.SENT for answer in answers):
            return answers
        # SES quotes parts of the request when it rejects the signature or the data.
        secrets = [*self._session.secrets]
        secrets += [word for message in messages for word in (message.token, message.code)]
        if self._reply.kept:
            status, headers, body = self._reply.kept
            self._saved_answers.save(messages[0].action.name, status, headers, body, secrets)
        return [replace(answer, detail=shortened(answer.detail, secrets)) for answer in answers]

    def learn(self, client: Client, error: Exception, status: int = 0) -> None:
        """Note that a call was refused for its credentials, or because their user may not make it."""
        if code_of(error) in REFUSED or status in {401, 403}:
            self._session.expire(client)

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _ask_quota(self) -> Mapping[str, Any]:
        client = self._session.client()
        try:
            return self._quota_of(client)
        except Exception as error:
            self.learn(client, error)
            raise

    def _keep_reply(self, reply: dict[str, Any]) -> None:
        self._reply.kept = (reply["status_code"], dict(reply["headers"]), reply["body"])
