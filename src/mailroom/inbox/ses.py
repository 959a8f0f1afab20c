"""Answers the SES calls that Mailroom, ``templates push`` and ``doctor`` make. All names are SES's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

from mailroom.inbox import event_queue
from mailroom.inbox.calls import BulkCall, CallAnswer, Destination, Tags, checked_tags
from mailroom.inbox.events import TOPIC
from mailroom.inbox.faults import Fault
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.ses_protocol import (
    VERSION,
    Entries,
    Parameters,
    Refusal,
    Tree,
    read_form,
    write_answer,
    write_error,
)

# The types of the events that the inbox publishes, as this API names them; it has no name for a delay.
PUBLISHED: Final = ("send", "delivery", "bounce", "complaint", "reject", "renderingFailure")

Action: TypeAlias = Callable[[Inbox, Parameters], "Tree | CallAnswer"]


class Reply(NamedTuple):
    """An HTTP answer, the fault by which it is lost, and the error's code where it stands in a header."""

    status: int
    body: bytes
    fault: Fault | None = None
    error: str = ""


def reply(inbox: Inbox, content_type: str, body: bytes, head: bytes = b"") -> Reply:
    """Return the answer to a call. Raises nothing, whatever the call holds."""
    try:
        parameters = read_form(content_type, body, head)
        name = parameters.get("Action")
        result = _action(name, parameters.get("Version", VERSION))(inbox, parameters)
    except Refusal as refusal:
        return Reply(refusal.status, write_error(refusal))
    if not isinstance(result, CallAnswer):
        return Reply(200, write_answer(name, result))
    if result.refusal:
        return Reply(result.refusal.status, write_error(result.refusal), result.fault)
    return Reply(200, write_answer(name, _statuses(result)), result.fault)


def _action(name: str, version: str) -> Action:
    if not name:
        raise Refusal("MissingAction", "The request must contain the parameter Action")
    if name not in ACTIONS or version != VERSION:
        raise Refusal("InvalidAction", f"Could not find operation {name} for version {version}")
    return ACTIONS[name]


def _statuses(answer: CallAnswer) -> Tree:
    return {
        "Status": [
            {"Status": status, "MessageId": message_id} if message_id else {"Status": status, "Error": error}
            for status, message_id, error in answer.statuses
        ]
    }


def _send_bulk_templated_email(inbox: Inbox, given: Parameters) -> CallAnswer:
    destinations: list[Destination] = []
    while True:
        prefix = f"Destinations.member.{len(destinations) + 1}"
        addresses = tuple(
            address
            for kind in ("To", "Cc", "Bcc")
            for address in given.members(f"{prefix}.Destination.{kind}Addresses")
        )
        data = given.get(f"{prefix}.ReplacementTemplateData")
        if not addresses and not data:
            break
        destinations.append(Destination(addresses, data, _tags(given, f"{prefix}.ReplacementTags")))
    default_data = given.required("DefaultTemplateData")
    return inbox.send_bulk(
        BulkCall(
            given.required("Source"),
            given.required("Template"),
            given.get("ConfigurationSetName"),
            default_data,
            destinations,
            given.raw,
            tags=_tags(given, "DefaultTags"),
            reply_to=tuple(given.members("ReplyToAddresses")),
        )
    )


def _tags(given: Parameters, name: str) -> Tags:
    tags: list[tuple[str, str]] = []
    while (key := given.get(f"{name}.member.{len(tags) + 1}.Name")) or given.get(
        f"{name}.member.{len(tags) + 1}.Value"
    ):
        tags.append((key, given.get(f"{name}.member.{len(tags) + 1}.Value")))
    return checked_tags(tags)


def _get_send_quota(inbox: Inbox, _: Parameters) -> Tree:
    quota = inbox.limits.quota_24h
    return {
        "Max24HourSend": "-1.0" if quota is None else f"{quota:.1f}",
        "MaxSendRate": repr(float(inbox.limits.rate)),
        "SentLast24Hours": f"{inbox.limits.sent_24h():.1f}",
    }


def _create_template(inbox: Inbox, given: Parameters) -> Tree:
    inbox.account.put_template(given.required("Template.TemplateName"), _parts(given), new=True)
    return {}


def _update_template(inbox: Inbox, given: Parameters) -> Tree:
    inbox.account.put_template(given.required("Template.TemplateName"), _parts(given), new=False)
    return {}


def _parts(given: Parameters) -> tuple[str, str, str]:
    return (given.get("Template.SubjectPart"), given.get("Template.TextPart"), given.get("Template.HtmlPart"))


def _get_template(inbox: Inbox, given: Parameters) -> Tree:
    template = inbox.account.template(given.required("TemplateName"))
    parts = {"SubjectPart": template.subject, "TextPart": template.text, "HtmlPart": template.html}
    shown: dict[str, Tree] = {name: text for name, text in parts.items() if text}
    return {"Template": {"TemplateName": template.name} | shown}


def _get_identity_verification_attributes(inbox: Inbox, given: Parameters) -> Tree:
    verified = [name for name in given.members("Identities") if inbox.account.is_verified(name)]
    return {"VerificationAttributes": Entries((name, _verification(name)) for name in verified)}


def _verification(identity: str) -> Tree:
    success: dict[str, Tree] = {"VerificationStatus": "Success"}
    if "@" in identity:
        return success
    return success | {"VerificationToken": hashlib.sha256(identity.encode()).hexdigest()[:44]}


def _get_account_sending_enabled(inbox: Inbox, _: Parameters) -> Tree:
    return {"Enabled": "false" if inbox.account.paused else "true"}


def _describe_configuration_set(inbox: Inbox, given: Parameters) -> Tree:
    name = given.required("ConfigurationSetName")
    inbox.account.check_config_set(name)
    described: dict[str, Tree] = {"ConfigurationSet": {"Name": name}}
    if "eventDestinations" in given.members("ConfigurationSetAttributeNames"):
        described["EventDestinations"] = [
            {
                "Name": event_queue.NAME,
                "Enabled": "true",
                "MatchingEventTypes": PUBLISHED,
                "SNSDestination": {"TopicARN": TOPIC},
            }
        ]
    return described


ACTIONS: Final[dict[str, Action]] = {
    "SendBulkTemplatedEmail": _send_bulk_templated_email,
    "GetSendQuota": _get_send_quota,
    "CreateTemplate": _create_template,
    "UpdateTemplate": _update_template,
    "GetTemplate": _get_template,
    "GetIdentityVerificationAttributes": _get_identity_verification_attributes,
    "GetAccountSendingEnabled": _get_account_sending_enabled,
    "DescribeConfigurationSet": _describe_configuration_set,
}
