"""The circuit breaker: one call at a time while it is tripped, and no flood in the log."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from mailroom.answers import Answer, Result, Scope
from mailroom.sender import breaker
from mailroom.sender.breaker import Breaker

PAUSED = Answer(Result.PAUSED, "sending is paused for bob@example.com", scope=Scope.ACCOUNT)
THROTTLED = Answer(Result.THROTTLED, "Maximum sending rate exceeded.", scope=Scope.ACCOUNT)
AWAY = Answer(Result.TRANSIENT, "connection refused", scope=Scope.ACCOUNT)


class BreakerClock:
    """Stands for the module's ``time`` and ``asyncio.sleep``."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        patch.setattr("mailroom.sender.breaker.time.monotonic", lambda: self.now)

    def at_next_try(self, tripped: Breaker) -> None:
        self.now = tripped._try_at


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> BreakerClock:
    return BreakerClock(monkeypatch)


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str, Any]]:
    return [
        (record.levelno, str(vars(record).get("event")), vars(record)["fields"]) for record in caplog.records
    ]


def test_a_breaker_that_is_not_tripped_lets_all_calls_through() -> None:
    async def run() -> None:
        one = Breaker("account")
        async with one.turn() as first, one.turn() as second:
            assert (False, False) == (first, second)

    asyncio.run(run())


def test_a_tripped_breaker_lets_one_call_through_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "BACK_OFF_S", {Result.TRANSIENT: (0.01, 0.01)})
    under_way, most = 0, 0

    async def call(one: Breaker) -> bool:
        nonlocal under_way, most
        async with one.turn() as tries:
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0)
            under_way -= 1
            if tries:
                one.trip(AWAY)
            return tries

    async def run() -> list[bool]:
        one = Breaker("account")
        one.trip(AWAY)
        return await asyncio.gather(*(call(one) for _ in range(5)))

    assert [True] * 5 == asyncio.run(run())
    assert 1 == most


def test_success_lets_all_who_wait_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "BACK_OFF_S", {Result.TRANSIENT: (0.01, 0.01)})

    async def call(one: Breaker) -> bool:
        async with one.turn() as tries:
            one.succeeded()
            return tries

    async def run() -> list[bool]:
        one = Breaker("account")
        one.trip(AWAY)
        tries = await asyncio.gather(*(call(one) for _ in range(5)))
        assert not one.is_tripped
        return tries

    assert 1 == asyncio.run(run()).count(True)


def test_sporadic_throttles_do_not_trip_it(clock: BreakerClock) -> None:
    one = Breaker("account")
    for _ in range(10):
        assert not one.trip(THROTTLED)
        assert not one.trip(THROTTLED)
        assert not one.is_tripped
        one.succeeded()
    assert [False, False, True] == [one.trip(THROTTLED) for _ in range(3)]
    clock.at_next_try(one)
    assert one.trip(THROTTLED)


def test_back_off_grows_to_its_limit(clock: BreakerClock) -> None:
    one = Breaker("account")
    waits = []
    for _ in range(12):
        one.trip(AWAY)
        waits.append(one._try_at - clock.now)
        clock.at_next_try(one)
    first_s, longest_s = breaker.BACK_OFF_S[Result.TRANSIENT]
    assert first_s / 2 <= waits[0] <= first_s
    assert all(longest_s / 2 <= wait <= longest_s for wait in waits[-4:])


def test_a_pause_is_logged_at_once_then_once_a_minute_and_when_it_is_over(
    clock: BreakerClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    one = Breaker("account")
    began = clock.now
    while clock.now < began + 600:
        one.trip(PAUSED)
        clock.at_next_try(one)
    one.succeeded()
    *pauses, resumed = told(caplog)
    assert 7 <= len(pauses) <= 11  # in ten minutes, at the first try after a minute
    assert {(logging.ERROR, "sender.paused")} == {pause[:2] for pause in pauses}
    assert "paused: sending is paused for …@example.com" == pauses[0][2]["reason"]
    assert (logging.INFO, "sender.resumed") == resumed[:2]


def test_a_moments_trouble_is_not_logged(clock: BreakerClock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    one = Breaker("account")
    one.trip(AWAY)
    clock.at_next_try(one)
    one.succeeded()
    assert [] == told(caplog)


def test_a_trouble_that_comes_and_goes_is_logged_once_a_minute(
    clock: BreakerClock, caplog: pytest.LogCaptureFixture
) -> None:
    one = Breaker("account")
    for _ in range(100):
        one.trip(PAUSED)
        clock.now += 0.5
        one.succeeded()
    assert 1 == sum(event == "sender.paused" for _, event, _ in told(caplog))


def test_calls_that_were_under_way_when_it_tripped_do_not_count(clock: BreakerClock) -> None:
    one = Breaker("account")
    one.trip(AWAY)
    try_at = one._try_at
    for _ in range(8):
        one.trip(AWAY)
    assert try_at == one._try_at


def test_waiting_calls_go_on_as_soon_as_it_is_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "BACK_OFF_S", {Result.TRANSIENT: (300.0, 300.0)})

    async def call(one: Breaker) -> bool:
        async with one.turn() as tries:
            return tries

    async def run() -> list[bool]:
        one = Breaker("account")
        one.trip(AWAY)
        waiting = [asyncio.create_task(call(one)) for _ in range(3)]
        await asyncio.sleep(0)
        one.succeeded()  # a call that was under way when it tripped
        async with asyncio.timeout(10):
            return await asyncio.gather(*waiting)

    assert [False] * 3 == asyncio.run(run())


def test_a_trouble_that_no_call_is_left_to_try_is_reset(
    clock: BreakerClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    one = Breaker("account")
    one.trip(PAUSED)

    def is_reset_after(untried_s: float) -> bool:
        one.reset_if_untried(untried_s)
        return not one.is_tripped

    assert not is_reset_after(0)  # it is not time to try yet
    clock.at_next_try(one)
    assert not is_reset_after(10)
    clock.now += 10
    assert is_reset_after(10)
    assert one.trouble is None
    assert "sender.reset" == told(caplog)[-1][1]


def test_a_trouble_that_a_call_tries_is_not_reset(clock: BreakerClock) -> None:
    async def run() -> None:
        one = Breaker("account")
        one.trip(AWAY)
        clock.at_next_try(one)
        async with one.turn() as tries:
            assert tries
            one.reset_if_untried(0)
            assert one.is_tripped

    asyncio.run(run())
