"""Holds a bulk call and its answer, which are the same over SES's API and over SMTP."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from mailroom.inbox.faults import Fault
from mailroom.inbox.ses_protocol import Refusal

Tags: TypeAlias = tuple[tuple[str, str], ...]
_TAG: Final = re.compile("[A-Za-z0-9_-]{1,256}")


def checked_tags(tags: Iterable[tuple[str, str]]) -> Tags:
    """Return the tags.

    Raises:
        Refusal: SES would not take one.
    """
    found = tuple(tags)
    for tag in found:
        if not all(map(_TAG.fullmatch, tag)):
            raise Refusal(
                "InvalidParameterValue",
                f"The name and the value of a tag are 1 to 256 letters, digits, - and _: {tag}",
            )
    return found


class Destination(NamedTuple):
    """One mail of a call: its addresses, its data as JSON (empty for none), and its tags."""

    addresses: tuple[str, ...]
    data: str
    tags: Tags = ()

    @property
    def recipients(self) -> int:
        """How many recipients it counts as."""
        return max(1, len(self.addresses))


class BulkCall(NamedTuple):
    """A call that sends mails.

    Attributes:
        config_set: the configuration set; empty for none.
        default_data: data for all destinations, as JSON.
        raw: the whole request.
        message: the mail itself if it came over SMTP; then there is no template and no data.
        tags: tags for all destinations.
        content: subject, text and HTML if they came with the call, in place of a template's name.
        reply_to: the addresses that answers go to.
    """

    source: str
    template: str
    config_set: str
    default_data: str
    destinations: list[Destination]
    raw: bytes = b""
    message: bytes = b""
    tags: Tags = ()
    content: tuple[str, str, str] | None = None
    reply_to: tuple[str, ...] = ()

    @property
    def recipients(self) -> int:
        """How many recipients it counts as."""
        return sum(destination.recipients for destination in self.destinations)


class DestinationStatus(NamedTuple):
    """The answer for one destination: ``Success`` and a message id, or another status and an error."""

    status: str
    message_id: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class CallAnswer:
    """The answer to a call.

    Attributes:
        statuses: one a destination; empty if the call was refused or not processed.
        refusal: the error that answers the whole call.
        fault: how the answer to the client is lost.
    """

    statuses: list[DestinationStatus] = field(default_factory=list)
    refusal: Refusal | None = None
    fault: Fault | None = None
