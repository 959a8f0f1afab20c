"""Accepts mail as an SES account does, and keeps it in memory; without HTTP or SMTP.

It checks what SES checks, and refuses in SES's words. A mail whose data lacks a field of its template is
accepted and dropped, as in SES. Counts are exact since the start. Mails and calls are kept up to a bound.
It delivers nothing, and publishes the events of what SES would have done.

Only one thread may make calls; others may read, and change settings and faults.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from email.utils import parseaddr
from typing import Any, Final

from mailroom.actions import Action, load_actions
from mailroom.inbox.account import MAX_ADDRESS, TOO_LONG, InboxAccount
from mailroom.inbox.calls import BulkCall, CallAnswer, Destination, DestinationStatus
from mailroom.inbox.data import check_sizes, read_data
from mailroom.inbox.event_queue import EventQueue
from mailroom.inbox.events import COURSES, Event, Sending, simulated
from mailroom.inbox.faults import Fault, Faults, Picked
from mailroom.inbox.kinds import Kinds, code_of, is_template, language_of, usual_template
from mailroom.inbox.limits import MAX_RATE, Limits
from mailroom.inbox.links import find_links
from mailroom.inbox.mails import KEEP, Brief, KeptMail, Mailbox, StoredTemplate
from mailroom.inbox.messages import MAX_HEADER
from mailroom.inbox.records import MAX_CALLS, CallRecord, Counts, RawRequests
from mailroom.inbox.ses_protocol import Refusal
from mailroom.templates.mails import SES_PARTS, RenderedMail, for_ses, ses_name
from mailroom.templates.sources import Template

THROTTLES: Final = ("Throttling", "ThrottlingException", "TooManyRequestsException")

MAX_EVENTS: Final = 50

_PLAIN_ADDRESS: Final = re.compile(r"[!#-'*-+./-9=?A-Z^-~-]+@[A-Za-z0-9.-]+")


class Inbox:
    """The account, its mail and its faults.

    Args:
        rate: recipients a second; a call that exceeds it is throttled.
        quota_24h: recipients in 24 hours; None for no limit.
        keep: how many mails are kept.
        identities: the verified addresses and domains; None means that all are verified.
        seed: for the faults that occur by chance.
        actions: the actions by which mails are recognised; None means the catalogue.
        on_mail: is called with each accepted mail.
    """

    def __init__(
        self,
        *,
        rate: float = MAX_RATE,
        quota_24h: int | None = None,
        keep: int = KEEP,
        identities: Iterable[str] | None = None,
        seed: int = 0,
        actions: Iterable[Action] | None = None,
        on_mail: Callable[[KeptMail], None] | None = None,
    ) -> None:
        self.limits = Limits(rate, quota_24h)
        self.account = InboxAccount(self.limits, identities)
        self.faults = Faults(seed)
        self.mails = Mailbox(keep)
        self.requests = RawRequests()
        self.calls: deque[CallRecord] = deque(maxlen=MAX_CALLS)
        self.counts = Counts()
        self.queue = EventQueue()
        self.kinds = Kinds(load_actions().values() if actions is None else actions)
        self._on_mail = on_mail
        # The mail that was rendered last: its page takes several requests.
        self._open: tuple[KeptMail | None, RenderedMail | None] = None, None

    def publish(self, loaded: Iterable[Template]) -> None:
        """Store templates under the names that their actions and languages give them."""
        for template in loaded:
            name = ses_name(template.action.template, template.tag)
            source = for_ses(template, name)
            subject, text, html = (source[part] for part in SES_PARTS.values())
            self.account.put_template(name, (subject, text, html), new=True)

    def send_bulk(self, call: BulkCall) -> CallAnswer:
        """Return the answer to a call, with the faults that match it."""
        picked = self.faults.pick([destination.addresses for destination in call.destinations])
        fault = picked.call
        if fault and fault.kind == "error":
            return self._refuse(call, Refusal(fault.code, fault.message, fault.http_status or 400))
        if fault and not fault.accept:
            self._count(call, [], fault.kind)
            self.counts.unanswered += call.recipients
            return CallAnswer(fault=fault)
        answer = self._send(call, picked)
        if fault:
            self.counts.unanswered += call.recipients
        return answer

    def render(self, mail: KeptMail) -> RenderedMail | None:
        """Return the rendered mail; None if it cannot be rendered, and so was dropped."""
        if mail is not self._open[0]:
            known = mail.dropped
            self._open = mail, mail.render()
            self.counts.dropped += mail.dropped and not known
        return self._open[1]

    def brief(self, mail: KeptMail) -> Brief:
        """Return what a list shows of a mail, which is rendered once for that."""
        if mail.brief is None:
            rendered = self.render(mail)
            mail.brief = Brief(
                rendered.subject[:MAX_HEADER] if rendered else None,
                self.kinds.action(mail.template.name, find_links(rendered), mail.action_tag),
                language_of(rendered),
                code_of(mail.data, rendered),
            )
        return mail.brief

    def knows(self, action: str) -> bool:
        """Whether there can be mails of an action: it is known, or its template is stored."""
        usual = usual_template(action)
        return action in self.kinds.names or any(is_template(name, usual) for name in self.account.templates)

    def is_of(self, mail: KeptMail, action: str) -> bool:
        """Whether a mail is of an action, which need not be known if its template has the usual name."""
        return self.brief(mail).action == action or is_template(mail.template.name, usual_template(action))

    def publish_event(self, mail: KeptMail, kind: str, after_s: float = 0) -> None:
        """Put an event about a mail into the queue; clients can receive it after this time.

        Raises:
            ValueError: the mail's call named no configuration set, or it has too many events.
        """
        if mail.sending is None:
            raise ValueError("SES publishes no event about this mail: its call named no configuration set")
        if len(mail.events) >= MAX_EVENTS:
            raise ValueError(f"the mail has {MAX_EVENTS} events already")
        at = datetime.now(UTC)
        event = Event(kind, at + timedelta(seconds=after_s) if after_s else at, mail.sending, mail.failure)
        mail.events += (event,)
        self.queue.put(event, after_s)

    def _publish_course(self, mail: KeptMail, rule: Fault | None) -> None:
        """Publish what SES does about a new mail: as a rule says, or as its address simulates."""
        last = rule.event if rule else simulated(mail.sending.addresses if mail.sending else ())
        for kind in COURSES["rendering_failure" if mail.dropped else last]:
            self.publish_event(mail, kind, rule.after_s if rule and kind == last else 0)

    def forget(self) -> None:
        """Forget all mails and requests, but keep the counts."""
        self.mails.clear()
        self.requests.clear()
        self._open = None, None

    def _send(self, call: BulkCall, picked: Picked) -> CallAnswer:
        lost = picked.call
        try:
            check_sizes(call.default_data, *(destination.data for destination in call.destinations))
            template = self.account.check(call)
            default = read_data(call.default_data)
        except Refusal as refusal:
            return self._refuse(call, refusal, lost)
        statuses = []
        now, number = datetime.now(UTC), self.requests.add(call.raw)
        for at, destination in enumerate(call.destinations):
            if fault := picked.statuses.get(at):
                status = DestinationStatus(fault.status, error=fault.message)
            else:
                rule = picked.events.get(at)
                status = self._accept(now, number, call, template, default, destination, rule)
            statuses.append(status)
        names = {status.status for status in statuses}
        verdict = lost.kind if lost else names.pop() if len(names) == 1 else "mixed"
        self._count(call, statuses, verdict)
        return CallAnswer(statuses, fault=lost)

    def _accept(
        self,
        now: datetime,
        number: int,
        call: BulkCall,
        template: StoredTemplate,
        default: dict[str, Any],
        destination: Destination,
        rule: Fault | None,
    ) -> DestinationStatus:
        if not call.message and (fault := _address_fault(destination)):
            return DestinationStatus("InvalidParameterValue", error=fault)
        try:
            data = default | read_data(destination.data)
        except Refusal as refusal:
            return DestinationStatus(refusal.code, error=refusal.message)
        if self.limits.left_24h() < destination.recipients:
            return DestinationStatus("AccountDailyQuotaExceeded", error="Daily message quota exceeded.")
        self.limits.count(destination.recipients)
        mail = self.mails.add(
            now,
            call.source,
            ", ".join(destination.addresses),
            template,
            data,
            texts=(call.default_data, destination.data),
            call=number,
            message=call.message,
            reply_to=", ".join(call.reply_to),
        )
        self.counts.dropped += mail.dropped
        if call.config_set:
            tags = tuple((dict(call.tags) | dict(destination.tags)).items())
            mail.sending = Sending(
                mail.id, now, call.source, destination.addresses, template.name, call.config_set, tags
            )
            self._publish_course(mail, rule)
        if self._on_mail:
            self._on_mail(mail)
        return DestinationStatus("Success", mail.id)

    def _refuse(self, call: BulkCall, refusal: Refusal, lost: Fault | None = None) -> CallAnswer:
        self.counts.refused += call.recipients
        self.counts.throttled += refusal.code in THROTTLES
        self._count(call, [], lost.kind if lost else refusal.code)
        return CallAnswer(refusal=refusal, fault=lost)

    def _count(self, call: BulkCall, statuses: list[DestinationStatus], verdict: str) -> None:
        counts, accepted = self.counts, 0
        for destination, status in zip(call.destinations, statuses, strict=False):
            if status.status != "Success":
                counts.refused += destination.recipients
                continue
            accepted += destination.recipients
            for address in destination.addresses:
                counts.by_recipient.note(address)
        counts.calls += 1
        counts.recipients += call.recipients
        counts.accepted += accepted
        at_s = self.limits.taken_at_s if statuses else time.monotonic()
        self.calls.append(
            CallRecord(counts.calls, at_s, datetime.now(UTC), call.recipients, accepted, verdict)
        )


def _address_fault(destination: Destination) -> str:
    """Return SES's error about an invalid address; empty if all are valid."""
    if not destination.addresses:
        return "Missing recipients"
    for text in destination.addresses:
        if len(text) > MAX_ADDRESS:
            return TOO_LONG
        if _PLAIN_ADDRESS.fullmatch(text):
            continue
        address = parseaddr(text)[1]
        if not text.isascii() or not text.isprintable():
            return "Local address contains control or whitespace, or is not ASCII"
        if not re.fullmatch(r".+@[^@\s]+", address):
            return "Missing final '@domain'"
    return ""
