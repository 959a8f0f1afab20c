"""The token bucket: never more than it allows, near what the provider lets through, and back."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailroom.sender.rate import DOUBLED_IN_S, Bucket
from support.throttling import Account, Clock, Counts, send

CEILINGS = [1, 14, 100, 1000]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return patched(monkeypatch)


def patched(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("mailroom.sender.rate.asyncio", clock.asyncio)
    return clock


@given(
    rate=st.floats(0.5, 5000),
    charges=st.lists(st.tuples(st.integers(1, 50), st.floats(0, 3)), min_size=1, max_size=60),
)
def test_no_window_sees_more_than_the_rate_and_one_seconds_burst(
    rate: float, charges: list[tuple[int, float]]
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        clock = patched(monkeypatch)
        bucket = Bucket(rate, clock=clock)
        taken: list[tuple[float, int]] = []

        async def take_all() -> None:
            for wanted, pause_s in charges:
                clock.now += pause_s
                recipients = min(wanted, bucket.burst)  # as the sender cuts its calls
                await bucket.take(recipients)
                taken.append((clock.now, recipients))

        asyncio.run(take_all())
    for first, (since, _) in enumerate(taken):
        for last in range(first, len(taken)):
            seen = sum(recipients for _, recipients in taken[first : last + 1])
            assert seen <= rate * (taken[last][0] - since) + max(1.0, rate) + 1e-3


def test_a_charge_larger_than_the_burst_is_paid_back(clock: Clock) -> None:
    bucket = Bucket(10, clock=clock)

    async def charge() -> float:
        await bucket.take(50)
        await bucket.take(1)
        return clock.now - 1000

    assert 4.6 == pytest.approx(asyncio.run(charge()))  # 50 + 1 at 10/s, less the 5 it began with


def test_a_throttled_recipient_takes_one_a_second_and_a_call_at_most_a_third(clock: Clock) -> None:
    bucket = Bucket(100, clock=clock)
    bucket.throttle(5)
    assert 95 == pytest.approx(bucket.rate)
    bucket.throttle(50)
    assert 66.5 == pytest.approx(bucket.rate)


def test_it_never_stops_whole(clock: Clock) -> None:
    bucket = Bucket(100, clock=clock)
    for _ in range(100):
        bucket.throttle(50)
    assert 2 == pytest.approx(bucket.rate)
    assert 1 == bucket.burst


def test_it_recovers_within_seconds(clock: Clock) -> None:
    bucket = Bucket(100, clock=clock)
    for _ in range(3):
        bucket.throttle(50)

    def rate_after(seconds: float) -> float:
        clock.now += seconds
        asyncio.run(bucket.take(0))
        return bucket.rate

    assert 34.3 == pytest.approx(rate_after(0))
    assert 68.6 == pytest.approx(rate_after(DOUBLED_IN_S))
    assert 100 == pytest.approx(rate_after(DOUBLED_IN_S))
    assert 100 == rate_after(1e9)


def simulated(
    clock: Clock, ceiling: float, seconds: float, *, share: float = 0.0, other: float = 0.0
) -> Counts:
    account = Account(clock, ceiling, share=share, other=other)
    return asyncio.run(send(account, Bucket(ceiling, clock=clock), clock, seconds))


@pytest.mark.parametrize("ceiling", CEILINGS)
def test_two_throttled_calls_in_a_hundred_leave_four_fifths_of_the_rate(clock: Clock, ceiling: int) -> None:
    counts = simulated(clock, ceiling, 600, share=0.02)
    assert counts.throttled
    assert counts.accepted > 0.8 * ceiling * 600


@pytest.mark.parametrize("ceiling", CEILINGS)
def test_beside_a_sender_that_never_gives_way_it_gets_two_thirds_of_what_is_left(
    clock: Clock, ceiling: int
) -> None:
    counts = simulated(clock, ceiling, 600, other=ceiling / 2)
    assert counts.accepted > 2 / 3 * ceiling / 2 * 600
    assert counts.throttled < 0.15 * counts.accepted


@pytest.mark.parametrize("ceiling", CEILINGS)
def test_alone_on_its_account_nothing_is_throttled(clock: Clock, ceiling: int) -> None:
    counts = simulated(clock, ceiling, 600)
    assert 0 == counts.throttled
    assert counts.accepted >= ceiling * 600


def test_one_throttled_call_in_a_hundred_lets_all_that_arrives_through(clock: Clock) -> None:
    """Eighteen minutes, 200 mails a second, of the 1,000 that the account allows."""
    account = Account(clock, 1000, share=0.01)
    counts = asyncio.run(send(account, Bucket(1000, clock=clock), clock, 18 * 60, arriving=200))
    assert counts.throttled > 1000
    assert counts.accepted > counts.arrived - 200


def test_a_new_ceiling_moves_the_rate_along_unless_it_was_slowed(clock: Clock) -> None:
    bucket = Bucket(14, clock=clock)
    bucket.limit(200)
    assert 200 == bucket.rate
    bucket.throttle(100)
    bucket.limit(400)
    assert 140 == pytest.approx(bucket.rate)
    bucket.limit(50)
    assert 50 == bucket.rate
