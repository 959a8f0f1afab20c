"""Writes the pages of the reference that are made from the code: commands, settings, metrics, Python, SQL.

``python docs/generate.py`` writes them; ``--check`` exits 1 when one is not what the code says. The page on
SQL is what a database's catalogue says, on a server that lives as long as this program.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import psycopg
from prometheus_client.parser import text_string_to_metric_families

import mailroom
from mailroom import actions, consumption, errors, tokens
from mailroom.answers import Answer, Result
from mailroom.cli.main import cli
from mailroom.database import migrate, sync
from mailroom.demo.postgres import PostgresServer
from mailroom.queue.client import Recorded
from mailroom.settings.collector import CollectorSettings, KeySettings
from mailroom.settings.sender import SenderSettings
from mailroom.settings.variables import MAX_MS, variables
from mailroom.settings.worker import HealthSettings
from mailroom.worker.metrics import Metrics

FOLDER: Final = Path(__file__).parent / "reference"
MADE: Final = "<!-- Made by docs/generate.py; change the code, then run `python docs/generate.py`. -->\n\n"


# Variables that a command reads and does not list in its help.
READ_BESIDES: Final = {
    "doctor": (*variables(CollectorSettings), *variables(SenderSettings)),
    "token verify": (*variables(KeySettings),),
}
# What is code in plain text: names with an underscore or a schema, addresses, templates' fields.
CODE: Final = re.compile(r"`[^`]*`|\{\{\w+\}\}|\w+://[^\s,]+|\bmailroom\.\w+|\b[A-Za-z]\w*_\w+(?:=\w+)?")


def commands(command: click.Command, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """A command and those below it, each with its context."""
    yield command, context
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(child, click.Context(child, context, name, terminal_width=100))


def all_commands() -> list[tuple[str, click.Command, click.Context]]:
    """Every command, by what one types."""
    # The width is the page's, whatever the terminal's is. Commands inherit --help's names from above.
    top = click.Context(cli, None, "mailroom", terminal_width=100, help_option_names=["-h", "--help"])
    found = []
    for command, context in commands(cli, top):
        path, above = str(context.info_name), context.parent
        while above:
            path, above = f"{above.info_name} {path}", above.parent
        found.append((path, command, context))
    return found


def command_page() -> str:
    """Every command's ``--help``."""
    page = f"{MADE}# Commands\n\n{_row('command', 'what it does')}{_row('---', '---')}"
    for path, command, _ in all_commands():
        if not isinstance(command, click.Group):
            page += _row(f"[`{path}`](#{path.replace(' ', '-')})", _text(command.get_short_help_str(200)))
    for path, command, context in all_commands():
        page += f"\n## `{path}`\n\n```text\n{command.get_help(context).rstrip()}\n```\n"
    return page


def readers() -> dict[str, list[str]]:
    """The commands that read each variable."""
    found: dict[str, list[str]] = {}
    for path, command, _ in all_commands():
        name = path.removeprefix("mailroom ")
        read = set(re.findall(r"^  (MAILROOM_\w+)  \(", command.epilog or "", re.MULTILINE))
        for variable in sorted(read | {variable.name for variable in READ_BESIDES.get(name, ())}):
            found.setdefault(variable, []).append(name)
    return found


def settings_page() -> str:
    """Every variable of the environment."""
    page = MADE + (
        "# Settings\n\nThey are read from the environment, and all faults in it are reported at once. What is"
        " secret is never part of a message; a variable whose name ends in `_FILE` names a file that holds"
        " the value, as container platforms mount secrets. Durations are in milliseconds."
        " [More on some of them](../reference.md#environment).\n"
    )
    sections = {
        "Database, queue and keys": CollectorSettings,
        "Sending": SenderSettings,
        "Health": HealthSettings,
    }
    by_variable = readers()
    for title, settings in sections.items():
        page += f"\n## {title}\n\n"
        page += _row("variable", "default", "range", "meaning", "read by") + _row(*["---"] * 5)
        for variable in variables(settings):
            least, most = variable.bounds or (0, 0)
            names = f"`{variable.name}`" + (f", or `{variable.name}_FILE`" if variable.secret else "")
            default = {None: "required", "": "optional"}.get(variable.default, f"`{variable.default}`")
            unit = " ms" if most == MAX_MS else ""
            meaning = _text(variable.purpose) + ("; secret" if variable.secret else "")
            read_by = ", ".join(f"`{name}`" for name in by_variable[variable.name])
            page += _row(names, default, f"{least} to {most}{unit}" if most else "", meaning, read_by)
    page += f"\n## Logs\n\n{_row('variable', 'default', 'one of', 'meaning', 'read by')}{_row(*['---'] * 5)}"
    for option in cli.params:
        if isinstance(option, click.Option) and isinstance(option.envvar, str):
            choices = option.type.choices if isinstance(option.type, click.Choice) else ()
            meaning = f"{option.help} `{option.opts[0]}` comes before it."
            one_of = ", ".join(f"`{choice}`" for choice in choices)
            page += _row(f"`{option.envvar}`", f"`{option.default}`", one_of, meaning, "all")
    return page


