"""Checks the queue of SES's events, and that SES publishes them. Every call only reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mailroom.doctor import environment as variables
from mailroom.doctor.report import Check, Finding, NotKnown, Report, fault, ok, skipped, warning
from mailroom.errors import SettingsError, TransportError
from mailroom.settings.events import EventsSettings
from mailroom.settings.sender import SenderSettings
from mailroom.settings.variables import read_settings

GUIDE: Final = "docs/how-to/events.md"
WAITING: Final = "ApproximateNumberOfMessages"
IN_FLIGHT: Final = "ApproximateNumberOfMessagesNotVisible"
# What the table mailroom.events is made of, in the words of SES's API; it has none for a delay.
NEEDED: Final = ("send", "delivery", "bounce", "complaint", "reject", "renderingFailure")


def examine(environment: Mapping[str, str], report: Report) -> None:
    """Run the checks."""
    settings = variables.read(EventsSettings, environment, report, "mailroom events")
    try:
        sender = read_settings(SenderSettings, environment)
    except SettingsError:
        sender = None  # the sending side reports it
    if settings.queue or (sender and sender.transport == "ses"):
        report.run(CHECKS, Subject(settings, sender))
    elif not any(finding.name == "MAILROOM_EVENTS" for finding in report.findings):
        report.add("events-queue", ok("none is set, and the transport publishes no events"))


class Subject:
    """What the checks share: the settings; None for the sender's if they are not valid."""

    def __init__(self, settings: EventsSettings, sender: SenderSettings | None) -> None:
        self.queue = settings.queue
        self.sender = sender


def queue(subject: Subject) -> Finding:
    """The queue is there, and answers."""
    if not subject.queue:
        return warning(
            "MAILROOM_EVENTS is not set, so bounces and complaints are not seen",
            f"publish SES's events to a queue and set it; see {GUIDE}",
        )
    from mailroom.events.sqs import EventQueue, is_denied

    found = EventQueue(subject.queue, connections=1, is_patient=False)
    try:
        numbers = found.attributes(WAITING, IN_FLIGHT)
    except TransportError as error:
        if is_denied(error):
            raise NotKnown(
                f"not known: {error}",
                "permit sqs:GetQueueUrl and sqs:GetQueueAttributes to the role, or look in the SQS console",
            ) from error
        raise
    finally:
        found.close()
    detail = f"{found.name}: about {numbers.get(WAITING)} wait, and {numbers.get(IN_FLIGHT)} are being read"
    return ok(detail)


def published(subject: Subject) -> Finding:
    """The configuration set has a destination for the events, as far as SES's API shows it."""
    if not subject.queue:
        return skipped("needs MAILROOM_EVENTS")
    if subject.sender is None or subject.sender.transport != "ses":
        return skipped("needs the transport ses")
    name = subject.sender.config_set
    if not name:
        return fault(
            "MAILROOM_SES_CONFIG_SET is none, and without a configuration set SES publishes no events",
            f"name one with an event destination; see {GUIDE}",
        )
    from mailroom.doctor.ses_probe import SesProbe

    with SesProbe(subject.sender) as probe:

        def ask() -> Any:
            return probe.client.describe_configuration_set(
                ConfigurationSetName=name, ConfigurationSetAttributeNames=["eventDestinations"]
            )

        answer = probe.ask("ses:DescribeConfigurationSet", ask)
    enabled = [one for one in answer.get("EventDestinations", ()) if one.get("Enabled")]
    types = {kind for one in enabled for kind in one.get("MatchingEventTypes", ())}
    if missing := [kind for kind in NEEDED if kind not in types]:
        return warning(
            f"the configuration set {name!r} publishes no events of these types: {', '.join(missing)}",
            f"add an event destination that has them; see {GUIDE}",
        )
    return ok(f"{name}: by {', '.join(str(one.get('Name')) for one in enabled)}")


CHECKS: Final[tuple[Check[Subject], ...]] = (
    Check("events-queue", queue, ("MAILROOM_EVENTS",)),
    Check("events-published", published, ("MAILROOM_EVENTS",)),
)
