"""Checks the queue of SES's events, what SES publishes, and SES's own list of suppressed addresses.

Every call only reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import psycopg

from mailroom.database import sync
from mailroom.database.connection import reason
from mailroom.doctor import environment as variables
from mailroom.doctor.probe import CONNECT_LIMIT_S, PROGRAM
from mailroom.doctor.report import Check, Finding, NotKnown, Report, fault, ok, skipped, warning
from mailroom.errors import MailroomError, SettingsError, TransportError
from mailroom.settings.collector import DatabaseSettings
from mailroom.settings.events import EventsSettings
from mailroom.settings.sender import SenderSettings
from mailroom.settings.variables import read_settings
from mailroom.wording import counted

GUIDE: Final = "docs/how-to/events.md"
WAITING: Final = "ApproximateNumberOfMessages"
IN_FLIGHT: Final = "ApproximateNumberOfMessagesNotVisible"
# What the table mailroom.events is made of, in the words of SES's API; it has none for a delay.
NEEDED: Final = ("send", "delivery", "bounce", "complaint", "reject", "renderingFailure")

# What the second API lists in one answer, and how many answers are read.
PAGE_SIZE: Final = 1000
MAX_PAGES: Final = 3
NOT_HERE: Final = (
    "SELECT pg_catalog.count(*) FROM pg_catalog.unnest(%s::pg_catalog.text[]) AS a (address)"
    " WHERE mailroom.suppressed(a.address) IS NULL"
)
LIMIT: Final = sync.answer_limit(3.0)
LIMITED: Final = {"connect_timeout": CONNECT_LIMIT_S}


def examine(environment: Mapping[str, str], report: Report) -> None:
    """Run the checks."""
    settings = variables.read(EventsSettings, environment, report, "mailroom events")
    try:
        sender = read_settings(SenderSettings, environment).over_ses
    except SettingsError:
        sender = None  # the sending side reports it
    if settings.queue or sender:
        report.run(CHECKS, Subject(environment, settings, sender))
    elif not any(finding.name == "MAILROOM_EVENTS" for finding in report.findings):
        report.add("events-queue", ok("none is set, and the transport publishes no events"))


class Subject:
    """What the checks share: the settings; None for the sender's if they are not valid, or name no SES."""

    def __init__(
        self, environment: Mapping[str, str], settings: EventsSettings, sender: SenderSettings | None
    ) -> None:
        self.environment = environment
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
    if subject.sender is None:
        return skipped("needs the transport ses or sesv2")
    name = subject.sender.config_set
    if not name:
        return fault(
            "MAILROOM_SES_CONFIG_SET is none, and without a configuration set SES publishes no events",
            f"name one with an event destination; see {GUIDE}",
        )
    from mailroom.doctor.ses_probe import SesProbe

    with SesProbe(subject.sender) as probe:
        enabled = probe.api.published(probe.client, probe.ask, name)
    types = {kind for _, kinds in enabled for kind in kinds}
    if missing := [kind for kind in NEEDED if kind not in types]:
        return warning(
            f"the configuration set {name!r} publishes no events of these types: {', '.join(missing)}",
            f"add an event destination that has them; see {GUIDE}",
        )
    return ok(f"{name}: by {', '.join(destination for destination, _ in enabled)}")


def account_list(subject: Subject) -> Finding:
    """What SES suppresses for the account is suppressed here too, as far as it may be read."""
    if subject.sender is None:
        return skipped("needs the transport ses or sesv2")
    try:
        url = read_settings(DatabaseSettings, subject.environment).database_url
    except SettingsError:
        return skipped("needs MAILROOM_DATABASE_URL")
    from mailroom.doctor.ses_probe import SesProbe

    listed: list[str] = []
    with SesProbe(subject.sender) as probe, probe.second_api() as client:
        page: dict[str, Any] = {"NextToken": ""}
        for _ in range(MAX_PAGES):
            more = {"NextToken": page["NextToken"]} if page["NextToken"] else {}
            try:
                ask = partial(client.list_suppressed_destinations, PageSize=PAGE_SIZE, **more)
                page = {"NextToken": ""} | probe.ask("ses:ListSuppressedDestinations", ask)
            except (NotKnown, TransportError) as error:
                return skipped(f"SES's list cannot be read: {error}")
            listed += [one["EmailAddress"] for one in page.get("SuppressedDestinationSummaries", ())]
            if not page["NextToken"]:
                break
    try:
        with sync.connected(url, program=PROGRAM, parameters=LIMIT, options=LIMITED) as db:
            ((count,),) = db.execute(NOT_HERE, [listed]).fetchall()
    except MailroomError as error:
        return skipped(f"needs the database: {error}")
    except psycopg.Error as error:
        return skipped(f"needs the database: {reason(error)}")
    seen = ("at least " if page["NextToken"] else "") + counted(len(listed), "address", "addresses")
    if count:
        return warning(
            f"SES suppresses {seen} for this account, and {count} of them are not suppressed here: it takes"
            " their mails and delivers none",
            f"import SES's list with `mailroom suppressions import`, as {GUIDE} shows",
        )
    return ok(f"SES suppresses {seen} for this account, and all of them are suppressed here")


CHECKS: Final[tuple[Check[Subject], ...]] = (
    Check("events-queue", queue, ("MAILROOM_EVENTS",)),
    Check("events-published", published, ("MAILROOM_EVENTS",)),
    Check("suppression-list", account_list),
)