def metrics_page() -> str:
    """Every metric of ours: one sample of each is made, and what it exposes is read."""
    metrics = Metrics()
    metrics.claimed(1, 0)
    metrics.called("activation", [Answer(Result.SENT)], 0)
    metrics.settled("activation", Recorded("sent", 0))
    text = metrics.exposition(None, outages=0, is_listening=False, sending_paused_s=0).decode()
    page = MADE + (
        "# Metrics\n\n`/metrics` of `mailroom run` is Prometheus's text format. These names and labels are a"
        " contract: what changes them is a breaking change. Durations are in seconds. Beside them are the"
        " usual `process_` and `python_` ones.\n\nThe gauges of the queue are the same from every worker;"
        " they are NaN while PostgreSQL does not answer. Counters begin at zero when the process starts.\n\n"
    )
    page += _row("name", "type", "labels", "meaning") + _row(*["---"] * 4)
    buckets = ""
    for family in text_string_to_metric_families(text):
        if not family.name.startswith("mailroom_") or family.name.endswith("_created"):
            continue
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = dict.fromkeys(label for sample in family.samples for label in sample.labels if label != "le")
        told = ", ".join(f"`{label}`" for label in labels)
        page += _row(f"`{name}`", family.type, told, _text(family.documentation))
        bounds = dict.fromkeys(sample.labels.get("le", "+Inf") for sample in family.samples)
        if family.type == "histogram":
            buckets += _row(f"`{name}`", ", ".join(bound for bound in bounds if bound != "+Inf"))
    return f"{page}\n## Buckets\n\n{_row('histogram', 'up to so many seconds')}{_row('---', '---')}{buckets}"


FUNCTIONS: Final = """
SELECT p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid),
       coalesce(obj_description(p.oid, 'pg_proc'), ''),
       ARRAY(SELECT CASE a.grantee WHEN 0 THEN 'everybody' ELSE a.grantee::regrole::text END
             FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
             WHERE a.grantee <> p.proowner ORDER BY 1),
       ARRAY(SELECT t.tgname || ' on ' || t.tgrelid::regclass FROM pg_trigger t
             WHERE t.tgfoid = p.oid AND NOT t.tgisinternal ORDER BY 1)
FROM pg_proc p WHERE p.pronamespace = 'mailroom'::regnamespace
ORDER BY p.proname COLLATE "C", 2
"""
TABLES: Final = """
SELECT c.oid::regclass::text, coalesce(obj_description(c.oid, 'pg_class'), ''), a.attname,
       format_type(a.atttypid, a.atttypmod), coalesce(col_description(c.oid, a.attnum), '')
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relkind = 'r' AND c.relnamespace IN ('mailroom'::regnamespace, 'public'::regnamespace)
  AND c.relname <> 'schema_migrations'
ORDER BY c.relnamespace::regnamespace::text DESC, c.relname COLLATE "C", a.attnum
"""
CALLERS: Final = {
    "everybody": ("Called by everybody", "They are the defaults of columns."),
    "mailroom_app": ("Called by `mailroom_app`", "Your application."),
    "mailroom_worker": (
        "Called by `mailroom_worker`",
        "`mailroom run`, `mailroom collector` and `mailroom doctor`.",
    ),
    "mailroom_oncall": (
        "Called by `mailroom_oncall`",
        "The people on call, through Mailroom's commands. Nothing here gives out a secret or a code.",
    ),
    "": ("Called by the other functions alone", ""),
}


def sql_page() -> str:
    """What the catalogue of a migrated database says of the functions and tables, and their comments."""
    roles = (Path(mailroom.__file__).parent / "sql" / "roles.sql").read_bytes()
    with (
        PostgresServer(settings={"fsync": "off"}) as server,
        sync.connected(server.url()) as connection,
    ):
        migrate.up(connection, None, lambda _: None)
        connection.execute(roles)
        return _sql_page(connection)


