"""Compares the last third of a soak with the first, after the warm-up."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any, Final, NamedTuple

from bench.soak.samples import Sample


class Measure(NamedTuple):
    """What must stay flat.

    Attributes:
        name: of the samples' values.
        label: for the report.
        factor: the last third's median may be this many times the first's,
        slack: and this much more.
    """

    name: str
    label: str
    factor: float
    slack: float


MEASURES: Final = (
    Measure("rss_mb_one", "memory of the worker that was never killed, MB", 1.1, 2),
    Measure("rss_mb_two", "memory of the other worker, MB", 1.1, 2),
    # Each worker keeps up to four connections to the provider.
    Measure("descriptors_one", "descriptors of the worker that was never killed", 1, 4),
    Measure("descriptors_two", "descriptors of the other worker", 1, 4),
    Measure("connections", "connections of both workers", 1, 1),
    Measure("dead", "dead rows", 1.5, 5000),
    Measure("tables_mb", "tables and indexes, MB", 1.5, 4),
)
# Until as much is pruned as is written.
WARM_UP_S: Final = 210.0
LEAST: Final = 30  # samples in a third


def thirds(samples: Sequence[Sample], warm_up_s: float = WARM_UP_S) -> list[dict[str, Any]]:
    """A row for each measure: the medians of both thirds, what is allowed, and whether it holds.

    A soak that is too short for thirds has no rows.
    """
    warm = [sample for sample in samples if sample["at_s"] >= warm_up_s]
    third = len(warm) // 3
    if third < LEAST:
        return []
    rows = []
    for measure in MEASURES:
        first, last = (
            [sample[measure.name] for sample in part if measure.name in sample]
            for part in (warm[:third], warm[-third:])
        )
        if not first or not last:
            continue
        allowed = median(first) * measure.factor + measure.slack
        rows.append(
            {
                "what": measure.label,
                "first": round(median(first), 1),
                "last": round(median(last), 1),
                "allowed": round(allowed, 1),
                "holds": median(last) <= allowed,
            }
        )
    return rows
