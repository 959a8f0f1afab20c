"""Says in words what SES reported about a mail, and what follows from it, with the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from mailroom.operations.mail_state import MailEvent, utc
from mailroom.operations.verdicts import Kind, StoryVerdict

PERMANENT: Final = "permanent"
TRANSIENT: Final = "transient"
LIFT: Final = "`mailroom suppressions remove` lifts that"


def lines(events: Sequence[MailEvent]) -> list[tuple[datetime, str]]:
    """A line for each event, with its time."""
    return [(one.at, f"SES: {_what(one)}{f': {one.said}' if one.said else ''}") for one in events]


def fate(events: Sequence[MailEvent], accepted: str) -> tuple[StoryVerdict, str] | None:
    """What became of a mail that SES accepted, and its reason; None if no event says.

    Args:
        events: the mail's.
        accepted: a sentence that says when SES accepted it.
    """
    last = {one.kind: one for one in sorted(events, key=lambda one: one.at)}
    complaint = next((one for one in events if one.kind == Kind.COMPLAINED), None)
    bounces = sorted(
        (one for one in events if one.kind == Kind.BOUNCED), key=lambda one: (one.type != TRANSIENT, one.at)
    )
    if complaint:
        why = (
            f"the person marked it as spam at {utc(complaint.at)}; the address gets no mail any more: {LIFT}"
        )
        return StoryVerdict.COMPLAINED, f"{why}, if the person asks for mail again ({accepted})"
    if bounces and (bounces[-1].type != TRANSIENT or Kind.DELIVERED not in last):
        return StoryVerdict.BOUNCED, f"{_bounced(bounces[-1])} ({accepted})"
    if one := last.get(Kind.DELIVERED):
        why = f"the recipient's server took it at {utc(one.at)}"
        hint = "if the person does not see it, it is in the spam folder"
        return StoryVerdict.DELIVERED, f"{why}; {hint} ({accepted})"
    if one := last.get(Kind.REJECTED):
        why = f"SES took it and did not send it, at {utc(one.at)}{_said(one)}"
        hint = "look for a virus or a forbidden attachment in the template"
        return StoryVerdict.REJECTED, f"{why}; {hint} ({accepted})"
    if one := last.get(Kind.DELAYED):
        why = f"the recipient's server has not taken it, as of {utc(one.at)}{_said(one)}"
        return StoryVerdict.DELAYED, f"{why}; SES tries again for some hours ({accepted})"
    return None


def _what(event: MailEvent) -> str:
    if event.kind == Kind.BOUNCED:
        return f"bounced, {event.type or 'of no stated type'}"
    if event.kind == Kind.RENDERING_FAILED:
        return "could not render it"
    if event.kind == Kind.COMPLAINED and event.type:
        return f"complained, {event.type}"
    return f"{event.kind} as {event.message_id}" if event.kind == Kind.SENT else event.kind


def _said(event: MailEvent) -> str:
    return f": {event.said}" if event.said else ""


def _bounced(event: MailEvent) -> str:
    at = f"at {utc(event.at)}{_said(event)}"
    if event.type == PERMANENT:
        why = f"the address takes no mail, as its server said {at}"
        return f"{why}; it gets none any more: correct the address, or, if it works again, {LIFT}"
    if event.type == TRANSIENT:
        return f"it could not be delivered, {at}; SES does not try again: request the mail again later"
    why = f"it came back for a reason that SES could not read, {at}"
    return f"{why}; check the address, and request the mail again"
