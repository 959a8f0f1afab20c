"""Outages in the log: a new reason at once, a known one once a minute."""

from __future__ import annotations

import logging

import pytest

from mailroom import outage
from mailroom.logs import EventLogger
from mailroom.outage import MAX_REASONS, Outage


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [100.0]
    monkeypatch.setattr("mailroom.outage.time.monotonic", lambda: clock[0])
    return clock


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    found = [(str(vars(record).get("event")), vars(record)["fields"]["reason"]) for record in caplog.records]
    caplog.clear()
    return found


def test_a_new_reason_is_logged_at_once(caplog: pytest.LogCaptureFixture, now: list[float]) -> None:
    caplog.set_level(logging.INFO)
    database = Outage(EventLogger("database"), "lost", "still_lost", "back")
    for reason in ("refused, port 5432", "refused, port 5432", "no space left", "refused, port 6432"):
        database.failed(reason)
    assert [
        ("database.lost", "refused, port 5432"),
        ("database.still_lost", "no space left"),
    ] == logged(caplog)
    now[0] += outage.REMINDER_S
    for reason in ("no space left", "no space left"):
        database.failed(reason)
    assert [("database.still_lost", "no space left")] == logged(caplog)


def test_reasons_without_end_do_not_flood_the_log(caplog: pytest.LogCaptureFixture, now: list[float]) -> None:
    caplog.set_level(logging.INFO)
    database = Outage(EventLogger("database"), "lost", "still_lost", "back")
    for number in range(100):
        database.failed("x" * (number + 1))
    assert MAX_REASONS + 1 == len(logged(caplog))
