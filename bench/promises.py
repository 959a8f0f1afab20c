"""What the design promised, beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from bench.results import rows
from bench.tables import Column, markdown


class Promise(NamedTuple):
    """What the design promised, what was measured, and whether it holds."""

    text: str
    measured: str
    holds: bool


def promises() -> list[Promise]:
    """The design's promises, as far as there are results."""
    return [promise for judge in JUDGES for promise in judge()]


def judge_drain() -> Iterator[Promise]:
    found = rows("drain")
    if found:
        rates = {row["limit"]: row["tokens_per_s"] for row in found}
        yield at_least("limit 1000: of `COPY`'s rate", found[-1]["ratio_at_1000"], 0.2)
        yield at_least("limit 10: of the rate at 1000", rates[10] / rates[1000], 1 / 3)


def judge_peers() -> Iterator[Promise]:
    for row in rows("peers"):
        if ratio := row.get("ours_over_it"):
            yield Promise(f"ahead of {row['name']}", f"{ratio} ×", ratio > 1)


def judge_producers() -> Iterator[Promise]:
    for row in rows("producers"):
        if row["clients"] == 64 and row["variant"] == "draining":
            yield at_least(
                "64 clients beside a draining collector: of the empty body's rate", row["ratio"], 0.9
            )


def judge_latency() -> Iterator[Promise]:
    for row in rows("latency"):
        if row["what"].startswith("collector") and row["per_s"] < 100:
            yield at_most("idle, commit to line: p50, in ms", row["p50_ms"], 2)
            yield at_most("idle, commit to line: p99, in ms", row["p99_ms"], 10)


def judge_tablesize() -> Iterator[Promise]:
    found = rows("tablesize")
    for kind, what in (("backlog", "out of a backlog"), ("single", "of one token")) if found else ():
        sizes = f"{found[-1]['tokens']:,} tokens, to one at {found[0]['tokens']:,}"
        yield at_most(f"a claim {what} at {sizes}", found[-1][f"{kind}_ratio"], 1.5)


def judge_snapshot() -> Iterator[Promise]:
    for row in rows("snapshot"):
        if row["held"]:
            yield at_least(
                f"`{row['command']}` under a held snapshot: of its rate without", row["ratio"], 0.9
            )


def judge_deep() -> Iterator[Promise]:
    for row in rows("deep"):
        time = row["claim_ms_last"] / row["claim_ms_first"]
        memory = row["rss_mb_last"] / row["rss_mb_first"]
        yield at_most(f"`{row['command']}`, deep queue: a claim's time at its end, to its start", time, 1.25)
        yield at_most(f"`{row['command']}`, deep queue: memory at its end, to its start", memory, 1.1)


JUDGES: Final = (
    judge_drain,
    judge_peers,
    judge_producers,
    judge_latency,
    judge_tablesize,
    judge_snapshot,
    judge_deep,
)


def at_least(text: str, measured: float, least: float) -> Promise:
    return Promise(f"{text}, at least {least:.2f}", f"{measured:.2f}", measured >= least)


def at_most(text: str, measured: float, most: float) -> Promise:
    return Promise(f"{text}, at most {most:g}", f"{measured:.2f}", measured <= most)


def promised() -> str:
    return markdown(
        [
            Column("promised", lambda row: row["text"]),
            Column("measured", lambda row: row["measured"]),
            Column("holds", lambda row: "yes" if row["holds"] else "**no**"),
        ],
        (one._asdict() for one in promises()),
    )


def behind() -> str:
    """The promises that were not kept, in words."""
    found = [f"- {one.text}: {one.measured}." for one in promises() if not one.holds]
    return "\n".join(found) or "- Of what was promised, all holds in this run."
