"""Draws the plots of docs/benchmarks.md, as SVG files that are equal for equal results."""

from __future__ import annotations

from typing import Any, Final

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt

from bench import results
from bench.soak import plot as soak
from bench.tables import VARIANTS

OURS: Final = "#2f6f9f"
THEIRS: Final = "#b8bec4"
OTHERS: Final = ("#b8bec4", "#8fb8d4", "#2f6f9f", "#d9a441", "#c0504d")
STYLE: Final = {
    "figure.figsize": (8.5, 3.4),
    "figure.facecolor": "white",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "svg.hashsalt": "mailroom",
}


def draw() -> None:
    """Draw every plot that has results."""
    results.files.plots.mkdir(exist_ok=True, parents=True)
    with mpl.rc_context(STYLE):
        for name, drawing in DRAWINGS.items():
            result = results.load(name)
            if result:
                drawing(result["result"])
                plt.tight_layout()
                plt.savefig(results.files.plots / f"{name}.svg", metadata={"Date": None})
                plt.close("all")


def drain(result: Any) -> None:
    rows = result["rows"]
    _, axes = plt.subplots()
    names = [f"limit {row['limit']}" for row in rows]
    bars = axes.bar(names, [row["tokens_per_s"] for row in rows], color=OURS, width=0.5)
    axes.bar_label(bars, [f"{row['tokens_per_s']:,}" for row in rows], padding=3)
    axes.axhline(rows[-1]["copy_rows_per_s"] / 5, color="#c0504d", linestyle="--")
    axes.annotate(
        "a fifth of COPY of the same join", (2.3, rows[-1]["copy_rows_per_s"] / 5), ha="right", va="bottom"
    )
    axes.set_ylabel("tokens/s")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="x", visible=False)


def peers(result: Any) -> None:
    rows = result["rows"][::-1]
    _, axes = plt.subplots(figsize=(8.5, 0.4 * len(rows) + 1))
    bars = axes.barh(
        [row["name"] for row in rows],
        [row["jobs_per_s"] for row in rows],
        color=[OURS if row["name"].startswith("Mailroom") else THEIRS for row in rows],
    )
    axes.bar_label(bars, [f"{row['jobs_per_s']:,}" for row in rows], padding=4)
    axes.set_xscale("log")
    axes.set_xlim(right=max(row["jobs_per_s"] for row in rows) * 4)
    axes.set_xlabel("jobs/s (logarithmic)")
    axes.grid(axis="y", visible=False)


def producers(result: Any) -> None:
    _, axes = plt.subplots()
    clients = sorted({row["clients"] for row in result["rows"]})
    width = 0.8 / len(VARIANTS)
    for place, (variant, label) in enumerate(VARIANTS.items()):
        rates = [row["commits_per_s"] for row in result["rows"] if row["variant"] == variant]
        places = [number + (place - 2) * width for number in range(len(clients))]
        axes.bar(places, rates, width * 0.92, label=label, color=OTHERS[place])
    axes.set_xticks(range(len(clients)), [f"{number} client{'s' * (number > 1)}" for number in clients])
    axes.set_ylabel("commits/s")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="x", visible=False)
    axes.legend(fontsize=9, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def latency(result: Any) -> None:
    rows = result["rows"][::-1]
    _, axes = plt.subplots(figsize=(8.5, 2.6))
    names = [f"{row['what']}, {row['per_s']}/s" for row in rows]
    for key, marker, label in (("p50_ms", "o", "p50"), ("p95_ms", "s", "p95"), ("p99_ms", "D", "p99")):
        axes.plot([row[key] for row in rows], names, marker, color=OURS, label=label, alpha=0.9)
    for name, row in zip(names, rows, strict=True):
        axes.plot([row["p50_ms"], row["p99_ms"]], [name, name], color=OURS, alpha=0.4)
    axes.set_xscale("log")
    axes.set_xlabel("ms after the commit (logarithmic)")
    axes.set_ylim(-0.5, len(rows) - 0.5)
    axes.legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))


def tablesize(result: Any) -> None:
    rows = result["rows"]
    _, axes = plt.subplots()
    sizes = [row["tokens"] for row in rows]
    axes.plot(sizes, [row["backlog_ratio"] for row in rows], "o-", color=OURS, label="out of a backlog")
    axes.plot(sizes, [row["single_ratio"] for row in rows], "s--", color="#d9a441", label="one alone")
    axes.axhline(1.5, color="#c0504d", linestyle=":", label="at most")
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(
        0, max(2, *(row["backlog_ratio"] * 1.2 for row in rows), *(row["single_ratio"] * 1.2 for row in rows))
    )
    axes.set_xlabel("tokens in the table (logarithmic)")
    axes.set_ylabel("a claim's time, to the smallest")
    axes.legend(frameon=False)


def deep(result: Any) -> None:
    _, (time, memory) = plt.subplots(1, 2)
    for (command, points), color in zip(result["curves"].items(), (OURS, "#d9a441"), strict=True):
        gone = [point["gone"] / 1000 for point in points]
        time.plot(
            gone, [point["claim_ms_per_1000"] for point in points], color=color, label=f"mailroom {command}"
        )
        memory.plot(gone, [point["rss_mb"] for point in points], color=color, label=f"mailroom {command}")
    for axes, label in ((time, "claim of 1,000 tokens, ms"), (memory, "memory, MB")):
        axes.set_ylim(0, axes.get_ylim()[1] * 1.35)
        axes.set_xlabel("thousands of tokens drained")
        axes.set_ylabel(label)
        axes.legend(frameon=False, fontsize=9)


DRAWINGS: Final = {
    "drain": drain,
    "peers": peers,
    "producers": producers,
    "latency": latency,
    "tablesize": tablesize,
    "deep": deep,
    "soak": soak.draw,
}
