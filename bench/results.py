"""The results on the disk, and where what is made from them goes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

HERE: Final = Path(__file__).parent

Rows = list[dict[str, Any]]


class Files(NamedTuple):
    """Where the results are, and what is made from them."""

    results: Path
    document: Path
    plots: Path


FULL: Final = Files(
    HERE / "results", HERE.parent / "docs" / "benchmarks.md", HERE.parent / "docs" / "benchmarks"
)
# Apart, so that small sizes never end up in the documentation.
QUICK: Final = Files(
    HERE / "results" / "quick",
    HERE / "results" / "quick" / "benchmarks.md",
    HERE / "results" / "quick" / "benchmarks",
)
files = FULL


def keep(name: str, result: Mapping[str, Any]) -> None:
    files.results.mkdir(exist_ok=True, parents=True)
    (files.results / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


def load(name: str) -> dict[str, Any] | None:
    """A result, or None if there is none."""
    path = files.results / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def rows(name: str) -> Rows:
    """A result's rows; none without a result."""
    found = load(name)
    if not found:
        return []
    rows: Rows = found["result"]["rows"]
    if name == "drain":
        copy = rows[-1]["copy_rows_per_s"]
        return [row | {"ratio_at_1000": row["tokens_per_s"] / copy} for row in rows]
    return rows
