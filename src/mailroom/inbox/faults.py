"""Faults on demand: what a provider and a network do to a call when they do not do what they should.

A rule is used for the bulk calls that it matches, in the order in which rules were added. Rules of
the kind ``status`` add up, each for recipients of its own; the first rule of any other kind that
matches decides the call. Chance comes from a seed, so that a run can be repeated.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

KINDS: Final = ("error", "status", "http", "garbage", "hang", "cut", "cut_body")
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


@dataclass(frozen=True, slots=True)
class Fault:
    """One rule.

    Attributes:
        kind: ``error`` refuses the call; ``status`` refuses recipients in a call that is answered;
            ``http`` answers with a status and a text that is no XML, ``garbage`` with 200 and an
            unreadable text; ``hang`` never answers; ``cut`` closes the connection instead of
            answering, ``cut_body`` in the middle of the answer.
        calls: it is good for so many calls; None is until it is removed.
        share: the chance (0 to 1) that a matching call is hit; of a ``status``, each recipient.
        recipient: only calls that mail this address are hit; of a ``status``, only this recipient.
        code: an ``error``'s.
        message: the text of an ``error`` or a ``status``.
        http_status: an ``error``'s or ``http``'s; 400 and 503 when it is 0.
        status: a recipient's, one of ``STATUSES``.
        body: the text of ``http`` and ``garbage``.
        accept: whether the mails go out although the answer is lost.
        seconds: a ``hang`` ends after so many at the latest, by closing the connection.
    """

    kind: str
    calls: int | None = None
    share: float = 1.0
    recipient: str = ""
    code: str = "InternalFailure"
    message: str = "asked for by a fault"
    http_status: int = 0
    status: str = "Failed"
    body: str = "no XML: <\x00"
    accept: bool = False
    seconds: float = 60.0

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            ValueError: with the field at fault.
        """
        if self.kind not in KINDS:
            raise ValueError(f"kind: {self.kind!r} is none of {', '.join(KINDS)}")
        if self.calls is not None and self.calls < 1:
            raise ValueError(f"calls: {self.calls} is less than 1")
        if not 0 < self.share <= 1:
            raise ValueError(f"share: {self.share} is not above 0 and up to 1")
        if self.http_status and not 400 <= self.http_status <= 599:
            raise ValueError(f"http_status: {self.http_status} is not from 400 to 599")
        if self.status not in STATUSES or self.status == "Success":
            raise ValueError(f"status: {self.status!r} is none of {', '.join(STATUSES[1:])}")
        if not 0 < self.seconds <= MAX_HANG_S:
            raise ValueError(f"seconds: {self.seconds} is not above 0 and up to {MAX_HANG_S:.0f}")


_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "calls": (int, type(None)),
    "share": (int, float),
    "http_status": (int,),
    "accept": (bool,),
    "seconds": (int, float),
}


def read_fault(given: Mapping[str, Any]) -> Fault:
    """A rule from its fields as JSON has them.

    Raises:
        ValueError: with the field at fault.
    """
    known = [field.name for field in fields(Fault)]
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{name}: a fault has only {', '.join(known)}")
        types = _TYPES.get(name, (str,))
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ValueError(f"{name}: {value!r} is of the wrong type")
    if "kind" not in given:
        raise ValueError(f"kind: missing; it is one of {', '.join(KINDS)}")
    return Fault(**given)


@dataclass(slots=True)
class _Rule:
    id: int
    fault: Fault
    used: int = 0


class Faults:
    """The rules in force.

    Args:
        seed: of the chance.
    """

    def __init__(self, seed: int = 0) -> None:
        self._rules: list[_Rule] = []
        self._last_id = 0
        self._random = random.Random(seed)  # noqa: S311 - no secret

    def add(self, fault: Fault) -> int:
        """Put a rule behind the others; gives back its id."""
        self._last_id += 1
        self._rules.append(_Rule(self._last_id, fault))
        return self._last_id

    def remove(self, id: int) -> bool:
        """Take a rule away; False when it is gone already."""
        before = len(self._rules)
        self._rules = [rule for rule in self._rules if rule.id != id]
        return len(self._rules) < before

    def clear(self) -> None:
        """Take every rule away."""
        self._rules = []

    def listing(self) -> list[dict[str, Any]]:
        """The rules in order, with the calls they were ``used`` for and still have."""
        return [{"id": rule.id, "used": rule.used} | asdict(rule.fault) for rule in self._rules]

    def pick(self, destinations: Sequence[Sequence[str]]) -> tuple[Fault | None, dict[int, Fault]]:
        """What happens to a call with these addresses.

        Returns:
            The fault that the whole call meets, and those of single destinations by their places.
        """
        single: dict[int, Fault] = {}
        for rule in list(self._rules):
            fault = rule.fault
            hit = [
                at
                for at, addresses in enumerate(destinations)
                if not fault.recipient or fault.recipient in addresses
            ]
            if fault.kind == "status":
                hit = [at for at in hit if at not in single and self._chance(fault.share)]
            elif hit and not self._chance(fault.share):
                continue
            if not hit:
                continue
            self._use(rule)
            if fault.kind != "status":
                return fault, single
            single |= dict.fromkeys(hit, fault)
        return None, single

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
