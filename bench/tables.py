"""The results as Markdown tables: columns and labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from bench.results import load, rows


class Column(NamedTuple):
    """A column of a table: its head, and the function that makes its cell from a row."""

    head: str
    cell: Callable[[Mapping[str, Any]], object]


def column(head: str, key: str, form: str = "") -> Column:
    return Column(
        head, lambda row: "" if row.get(key) is None else format(row[key], form or default_form(row[key]))
    )


def default_form(value: object) -> str:
    return ",d" if isinstance(value, int) and not isinstance(value, bool) else ""


HEADINGS: Final = {
    "drain": "Draining a backlog",
    "peers": "Compared with other queues on PostgreSQL",
    "peers_latency": "Other queues: from the commit to the start of the job",
    "peers_producers": "Other queues: the producers' cost",
    "peers_sending": "Other queues: the whole job",
    "reference": "Compared with the reference",
    "producers": "Effect on producers",
    "adopted": "An adopted table",
    "latency": "From the commit to the line",
    "lanes": "A recovery beside an import",
    "memory": "Memory",
    "tablesize": "Claims in a large table",
    "snapshot": "A held snapshot",
    "deep": "A deep queue",
    "sending": "Sending",
    "events": "SES's events",
}
VARIANTS: Final = {
    "empty": "empty body",
    "nobody": "Mailroom, no collector",
    "draining": "Mailroom, collector draining",
    "asleep": "Mailroom, collector asleep for good",
    "notify": "plain NOTIFY",
}
COLUMNS: Final[dict[str, list[Column]]] = {
    "drain": [
        Column("`MAILROOM_BATCH_LIMIT`", lambda row: row["limit"]),
        column("tokens/s", "tokens_per_s"),
        column("`COPY` rows/s", "copy_rows_per_s"),
        column("share of `COPY` at 1000", "ratio_at_1000", ".2f"),
        column("peak memory, MB", "peak_mb", ".0f"),
    ],
    "peers": [
        column("worker", "name"),
        column("tuning", "tuning"),
        column("jobs/s", "jobs_per_s"),
        Column(
            "Mailroom at limit 10 is faster by",
            lambda row: f"{row['ours_over_it']} ×" if "ours_over_it" in row else "",
        ),
    ],
    "peers_latency": [
        column("worker", "name"),
        column("tuning", "tuning"),
        column("alone: p50, ms", "quiet_p50_ms", ".2f"),
        column("p99, ms", "quiet_p99_ms", ".2f"),
        column("p50, to Mailroom's", "quiet_ratio", ".2f"),
        column("at 100/s: p50, ms", "busy_p50_ms", ".2f"),
        column("p99, ms ", "busy_p99_ms", ".2f"),
        column("p50, to Mailroom's ", "busy_ratio", ".2f"),
    ],
    "peers_producers": [
        column("the transaction enqueues for", "name"),
        column("8 clients: commits/s", "commits_per_s_8"),
        column("ratio to the insert alone", "ratio_8", ".2f"),
        column("64 clients: commits/s", "commits_per_s_64"),
        column("ratio to the insert alone ", "ratio_64", ".2f"),
    ],
    "peers_sending": [
        column("worker", "name"),
        column("tuning", "tuning"),
        column("recipients/s", "recipients_per_s"),
        column("CPU of 1,000, s", "cpu_s_per_1000", ".2f"),
        column("CPU, to `run` at limit 10", "cpu_ratio", ".2f"),
        column("calls", "calls"),
        column("throttled", "throttled"),
        column("sent twice", "duplicates"),
        column("not sent", "left"),
        column("last mail after the kill, s", "whole_after_s", ".0f"),
    ],
    "reference": [
        Column("`MAILROOM_BATCH_LIMIT`", lambda row: row["limit"]),
        column("Mailroom, tokens/s", "mailroom_per_s"),
        column("the reference, tokens/s", "reference_per_s"),
        Column("ratio", lambda row: f"{row['ratio']} ×" if row["ratio"] else "it printed nothing"),
    ],
    "producers": [
        column("clients", "clients"),
        Column("trigger on tokens", lambda row: VARIANTS[row["variant"]]),
        column("commits/s", "commits_per_s"),
        column("ratio to the empty body", "ratio", ".2f"),
        Column(
            "handed out meanwhile",
            lambda row: "" if row["drained"] is None else f"{row['drained']:.1%}",
        ),
    ],
    "adopted": [
        Column(
            "what", lambda row: f"{row['what']}, {row['unit']}" if row["unit"] != "commits/s" else row["what"]
        ),
        column("the table alone", "alone"),
        column("adopted", "adopted"),
        column("ratio", "ratio", ".2f"),
    ],
    "latency": [
        Column("until", lambda row: row["what"]),
        column("sign-ups/s", "per_s"),
        column("p50, ms", "p50_ms", ".2f"),
        column("p95, ms", "p95_ms", ".2f"),
        column("p99, ms", "p99_ms", ".2f"),
        column("worst, ms", "max_ms", ".2f"),
        column("the commit itself, p50, ms", "commit_p50_ms", ".2f"),
    ],
    "lanes": [
        Column("command", lambda row: f"`mailroom {row['command']}`"),
        column("recoveries", "recoveries"),
        column("p50, ms", "p50_ms"),
        column("worst, ms", "max_ms"),
        column("mails/s of 100", "mails_per_s", ".1f"),
    ],
    "memory": [
        Column("command", lambda row: f"`mailroom {row['command']}`"),
        column("transport", "transport"),
        column("backlog", "backlog"),
        column("peak, MB", "peak_mb", ".0f"),
        column("afterwards, MB", "after_mb", ".0f"),
        column("connections", "connections"),
        column("CPU of the start, s", "start_cpu_s", ".2f"),
    ],
    "tablesize": [
        column("tokens in the table", "tokens"),
        column("1,000 from a backlog, ms", "backlog_ms", ".2f"),
        column("ratio to the smallest", "backlog_ratio", ".2f"),
        column("pages", "backlog_pages"),
        column("a single token, ms", "single_ms", ".3f"),
        column("ratio to the smallest ", "single_ratio", ".2f"),
        column("pages ", "single_pages"),
    ],
    "snapshot": [
        Column("command", lambda row: f"`mailroom {row['command']}`"),
        Column("snapshot", lambda row: "held" if row["held"] else "none"),
        column("tokens/s", "tokens_per_s"),
        column("ratio, held to none", "ratio", ".2f"),
        column("claim of 1,000, first third, ms", "claim_ms_first", ".1f"),
        column("last third, ms", "claim_ms_last", ".1f"),
        column("dead rows", "dead"),
        column("queue's tables, kB", "queue_kb"),
    ],
    "deep": [
        Column("command", lambda row: f"`mailroom {row['command']}`"),
        column("tokens/s", "tokens_per_s"),
        column("claim of 1,000, first quarter, ms", "claim_ms_first", ".1f"),
        column("last quarter, ms", "claim_ms_last", ".1f"),
        column("memory, first quarter, MB", "rss_mb_first", ".1f"),
        column("last quarter, MB", "rss_mb_last", ".1f"),
    ],
    "events": [
        column("events", "events"),
        column("events/s", "events_per_s"),
        column("CPU of each, µs", "cpu_us"),
        column("peak memory, MB", "peak_mb"),
    ],
    "sending": [
        column("recipients per line", "per_line"),
        column("calls in flight", "in_flight"),
        column("recipients/s", "recipients_per_s"),
        column("CPU per recipient, µs", "cpu_us_per_recipient"),
        column("recipients per CPU second", "recipients_per_cpu_s"),
        column("peak memory, MB", "peak_mb", ".0f"),
    ],
}
LATENCY: Final = [
    column("at limit 1", "name"),
    column("p50, ms", "p50_ms"),
    column("p99, ms", "p99_ms"),
    column("worst, ms", "max_ms"),
]


def table(name: str) -> str:
    """A result as Markdown."""
    found = load(name)
    if not found:
        return f'Not measured: `make bench ARGS="--only {name}"`.'
    missing = found["result"].get("missing", {})
    left_out = [{"name": one, "tuning": f"not measured: {why}"} for one, why in missing.items()]
    text = markdown(COLUMNS[name], [*rows(name), *left_out])
    if name == "reference":
        text += "\n\n" + markdown(LATENCY, found["result"]["latency"])
    if found["quick"]:
        text += "\n\n*Small sizes (`--quick`): a smoke test, not a result.*"
    return text


def markdown(columns: list[Column], rows: Iterable[Mapping[str, Any]]) -> str:
    lines = [
        "| " + " | ".join(one.head.strip() for one in columns) + " |",
        "|" + "---|" * len(columns),
    ]
    lines += ["| " + " | ".join(str(one.cell(row)) for one in columns) + " |" for row in rows]
    return "\n".join(lines)
