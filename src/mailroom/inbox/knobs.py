"""The switches of the page: each is a rule of the API's, or the account's pause, and shows if it holds."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final, NamedTuple

from mailroom.inbox.faults import Fault
from mailroom.inbox.inbox import Inbox


class Knob(NamedTuple):
    """A switch; ``fault`` is None of the one that pauses the account."""

    name: str
    label: str
    hint: str
    fault: Fault | None


KNOBS: Final = (
    Knob(
        "throttle", "Throttle", "Every call is refused: Throttling.",
        Fault("error", code="Throttling", message="Maximum sending rate exceeded."),
    ),
    Knob("pause", "Pause the account", "Every call is refused: sending is disabled.", None),
    Knob(
        "reject", "Reject recipients", "MessageRejected for each recipient.",
        Fault("status", status="MessageRejected", message="Asked for on the page."),
    ),
    Knob(
        "transient", "Fail for a while", "TransientFailure for each recipient.",
        Fault("status", status="TransientFailure", message="Asked for on the page."),
    ),
    Knob("unavailable", "Unavailable", "503, with a body that is no XML.", Fault("http", http_status=503)),
    Knob("garbage", "Answer garbage", "200, with a body that nobody can read.", Fault("garbage")),
    Knob("hang", "Hang", "No answer, for up to a minute.", Fault("hang")),
    Knob("cut", "Cut the connection", "Not accepted, and no answer.", Fault("cut")),
    Knob(
        "lose", "Lose the answer", "Accepted, and no answer: senders try again.",
        Fault("cut", accept=True),
    ),
)  # fmt: skip
BY_NAME: Final = {knob.name: knob for knob in KNOBS}


def switches(inbox: Inbox) -> list[tuple[Knob, bool]]:
    """All of them, and which are on."""
    rules = _rules(inbox)
    return [
        (knob, asdict(knob.fault) in rules.values() if knob.fault else inbox.account.paused) for knob in KNOBS
    ]


def other_rules(inbox: Inbox) -> list[dict[str, Any]]:
    """The rules in force that no switch stands for."""
    known = [asdict(knob.fault) for knob in KNOBS if knob.fault]
    return [{"id": number} | rule for number, rule in _rules(inbox).items() if rule not in known]


def turn(inbox: Inbox, knob: Knob, on: bool) -> None:
    """Turn one on or off; it may be so already."""
    if not knob.fault:
        inbox.account.paused = on
        return
    same = [number for number, rule in _rules(inbox).items() if rule == asdict(knob.fault)]
    if on and not same:
        inbox.faults.add(knob.fault)
    for number in [] if on else same:
        inbox.faults.remove(number)


def _rules(inbox: Inbox) -> dict[int, dict[str, Any]]:
    """The rules in force by their ids, without what changes as they are used."""
    return {
        rule["id"]: {name: value for name, value in rule.items() if name not in ("id", "used")}
        for rule in inbox.faults.listing()
    }
