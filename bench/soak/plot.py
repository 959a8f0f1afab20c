"""Draws the soaks beside each other: mails, memory, connections and tables over time, with the faults."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

from matplotlib import pyplot as plt

COLORS: Final = ("#2f6f9f", "#d9a441")
SHADE: Final = "#c0504d"
Axes = Any


def draw(result: Any) -> None:
    """A column for each soak."""
    rows = result["rows"]
    _, grid = plt.subplots(
        4, len(rows), figsize=(5.2 * len(rows) + 1, 9), squeeze=False, sharex="col", sharey="row"
    )
    for number, row in enumerate(rows):
        column = [grid[at][number] for at in range(4)]
        for axes, drawing in zip(column, (mails, memory, counts, tables), strict=True):
            drawing(axes, row["series"])
            axes.set_ylim(bottom=0)
            for _, start_s, end_s in row["windows"]:
                axes.axvspan(start_s / 60, end_s / 60, color=SHADE, alpha=0.12, linewidth=0)
            if not number:
                axes.legend(frameon=False, fontsize=8, loc="upper left")
        column[0].set_title(f"seed {row['seed']}", fontsize=11)
        column[-1].set_xlabel("minutes; a fault is shaded")


def mails(axes: Axes, series: list[dict[str, Any]]) -> None:
    for name, label, color in zip(
        ("committed", "mails"), ("committed/s", "accepted by SES/s"), COLORS, strict=True
    ):
        rates = [
            (one[name] - before[name]) / (one["at_s"] - before["at_s"]) for before, one in pairwise(series)
        ]
        axes.plot([one["at_s"] / 60 for one in series[1:]], rates, color=color, label=label, linewidth=1)


def memory(axes: Axes, series: list[dict[str, Any]]) -> None:
    line(axes, series, "rss_mb_one", "worker one, MB", COLORS[0])
    line(axes, series, "rss_mb_two", "worker two (killed now and then), MB", COLORS[1])


def counts(axes: Axes, series: list[dict[str, Any]]) -> None:
    line(axes, series, "descriptors_one", "descriptors of worker one", COLORS[0])
    line(axes, series, "connections", "connections of both", COLORS[1])


def tables(axes: Axes, series: list[dict[str, Any]]) -> None:
    line(axes, series, "tables_mb", "tables and indexes, MB", COLORS[0])
    line(axes, series, "dead", "dead rows, thousands", COLORS[1], 1 / 1000)


def line(
    axes: Axes, series: list[dict[str, Any]], name: str, label: str, color: str, factor: float = 1
) -> None:
    """A line with gaps where there is no value."""
    values = [one[name] * factor if name in one else float("nan") for one in series]
    axes.plot([one["at_s"] / 60 for one in series], values, color=color, label=label, linewidth=1)
