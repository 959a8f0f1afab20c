"""Keeps the mails that arrived, and renders them when they are viewed.

A mailbox is bounded by a number of mails and by bytes; the oldest mails go first.
"""

from __future__ import annotations

import secrets
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from operator import attrgetter
from sys import getsizeof
from typing import Any, Final, NamedTuple

from mailroom.inbox.data import read_data
from mailroom.inbox.events import Event, Sending
from mailroom.inbox.messages import read_message, write_message
from mailroom.templates.mails import RenderedMail
from mailroom.templates.tags import placeholders, render_source
from mailroom.transports.tags import ACTION

KEEP: Final = 5000
# The size of what clients wrote into the kept mails. Ordinary mails stay far below it.
MAX_BYTES: Final = 256_000_000
MAX_FAILURE: Final = 1000


@dataclass(frozen=True, slots=True)
class StoredTemplate:
    """A template as SES holds it.

    Attributes:
        names: the names that its parts read from a mail's data.
    """

    name: str
    subject: str
    text: str
    html: str
    names: frozenset[str]

    @classmethod
    def of(cls, name: str, parts: tuple[str, str, str]) -> StoredTemplate:
        """Return a template of these parts (subject, text, HTML)."""
        return cls(name, *parts, frozenset().union(*map(placeholders, parts)))


# The template of a mail that came over SMTP.
NO_TEMPLATE: Final = StoredTemplate.of("", ("", "", ""))


class Brief(NamedTuple):
    """What a list shows of a mail; None for what is not known. The subject of a dropped mail is None."""

    subject: str | None
    action: str | None
    language: str | None
    code: str | None


@dataclass(slots=True)
class KeptMail:
    """One mail that was answered with Success.

    Attributes:
        id: the message id.
        number: counts mails from 1, in the order of arrival.
        default: data for all mails of the call, as JSON.
        own: the mail's own data, as JSON; it takes precedence. Both stay text, which needs a fraction
            of the memory of parsed data.
        failure: why SES would have dropped it silently; empty as long as no failure is known.
        call: the number of its request in ``RawRequests``.
        message: the mail as it came over SMTP; empty if it came as a template and data.
        reply_to: the addresses that answers go to; empty for none, and for a mail over SMTP.
        sending: what SES's events say about it; None if its call named no configuration set.
        events: what was published about it.
        brief: set when it is first asked for.
    """

    id: str
    number: int
    time: datetime
    source: str
    recipient: str
    template: StoredTemplate
    default: str = ""
    own: str = ""
    failure: str = ""
    call: int = 0
    message: bytes = b""
    reply_to: str = ""
    sending: Sending | None = None
    events: tuple[Event, ...] = ()
    brief: Brief | None = None

    @property
    def data(self) -> dict[str, Any]:
        """The data for its template."""
        return read_data(self.default) | read_data(self.own)

    @property
    def action_tag(self) -> str:
        """The action that its tags name; empty if they name none, or its call named no configuration set."""
        return dict(self.sending.tags).get(ACTION, "") if self.sending else ""

    @property
    def dropped(self) -> bool:
        """Whether nothing was sent."""
        return bool(self.failure)

    def render(self) -> RenderedMail | None:
        """Return the rendered mail, or set ``failure`` and return None."""
        if self.message:
            return read_message(self.message)
        parts, data = (self.template.subject, self.template.text, self.template.html), self.data
        try:
            return RenderedMail(*(render_source(part, data) for part in parts))
        except Exception as error:  # noqa: BLE001 - a client's template may fail in any way
            self.failure = f"rendering failure: {error}"[:MAX_FAILURE]
            return None

    def as_message(self, rendered: RenderedMail | None) -> bytes:
        """Return the mail as a message; empty if nothing was sent."""
        if self.message:
            return self.message
        if rendered is None:
            return b""
        return write_message(rendered, self.id, self.time, self.source, self.recipient, self.reply_to)


class Mailbox:
    """The last mails.

    Args:
        keep: how many are kept.
        max_bytes: the size of all of them together; the last mail is kept even if it is larger.
    """

    def __init__(self, keep: int = KEEP, max_bytes: int = MAX_BYTES) -> None:
        self._keep = keep
        self._max_bytes = max_bytes
        self._mails: OrderedDict[str, KeptMail] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._bytes = 0
        self._run = secrets.token_hex(12)
        self._last = 0

    def __len__(self) -> int:
        return len(self._mails)

    def add(
        self,
        time: datetime,
        source: str,
        recipient: str,
        template: StoredTemplate,
        data: Mapping[str, Any],
        *,
        texts: tuple[str, str] = ("", ""),
        call: int = 0,
        message: bytes = b"",
        reply_to: str = "",
    ) -> KeptMail:
        """Add a mail and return it; ``texts`` are its default data and its own data as JSON."""
        self._last += 1
        name = f"{self._last:016x}-{self._run}-000000"
        mail = KeptMail(
            name,
            self._last,
            time,
            source,
            recipient,
            template,
            *texts,
            call=call,
            message=message,
            reply_to=reply_to,
        )
        self._mails[name] = mail
        written = (source, recipient, reply_to, *texts, message)
        content = () if template.name else (template.subject, template.text, template.html)
        self._sizes[name] = size = sum(map(getsizeof, written + content))
        self._bytes += size
        if not template.names <= data.keys():
            mail.render()  # a block may not need a missing name, so only rendering shows a failure
        while len(self._mails) > self._keep or (self._bytes > self._max_bytes and len(self._mails) > 1):
            self.remove(next(iter(self._mails)))
        return mail

    def get(self, id: str) -> KeptMail | None:
        """Return the mail of an id, or None if it is not kept."""
        return self._mails.get(id)

    def remove(self, id: str) -> bool:
        """Forget a mail, and return whether it was kept."""
        self._bytes -= self._sizes.pop(id, 0)
        return self._mails.pop(id, None) is not None

    def clear(self) -> None:
        """Forget all mails."""
        self._mails.clear()
        self._sizes.clear()
        self._bytes = 0

    def find(
        self, *, recipient: str = "", template: str = "", after: str = "", limit: int | None = None
    ) -> list[KeptMail]:
        """Return mails, the oldest first.

        Args:
            recipient: only those to this address.
            template: only those from this template.
            after: only those that arrived after the mail of this id, which need not be kept.
            limit: how many at most.

        Raises:
            ValueError: ``after`` is not a mail's id.
        """
        mails = list(self._mails.values())
        start = bisect_right(mails, self._number(after), key=attrgetter("number")) if after else 0
        found = (
            mail
            for mail in islice(mails, start, None)
            if recipient in ("", mail.recipient) and template in ("", mail.template.name)
        )
        return list(islice(found, limit))

    def newest(self, *, containing: str = "", before: str = "", limit: int) -> list[KeptMail]:
        """Return mails, the newest first.

        Args:
            containing: only those whose recipient contains this text; case is ignored.
            before: only those that arrived before the mail of this id, which need not be kept.
            limit: how many at most.

        Raises:
            ValueError: ``before`` is not a mail's id.
        """
        number, wanted = self._number(before) if before else self._last + 1, containing.lower()
        found = (
            mail
            for mail in reversed(list(self._mails.values()))
            if mail.number < number and wanted in mail.recipient.lower()
        )
        return list(islice(found, limit))

    def _number(self, id: str) -> int:
        number, _, run = id.partition("-")
        if run != f"{self._run}-000000":
            raise ValueError(f"{id!r} is not the id of a mail of this inbox")
        return int(number, 16)
