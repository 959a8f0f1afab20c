"""Answers the calls to version 2 of SES's API that Mailroom makes, in its JSON protocol. All names are SES's.

The account is that of version 1, with the same templates, limits and faults; its words are translated here. A
call with any content is answered, with an error if need be.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from mailroom.inbox import event_queue
from mailroom.inbox.calls import BulkCall, CallAnswer, Destination, Tags, checked_tags
from mailroom.inbox.events import TOPIC
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.ses import Reply
from mailroom.inbox.ses_protocol import Refusal

JSON_TYPE: Final = "application/json"
ERROR_TYPE: Final = "x-amzn-errortype"
SEND: Final = "/v2/email/outbound-bulk-emails"
# The types of the events that the inbox publishes.
PUBLISHED: Final = (
    "SEND",
    "DELIVERY",
    "BOUNCE",
    "COMPLAINT",
    "REJECT",
    "RENDERING_FAILURE",
    "DELIVERY_DELAY",
)
# The limits of an account in the sandbox: recipients in 24 hours and a second.
SANDBOX: Final = (200, 1.0)
UNREADABLE: Final = "SerializationException"
BAD_REQUEST: Final = ("BadRequestException", 400)
NOT_FOUND: Final = ("NotFoundException", 404)
THROTTLED: Final = ("TooManyRequestsException", 429)
# The errors of this version, with their HTTP status, by the codes of version 1; others are the same in both.
CODES: Final = {
    "Throttling": THROTTLED,
    "ThrottlingException": THROTTLED,
    "TooManyRequestsException": THROTTLED,
    "AccountSendingPausedException": ("SendingPausedException", 400),
    "ConfigurationSetDoesNotExist": NOT_FOUND,
    "TemplateDoesNotExist": NOT_FOUND,
    "NotFoundException": NOT_FOUND,
    "InvalidParameterValue": BAD_REQUEST,
    "InvalidRequest": BAD_REQUEST,
    "InvalidTemplate": BAD_REQUEST,
    "ValidationError": BAD_REQUEST,
    "LimitExceeded": ("LimitExceededException", 400),
    "AccessDenied": ("AccessDeniedException", 403),
}
# The statuses of this version, by those of version 1.
STATUSES: Final = {
    "Success": "SUCCESS",
    "MessageRejected": "MESSAGE_REJECTED",
    "MailFromDomainNotVerified": "MAIL_FROM_DOMAIN_NOT_VERIFIED",
    "ConfigurationSetDoesNotExist": "CONFIGURATION_SET_NOT_FOUND",
    "TemplateDoesNotExist": "TEMPLATE_NOT_FOUND",
    "AccountSuspended": "ACCOUNT_SUSPENDED",
    "AccountThrottled": "ACCOUNT_THROTTLED",
    "AccountDailyQuotaExceeded": "ACCOUNT_DAILY_QUOTA_EXCEEDED",
    "InvalidSendingPoolName": "INVALID_SENDING_POOL_NAME",
    "AccountSendingPaused": "ACCOUNT_SENDING_PAUSED",
    "ConfigurationSetSendingPaused": "CONFIGURATION_SET_SENDING_PAUSED",
    "InvalidParameterValue": "INVALID_PARAMETER",
    "TransientFailure": "TRANSIENT_FAILURE",
    "Failed": "FAILED",
}


def send(inbox: Inbox, body: bytes, head: bytes = b"") -> Reply:
    """Return the answer to ``SendBulkEmail``. Raises nothing, whatever the call holds."""
    try:
        answer = inbox.send_bulk(_call(_Given.read(body), head + body))
    except Refusal as refusal:
        return _refused(refusal)
    if answer.refusal:
        return _refused(answer.refusal)._replace(fault=answer.fault)
    return Reply(200, _json({"BulkEmailEntryResults": _results(answer)}), answer.fault)


def look(inbox: Inbox, what: str, name: str = "") -> Reply:
    """Return the answer to a call that reads: one of ``LOOKS``."""
    try:
        return Reply(200, _json(LOOKS[what](inbox, name)))
    except Refusal as refusal:
        return _refused(refusal)


class _Given:
    """The members of a JSON object, checked as they are read; ``path`` is where the object stands."""

    def __init__(self, members: Mapping[str, Any], path: str = "") -> None:
        self._members = members
        self._path = path

    @classmethod
    def read(cls, body: bytes) -> _Given:
        """Return the members of a call.

        Raises:
            Refusal: it is not a JSON object.
        """
        try:
            members = json.loads(body)
            json.dumps(members, ensure_ascii=False).encode()
        except (ValueError, RecursionError):  # also half a surrogate pair, which is no text
            raise Refusal(UNREADABLE, "The body is not JSON") from None
        if not isinstance(members, dict):
            raise Refusal(UNREADABLE, "The body is not a JSON object")
        return cls(members)

    def text(self, name: str) -> str:
        """Return a text; empty if it is not there."""
        return str(self._typed(name, str) or "")

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of texts."""
        found = self._typed(name, list) or []
        if not all(isinstance(one, str) for one in found):
            raise self._wrong(name, list)
        return tuple(found)

    def inner(self, name: str) -> _Given:
        """Return an object; without members if it is not there."""
        return _Given(self._typed(name, dict) or {}, f"{self._path}{name}.")

    def each(self, name: str) -> list[_Given]:
        """Return a list of objects."""
        found = self._typed(name, list) or []
        if not all(isinstance(one, dict) for one in found):
            raise self._wrong(name, list)
        return [_Given(one, f"{self._path}{name}.") for one in found]

    def required(self, name: str) -> str:
        """Return a text that must be there."""
        if found := self.text(name):
            return found
        raise Refusal("BadRequestException", f"{self._path}{name} is missing")

    def has(self, name: str) -> bool:
        """Whether a member is there."""
        return self._members.get(name) is not None

    def _typed(self, name: str, kind: type) -> Any:
        found = self._members.get(name)
        if found is not None and not isinstance(found, kind):
            raise self._wrong(name, kind)
        return found

    def _wrong(self, name: str, kind: type) -> Refusal:
        return Refusal(UNREADABLE, f"{self._path}{name} is not a {kind.__name__}")


