"""Stores the results on disk, and names the files that are made from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

HERE: Final = Path(__file__).parent

Rows = list[dict[str, Any]]


class Files(NamedTuple):
    """The folder of the results, and the files that are made from them."""

    results: Path
    document: Path
    plots: Path


FULL: Final = Files(
    HERE / "results", HERE.parent / "docs" / "benchmarks.md", HERE.parent / "docs" / "benchmarks"
)
# A separate folder, so that results of small sizes never reach the documentation.
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
    """A result, or None if it was not measured."""
    path = files.results / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def rows(name: str) -> Rows:
    """The rows of a result, or an empty list if it was not measured."""
    found = load(name)
    if not found:
        return []
    rows: Rows = found["result"]["rows"]
    if name == "drain":
        copy = rows[-1]["copy_rows_per_s"]
        return [row | {"ratio_at_1000": row["tokens_per_s"] / copy} for row in rows]
    return rows
