"""The inbox: an account of SES's in memory, without any HTTP or SMTP.

It promises what the sending policy relies on: what SES checks before it accepts, in which words it
refuses, that a mail whose data lacks something is accepted and dropped, and counts that are exact
over the whole run. Mails and calls are kept up to a bound. It delivers nothing.

One thread makes the calls; others may read, and change settings and faults.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from email.utils import parseaddr
from typing import Any, Final

from mailroom.inbox.account import MAX_ADDRESS, TOO_LONG, Account
from mailroom.inbox.calls import Answer, Call, Counts, Destination, Request, Requests, Status
from mailroom.inbox.data import check_sizes, read_data
from mailroom.inbox.faults import Fault, Faults
from mailroom.inbox.limits import FASTEST, Limits
from mailroom.inbox.links import action_of, find_links
from mailroom.inbox.mails import KEEP, Brief, Mail, Mailbox, StoredTemplate
from mailroom.inbox.messages import MAX_HEADER, Rendered
from mailroom.inbox.ses_protocol import Refusal
from mailroom.templates.mails import SES_PARTS, for_ses
from mailroom.templates.sources import Template

KEEP_CALLS: Final = 100_000
THROTTLES: Final = ("Throttling", "ThrottlingException", "TooManyRequestsException")
# What a call with one destination says where a bulk call has a status.
ONE_CODES: Final = {"AccountDailyQuotaExceeded": "Throttling"}

_PLAIN_ADDRESS: Final = re.compile(r"[!#-'*-+./-9=?A-Z^-~-]+@[A-Za-z0-9.-]+")


class Inbox:
    """The account, its mail and its faults.

    Args:
        rate: recipients a second; a call beyond is throttled.
        quota_24h: recipients in 24 hours; None for as many as one likes.
        keep: how many mails are kept.
        identities: the addresses and domains that are verified; None for all there are.
        config_sets: those that exist at first.
        seed: of the chance in faults.
        on_mail: is told of each mail that was accepted.
    """

    def __init__(
        self,
        *,
        rate: float = FASTEST,
        quota_24h: int | None = None,
        keep: int = KEEP,
        identities: Iterable[str] | None = None,
        config_sets: Iterable[str] = ("default",),
        seed: int = 0,
        on_mail: Callable[[Mail], None] | None = None,
    ) -> None:
        self.limits = Limits(rate, quota_24h)
        self.account = Account(self.limits, identities, config_sets)
        self.faults = Faults(seed)
        self.mails = Mailbox(keep)
        self.requests = Requests()
        self.calls: deque[Call] = deque(maxlen=KEEP_CALLS)
        self.counts = Counts()
        self._on_mail = on_mail
        # The mail that was looked at last: its page is made of several requests.
        self._open: tuple[Mail | None, Rendered | None] = None, None

    def publish(self, loaded: Iterable[Template]) -> None:
        """Take templates of ours, under the names that their actions give them."""
        for template in loaded:
            name = template.action.template
            source = for_ses(template, name)
            subject, text, html = (source[part] for part in SES_PARTS.values())
            self.account.put_template(name, (subject, text, html), new=True)

    def send_bulk(self, request: Request) -> Answer:
        """Answer a bulk call, or a mail over SMTP, after the faults that are meant for it."""
        fault, single = self.faults.pick([destination.addresses for destination in request.destinations])
        if fault and fault.kind == "error":
            return self._refuse(request, Refusal(fault.code, fault.message, fault.http_status or 400))
        if fault and not fault.accept:
            self._count(request, [], fault.kind)
            self.counts.unanswered += request.recipients
            return Answer(fault=fault)
        answer = self._send(request, single, fault)
        if fault:
            self.counts.unanswered += request.recipients
        return answer

    def send_one(self, request: Request) -> Answer:
        """Answer a call with one destination: whatever is wrong is an error of the call."""
        answer = self._send(request, {}, None)
        if not answer.statuses or answer.statuses[0].message_id:
            return answer
        code, _, message = answer.statuses[0]
        return Answer(refusal=Refusal(ONE_CODES.get(code, code), message))

    def render(self, mail: Mail) -> Rendered | None:
        """What a mail shows; None when it cannot be rendered, and so was dropped."""
        if mail is not self._open[0]:
            known = mail.dropped
            self._open = mail, mail.render()
            self.counts.dropped += mail.dropped and not known
        return self._open[1]

    def brief(self, mail: Mail) -> Brief:
        """What a list says of a mail; it is rendered for that once."""
        if mail.brief is None:
            rendered = self.render(mail)
            action = action_of(mail.template.name, find_links(rendered))
            mail.brief = Brief(rendered.subject[:MAX_HEADER] if rendered else None, action)
        return mail.brief

    def forget(self) -> None:
        """Forget all mails and requests; the counts stay."""
        self.mails.clear()
        self.requests.clear()
        self._open = None, None

    def _send(self, request: Request, single: dict[int, Fault], lost: Fault | None) -> Answer:
        try:
            check_sizes(request.default_data, *(destination.data for destination in request.destinations))
            template = self.account.check(request)
            default = read_data(request.default_data)
        except Refusal as refusal:
            return self._refuse(request, refusal, lost)
        statuses = []
        now, call = datetime.now(UTC), self.requests.add(request.raw)
        for at, destination in enumerate(request.destinations):
            if fault := single.get(at):
                status = Status(fault.status, error=fault.message)
            else:
                status = self._accept(now, call, request, template, default, destination)
            statuses.append(status)
        names = {status.status for status in statuses}
        verdict = lost.kind if lost else names.pop() if len(names) == 1 else "mixed"
        self._count(request, statuses, verdict)
        return Answer(statuses, fault=lost)

    def _accept(
        self,
        now: datetime,
        call: int,
        request: Request,
        template: StoredTemplate,
        default: dict[str, Any],
        destination: Destination,
    ) -> Status:
        if not request.message and (fault := _address_fault(destination)):
            return Status("InvalidParameterValue", error=fault)
        try:
            data = default | read_data(destination.data)
        except Refusal as refusal:
            return Status(refusal.code, error=refusal.message)
        if self.limits.left_24h() < destination.recipients:
            return Status("AccountDailyQuotaExceeded", error="Daily message quota exceeded.")
        self.limits.count(destination.recipients)
        mail = self.mails.add(
            now,
            request.source,
            ", ".join(destination.addresses),
            template,
            data,
            texts=(request.default_data, destination.data),
            call=call,
            message=request.message,
        )
        self.counts.dropped += mail.dropped
        if self._on_mail:
            self._on_mail(mail)
        return Status("Success", mail.id)

    def _refuse(self, request: Request, refusal: Refusal, lost: Fault | None = None) -> Answer:
        self.counts.refused += request.recipients
        self.counts.throttled += refusal.code in THROTTLES
        self._count(request, [], lost.kind if lost else refusal.code)
        return Answer(refusal=refusal, fault=lost)

    def _count(self, request: Request, statuses: list[Status], verdict: str) -> None:
        counts, accepted = self.counts, 0
        for destination, status in zip(request.destinations, statuses, strict=False):
            if status.status != "Success":
                counts.refused += destination.recipients
                continue
            accepted += destination.recipients
            for address in destination.addresses:
                counts.by_recipient.note(address)
        counts.calls += 1
        counts.recipients += request.recipients
        counts.accepted += accepted
        self.calls.append(
            Call(counts.calls, time.monotonic(), datetime.now(UTC), request.recipients, accepted, verdict)
        )


def _address_fault(destination: Destination) -> str:
    """What SES says of an address that is none; empty when all are good."""
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
