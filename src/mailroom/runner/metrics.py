"""The metrics of ``mailroom run``, for Prometheus. Their names are a contract (docs/reference/metrics.md).

Counters start at zero with the process. No label and no value holds an address or a secret.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from mailroom import __version__
from mailroom.action_table import LANES
from mailroom.answers import Answer, Result
from mailroom.events.facts import BOUNCE_TYPES
from mailroom.events.recording import Tally
from mailroom.operations.verdicts import ATTEMPTED, Kind
from mailroom.queue.pulse import COUNT_LIMIT, Pulse
from mailroom.runner.ledger import Recorded

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
CALL_BUCKETS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
DELIVERY_BUCKETS_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)
CLAIM_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


class Metrics:
    """The metrics of one process."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        build = Gauge("mailroom_build_info", "Always 1.", ["version"], registry=registry)
        build.labels(__version__).set(1)
        self._outcomes = Counter(
            "mailroom_outcomes",
            "Tokens by the outcome of an attempt in the ledger: sent, retried, rejected, unknown.",
            ["action", "outcome"],
            registry=registry,
        )
        self._answers = Counter(
            "mailroom_answers",
            f"Recipients by the class of the provider's answer: {', '.join(one.value for one in Result)}.",
            ["result"],
            registry=registry,
        )
        self._calls = Histogram(
            "mailroom_call_seconds",
            "How long a call to the provider took.",
            ["action"],
            buckets=CALL_BUCKETS_S,
            registry=registry,
        )
        self._deliveries = Histogram(
            "mailroom_delivery_seconds",
            "From the token's insertion to the provider's acceptance.",
            ["action"],
            buckets=DELIVERY_BUCKETS_S,
            registry=registry,
        )
        self._claims = Histogram(
            "mailroom_claim_seconds", "How long a claim took.", buckets=CLAIM_BUCKETS_S, registry=registry
        )
        self._claimed = Counter("mailroom_claimed", "Tokens claimed.", registry=registry)
        self._outages = Counter(
            "mailroom_database_outages", "How often PostgreSQL was lost.", registry=registry
        )
        self._waiting = Gauge(
            "mailroom_waiting",
            f"Tokens of a lane that no worker has claimed; {COUNT_LIMIT} means that many or more.",
            ["lane"],
            registry=registry,
        )
        self._scheduled = Gauge(
            "mailroom_scheduled", "Tokens that wait for their send_at.", registry=registry
        )
        self._in_flight = Gauge("mailroom_in_flight", "Tokens leased to a worker.", registry=registry)
        self._retrying = Gauge("mailroom_retrying", "Tokens waiting for a retry.", registry=registry)
        self._oldest_due = Gauge(
            "mailroom_oldest_due_seconds",
            "For how long the oldest mail that could be sent has waited.",
            registry=registry,
        )
        self._oldest_unsettled = Gauge(
            "mailroom_oldest_unsettled_seconds",
            "How long ago the oldest mail that is neither sent nor given up was requested.",
            registry=registry,
        )
        self._queue_paused = Gauge(
            "mailroom_queue_paused", "1 while the queue is paused by a person.", registry=registry
        )
        self._actions_paused = Gauge(
            "mailroom_actions_paused",
            "Actions whose mails wait for a person, because SES could not render one.",
            registry=registry,
        )
        self._sending_paused = Gauge(
            "mailroom_sending_paused_seconds",
            "For how long the provider has refused all mail; 0 when it does not.",
            registry=registry,
        )
        self._failover = Gauge(
            "mailroom_failover_active",
            "1 while mail goes by the second transport, since the first cannot send.",
            registry=registry,
        )
        self._rate = Gauge("mailroom_rate", "Recipients a second that all workers share.", registry=registry)
        self._up = Gauge("mailroom_database_up", "1 when PostgreSQL answers.", registry=registry)
        self._listener_up = Gauge(
            "mailroom_listener_up", "1 when a connection listens for new tokens.", registry=registry
        )
        self._events = Counter(
            "mailroom_events",
            "New events of SES by what became of the mail: sent, delivered, bounced, complained, delayed,"
            " rejected, rendering_failed. The type is that of a bounce: permanent, transient, undetermined.",
            ["kind", "type"],
            registry=registry,
        )
        # Prometheus sees no increase in a counter that begins with 1: so all begin with 0.
        for kind in Kind:
            for type_ in BOUNCE_TYPES if kind == Kind.BOUNCED else ("",):
                self._events.labels(kind, type_)
        self._repeated_events = Counter(
            "mailroom_events_repeated", "Events of SES that were known already.", registry=registry
        )
        self._unmatched_events = Counter(
            "mailroom_events_unmatched",
            "New events of SES about mails that this database does not know.",
            registry=registry,
        )
        self._unreadable_events = Counter(
            "mailroom_events_unreadable",
            "Messages in the queue of events that could not be read.",
            registry=registry,
        )
        self._events_waiting = Gauge(
            "mailroom_events_waiting",
            "About how many messages wait in the queue of events; NaN if that is not known.",
            registry=registry,
        )
        self._events_trouble = Gauge(
            "mailroom_events_trouble_seconds",
            "For how long the queue of events could not be read; 0 when it is, or when there is none.",
            registry=registry,
        )
        self._counted_outages = 0

    def begin(self, actions: Iterable[str]) -> None:
        """Begin to count the outcomes of these actions, with 0."""
        for action in actions:
            for outcome in ATTEMPTED:
                self._outcomes.labels(action, outcome)

    def claimed(self, tokens: int, took_s: float) -> None:
        """Count a claim."""
        self._claims.observe(took_s)
        self._claimed.inc(tokens)

    def called(self, action: str, answers: Sequence[Answer], took_s: float) -> None:
        """Count a call and its answers."""
        self._calls.labels(action).observe(took_s)
        for answer in answers:
            self._answers.labels(answer.result.value).inc()

    def settled(self, action: str, recorded: Recorded) -> None:
        """Count a token by what the ledger recorded for it."""
        self._outcomes.labels(action, recorded.outcome).inc()
        if recorded.outcome == "sent" and recorded.age_s is not None:
            self._deliveries.labels(action).observe(recorded.age_s)

    def read(self, tally: Tally) -> None:
        """Count the events of some messages."""
        for labels, count in tally.new.items():
            self._events.labels(*labels).inc(count)
        self._repeated_events.inc(tally.repeated)
        self._unmatched_events.inc(tally.unmatched)
        self._unreadable_events.inc(tally.unreadable)

    def exposition(
        self,
        pulse: Pulse | None,
        *,
        outages: int,
        is_listening: bool,
        sending_paused_s: float,
        is_failover: bool = False,
        events_waiting: int | None = None,
        events_trouble_s: float = 0.0,
    ) -> bytes:
        """All metrics in Prometheus's text format; what the database or the queue did not answer is NaN."""
        unknown = float("nan")
        self._events_waiting.set(unknown if events_waiting is None else events_waiting)
        self._events_trouble.set(events_trouble_s)
        self._outages.inc(outages - self._counted_outages)
        self._counted_outages = outages
        self._up.set(pulse is not None)
        self._listener_up.set(is_listening)
        self._sending_paused.set(sending_paused_s)
        self._failover.set(is_failover)
        for lane in LANES:
            self._waiting.labels(lane).set(unknown if pulse is None else getattr(pulse, lane))
        self._scheduled.set(unknown if pulse is None else pulse.scheduled)
        self._in_flight.set(unknown if pulse is None else pulse.in_flight)
        self._retrying.set(unknown if pulse is None else pulse.retrying)
        self._oldest_due.set(unknown if pulse is None else pulse.oldest_due_s or 0)
        self._oldest_unsettled.set(unknown if pulse is None else pulse.oldest_unsettled_s or 0)
        self._queue_paused.set(unknown if pulse is None else pulse.is_paused)
        self._actions_paused.set(unknown if pulse is None else len(pulse.paused_actions))
        self._rate.set(unknown if pulse is None or pulse.rate is None else pulse.rate)
        return generate_latest(self._registry)
