"""The mails that arrived: rendered when somebody looks, kept up to two bounds, the oldest go first."""

from __future__ import annotations

import secrets
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from operator import attrgetter
from sys import getsizeof
from typing import Any, Final, NamedTuple

from mailroom.inbox.data import read_data
from mailroom.inbox.messages import Rendered, read_message, write_message
from mailroom.templates.tags import placeholders, render_source

KEEP: Final = 5000
# What clients wrote into the mails that are kept; ordinary mails are far below it.
MAX_BYTES: Final = 256_000_000
MAX_FAILURE: Final = 1000


@dataclass(frozen=True, slots=True)
class StoredTemplate:
    """A template as SES holds it.

    Attributes:
        names: what its parts read from a mail's data.
    """

    name: str
    subject: str
    text: str
    html: str
    created: datetime
    names: frozenset[str]

    @classmethod
    def of(cls, name: str, parts: tuple[str, str, str], created: datetime) -> StoredTemplate:
        """A template of these parts (subject, text, HTML)."""
        return cls(name, *parts, created, frozenset().union(*map(placeholders, parts)))


# Of a mail that came whole, over SMTP.
NO_TEMPLATE: Final = StoredTemplate.of("", ("", "", ""), datetime.fromtimestamp(0, UTC))


class Brief(NamedTuple):
    """What a list says of a mail; the subject of a mail that was dropped is None."""

    subject: str | None
    action: str | None


@dataclass(slots=True)
class Mail:
    """One mail that was answered with Success.

    Attributes:
        id: the message id.
        number: counts mails from 1, in the order of their coming.
        failure: why SES would have dropped it in silence; empty while nothing is known of that.
        default: data for all mails of the call, as JSON, and
        own: this one's own data, which comes before it. Read, they would take many times the room.
        call: the number of the request that brought it, see ``Requests``.
        message: the mail as it came over SMTP; empty when it came as a template and data.
        brief: is filled in when somebody looks.
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
    brief: Brief | None = None

    @property
    def data(self) -> dict[str, Any]:
        """What its template is filled in with."""
        return read_data(self.default) | read_data(self.own)

    @property
    def dropped(self) -> bool:
        """Whether nothing was sent."""
        return bool(self.failure)

    def render(self) -> Rendered | None:
        """What it shows; None when it cannot be rendered, which ``failure`` then tells."""
        if self.message:
            return read_message(self.message)
        parts, data = (self.template.subject, self.template.text, self.template.html), self.data
        try:
            return Rendered(*(render_source(part, data) for part in parts))
        except Exception as error:  # noqa: BLE001 - anybody's template may do anything
            self.failure = f"rendering failure: {error}"[:MAX_FAILURE]
            return None

    def as_message(self, rendered: Rendered | None) -> bytes:
        """The mail, which shows this, as a message; empty when nothing was sent."""
        if self.message:
            return self.message
        return write_message(rendered, self.id, self.time, self.source, self.recipient) if rendered else b""


class Mailbox:
    """The last mails.

    Args:
        keep: how many.
        most_bytes: how much all of them may have brought along.
    """

    def __init__(self, keep: int = KEEP, most_bytes: int = MAX_BYTES) -> None:
        self._keep = keep
        self._most_bytes = most_bytes
        self._mails: OrderedDict[str, Mail] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._bytes = 0
        self._run = secrets.token_hex(12)
        self._last = 0

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
    ) -> Mail:
        """Take a mail in; ``texts`` are its data as it came, see ``Mail``."""
        self._last += 1
        name = f"{self._last:016x}-{self._run}-000000"
        mail = Mail(name, self._last, time, source, recipient, template, *texts, call=call, message=message)
        self._mails[name] = mail
        self._sizes[name] = size = sum(map(getsizeof, (source, recipient, *texts, message)))
        self._bytes += size
        if not template.names <= data.keys():
            mail.render()  # a block may do without what is missing: only rendering tells
        while len(self._mails) > self._keep or (self._bytes > self._most_bytes and len(self._mails) > 1):
            self.remove(next(iter(self._mails)))
        return mail

    def __len__(self) -> int:
        return len(self._mails)

    def get(self, id: str) -> Mail | None:
        """The mail of an id, if it is still kept."""
        return self._mails.get(id)

    def remove(self, id: str) -> bool:
        """Forget one; False when it is not kept."""
        self._bytes -= self._sizes.pop(id, 0)
        return self._mails.pop(id, None) is not None

    def find(
        self, *, recipient: str = "", template: str = "", after: str = "", limit: int | None = None
    ) -> list[Mail]:
        """Mails, the oldest first.

        Args:
            recipient: only those to this address.
            template: only those from this template.
            after: only those that came after the mail of this id, be it kept or not.
            limit: at most so many.

        Raises:
            ValueError: ``after`` is no id of a mail.
        """
        mails = list(self._mails.values())
        start = bisect_right(mails, self._number(after), key=attrgetter("number")) if after else 0
        found = (
            mail
            for mail in islice(mails, start, None)
            if recipient in ("", mail.recipient) and template in ("", mail.template.name)
        )
        return list(islice(found, limit))

    def newest(self, *, containing: str = "", before: str = "", limit: int) -> list[Mail]:
        """Mails, the newest first.

        Args:
            containing: only those whose recipient contains this, whatever the case.
            before: only those that came before the mail of this id, be it kept or not.
            limit: at most so many.

        Raises:
            ValueError: ``before`` is no id of a mail.
        """
        number, wanted = self._number(before) if before else self._last + 1, containing.lower()
        found = (
            mail
            for mail in reversed(list(self._mails.values()))
            if mail.number < number and wanted in mail.recipient.lower()
        )
        return list(islice(found, limit))

    def clear(self) -> None:
        """Forget them all."""
        self._mails.clear()
        self._sizes.clear()
        self._bytes = 0

    def _number(self, id: str) -> int:
        number, _, run = id.partition("-")
        if run != f"{self._run}-000000":
            raise ValueError(f"{id!r} is no id of a mail that came here")
        return int(number, 16)
