"""The mails that arrived: rendered when somebody looks, kept up to a bound, the oldest go first."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Final, NamedTuple

from mailroom.templates.tags import placeholders, render_source

KEEP: Final = 5000


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


class Rendered(NamedTuple):
    """What a mail shows."""

    subject: str
    text: str
    html: str


@dataclass(slots=True)
class Mail:
    """One mail that was answered with Success.

    Attributes:
        id: the message id.
        number: counts mails from 1, in the order of their coming.
        failure: why SES would have dropped it in silence; empty while nothing is known of that.
    """

    id: str
    number: int
    time: datetime
    source: str
    recipient: str
    template: StoredTemplate
    data: Mapping[str, Any]
    failure: str = ""

    @property
    def dropped(self) -> bool:
        """Whether nothing was sent."""
        return bool(self.failure)

    def render(self) -> Rendered | None:
        """What it shows; None when it cannot be rendered, which ``failure`` then tells."""
        parts = (self.template.subject, self.template.text, self.template.html)
        try:
            return Rendered(*(render_source(part, self.data) for part in parts))
        except Exception as error:  # noqa: BLE001 - anybody's template may do anything
            self.failure = f"rendering failure: {error}"
            return None


class Mailbox:
    """The last mails.

    Args:
        keep: how many.
    """

    def __init__(self, keep: int = KEEP) -> None:
        self._keep = keep
        self._mails: OrderedDict[str, Mail] = OrderedDict()
        self._run = secrets.token_hex(12)
        self._last = 0

    def add(
        self, time: datetime, source: str, recipient: str, template: StoredTemplate, data: Mapping[str, Any]
    ) -> Mail:
        """Take a mail in."""
        self._last += 1
        name = f"{self._last:016x}-{self._run}-000000"
        mail = self._mails[name] = Mail(name, self._last, time, source, recipient, template, data)
        if not template.names <= data.keys():
            mail.render()  # a block may do without what is missing: only rendering tells
        if len(self._mails) > self._keep:
            self._mails.popitem(last=False)
        return mail

    def __len__(self) -> int:
        return len(self._mails)

    def get(self, id: str) -> Mail | None:
        """The mail of an id, if it is still kept."""
        return self._mails.get(id)

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
        number = self._number(after) if after else 0
        found = (
            mail
            for mail in list(self._mails.values())
            if mail.number > number
            and recipient in ("", mail.recipient)
            and template in ("", mail.template.name)
        )
        return list(islice(found, limit))

    def clear(self) -> None:
        """Forget them all."""
        self._mails.clear()

    def _number(self, id: str) -> int:
        number, _, run = id.partition("-")
        if run != f"{self._run}-000000":
            raise ValueError(f"{id!r} is no id of a mail that came here")
        return int(number, 16)