def _call(given: _Given, raw: bytes) -> BulkCall:
    template = given.inner("DefaultContent").inner("Template")
    content = None
    if template.has("TemplateContent"):
        inline = template.inner("TemplateContent")
        content = inline.text("Subject"), inline.text("Text"), inline.text("Html")
    return BulkCall(
        given.required("FromEmailAddress"),
        "" if content else template.required("TemplateName"),
        given.text("ConfigurationSetName"),
        template.text("TemplateData"),
        [_destination(entry) for entry in given.each("BulkEmailEntries")],
        raw,
        tags=_tags(given, "DefaultEmailTags"),
        content=content,
        reply_to=given.texts("ReplyToAddresses"),
    )


def _destination(entry: _Given) -> Destination:
    to = entry.inner("Destination")
    addresses = [one for kind in ("To", "Cc", "Bcc") for one in to.texts(f"{kind}Addresses")]
    replacement = entry.inner("ReplacementEmailContent").inner("ReplacementTemplate")
    return Destination(
        tuple(addresses), replacement.text("ReplacementTemplateData"), _tags(entry, "ReplacementTags")
    )


def _tags(given: _Given, name: str) -> Tags:
    return checked_tags((one.text("Name"), one.text("Value")) for one in given.each(name))


def _results(answer: CallAnswer) -> list[dict[str, str]]:
    return [
        {"Status": STATUSES[status], "MessageId": message_id}
        if message_id
        else {"Status": STATUSES[status], "Error": error}
        for status, message_id, error in answer.statuses
    ]


def _get_account(inbox: Inbox, _: str) -> Mapping[str, Any]:
    limits = inbox.limits
    return {
        "DedicatedIpAutoWarmupEnabled": False,
        "EnforcementStatus": "HEALTHY",
        "ProductionAccessEnabled": (limits.quota_24h, limits.rate) != SANDBOX,
        "SendingEnabled": not inbox.account.paused,
        "SendQuota": {
            "Max24HourSend": -1.0 if limits.quota_24h is None else float(limits.quota_24h),
            "MaxSendRate": float(limits.rate),
            "SentLast24Hours": float(limits.sent_24h()),
        },
    }


def _get_email_identity(inbox: Inbox, name: str) -> Mapping[str, Any]:
    if not inbox.account.is_verified(name):
        raise Refusal("NotFoundException", f"Email identity {name} does not exist.")
    return {
        "IdentityType": "EMAIL_ADDRESS" if "@" in name else "DOMAIN",
        "VerifiedForSendingStatus": True,
        "VerificationStatus": "SUCCESS",
    }


def _get_configuration_set(inbox: Inbox, name: str) -> Mapping[str, Any]:
    inbox.account.check_config_set(name)
    return {"ConfigurationSetName": name, "SendingOptions": {"SendingEnabled": True}}


def _get_event_destinations(inbox: Inbox, name: str) -> Mapping[str, Any]:
    inbox.account.check_config_set(name)
    destination = {
        "Name": event_queue.NAME,
        "Enabled": True,
        "MatchingEventTypes": PUBLISHED,
        "SnsDestination": {"TopicArn": TOPIC},
    }
    return {"EventDestinations": [destination]}


def _list_suppressed_destinations(_: Inbox, __: str) -> Mapping[str, Any]:
    """Nobody is on the account's list."""
    return {"SuppressedDestinationSummaries": []}


# The calls that read, by their paths; a name in a path is that of what the call is about.
LOOKS: Final[dict[str, Callable[[Inbox, str], Mapping[str, Any]]]] = {
    "/v2/email/account": _get_account,
    "/v2/email/identities/{name}": _get_email_identity,
    "/v2/email/configuration-sets/{name}": _get_configuration_set,
    "/v2/email/configuration-sets/{name}/event-destinations": _get_event_destinations,
    "/v2/email/suppression/addresses": _list_suppressed_destinations,
}


def _refused(refusal: Refusal) -> Reply:
    code, status = CODES.get(refusal.code, (refusal.code, refusal.status))
    status = status if refusal.status == 400 else refusal.status
    return Reply(status, _json({"message": refusal.message}), error=code)


def _json(content: Any) -> bytes:
    return json.dumps(content).encode()
