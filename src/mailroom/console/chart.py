"""Draws the chart: a stacked bar for each interval, as one SVG path for each series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mailroom.console.ledger import Interval, summed

# The width of a bar and the distance between two, in units of the drawing.
BAR: Final = 4
STEP: Final = 5
HEIGHT: Final = 100
SERIES: Final = ("sent", "retried", "rejected", "dropped")
# The top of the scale is one of these times a power of ten, so the line in the middle is a whole number.
SCALE: Final = (4, 10, 20)


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing of intervals.

    Attributes:
        width: the width; the height is ``HEIGHT``.
        top: the number at the top of the scale.
        paths: the SVG path of each series, by its name.
        gaps: the SVG path of the intervals that are not known.
        totals: the sum of all intervals.
        text: the totals in words.
    """

    width: int
    top: int
    paths: dict[str, str]
    gaps: str
    totals: Interval
    text: str


def draw(intervals: Sequence[Interval | None], step_s: int) -> Chart:
    """A chart of the intervals, the oldest on the left; None is an interval that is not known."""
    known = [each for each in intervals if each]
    top = scale(max((each.total for each in known), default=0))
    paths = dict.fromkeys(SERIES, "")
    gaps = ""
    for number, each in enumerate(intervals):
        left, below = number * STEP, float(HEIGHT)
        if each is None:
            gaps += f"M{left} 0h{STEP}v{HEIGHT}h-{STEP}z"
            continue
        for series, value in zip(SERIES, heights(each), strict=True):
            if value:
                tall = max(value * HEIGHT / top, 1)  # one among thousands is visible
                below -= tall
                paths[series] += f"M{left} {below:.6g}h{BAR}v{tall:.6g}h-{BAR}z"
    totals = summed(known)
    minutes = round(len(intervals) * step_s / 60)
    sent, retried, rejected, dropped = heights(totals)
    text = (
        f"In the last {minutes} minutes {sent} sent, {retried} retried, {rejected} rejected,"
        f" {dropped} expired or skipped; at most {max((each.total for each in known), default=0)}"
        f" in {step_s} seconds."
    )
    return Chart(len(intervals) * STEP, top, paths, gaps, totals, text)


def heights(interval: Interval) -> tuple[int, int, int, int]:
    """The numbers of an interval, by ``SERIES``. Attempts whose answer was lost count as retried."""
    return interval.sent, interval.retried + interval.unknown, interval.rejected, interval.dropped


def scale(most: int) -> int:
    """The top of a scale for numbers up to ``most``."""
    size = 1
    while True:
        for top in SCALE:
            if most <= top * size:
                return top * size
        size *= 10
