"""Writes the events that SES publishes about a mail, in the envelope in which SNS puts them into a queue.

Addresses of SES's mailbox simulator get what SES simulates; all others are delivered.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parseaddr
from typing import Any, Final, NamedTuple

ACCOUNT: Final = "000000000000"
AWS_REGION: Final = "us-east-1"
TOPIC: Final = f"arn:aws:sns:{AWS_REGION}:{ACCOUNT}:mailroom-events"
MTA: Final = "inbox.mailroom"
DELAY_ENDS: Final = timedelta(hours=14)

# What SES publishes about a mail before each kind of event, and that event.
COURSES: Final[Mapping[str, tuple[str, ...]]] = {
    "send": ("send",),
    "delivery": ("send", "delivery"),
    "bounce": ("send", "bounce"),
    "soft_bounce": ("send", "soft_bounce"),
    "suppressed": ("send", "suppressed"),
    "out_of_office": ("send", "delivery", "out_of_office"),
    "complaint": ("send", "delivery", "complaint"),
    "delay": ("send", "delay"),
    "reject": ("send", "reject"),
    "rendering_failure": ("rendering_failure",),
}
EVENT_TYPES: Final[Mapping[str, str]] = {
    "send": "Send",
    "delivery": "Delivery",
    "bounce": "Bounce",
    "soft_bounce": "Bounce",
    "suppressed": "Bounce",
    "out_of_office": "Bounce",
    "complaint": "Complaint",
    "delay": "DeliveryDelay",
    "reject": "Reject",
    "rendering_failure": "Rendering Failure",
}
SIMULATOR_DOMAIN: Final = "simulator.amazonses.com"
SIMULATOR: Final[Mapping[str, str]] = {
    "bounce": "bounce",
    "complaint": "complaint",
    "ooto": "out_of_office",
    "suppressionlist": "suppressed",
}
_SIMULATED: Final = re.compile(r"([a-z]+)(?:\+[^@]*)?@simulator\.amazonses\.com", re.IGNORECASE)
_BOUNCES: Final[Mapping[str, tuple[str, str, dict[str, str]]]] = {
    "bounce": (
        "Permanent",
        "General",
        {"action": "failed", "status": "5.1.1", "diagnosticCode": "smtp; 550 5.1.1 user unknown"},
    ),
    "soft_bounce": (
        "Transient",
        "MailboxFull",
        {"action": "failed", "status": "4.2.2", "diagnosticCode": "smtp; 452 4.2.2 mailbox full"},
    ),
    "suppressed": (
        "Permanent",
        "Suppressed",
        {
            "action": "failed",
            "status": "5.1.1",
            "diagnosticCode": "Amazon SES has suppressed sending to this address because it has a recent"
            " history of bouncing as an invalid address.",
        },
    ),
    "out_of_office": ("Transient", "General", {}),
}


class Sending(NamedTuple):
    """What SES's events repeat about a mail.

    Attributes:
        id: the message id.
        addresses: the recipients, as the call wrote them.
        tags: the call's tags, of which the recipient's own took precedence.
    """

    id: str
    time: datetime
    source: str
    addresses: tuple[str, ...]
    template: str
    config_set: str
    tags: tuple[tuple[str, str], ...]


class Event(NamedTuple):
    """An event about a mail; ``failure`` says why a rendering failed."""

    kind: str
    at: datetime
    sending: Sending
    failure: str = ""


def simulated(addresses: tuple[str, ...]) -> str:
    """Return the kind of event in which a mail to these addresses ends without a rule."""
    for address in addresses:
        if SIMULATOR_DOMAIN in address.lower() and (match := _SIMULATED.fullmatch(_plain(address))):
            return SIMULATOR.get(match[1].lower(), "delivery")
    return "delivery"


def write_envelope(event: Event) -> str:
    """Return the text of a queue's message: SNS's notification with SES's event."""
    notification = {
        "Type": "Notification",
        "MessageId": str(uuid.uuid4()),
        "TopicArn": TOPIC,
        "Subject": "Amazon SES Email Event Notification",
        "Message": json.dumps(ses_event(event)),
        "Timestamp": _time(datetime.now(UTC)),
        "SignatureVersion": "1",
        "Signature": "none: this is the inbox of Mailroom",
        "SigningCertURL": "",
        "UnsubscribeURL": "",
    }
    return json.dumps(notification)