def _sql_page(connection: psycopg.Connection) -> str:
    page = MADE + (
        "# SQL\n\nThe functions in the schema `mailroom`, by the [role](../deploy.md#least-privilege) that"
        " may call them, and the tables. What is said of them are their comments: in psql, `\\df+ mailroom.*`"
        " and `\\d+ tokens` show the same. [What they are for](../reference.md#sql-functions).\n"
    )
    by_callers: dict[str, list[str]] = {caller: [] for caller in CALLERS}
    triggers = _row("function", "trigger", "what it does") + _row(*["---"] * 3)
    for name, arguments, result, comment, callers, fired_by in connection.execute(FUNCTIONS):
        if result == "trigger":
            on = ", ".join(f"`{trigger}`" for trigger in fired_by)
            triggers += _row(f"`mailroom.{name}`", on, _text(comment))
            continue
        code = f"{_signature(f'mailroom.{name}({arguments})')}\n{_signature(f'RETURNS {result}')}"
        entry = f"### `mailroom.{name}`\n\n```text\n{code}\n```\n\n{_text(comment)}\n"
        for caller in ["everybody"] if "everybody" in callers else callers or [""]:
            by_callers[caller].append(entry)
    for caller, entries in by_callers.items():
        title, who = CALLERS[caller]
        page += "\n".join([f"\n## {title}\n", *([f"{who}\n"] if who else []), *entries])
    page += f"\n## Called by triggers\n\n{triggers}\n## Tables\n"
    last = ""
    for table, about, column, kind, comment in connection.execute(TABLES):
        if table != last:
            page += f"\n### `{table}`\n\n{_text(about)}\n\n"
            page += _row("column", "type", "meaning") + _row(*["---"] * 3)
        last = table
        page += _row(f"`{column}`", kind, _text(comment))
    return page


def python_page() -> str:
    """The public functions, the errors and the actions, with their docstrings."""
    page = MADE + (
        "# Python\n\n`import mailroom` is all that an application needs. `keys` is what `MAILROOM_SECRET_KEY`"
        " holds, as text or as a list of bytes.\n"
    )
    for function in (tokens.verify, consumption.consume, tokens.sign):
        given = [
            part.replace(annotation=part.empty) for part in inspect.signature(function).parameters.values()
        ]
        signature = inspect.Signature(given)
        page += f"\n## `mailroom.{function.__name__}{signature}`\n\n{_prose(function)}"
    page += (
        "\n## Errors\n\nEach is a `mailroom.MailroomError`: its text says what happened, its `hint` what to"
        " do. The command line ends with its exit code.\n\n"
    )
    page += _row("error", "exit code", "reason", "meaning") + _row(*["---"] * 4)
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, errors.MailroomError):
            reason = error.reason if issubclass(error, errors.TokenError) else ""
            where = "mailroom" if error.__name__ in mailroom.__all__ else "mailroom.errors"
            meaning = " ".join((inspect.getdoc(error) or "").replace("``", "`").split())
            page += _row(f"`{where}.{error.__name__}`", str(error.exit_code), reason, meaning)
    page += "\n## Actions\n\n"
    page += _row("action", "number on the line", "signed first", "code", "template in SES", "fields")
    page += _row(*["---"] * 6)
    for action in actions.ACTIONS:
        page += _row(
            f"`{action.name}`",
            str(action.number),
            f"`{action.prefix.decode()}`",
            "yes" if action.needs_code else "no",
            f"`{action.template}`",
            ", ".join(f"`{field}`" for field in action.fields),
        )
    return page


def _signature(text: str) -> str:
    """A line of SQL, broken after commas alone."""
    return textwrap.fill(re.sub(r"(?<!,) ", "\0", text), 100, subsequent_indent="    ").replace("\0", " ")


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def _text(text: str) -> str:
    """Plain text as Markdown: names are code, and nothing is markup."""
    page, end = "", 0
    for found in CODE.finditer(text):
        page += text[end : found.start()].replace("<", "&lt;") + f"`{found[0].strip('`')}`"
        end = found.end()
    return (page + text[end:].replace("<", "&lt;")).replace("|", "&#124;")


def _prose(function: object) -> str:
    """A docstring in Google's style, as Markdown."""
    text = (inspect.getdoc(function) or "").replace("``", "`")
    page, inside = "", False
    for line in text.splitlines():
        if line in {"Args:", "Raises:", "Returns:"}:
            inside = True
            page += f"**{line[:-1].replace('Args', 'Arguments')}**\n\n"
        elif inside and (found := re.match(r" {4}([\w, ]+): (.*)", line)):
            page += f"- `{found[1].replace(', ', '`, `')}`: {found[2]}\n"
        else:
            page += f"{line.strip() if not inside or not line.strip() else '  ' + line.strip()}\n"
    return page


PAGES: Final = {
    "commands.md": command_page,
    "settings.md": settings_page,
    "metrics.md": metrics_page,
    "python.md": python_page,
    "sql.md": sql_page,
}


def main() -> int:
    """Write the pages, or check them."""
    stale = []
    for name, make in PAGES.items():
        path, page = FOLDER / name, make()
        if path.exists() and path.read_text() == page:
            continue
        stale.append(name)
        if "--check" not in sys.argv:
            path.write_text(page)
    for name in stale:
        click.echo(
            f"docs/reference/{name}: {'differs from the code' if '--check' in sys.argv else 'written'}"
        )
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
