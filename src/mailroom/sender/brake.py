"""Doubts refusals for good whose words nobody knows: they may be about the sender, and then about every mail.

A refusal is final at once if its words are known to be about the recipient, or if it is one of few before an
accepted mail of its call, and nothing was doubted when the call began. Else it is doubted: its recipient is
retried, and refused for good when it is refused again in a call that began after another mail was accepted.
Only such a call proves something: somebody may have removed the cause during the calls before it.
When ``REFUSALS`` in a row have the same words, for ``RECIPIENTS`` recipients or more, and no mail was
accepted in between, the answer pauses all mail: a person must act. The next accepted mail ends that.

Promises: while nothing is accepted, no two recipients are rejected in the same unknown words. Does not keep
its state across a restart, or share it between workers.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from mailroom.answers import Answer, Result, Scope
from mailroom.logs import EventLogger, without_addresses
from mailroom.transports.refusals import about_recipient
from mailroom.wire import Message

REFUSALS: Final = 10
RECIPIENTS: Final = 3
MAX_REMEMBERED: Final = 10_000
MAX_RUNS: Final = 200

# The reply's code, or the API's, at the beginning of an answer's detail.
_CODE: Final = re.compile(r"\d{3}( [245]\.\d{1,3}\.\d{1,3})?|\w+:")
# What differs from mail to mail: ids, numbers, addresses, stand-ins and host names.
_VARYING: Final = re.compile(r"[\d@<>]|\w\.\w")

log = EventLogger("sender")


@dataclass(slots=True)
class _Run:
    """Refusals in the same words since the last accepted mail."""

    refusals: int = 0
    recipients: set[str] = field(default_factory=set)


class Brake:
    """The refusals in unknown words since the last accepted mail.

    Attributes:
        is_on: whether it pauses all mail.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._runs: dict[str, _Run] = {}
        self._doubted_until = -math.inf
        # By address: when it was refused, and, once a mail was accepted after that, when that was known.
        self._refused_at: dict[str, float] = {}
        self._outdone_at: dict[str, float] = {}
        self.is_on = False

    def holds(self, message: Message) -> bool:
        """Whether the last answer to the message's recipient is doubted."""
        return message.email in self._refused_at or message.email in self._outdone_at

    def judge(self, messages: Sequence[Message], answers: Sequence[Answer], began: float) -> list[Answer]:
        """The answers of a call, with other answers in place of the doubted refusals.

        Args:
            messages: the call's.
            answers: one for each of them.
            began: of the clock, when the call began.
        """
        now = self._clock()
        last_accepted = max((at for at, one in enumerate(answers) if one.result is Result.SENT), default=-1)
        before_accepted = {at for at in range(last_accepted) if _is_doubtful(answers[at])}
        are_few = len(before_accepted) < RECIPIENTS and not self._runs and self._doubted_until <= began
        if last_accepted >= 0:
            self._doubted_until = now if self._runs else self._doubted_until
            self._runs.clear()
            self.is_on = False
            for email in [email for email, at in self._refused_at.items() if at < began]:
                self._outdo(email, now)
        is_halved = sum(answer.scope is Scope.CALL for answer in answers) > 1
        judged = []
        for index, (message, answer) in enumerate(zip(messages, answers, strict=True)):
            is_final = self._outdone_at.get(message.email, math.inf) <= began
            is_final |= are_few and index in before_accepted
            if _is_doubtful(answer) and not is_final and not (is_halved and answer.scope is Scope.CALL):
                judged.append(self._doubted(message, answer, now))
                if index in before_accepted:
                    self._outdo(message.email, now)
                continue
            if answer.result in {Result.SENT, Result.REJECTED}:
                self._refused_at.pop(message.email, None)
                self._outdone_at.pop(message.email, None)
            judged.append(answer)
        return judged

    def _outdo(self, email: str, now: float) -> None:
        """Note that a mail was accepted after this address was refused."""
        if self._refused_at.pop(email, None) is not None:
            _remember(self._outdone_at, email, now)

    def _doubted(self, message: Message, answer: Answer, now: float) -> Answer:
        if message.email not in self._outdone_at:
            _remember(self._refused_at, message.email, now)
        words = _unvarying(answer.detail, message)
        if words not in self._runs:
            if len(self._runs) >= MAX_RUNS:
                del self._runs[next(iter(self._runs))]
            log.warning("doubted", action=message.action.name, reason=without_addresses(answer.detail))
        run = self._runs.setdefault(words, _Run())
        run.refusals += 1
        if len(run.recipients) < RECIPIENTS:
            run.recipients.add(message.email)
        if run.refusals >= REFUSALS and len(run.recipients) >= RECIPIENTS:
            self.is_on = True
            why = f"{REFUSALS} or more refusals in a row in the same words, and no mail accepted"
            return Answer(Result.PAUSED, f"{why}: {answer.detail}", scope=Scope.ACCOUNT)
        # A recipient that is alone with its words is given up after a few tries.
        result = Result.FAILED if len(run.recipients) == 1 else Result.TRANSIENT
        return replace(answer, result=result, scope=Scope.RECIPIENT)


def _remember(times: dict[str, float], email: str, now: float) -> None:
    """Set an address's time, and forget the oldest of too many."""
    times.pop(email, None)
    times[email] = now
    if len(times) > MAX_REMEMBERED:
        del times[next(iter(times))]


def _is_doubtful(answer: Answer) -> bool:
    return (
        answer.result in {Result.REJECTED, Result.FAILED}
        and not answer.is_ours
        and answer.scope in {Scope.RECIPIENT, Scope.CALL}
        and not about_recipient(answer.detail)
    )


def _unvarying(detail: str, message: Message) -> str:
    """A refusal's words without what differs from mail to mail."""
    code = _CODE.match(detail)
    own = {message.username.lower(), *message.email.lower().split("@")}
    words = detail[code.end() if code else 0 :].lower().split()
    kept = [word for word in words if not _VARYING.search(word) and word.strip(".,;:'\"`()[]") not in own]
    return " ".join([code.group() if code else "", *kept])
