"""The chart as shapes: a stacked bar for each interval, one SVG path for each series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mailroom.console.ledger import Interval, summed

# One bar is so wide, and the next begins so far from it, in units of the drawing.
BAR: Final = 4
STEP: Final = 5
HEIGHT: Final = 100
SERIES: Final = ("sent", "retried", "rejected", "dropped")
# The top of the scale: twice this is a whole number, and so is the line in the middle.
SCALE: Final = (4, 10, 20)


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing of intervals.

    Attributes:
        width: of the drawing, whose height is ``HEIGHT``.
        top: what its top stands for.
        paths: the shapes of each series, by its name.
        gaps: the shape of what is not known.
        totals: what became of all attempts in it.
        text: the same in words.
    """

    width: int
    top: int
    paths: dict[str, str]
    gaps: str
    totals: Interval
    text: str


def draw(intervals: Sequence[Interval | None], step_s: int) -> Chart:
    """Draw intervals, the oldest on the left; None is not known."""
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
                tall = max(value * HEIGHT / top, 1)  # one among thousands is seen
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
    """An interval by ``SERIES``; an answer that was lost is retried too."""
    return interval.sent, interval.retried + interval.unknown, interval.rejected, interval.dropped


def scale(most: int) -> int:
    """The top of a scale up to so much."""
    size = 1
    while True:
        for top in SCALE:
            if most <= top * size:
                return top * size
        size *= 10
