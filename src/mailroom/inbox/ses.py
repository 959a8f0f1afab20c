"""SES's calls: parameters in, a result out; every name here is one of SES's own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import Final, NamedTuple, TypeAlias

from mailroom.inbox.calls import Answer, Destination, Request
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

PAGE: Final = 10
LARGEST_PAGE: Final = 100

Action: TypeAlias = Callable[[Inbox, Parameters], "Tree | Answer | None"]


class Reply(NamedTuple):
    """An HTTP answer, and how it gets lost on its way."""

    status: int
    body: bytes
    fault: Fault | None = None


def reply(inbox: Inbox, content_type: str, body: bytes, head: bytes = b"") -> Reply:
    """Answer a call. Whatever it holds, this raises nothing."""
    try:
        parameters = read_form(content_type, body, head)
        name = parameters.get("Action")
        result = _action(name, parameters.get("Version", VERSION))(inbox, parameters)
    except Refusal as refusal:
        return Reply(refusal.status, write_error(refusal))
    if not isinstance(result, Answer):
        return Reply(200, write_answer(name, result))
    if result.refusal:
        return Reply(result.refusal.status, write_error(result.refusal), result.fault)
    return Reply(200, write_answer(name, _sent(name, result)), result.fault)


def _action(name: str, version: str) -> Action:
    if not name:
        raise Refusal("MissingAction", "The request must contain the parameter Action")
    if name not in ACTIONS or version != VERSION:
        raise Refusal("InvalidAction", f"Could not find operation {name} for version {version}")
    return ACTIONS[name]


def _sent(name: str, answer: Answer) -> Tree:
    if name == "SendTemplatedEmail":
        return {"MessageId": answer.statuses[0].message_id}
    return {
        "Status": [
            {"Status": status, "MessageId": message_id} if message_id else {"Status": status, "Error": error}
            for status, message_id, error in answer.statuses
        ]
    }


def _send_bulk_templated_email(inbox: Inbox, given: Parameters) -> Answer:
    destinations: list[Destination] = []
    while True:
        prefix = f"Destinations.member.{len(destinations) + 1}"
        addresses = _addresses(given, f"{prefix}.Destination")
        data = given.get(f"{prefix}.ReplacementTemplateData")
        if not addresses and not data:
            break
        destinations.append(Destination(addresses, data))
    default = given.required("DefaultTemplateData")
    return inbox.send_bulk(_request(given, default, destinations))


def _send_templated_email(inbox: Inbox, given: Parameters) -> Answer:
    destination = Destination(_addresses(given, "Destination"), given.required("TemplateData"))
    return inbox.send_one(_request(given, "", [destination]))


def _request(given: Parameters, default_data: str, destinations: list[Destination]) -> Request:
    return Request(
        given.required("Source"),
        given.required("Template"),
        given.get("ConfigurationSetName"),
        default_data,
        destinations,
        given.raw,
    )


def _addresses(given: Parameters, prefix: str) -> tuple[str, ...]:
    return tuple(
        address for kind in ("To", "Cc", "Bcc") for address in given.members(f"{prefix}.{kind}Addresses")
    )


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


def _delete_template(inbox: Inbox, given: Parameters) -> Tree:
    inbox.account.templates.pop(given.required("TemplateName"), None)
    return {}


def _list_templates(inbox: Inbox, given: Parameters) -> Tree:
    every: list[Tree] = [
        {"Name": template.name, "CreatedTimestamp": _time(template.created)}
        for template in inbox.account.templates.values()
    ]
    return _page(given, "TemplatesMetadata", every, PAGE)


def _list_configuration_sets(inbox: Inbox, given: Parameters) -> Tree:
    return _page(given, "ConfigurationSets", [{"Name": name} for name in inbox.account.config_sets], PAGE)


def _list_identities(inbox: Inbox, given: Parameters) -> Tree:
    kind = given.get("IdentityType")
    every: list[Tree] = [
        identity
        for identity in inbox.account.identities
        if kind not in ("EmailAddress", "Domain") or ("@" in identity) == (kind == "EmailAddress")
    ]
    return _page(given, "Identities", every, LARGEST_PAGE)


def _page(given: Parameters, name: str, every: list[Tree], size: int) -> Tree:
    """A page of a list; the token for the next one is the place where it starts."""
    size = min(_number(given, "MaxItems", size), LARGEST_PAGE)
    start = _number(given, "NextToken", 0)
    page: dict[str, Tree] = {name: every[start : start + size]}
    return page | ({"NextToken": str(start + size)} if start + size < len(every) else {})


def _number(given: Parameters, name: str, otherwise: int) -> int:
    text = given.get(name)
    if not text:
        return otherwise
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise Refusal("InvalidParameterValue", f"{name} is not one that was given out")
    return int(text)


def _get_identity_verification_attributes(inbox: Inbox, given: Parameters) -> Tree:
    asked = [name for name in given.members("Identities") if inbox.account.is_verified(name)]
    return {
        "VerificationAttributes": Entries(
            (
                name,
                {"VerificationStatus": "Success"}
                | ({} if "@" in name else {"VerificationToken": _token(name)}),
            )
            for name in asked
        )
    }


def _verify_email_identity(inbox: Inbox, given: Parameters) -> Tree:
    inbox.account.verify(given.required("EmailAddress"))
    return {}


def _verify_domain_identity(inbox: Inbox, given: Parameters) -> Tree:
    domain = given.required("Domain").lower()
    inbox.account.verify(domain)
    return {"VerificationToken": _token(domain)}


def _token(domain: str) -> str:
    return hashlib.sha256(domain.encode()).hexdigest()[:44]


def _get_account_sending_enabled(inbox: Inbox, _: Parameters) -> Tree:
    return {"Enabled": "false" if inbox.account.paused else "true"}


def _update_account_sending_enabled(inbox: Inbox, given: Parameters) -> None:
    inbox.account.paused = given.get("Enabled").lower() != "true"


def _describe_configuration_set(inbox: Inbox, given: Parameters) -> Tree:
    name = given.required("ConfigurationSetName")
    inbox.account.check_config_set(name)
    return {"ConfigurationSet": {"Name": name}}


def _create_configuration_set(inbox: Inbox, given: Parameters) -> Tree:
    inbox.account.add_config_set(given.required("ConfigurationSet.Name"))
    return {}


def _time(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


ACTIONS: Final[dict[str, Action]] = {
    "SendBulkTemplatedEmail": _send_bulk_templated_email,
    "SendTemplatedEmail": _send_templated_email,
    "GetSendQuota": _get_send_quota,
    "CreateTemplate": _create_template,
    "UpdateTemplate": _update_template,
    "GetTemplate": _get_template,
    "DeleteTemplate": _delete_template,
    "ListTemplates": _list_templates,
    "GetIdentityVerificationAttributes": _get_identity_verification_attributes,
    "ListIdentities": _list_identities,
    "VerifyEmailIdentity": _verify_email_identity,
    "VerifyDomainIdentity": _verify_domain_identity,
    "GetAccountSendingEnabled": _get_account_sending_enabled,
    "UpdateAccountSendingEnabled": _update_account_sending_enabled,
    "DescribeConfigurationSet": _describe_configuration_set,
    "CreateConfigurationSet": _create_configuration_set,
    "ListConfigurationSets": _list_configuration_sets,
}
