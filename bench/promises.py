"""Compares what the design promises with what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from bench.results import rows
from bench.tables import Column, markdown


class Promise(NamedTuple):
    """A promise of the design, what was measured, and whether the promise holds."""

    text: str
    measured: str
    holds: bool


def promises() -> list[Promise]:
    """The promises for which there are results."""
    return [promise for judge in JUDGES for promise in judge()]


def judge_drain() -> Iterator[Promise]:
    found = rows("drain")
    if found:
        rates = {row["limit"]: row["tokens_per_s"] for row in found}
        yield at_least("limit 1000: share of `COPY`'s rate", found[-1]["ratio_at_1000"], 0.2)
        yield at_least("limit 10: share of the rate at limit 1000", rates[10] / rates[1000], 1 / 3)


def judge_peers() -> Iterator[Promise]:
    for row in rows("peers"):
        if ratio := row.get("ours_over_it"):
            yield Promise(f"faster than {row['name']}", f"{ratio} ×", ratio > 1)


def judge_sending() -> Iterator[Promise]:
    for row in rows("peers_sending"):
        if row["name"].startswith("Mailroom run"):
            yield at_most(f"{row['name']}, killed in the middle: mails not sent", row["left"], 0)


def judge_producers() -> Iterator[Promise]:
    for row in rows("producers"):
        if row["clients"] == 64 and row["variant"] == "draining":
            yield at_least(
                "64 clients, collector draining: share of the empty body's rate", row["ratio"], 0.9
            )


def judge_adopted() -> Iterator[Promise]:
    for row in rows("adopted"):
        if row["unit"] == "commits/s":
            yield at_least(f"an adopted table, {row['what']}: share of the table's alone", row["ratio"], 0.9)


def judge_latency() -> Iterator[Promise]:
    for row in rows("latency"):
        if row["what"].startswith("collector") and row["per_s"] < 100:
            yield at_most("idle, from the commit to the line: p50 in ms", row["p50_ms"], 2)
            yield at_most("idle, from the commit to the line: p99 in ms", row["p99_ms"], 10)


def judge_lanes() -> Iterator[Promise]:
    for row in rows("lanes"):
        yield at_most(f"`{row['command']}`: a recovery beside an import, worst in ms", row["max_ms"], 2000)
        yield at_least(f"`{row['command']}`: mails/s of 100 meanwhile", row["mails_per_s"], 90)


def judge_tablesize() -> Iterator[Promise]:
    found = rows("tablesize")
    for kind, what in (("backlog", "from a backlog"), ("single", "of one token")) if found else ():
        sizes = f"{found[-1]['tokens']:,} tokens, relative to {found[0]['tokens']:,}"
        yield at_most(f"a claim {what} at {sizes}", found[-1][f"{kind}_ratio"], 1.5)


def judge_snapshot() -> Iterator[Promise]:
    for row in rows("snapshot"):
        if row["held"]:
            yield at_least(
                f"`{row['command']}` under a held snapshot: share of its rate without one", row["ratio"], 0.9
            )


def judge_deep() -> Iterator[Promise]:
    for row in rows("deep"):
        time = row["claim_ms_last"] / row["claim_ms_first"]
        memory = row["rss_mb_last"] / row["rss_mb_first"]
        yield at_most(
            f"`{row['command']}`, deep queue: claim time at the end, relative to the start", time, 1.25
        )
        yield at_most(
            f"`{row['command']}`, deep queue: memory at the end, relative to the start", memory, 1.1
        )


def judge_events() -> Iterator[Promise]:
    for row in rows("events"):
        yield at_least("SES's events a second", row["events_per_s"], 2000)


def judge_soak() -> Iterator[Promise]:
    for row in rows("soak"):
        for name, what in (("lost", "mails lost"), ("unexplained", "duplicates without a cause")):
            yield at_most(f"soak with seed {row['seed']}: {what}", row["account"][name]["count"], 0)


JUDGES: Final = (
    judge_drain,
    judge_peers,
    judge_sending,
    judge_producers,
    judge_adopted,
    judge_latency,
    judge_lanes,
    judge_tablesize,
    judge_snapshot,
    judge_deep,
    judge_events,
    judge_soak,
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
    """The promises that do not hold, as a list."""
    found = [f"- {one.text}: {one.measured}." for one in promises() if not one.holds]
    return "\n".join(found) or "- All promises hold in this run."
