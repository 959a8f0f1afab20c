"""Logs: events with fields, as text and as JSON."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator

import pytest

from mailroom.logs import EventLogger, set_up, without_addresses

log = EventLogger("test")


@pytest.fixture
def logged() -> Iterator[Callable[[str, str], io.StringIO]]:
    """Sets logging up into a buffer, and as it was afterwards."""
    root, ours = logging.getLogger(), logging.getLogger("mailroom")
    before = root.handlers[:], root.level, ours.level

    def into_buffer(log_format: str, level: str) -> io.StringIO:
        stream = io.StringIO()
        set_up(log_format, level, stream)
        return stream

    yield into_buffer
    root.handlers[:], root.level, ours.level = before
    logging.captureWarnings(capture=False)


def test_text_is_an_event_with_fields(logged: Callable[[str, str], io.StringIO]) -> None:
    stream = logged("text", "info")
    log.info("batch", count=10, waited="1.2s", reason='no "route"\nto host', empty="")
    time, rest = stream.getvalue().split(" ", 1)
    assert time.endswith("Z")
    assert 'info test.batch count=10 waited=1.2s reason="no \\"route\\"\\nto host" empty=""\n' == rest


def test_json_is_one_object_a_line(logged: Callable[[str, str], io.StringIO]) -> None:
    stream = logged("json", "info")
    log.warning("lost", reason="two\nlines", count=3)
    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert entry.pop("time").endswith("Z")
    assert {"level": "warning", "event": "test.lost", "reason": "two\nlines", "count": 3} == entry


def test_what_is_less_important_is_left_out(logged: Callable[[str, str], io.StringIO]) -> None:
    stream = logged("text", "warning")
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.error("d")
    assert ["test.c", "test.d"] == [line.split()[2] for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_other_libraries_warnings_pass_through(
    logged: Callable[[str, str], io.StringIO], log_format: str
) -> None:
    stream = logged(log_format, "info")
    logging.getLogger("library").info("unimportant")
    logging.getLogger("library").warning("rather %s", "odd")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", UserWarning, stacklevel=1)
    try:
        int("broken")
    except ValueError:
        logging.getLogger("library").exception("failed")
    text = stream.getvalue()
    assert "unimportant" not in text
    for words in ("rather odd", "old", "failed", "ValueError: invalid literal"):
        assert words in text


@pytest.mark.parametrize(
    "address", ["bob@example.com", '"john doe"@example.com', "<bob@example.com>", "zoë@x.example"]
)
def test_an_address_is_cut_to_its_domain(address: str) -> None:
    told = without_addresses(f"550 {address}: no such user")
    assert "@" in told
    for name in ("bob", "john", "doe", "zoë"):
        assert name not in told
