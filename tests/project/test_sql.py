"""SQL stands in ``src/mailroom/sql`` and in the modules that speak its subjects."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import mailroom

SOURCES: Final = Path(mailroom.__file__).parent
# The statements on Mailroom's functions and tables are in these. The demonstration's are an application's.
SPEAKERS: Final = {
    "consumption.py",
    "console/ledger.py",
    "contrib/django/tokens.py",
    "demo/signup/accounts.py",
    "demo/signup/links.py",
    "demo/signup/mails.py",
    "demo/tour.py",
    "doctor/events.py",
    "doctor/triggers.py",
    "events/recording.py",
    "operations/actions.py",
    "operations/adoption.py",
    "operations/adoption_sql.py",
    "operations/adoption_table.py",
    "operations/dead.py",
    "operations/fates.py",
    "operations/forgetting.py",
    "operations/pause.py",
    "operations/prune.py",
    "operations/reports.py",
    "operations/suppressions.py",
    "queue/client.py",
    "queue/known_actions.py",
    "queue/leader.py",
    "queue/pulse.py",
    "queue/start_check.py",
    "runner/ledger.py",
    "runner/shared_rate.py",
}
KEYWORD: Final = re.compile(r"\b(SELECT|INSERT|UPDATE|DELETE|FROM|JOIN|LOCK|TRUNCATE|ALTER|CALL)\b")
CREATED: Final = re.compile(
    r"^CREATE (?:OR REPLACE )?(?:FUNCTION|TABLE|TYPE) (mailroom\.)?(\w+)", re.MULTILINE
)


def statements(path: Path) -> Iterator[str]:
    """The texts of a module that have a keyword of SQL, without its docstrings."""
    tree = ast.parse(path.read_text("utf-8"))
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in documentation
            and KEYWORD.search(node.value)
        ):
            yield node.value


def named() -> re.Pattern[str]:
    """What names a function, a table or a type of the schema."""
    created = [
        found for path in (SOURCES / "sql").glob("*.sql") for found in CREATED.findall(path.read_text())
    ]
    ours = "|".join(name for place, name in created if place)
    public = "|".join(name for place, name in created if not place)
    return re.compile(rf"\bmailroom\.({ours})\b|\b(FROM|JOIN|INTO|UPDATE|TABLE) (public\.)?({public})\b")


def test_statements_are_in_the_modules_of_their_subjects() -> None:
    pattern = named()
    assert pattern.search("SELECT FROM mailroom.claim('w', 1, 1, 1)")
    assert pattern.search("UPDATE tokens SET code = '00000'")
    found = {
        str(path.relative_to(SOURCES))
        for path in SOURCES.rglob("*.py")
        if any(pattern.search(text) for text in statements(path))
    }
    assert found == SPEAKERS
