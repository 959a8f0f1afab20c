"""Turns the switches of the page on and off: each adds a fault, or pauses the account."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final, NamedTuple

from mailroom.inbox.faults import Fault
from mailroom.inbox.inbox import Inbox


class Switch(NamedTuple):
    """A switch; ``fault`` is None for the switch that pauses the account."""

    name: str
    label: str
    hint: str
    fault: Fault | None


LATE_S: Final = 30

SWITCHES: Final = (
    Switch(
        "throttle", "Throttle", "Every call is refused: Throttling.",
        Fault("error", code="Throttling", message="Maximum sending rate exceeded."),
    ),
    Switch("pause", "Pause the account", "Every call is refused: sending is disabled.", None),
    Switch(
        "reject", "Reject recipients", "MessageRejected for each recipient.",
        Fault("status", status="MessageRejected", message="No such mailbox: set on the inbox's page."),
    ),
    Switch(
        "transient", "Fail temporarily", "TransientFailure for each recipient.",
        Fault("status", status="TransientFailure", message="Set on the inbox's page."),
    ),
    Switch("unavailable", "Unavailable", "503, with a body that is not XML.", Fault("http", http_status=503)),
    Switch("garbage", "Answer garbage", "200, with an unreadable body.", Fault("garbage")),
    Switch("hang", "Hang", "No answer, for up to a minute.", Fault("hang")),
    Switch("cut", "Cut the connection", "Mails are not accepted, and there is no answer.", Fault("cut")),
    Switch(
        "lose", "Lose the answer", "Mails are accepted, but there is no answer, so senders retry.",
        Fault("cut", accept=True),
    ),
    Switch("bounce", "Bounce", "Mails are accepted; then they bounce permanently.", Fault("event")),
    Switch("complain", "Complain", "Mails are delivered; then the recipient complains.",
        Fault("event", event="complaint")),
    Switch("delay", "Delay", "Mails are accepted, and reported as delayed.", Fault("event", event="delay")),
    Switch(
        "late", "Deliver late", f"Mails are accepted; their delivery is reported {LATE_S} s later.",
        Fault("event", event="delivery", after_s=float(LATE_S)),
    ),
    Switch(
        "unrenderable", "Fail to render", "Mails are accepted; then SES reports a rendering failure.",
        Fault("event", event="rendering_failure"),
    ),
)  # fmt: skip
BY_NAME: Final = {switch.name: switch for switch in SWITCHES}


def states(inbox: Inbox) -> list[tuple[Switch, bool]]:
    """Return all switches, each with whether it is on."""
    rules = _rules(inbox)
    return [
        (switch, asdict(switch.fault) in rules.values() if switch.fault else inbox.account.paused)
        for switch in SWITCHES
    ]


def other_rules(inbox: Inbox) -> list[dict[str, Any]]:
    """Return the rules in force that no switch added."""
    known = [asdict(switch.fault) for switch in SWITCHES if switch.fault]
    return [{"id": number} | rule for number, rule in _rules(inbox).items() if rule not in known]


def turn(inbox: Inbox, switch: Switch, on: bool) -> None:
    """Turn a switch on or off; nothing changes if it already is."""
    if not switch.fault:
        inbox.account.paused = on
        return
    same = [number for number, rule in _rules(inbox).items() if rule == asdict(switch.fault)]
    if on and not same:
        inbox.faults.add(switch.fault)
    for number in [] if on else same:
        inbox.faults.remove(number)


def _rules(inbox: Inbox) -> dict[int, dict[str, Any]]:
    """Return the rules in force by their ids, without their use."""
    return {
        rule["id"]: {name: value for name, value in rule.items() if name not in ("id", "used")}
        for rule in inbox.faults.listing()
    }