def ses_event(event: Event) -> dict[str, Any]:
    """Return an event as SES writes it."""
    name, value = _part(event)
    return {"eventType": EVENT_TYPES[event.kind], "mail": _mail(event), name: value}


def _mail(event: Event) -> dict[str, Any]:
    sending = event.sending
    sender = _plain(sending.source)
    names = {
        "ses:configuration-set": [sending.config_set],
        "ses:source-ip": ["127.0.0.1"],
        "ses:from-domain": [sender.rpartition("@")[2]],
        "ses:caller-identity": ["inbox"],
    }
    if event.kind == "delivery":
        names["ses:outgoing-ip"] = ["127.0.0.1"]
    addresses = list(sending.addresses)
    return {
        "timestamp": _time(sending.time),
        "source": sending.source,
        "sourceArn": f"arn:aws:ses:{AWS_REGION}:{ACCOUNT}:identity/{sender}",
        "sendingAccountId": ACCOUNT,
        "messageId": sending.id,
        "destination": addresses,
        "headersTruncated": False,
        "headers": [
            {"name": "From", "value": sending.source},
            {"name": "To", "value": ", ".join(addresses)},
        ],
        "commonHeaders": {"from": [sending.source], "to": addresses, "messageId": sending.id},
        "tags": names | {name: [value] for name, value in sending.tags},
    }


def _part(event: Event) -> tuple[str, dict[str, Any]]:
    """Return the name and the value of the part that only this type of event has."""
    kind, at, sending = event.kind, _time(event.at), event.sending
    addresses = [_plain(address) for address in sending.addresses]
    if kind in _BOUNCES:
        bounce_type, subtype, diagnosis = _BOUNCES[kind]
        return "bounce", {
            "bounceType": bounce_type,
            "bounceSubType": subtype,
            "bouncedRecipients": [{"emailAddress": address} | diagnosis for address in addresses],
            "timestamp": at,
            "feedbackId": _feedback(event),
            "reportingMTA": f"dsn; {'amazonses.com' if kind == 'suppressed' else MTA}",
        }
    if kind == "complaint":
        return "complaint", {
            "complainedRecipients": [{"emailAddress": address} for address in addresses],
            "timestamp": at,
            "feedbackId": _feedback(event),
            "complaintSubType": None,
            "userAgent": "Amazon SES Mailbox Simulator",
            "complaintFeedbackType": "abuse",
            "arrivalDate": _time(sending.time),
        }
    if kind == "delivery":
        return "delivery", {
            "timestamp": at,
            "processingTimeMillis": max(0, round((event.at - sending.time).total_seconds() * 1000)),
            "recipients": addresses,
            "smtpResponse": "250 2.0.0 OK",
            "reportingMTA": MTA,
        }
    if kind == "delay":
        diagnosis = {"status": "4.4.1", "diagnosticCode": "smtp; 421 4.4.1 unable to connect to remote host"}
        return "deliveryDelay", {
            "timestamp": at,
            "delayType": "TransientCommunicationFailure",
            "expirationTime": _time(event.at + DELAY_ENDS),
            "delayedRecipients": [{"emailAddress": address} | diagnosis for address in addresses],
        }
    if kind == "reject":
        return "reject", {"reason": "Bad content"}
    if kind == "rendering_failure":
        failure = event.failure or "Attribute 'login' is not present in the rendering data."
        return "failure", {"errorMessage": failure, "templateName": sending.template}
    return "send", {}


def _feedback(event: Event) -> str:
    """Return an id that is the same whenever this event is written."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{event.sending.id}/{event.kind}/{event.at.isoformat()}"))


def _plain(address: str) -> str:
    return parseaddr(address)[1] or address


def _time(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
