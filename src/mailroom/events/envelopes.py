"""Takes SES's event out of a message of the queue.

An event comes in one of three envelopes: as SES wrote it (SNS with raw message delivery), in a notification
of SNS, or in an event of EventBridge. Envelopes may be nested, as when EventBridge sends over SNS.

Promises: any text is read as an event, ignored, or raises ``Unreadable``.
"""

from __future__ import annotations

import json
from typing import Any, Final

Event = dict[str, Any]

# What EventBridge calls the events, for one whose detail does not name its type.
_DETAIL_TYPES: Final = {
    "Email Sent": "Send",
    "Email Delivered": "Delivery",
    "Email Bounced": "Bounce",
    "Email Complaint Received": "Complaint",
    "Email Delivery Delayed": "DeliveryDelay",
    "Email Rejected": "Reject",
    "Email Rendering Failed": "Rendering Failure",
    "Email Opened": "Open",
    "Email Clicked": "Click",
    "Email Subscribed": "Subscription",
}
# What SES and SNS send besides events: that a destination was connected, and the state of the account.
_GREETINGS: Final = (
    "Successfully validated SNS topic for Amazon SES",
    "You have successfully subscribed your Amazon SNS topic",
)
_GREETING_TYPES: Final = ("AmazonSnsSubscriptionSucceeded",)
_MAX_NESTED: Final = 3
MAX_TEXT: Final = 262_144


class Unreadable(ValueError):
    """A message is not an event of SES, or one of another shape; the text says why, and quotes nothing."""


def opened(text: str) -> Event | None:
    """SES's event in a message; None for a message that is about no mail.

    Raises:
        Unreadable: it is neither.
    """
    if len(text) > MAX_TEXT:
        raise Unreadable(f"longer than the {MAX_TEXT} characters of an event of SNS or EventBridge")
    for _ in range(_MAX_NESTED):
        if text.startswith(_GREETINGS):
            return None
        content = _object(text)
        if content.get("Type") in {"SubscriptionConfirmation", "UnsubscribeConfirmation"}:
            raise Unreadable(f"SNS's {content['Type']}: confirm the queue's subscription in SNS")
        message = content.get("Message")
        if content.get("Type") == "Notification" and isinstance(message, str):
            text = message
            continue
        return _event(content)
    raise Unreadable(f"an envelope in more than {_MAX_NESTED - 1} others")


def _event(content: Event) -> Event | None:
    """SES's event, in EventBridge's envelope or in none."""
    if "detail-type" in content:
        name, detail = content["detail-type"], content.get("detail")
        if content.get("source") == "aws.ses" and isinstance(name, str) and name not in _DETAIL_TYPES:
            return None  # such as "Sending Status Disabled"
        if not isinstance(name, str) or not isinstance(detail, dict):
            raise Unreadable("an event of EventBridge without a detail")
        content = {"eventType": _DETAIL_TYPES.get(name), **detail}
    kind = content.get("eventType", content.get("notificationType"))
    if kind in _GREETING_TYPES:
        return None
    if not isinstance(kind, str):
        raise Unreadable("not an event of SES: no eventType")
    return content | {"eventType": kind}


def _object(text: str) -> Event:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise Unreadable("not JSON") from None
    if not isinstance(content, dict):
        raise Unreadable("not a JSON object")
    return content
