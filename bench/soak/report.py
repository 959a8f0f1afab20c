"""The soaks' results as tables, and where they are kept: one file with a soak for each seed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from bench import results
from bench.tables import Column, column, markdown

NAME: Final = "soak"
NOT_ALLOWED: Final = {
    "lost": "lost",
    "missing": "answered commits without a token",
    "forged": "forged mails",
    "false": "rows of the ledger without their mail",
    "unexplained": "duplicates without a cause",
}
FLAT: Final = [
    column("", "what"),
    column("first third", "first"),
    column("last third", "last"),
    column("allowed", "allowed"),
    Column("holds", lambda row: "yes" if row["holds"] else "**no**"),
]


def keep(result: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
    """Keep a soak in the place of an earlier one with its seed."""
    found = results.load(NAME)
    others = [row for row in found["result"]["rows"] if row["seed"] != result["seed"]] if found else []
    results.keep(
        NAME,
        {
            "bench": NAME,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine,
            "result": {"rows": sorted([*others, result], key=lambda row: row["seed"])},
        },
    )


def printed(result: Mapping[str, Any]) -> str:
    """One soak as text."""
    account = result["account"]
    numbers = {
        "mails committed": result["committed"],
        "tokens": account["tokens"],
        "mails accepted by SES": account["mails"],
        **{label: account[name]["count"] for name, label in NOT_ALLOWED.items()},
        "duplicates": account["duplicates"],
    }
    parts = [
        f"### Seed {result['seed']}, {result['minutes']:g} minutes",
        table({"": "", **numbers}),
        table({"cause of a duplicate": "mails", **account["causes"]}) if account["causes"] else "",
        table({"fault": "times", **result["faults"]}),
        markdown(FLAT, result["flat"]) if result["flat"] else "",
        verdict(result["faults_found"]),
    ]
    return "\n\n".join(filter(None, parts))


def verdict(problems: list[str]) -> str:
    if not problems:
        return "Everything holds."
    return "\n".join(["This does not hold:", "", *(f"- {problem}" for problem in problems)])


def table(numbers: Mapping[str, object]) -> str:
    """A table of two columns, whose first pair is its head."""
    (head, unit), *rows = numbers.items()
    columns = [Column(head, lambda row: row["name"]), Column(str(unit), lambda row: f"{row['number']:,}")]
    return markdown(columns, ({"name": name, "number": number} for name, number in rows))
