"""Injects the faults of a provider and of a network into calls that send.

Rules are tried in the order in which they were added. Each rule of the kinds ``status`` and ``event`` applies
to the recipients that it matches; the first matching rule of another kind decides the whole call. Chance
comes from a seed, so a run can be repeated.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, NamedTuple

from mailroom.inbox.events import COURSES

KINDS: Final = ("error", "status", "event", "http", "garbage", "hang", "cut", "cut_body")
# Rules of these kinds hit recipients; those of the others hit calls.
FOR_RECIPIENTS: Final = ("status", "event")
STATUSES: Final = (
    "Success",
    "MessageRejected",
    "MailFromDomainNotVerified",
    "ConfigurationSetDoesNotExist",
    "TemplateDoesNotExist",
    "AccountSuspended",
    "AccountThrottled",
    "AccountDailyQuotaExceeded",
    "InvalidSendingPoolName",
    "AccountSendingPaused",
    "ConfigurationSetSendingPaused",
    "InvalidParameterValue",
    "TransientFailure",
    "Failed",
)
MAX_HANG_S: Final = 600.0
MAX_AFTER_S: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One rule.

    Attributes:
        kind: ``error`` refuses the call; ``status`` refuses recipients in a call that is answered;
            ``event`` accepts them, and the events about their mails end with ``event``; ``http`` answers
            with a status and a text that is not XML, ``garbage`` with 200 and an unreadable text;
            ``hang`` never answers; ``cut`` closes the connection instead of answering, ``cut_body`` in
            the middle of the answer.
        calls: the rule is removed after this many calls; None keeps it until it is deleted.
        share: the probability (above 0, up to 1) that a matching call, or for ``status`` a recipient, is hit.
        recipient: only calls to this address are hit; for ``status`` and ``event``, only this recipient.
        code: the code of an ``error``.
        message: the text of an ``error`` or a ``status``.
        http_status: the status of an ``error`` or ``http``; 0 stands for 400 and 503.
        status: the status of a recipient, one of ``STATUSES``.
        body: the text of ``http`` and ``garbage``.
        accept: whether the mails are accepted although the answer is lost.
        seconds: a ``hang`` closes the connection after this time.
        event: the kind of an ``event``, one of ``COURSES``.
        after_s: an ``event`` comes this many seconds after the mail.
    """

    kind: str
    calls: int | None = None
    share: float = 1.0
    recipient: str = ""
    code: str = "InternalFailure"
    message: str = "asked for by a fault"
    http_status: int = 0
    status: str = "Failed"
    body: str = "not XML: <\x00"
    accept: bool = False
    seconds: float = 60.0
    event: str = "bounce"
    after_s: float = 0.0

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            ValueError: a field is not valid; the text names it.
        """
        if self.kind not in KINDS:
            raise ValueError(f"kind: {self.kind!r} is not one of {', '.join(KINDS)}")
        if self.calls is not None and self.calls < 1:
            raise ValueError(f"calls: {self.calls} is less than 1")
        if not 0 < self.share <= 1:
            raise ValueError(f"share: {self.share} is not above 0 and up to 1")
        if self.http_status and not 400 <= self.http_status <= 599:
            raise ValueError(f"http_status: {self.http_status} is not from 400 to 599")
        if self.status not in STATUSES or self.status == "Success":
            raise ValueError(f"status: {self.status!r} is not one of {', '.join(STATUSES[1:])}")
        if not 0 < self.seconds <= MAX_HANG_S:
            raise ValueError(f"seconds: {self.seconds} is not above 0 and up to {MAX_HANG_S:.0f}")
        if self.event not in COURSES:
            raise ValueError(f"event: {self.event!r} is not one of {', '.join(COURSES)}")
        if not 0 <= self.after_s <= MAX_AFTER_S:
            raise ValueError(f"after_s: {self.after_s} is not from 0 to {MAX_AFTER_S:.0f}")


_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "calls": (int, type(None)),
    "share": (int, float),
    "http_status": (int,),
    "accept": (bool,),
    "seconds": (int, float),
    "after_s": (int, float),
}


def read_fault(given: Mapping[str, Any]) -> Fault:
    """Return a rule from the JSON of its fields.

    Raises:
        ValueError: a field is not valid; the text names it.
    """
    known = [field.name for field in fields(Fault)]
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{name}: not a field; a fault has {', '.join(known)}")
        types = _TYPES.get(name, (str,))
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ValueError(f"{name}: {value!r} has the wrong type")
    if "kind" not in given:
        raise ValueError(f"kind: missing; it is one of {', '.join(KINDS)}")
    return Fault(**given)


class Picked(NamedTuple):
    """The faults of a call: of the whole call, and by the index of a destination of its status and event."""

    call: Fault | None
    statuses: dict[int, Fault]
    events: dict[int, Fault]


@dataclass(slots=True)
class _Rule:
    id: int
    fault: Fault
    used: int = 0


class Faults:
    """The rules in force.

    Args:
        seed: for the rules that apply by chance.
    """

    def __init__(self, seed: int = 0) -> None:
        self._rules: list[_Rule] = []
        self._last_id = 0
        self._random = random.Random(seed)  # noqa: S311 - no secret

    def add(self, fault: Fault) -> int:
        """Add a rule after the others, and return its id."""
        self._last_id += 1
        self._rules.append(_Rule(self._last_id, fault))
        return self._last_id

    def remove(self, id: int) -> bool:
        """Remove a rule, and return whether it was in force."""
        before = len(self._rules)
        self._rules = [rule for rule in self._rules if rule.id != id]
        return len(self._rules) < before

    def clear(self) -> None:
        """Remove all rules."""
        self._rules = []

    def listing(self) -> list[dict[str, Any]]:
        """Return the rules in order, each with its id and how often it was ``used``."""
        return [{"id": rule.id, "used": rule.used} | asdict(rule.fault) for rule in self._rules]

    def pick(self, destinations: Sequence[Sequence[str]]) -> Picked:
        """Use the rules that match a call with these addresses."""
        single: dict[str, dict[int, Fault]] = {kind: {} for kind in FOR_RECIPIENTS}
        for rule in list(self._rules):
            fault = rule.fault
            hit = [
                at
                for at, addresses in enumerate(destinations)
                if not fault.recipient or fault.recipient in addresses
            ]
            if fault.kind in single:
                hit = [at for at in hit if at not in single[fault.kind] and self._chance(fault.share)]
            elif hit and not self._chance(fault.share):
                continue
            if not hit:
                continue
            self._use(rule)
            if fault.kind not in single:
                return Picked(fault, single["status"], single["event"])
            single[fault.kind] |= dict.fromkeys(hit, fault)
        return Picked(None, single["status"], single["event"])

    def _chance(self, share: float) -> bool:
        return share >= 1 or self._random.random() < share

    def _use(self, rule: _Rule) -> None:
        rule.used += 1
        if rule.fault.calls is None:
            return
        if rule.fault.calls == 1:
            self.remove(rule.id)
        else:
            rule.fault = replace(rule.fault, calls=rule.fault.calls - 1)
