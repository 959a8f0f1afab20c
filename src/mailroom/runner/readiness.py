"""Reports whether a worker would send a mail that is committed now, and the worker's metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from mailroom.errors import DatabaseError
from mailroom.logs import EventLogger, without_addresses
from mailroom.operations.mail_state import NO_REASON, RESUME_ACTION
from mailroom.queue.connect import WorkerParts
from mailroom.queue.pulse import Pulse, Pulses
from mailroom.sender.calls import ACCOUNT
from mailroom.sender.failover import AnyCalls

if TYPE_CHECKING:
    from mailroom.events.program import Reader
    from mailroom.runner.metrics import Metrics

# Where health is served, the listener's connections are checked in this interval, and may be late.
SILENCE_S: Final = 2.0
LATE_S: Final = 2.0
# /readyz fails once a sendable mail has waited longer than this, or is not settled after it.
READY_AGE_S: Final = 120.0
# /readyz also fails once the provider has refused every mail for longer than this.
READY_PAUSE_S: Final = 60.0

log = EventLogger("run")


class Readiness:
    """Checks whether a mail that is committed now would be sent now.

    Args:
        worker: the worker's parts.
        calls: the worker's calls to the provider.
        metrics: the worker's counters.
        state: returns why the worker is not running; empty when it is.
        events: reads SES's events; None if nobody does.
    """

    def __init__(
        self,
        worker: WorkerParts,
        calls: AnyCalls,
        metrics: Metrics,
        state: Callable[[], str],
        events: Reader | None = None,
    ) -> None:
        self._worker = worker
        self._calls = calls
        self._metrics = metrics
        self._state = state
        self._events = events
        self._pulses = Pulses(worker.database)
        self._pulse: Pulse | None = None

    async def faults(self) -> dict[str, str]:
        """What would prevent sending, by the name of the part at fault; empty when nothing does."""
        self._pulse = None
        if state := self._state():
            return {"worker": state}
        faults = {}
        silent_s = self._worker.listener.silent_s
        if silent_s is None:
            faults["listener"] = "no connection listens for new tokens"
        elif silent_s > SILENCE_S + LATE_S:
            faults["listener"] = f"the listening connection has been silent for {silent_s:.1f} s"
        refused = [
            f"no mail{name and f' of the action {name}'} could be sent for {since_s:.0f} s: {why}"
            for name, (why, since_s) in self._calls.troubles.items()
            if since_s > READY_PAUSE_S
        ]
        if self._calls.unable:
            faults["sending"] = f"no mail can be sent: {self._calls.unable}"
        elif refused:
            faults["sending"] = "; ".join(refused)
        try:
            self._pulse = pulse = await self._pulses.look()
        except DatabaseError as error:
            return faults | {"database": str(error)}
        if pulse is None:
            faults["database"] = f"PostgreSQL does not answer: {self._pulses.why}"
        elif (pulse.oldest_due_s or 0) > READY_AGE_S:
            faults["queue"] = f"a mail that could be sent has waited for {pulse.oldest_due_s:.0f} s"
        elif (pulse.oldest_unsettled_s or 0) > READY_AGE_S and not (pulse.is_paused or pulse.paused_actions):
            faults["queue"] = (
                f"a mail requested {pulse.oldest_unsettled_s:.0f} s ago is neither sent nor given up"
            )
        return faults

    def warnings(self) -> dict[str, str]:
        """What is wrong and prevents no sending, by the name of the part."""
        trouble = self._events.trouble if self._events else None
        found = {"events": f"SES's events cannot be read: {trouble.why}"} if trouble else {}
        if detour := self._calls.detour:
            found["transport"] = detour
        if pauses := self._pauses():
            found["pause"] = "; ".join(pauses)
        return found

    def _pauses(self) -> list[str]:
        """What a person has to resume, with the reason and the remedy, as of the last check."""
        pulse = self._pulse
        if pulse is None:
            return []
        if pulse.is_paused:
            why = without_addresses(pulse.pause_reason or NO_REASON)
            return [f"the queue is paused: {why} (try: `mailroom resume`)"]
        return [
            f"the action {action} is paused: {without_addresses(why or NO_REASON)} (try: {RESUME_ACTION})"
            for action, why in pulse.paused_actions
        ]

    async def exposition(self) -> bytes:
        """The metrics in Prometheus's text format."""
        try:
            pulse = await self._pulses.look()
        except DatabaseError as error:
            log.warning("no_pulse", reason=error)
            pulse = None
        silent_s, troubles = self._worker.listener.silent_s, self._calls.troubles
        return self._metrics.exposition(
            pulse,
            outages=self._worker.database.epoch,
            is_listening=silent_s is not None and silent_s <= SILENCE_S + LATE_S,
            is_failover=bool(self._calls.detour),
            sending_paused_s=troubles[ACCOUNT][1] if ACCOUNT in troubles else 0.0,
            events_waiting=self._events.waiting if self._events else None,
            events_trouble_s=self._events.trouble.since_s if self._events and self._events.trouble else 0.0,
        )

    async def close(self) -> None:
        """Close the connection."""
        await self._pulses.close()
