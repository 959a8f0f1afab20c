"""The token bucket: never more than it allows, slower after throttles, and back."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailroom.sender.rate import HOLD_S, Bucket


class Clock:
    """A clock that only the test and sleeping tasks move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return patched(monkeypatch)


def patched(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()

    async def sleep(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr("mailroom.sender.rate.asyncio.sleep", sleep)
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


def test_a_throttle_slows_at_most_once_a_second(clock: Clock) -> None:
    bucket = Bucket(100, clock=clock)
    assert bucket.slow()
    assert not bucket.slow()
    assert 70 == pytest.approx(bucket.rate)
    clock.now += 1
    assert bucket.slow()
    assert 49 == pytest.approx(bucket.rate)


def test_it_never_stops_whole(clock: Clock) -> None:
    bucket = Bucket(100, clock=clock)
    for _ in range(100):
        clock.now += 1
        bucket.slow()
    assert 2 == pytest.approx(bucket.rate)
    assert 1 == bucket.burst


def test_it_holds_a_minute_and_then_recovers(clock: Clock) -> None:
    bucket = Bucket(100, clock=clock)
    bucket.slow()

    def rate_after(seconds: float) -> float:
        clock.now += seconds
        asyncio.run(bucket.take(0))
        return bucket.rate

    assert 70 == pytest.approx(rate_after(HOLD_S))
    assert 80 == pytest.approx(rate_after(10))
    assert 100 == pytest.approx(rate_after(1000))


def test_a_new_ceiling_moves_the_rate_along_unless_it_was_slowed(clock: Clock) -> None:
    bucket = Bucket(14, clock=clock)
    bucket.limit(200)
    assert 200 == bucket.rate
    bucket.slow()
    bucket.limit(400)
    assert 140 == pytest.approx(bucket.rate)
    bucket.limit(50)
    assert 50 == bucket.rate


def test_waiters_go_in_the_order_of_their_coming() -> None:
    order: list[int] = []
    bucket = Bucket(1000)

    async def waiter(number: int) -> None:
        await bucket.take(100)
        order.append(number)

    async def all_of_them() -> None:
        await asyncio.gather(*(waiter(number) for number in range(8)))

    started = time.monotonic()
    asyncio.run(all_of_them())
    assert list(range(8)) == order
    assert 0.25 < time.monotonic() - started  # 800 at 1000/s, less the 500 it began with
