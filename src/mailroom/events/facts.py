"""Reads what an event of SES says about each recipient.

Opens, clicks and changes of a subscription are ignored: people are not tracked.

Promises: every text in a fact is of limited length and storable, whatever the event holds. A code or a token
that a mail server quotes is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parseaddr
from typing import Any, Final, NamedTuple

from mailroom.events.envelopes import Event, Unreadable
from mailroom.transports import tags
from mailroom.transports.redaction import REDACTED, redacted, shortened

MAX_RECIPIENTS: Final = 50  # of one mail, in SES
MAX_NAME: Final = 100
MAX_MESSAGE_ID: Final = 200
MAX_ADDRESS: Final = 320
MAX_WORDS: Final = 10_000  # of which a few hundred are kept
BOUNCE_TYPES: Final = ("permanent", "transient", "undetermined")
IGNORED: Final = ("Open", "Click", "Subscription")
# A report that takes a mail out of the spam folder.
NO_COMPLAINT: Final = "not-spam"

# A line break, also as JSON writes it; quoted-printable has "=" before it.
_BREAK: Final = r"=?(?:\\+r|\r)?(?:\\+n|\n)[ \t]*"
# A token or a large part of one, and no id of hexadecimal digits, such as SES's message ids.
_TOKEN: Final = re.compile(
    rf"(?![0-9a-f-]{{30,85}}(?![\w-]))[A-Za-z0-9_-](?:(?:{_BREAK})?[A-Za-z0-9_-]){{29,}}"
)
_MIN_TOKEN: Final = 30
_RUN: Final = re.compile(rf"[A-Za-z0-9_-](?:(?:{_BREAK})?[A-Za-z0-9_-])*")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class Fact(NamedTuple):
    """What an event says about one recipient.

    Attributes:
        kind: sent, delivered, bounced, complained, delayed, rejected or rendering_failed.
        message_id: SES's id of the mail.
        recipient: the address.
        at: the event's own time, in ISO 8601.
        token: the id of the mail's token; None if the tags do not name it, as with the next two.
        fingerprint: of the token's secret, 16 hexadecimal digits.
        attempt: the number of the attempt.
        type: permanent, transient or undetermined for a bounce; for a complaint, what the report calls it.
        subtype: a finer class, or the template that cannot be rendered.
        status: such as 5.1.1.
        diagnostic: the words of the other server, or SES's.
    """

    kind: str
    message_id: str
    recipient: str
    at: str
    token: int | None = None
    fingerprint: str | None = None
    attempt: int | None = None
    type: str | None = None
    subtype: str | None = None
    status: str | None = None
    diagnostic: str | None = None


def facts_of(event: Event) -> list[Fact]:
    """The facts in an event as ``envelopes.opened`` returns it; none for an event that is ignored.

    Raises:
        Unreadable: the event has another shape than SES's.
    """
    if event["eventType"] in IGNORED:
        return []
    read = _READERS.get(event["eventType"])
    if read is None:
        raise Unreadable("an event of a type that SES's documentation does not have")
    mail = _part(event, "mail")
    return [
        _about(mail, fact)
        for fact in read(event, mail)
        if not (fact.kind == "complained" and fact.type == NO_COMPLAINT)
    ]


def _sent(_: Event, mail: Event) -> list[Fact]:
    return [Fact("sent", "", address, _time(mail)) for address in _addresses(mail, mail, "destination")]


def _delivered(event: Event, mail: Event) -> list[Fact]:
    part = _part(event, "delivery")
    at, words = _time(part, mail), _words(part, "smtpResponse")
    return [
        Fact("delivered", "", address, at, diagnostic=words)
        for address in _addresses(mail, part, "recipients")
    ]


def _bounced(event: Event, mail: Event) -> list[Fact]:
    part = _part(event, "bounce")
    at, subtype = _time(part, mail), _name(part, "bounceSubType")
    kind = (_name(part, "bounceType") or "").lower()
    kind = kind if kind in BOUNCE_TYPES else "undetermined"
    return [
        Fact("bounced", "", address, at, None, None, None, kind, subtype, status, words)
        for address, status, words in _recipients(mail, part, "bouncedRecipients")
    ]


def _complained(event: Event, mail: Event) -> list[Fact]:
    part = _part(event, "complaint")
    at, kind, subtype = (
        _time(part, mail),
        _name(part, "complaintFeedbackType"),
        _name(part, "complaintSubType"),
    )
    return [
        Fact("complained", "", address, at, type=kind, subtype=subtype)
        for address, _, _ in _recipients(mail, part, "complainedRecipients")
    ]


def _delayed(event: Event, mail: Event) -> list[Fact]:
    part = _part(event, "deliveryDelay")
    at, subtype = _time(part, mail), _name(part, "delayType")
    return [
        Fact("delayed", "", address, at, subtype=subtype, status=status, diagnostic=words)
        for address, status, words in _recipients(mail, part, "delayedRecipients")
    ]


def _rejected(event: Event, mail: Event) -> list[Fact]:
    words = _words(_part(event, "reject"), "reason")
    return [
        Fact("rejected", "", address, _time(mail), diagnostic=words)
        for address in _addresses(mail, mail, "destination")
    ]


def _not_rendered(event: Event, mail: Event) -> list[Fact]:
    part = _part(event, "failure")
    template, words = _name(part, "templateName"), _words(part, "errorMessage")
    return [
        Fact("rendering_failed", "", address, _time(mail), subtype=template, diagnostic=words)
        for address in _addresses(mail, mail, "destination")
    ]


_READERS: Final[Mapping[str, Callable[[Event, Event], list[Fact]]]] = {
    "Send": _sent,
    "Delivery": _delivered,
    "Bounce": _bounced,
    "Complaint": _complained,
    "DeliveryDelay": _delayed,
    "Reject": _rejected,
    "Rendering Failure": _not_rendered,
    "RenderingFailure": _not_rendered,
}


def _about(mail: Event, fact: Fact) -> Fact:
    """The fact with what ``mail`` says: its id, and the tags."""
    message_id = _text(mail.get("messageId"), MAX_MESSAGE_ID)
    if not message_id:
        raise Unreadable("mail.messageId: missing")
    reference = tags.read(_tags(mail))
    if reference is None:
        return fact._replace(message_id=message_id)
    token, fingerprint, attempt = reference
    return fact._replace(message_id=message_id, token=token, fingerprint=fingerprint.hex(), attempt=attempt)


def _tags(mail: Event) -> dict[str, str]:
    """The values of the tags that name an attempt, of those that have one value."""
    found = mail.get("tags")
    if not isinstance(found, dict):
        return {}
    return {
        name: values[0]
        for name in (tags.TOKEN, tags.ATTEMPT)
        if isinstance(values := found.get(name), list) and len(values) == 1 and isinstance(values[0], str)
    }


def _part(event: Event, name: str) -> Event:
    part = event.get(name)
    if not isinstance(part, dict):
        raise Unreadable(f"{name}: not an object")
    return part


def _time(*parts: Event) -> str:
    """The time of the first part that has one."""
    for part in parts:
        text = part.get("timestamp")
        if isinstance(text, str) and len(text) < MAX_NAME:
            try:
                at = datetime.fromisoformat(text)
                return (at.replace(tzinfo=at.tzinfo or UTC)).astimezone(UTC).isoformat()
            except (ValueError, OverflowError):
                continue
    raise Unreadable("timestamp: not a time")


def _only_recipient(mail: Event) -> str | None:
    """The address of a mail to one person.

    A report may name no address, or the mailbox that a server forwarded the mail to, so it is not read then.
    """
    destination = mail.get("destination")
    if isinstance(destination, list) and len(destination) == 1:
        return _address("mail.destination", destination[0])
    return None


def _addresses(mail: Event, part: Event, name: str) -> list[str]:
    only = _only_recipient(mail)
    return [only] if only else [_address(name, one) for one in _list(part, name)]


def _recipients(mail: Event, part: Event, name: str) -> list[tuple[str, str | None, str | None]]:
    """The address, the status and the diagnostic of each recipient in a report."""
    only = _only_recipient(mail)
    if only and part.get(name) == []:
        return [(only, None, None)]
    found = []
    for one in _list(part, name):
        if not isinstance(one, dict):
            raise Unreadable(f"{name}: not a list of objects")
        status, words = _name(one, "status"), _words(one, "diagnosticCode")
        found.append((only or _address(name, one.get("emailAddress")), status, words))
    return found


def _list(part: Event, name: str) -> list[Any]:
    found = part.get(name)
    if not isinstance(found, list) or not 1 <= len(found) <= MAX_RECIPIENTS:
        raise Unreadable(f"{name}: not a list of 1 to {MAX_RECIPIENTS} recipients")
    return found


def _address(name: str, value: object) -> str:
    """An address, without the name that may be before it."""
    text = value[:MAX_WORDS] if isinstance(value, str) else ""
    if "<" in text:
        text = parseaddr(text)[1]
    text = _storable(text.strip())
    if "@" not in text or len(text) > MAX_ADDRESS:
        raise Unreadable(f"{name}: not a mail address")
    return text


def _name(part: Event, name: str) -> str | None:
    return _text(part.get(name), MAX_NAME)


def _words(part: Event, name: str) -> str | None:
    """The words of a server on one line, without secrets of ours."""
    value = part.get(name)
    if not isinstance(value, str):
        return None
    return shortened(without_secrets(_storable(value[:MAX_WORDS])), ()) or None


def without_secrets(text: str) -> str:
    """A text without codes and tokens, also those that a line break divides."""
    # Looked for in long runs only: at each place of a text it would take thirty times as long.
    return redacted(_RUN.sub(_without_tokens, text), ())


def _without_tokens(run: re.Match[str]) -> str:
    return _TOKEN.sub(REDACTED, run[0]) if len(run[0]) >= _MIN_TOKEN else run[0]


def _text(value: object, most: int) -> str | None:
    return " ".join(_storable(value[:most]).split()) or None if isinstance(value, str) else None


def _storable(text: str) -> str:
    """A text without what no JSON of PostgreSQL's holds."""
    return _SURROGATE.sub("?", text).replace("\0", "?")
