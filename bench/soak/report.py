"""The soaks' results as tables, and where they are kept: one file with a soak for each seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
    column("seed", "seed"),
    column("median", "what"),
    column("first third", "first"),
    column("last third", "last"),
    column("allowed", "allowed"),
    Column("holds", lambda row: "yes" if row["holds"] else "**no**"),
]
Soak = Mapping[str, Any]


def keep(result: Soak, machine: Mapping[str, Any]) -> None:
    """Keep a soak in the place of an earlier one with its seed."""
    others = [row for row in results.rows(NAME) if row["seed"] != result["seed"]]
    results.keep(
        NAME,
        {
            "bench": NAME,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine,
            "result": {"rows": sorted([*others, result], key=lambda row: row["seed"])},
        },
    )


def section() -> str:
    """The kept soaks, for the document."""
    soaks = results.rows(NAME)
    return tables(soaks) if soaks else "Not measured: `make soak`."


def tables(soaks: Sequence[Soak]) -> str:
    """Soaks beside each other."""
    parts = [
        beside(soaks, "what", numbers),
        beside(soaks, "cause of a duplicate", lambda soak: soak["account"]["causes"]),
        beside(soaks, "fault", lambda soak: soak["faults"]),
    ]
    if flat := [row | {"seed": soak["seed"]} for soak in soaks for row in soak["flat"]]:
        parts.append(markdown(FLAT, flat))
    return "\n\n".join(parts + [verdict(soak) for soak in soaks])


def numbers(soak: Soak) -> dict[str, object]:
    account = soak["account"]
    return {
        "minutes": soak["minutes"],
        "mails committed a second": round(soak["committed"] / soak["minutes"] / 60),
        "tokens": account["tokens"],
        "requests that the database did not answer": soak["failed"],
        "requests not made, since it was away": soak["skipped"],
        "mails accepted by SES": account["mails"],
        **{label: account[name]["count"] for name, label in NOT_ALLOWED.items()},
        "duplicates": account["duplicates"],
        "workers started again": sum(soak["restarts"].values()),
    }


def beside(soaks: Sequence[Soak], head: str, found: Callable[[Soak], Mapping[str, object]]) -> str:
    """A table with a row for each name, and a column for each soak."""
    names = list(dict.fromkeys(name for soak in soaks for name in found(soak)))
    columns = [Column(head, lambda name: name["name"])]
    columns += [
        Column(f"seed {soak['seed']}", lambda name, soak=soak: f"{found(soak).get(name['name'], 0):,}")  # type: ignore[misc]
        for soak in soaks
    ]
    return markdown(columns, named(names))


def named(names: Iterable[str]) -> Iterable[Mapping[str, str]]:
    return ({"name": name} for name in names)


def verdict(soak: Soak) -> str:
    """What does not hold."""
    problems = soak["faults_found"]
    if not problems:
        return f"Seed {soak['seed']}: everything holds."
    return "\n".join(
        [f"Seed {soak['seed']}: this does not hold:", "", *(f"- {problem}" for problem in problems)]
    )
