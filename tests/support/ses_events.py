"""SES's events in the shapes that its documentation gives, and the envelopes that they arrive in."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from mailroom.wire import Reference

Event = dict[str, Any]

AT: Final = "2026-03-02T10:11:12.345Z"
MAILED_AT: Final = "2026-03-02T10:11:10.001Z"
DETAIL_TYPES: Final = {
    "Send": "Email Sent",
    "Delivery": "Email Delivered",
    "Bounce": "Email Bounced",
    "Complaint": "Email Complaint Received",
    "DeliveryDelay": "Email Delivery Delayed",
    "Reject": "Email Rejected",
    "Rendering Failure": "Email Rendering Failed",
    "Open": "Email Opened",
}


def event(
    kind: str, part: Event, *, to: str, message_id: str = "m-1", reference: Reference | None = None
) -> Event:
    """An event about a mail to one person, with the tags that SES adds and ours."""
    name = {"DeliveryDelay": "deliveryDelay", "Rendering Failure": "failure"}.get(kind, kind.lower())
    tags = {
        "ses:configuration-set": ["default"],
        "ses:source-ip": ["192.0.2.7"],
        "ses:from-domain": ["acme.example"],
        "ses:caller-identity": ["worker"],
        "mailroom-action": ["activation"],
    }
    if reference:
        tags["mailroom-token"] = [f"{reference.token}-{reference.fingerprint.hex()}"]
        tags["mailroom-attempt"] = [str(reference.attempt)]
    mail = {
        "timestamp": MAILED_AT,
        "source": "Acme <noreply@acme.example>",
        "sourceArn": "arn:aws:ses:eu-west-1:123456789012:identity/acme.example",
        "sendingAccountId": "123456789012",
        "messageId": message_id,
        "destination": [to],
        "headersTruncated": False,
        "headers": [
            {"name": "From", "value": "Acme <noreply@acme.example>"},
            {"name": "To", "value": to},
            {"name": "Subject", "value": "Welcome"},
        ],
        "commonHeaders": {"from": ["Acme <noreply@acme.example>"], "to": [to], "subject": "Welcome"},
        "tags": tags,
    }
    return {"eventType": kind, "mail": mail, name: part}


def sent(to: str = "ada@example.com", **rest: Any) -> Event:
    return event("Send", {}, to=to, **rest)


def delivered(to: str = "ada@example.com", **rest: Any) -> Event:
    part = {
        "timestamp": AT,
        "processingTimeMillis": 2344,
        "recipients": [to],
        "smtpResponse": "250 2.0.0 OK queued",
        "reportingMTA": "a1-2.smtp-out.eu-west-1.amazonses.example",
    }
    return event("Delivery", part, to=to, **rest)


def bounced(
    to: str = "ada@example.com", kind: str = "Permanent", subtype: str = "General", **rest: Any
) -> Event:
    part = {
        "bounceType": kind,
        "bounceSubType": subtype,
        "bouncedRecipients": [
            {
                "emailAddress": to,
                "action": "failed",
                "status": "5.1.1",
                "diagnosticCode": "smtp; 550 5.1.1 user unknown",
            }
        ],
        "timestamp": AT,
        "feedbackId": "f-1",
        "reportingMTA": "dns; mx.example.com",
    }
    return event("Bounce", part, to=to, **rest)


def complained(to: str = "ada@example.com", *, report: bool = True, **rest: Any) -> Event:
    part: Event = {
        "complainedRecipients": [{"emailAddress": to}],
        "timestamp": AT,
        "feedbackId": "f-2",
        "complaintSubType": None,
    }
    if report:
        part |= {"userAgent": "Reporter/1.0", "complaintFeedbackType": "abuse", "arrivalDate": AT}
    return event("Complaint", part, to=to, **rest)


def delayed(to: str = "ada@example.com", **rest: Any) -> Event:
    part = {
        "timestamp": AT,
        "delayType": "MailboxFull",
        "expirationTime": "2026-03-02T22:11:10.001Z",
        "delayedRecipients": [
            {"emailAddress": to, "status": "4.2.2", "diagnosticCode": "smtp; 452 4.2.2 mailbox full"}
        ],
    }
    return event("DeliveryDelay", part, to=to, **rest)


def rejected(to: str = "ada@example.com", **rest: Any) -> Event:
    return event("Reject", {"reason": "Bad content"}, to=to, **rest)


def not_rendered(to: str = "ada@example.com", **rest: Any) -> Event:
    words = "Attribute 'code' is not present in the rendering data."
    return event("Rendering Failure", {"errorMessage": words, "templateName": "activationv1"}, to=to, **rest)


EVERY: Final[Mapping[str, Callable[..., Event]]] = {
    "sent": sent,
    "delivered": delivered,
    "bounced": bounced,
    "complained": complained,
    "delayed": delayed,
    "rejected": rejected,
    "rendering_failed": not_rendered,
}


def raw(content: Event) -> str:
    """As SNS delivers it with raw message delivery."""
    return json.dumps(content)


def wrapped(content: Event | str) -> str:
    """In a notification of SNS."""
    return json.dumps(
        {
            "Type": "Notification",
            "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
            "TopicArn": "arn:aws:sns:eu-west-1:123456789012:mail",
            "Subject": "Amazon SES Email Event Notification",
            "Message": content if isinstance(content, str) else json.dumps(content),
            "Timestamp": AT,
            "SignatureVersion": "1",
            "Signature": "c2lnbmF0dXJl",
            "SigningCertURL": "https://sns.eu-west-1.amazonaws.example/cert.pem",
            "UnsubscribeURL": "https://sns.eu-west-1.amazonaws.example/unsubscribe",
        }
    )


def bridged(content: Event) -> str:
    """In an event of EventBridge."""
    return json.dumps(
        {
            "version": "0",
            "id": "7bf73129-1428-4cd3-a780-95db273d1602",
            "detail-type": DETAIL_TYPES[content["eventType"]],
            "source": "aws.ses",
            "account": "123456789012",
            "time": "2026-03-02T10:11:13Z",
            "region": "eu-west-1",
            "resources": ["arn:aws:ses:eu-west-1:123456789012:configuration-set/default"],
            "detail": content,
        }
    )


ENVELOPES: Final[Mapping[str, Callable[[Event], str]]] = {"raw": raw, "SNS": wrapped, "EventBridge": bridged}
