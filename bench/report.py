"""Writes docs/benchmarks.md from the results and report.md."""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import Final

from bench import results
from bench.ahead import ahead
from bench.promises import behind, promised
from bench.results import load, rows
from bench.soak.report import section
from bench.tables import HEADINGS, column, markdown, table
from bench.tell import tell

TEMPLATE: Final = Path(__file__).parent / "report.md"


def trials() -> str:
    """The rate of each tuning of a peer in its trial."""
    found = [
        {
            "name": row["name"],
            "tuning": ", ".join(f"{name} {value}" for name, value in trial["tuning"].items()),
            "jobs_per_s": trial["jobs_per_s"],
        }
        for row in rows("peers")
        for trial in row.get("trials", [])
    ]
    return markdown(
        [column("worker", "name"), column("tuning", "tuning"), column("jobs/s", "jobs_per_s")], found
    )


def machine() -> str:
    """The machine of the latest result."""
    found = [result for name in HEADINGS if (result := load(name))]
    if not found:
        return "nothing, so far"
    latest = max(found, key=lambda one: str(one["at"]))
    facts = latest["machine"]
    server = facts["postgresql"]
    commits = sorted({one["machine"]["commit"] for one in found})
    return (
        f"{facts['cores']} cores ({facts['cpu']}), {facts['memory_gb']} GB, {facts['system']};"
        f" Python {facts['python']}; PostgreSQL {server['server_version']} with fsync {server['fsync']},"
        f" synchronous_commit {server['synchronous_commit']}, full_page_writes {server['full_page_writes']},"
        f" shared_buffers {server['shared_buffers']}; Mailroom at {', '.join(commits)};"
        f" the latest on {latest['at'][:10]}"
    )


def versions() -> str:
    found = load("peers")
    return ", ".join(found["result"]["versions"]) if found else ""


def figure(name: str, alternative: str) -> str:
    return (
        f"![{alternative}](benchmarks/{name}.svg)" if (results.files.plots / f"{name}.svg").exists() else ""
    )


def sized(name: str, key: str) -> str:
    found = load(name)
    return f"{found['result'][key]:,}" if found else "…"


def write() -> None:
    """Draw the plots and make the document."""
    try:
        from bench import plots

        plots.draw()
    except ImportError:
        tell("no plots: matplotlib is not installed; `make bench` installs it")
    drained = load("drain")
    values = {f"table_{name}": table(name) for name in HEADINGS} | {
        "machine": machine(),
        "promised": promised(),
        "behind": behind(),
        "ahead": ahead(),
        "trials": trials(),
        "soaks": section(),
        "versions": versions(),
        "help_ms": f"{drained['result']['help_s'] * 1000:.0f}" if drained else "…",
        "drain_tokens": sized("drain", "tokens"),
        "peer_jobs": sized("peers", "jobs"),
        "peer_mails": sized("peers_sending", "mails"),
        "peer_patience_s": sized("peers_sending", "patience_s"),
        "deep_tokens": sized("deep", "tokens"),
        "snapshot_tokens": sized("snapshot", "tokens"),
        "snapshot_rounds": sized("snapshot", "rounds"),
        "recipients": sized("sending", "recipients"),
        "plot_drain": figure("drain", "The collector's rate at three limits, beside a fifth of COPY's"),
        "plot_peers": figure("peers", "Jobs per second of each queue, on a logarithmic scale"),
        "plot_producers": figure("producers", "Commits per second of 1, 8 and 64 clients with each trigger"),
        "plot_latency": figure("latency", "Percentiles of the latency"),
        "plot_tablesize": figure("tablesize", "The cost of a claim against the size of the table"),
        "plot_soak": figure("soak", "Mails, memory, connections and tables over each soak, with its faults"),
        "plot_deep": figure("deep", "Claim time and memory while a deep queue drains"),
    }
    text = Template(TEMPLATE.read_text()).substitute(values)
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    results.files.document.parent.mkdir(exist_ok=True, parents=True)
    results.files.document.write_text(text)
    tell(f"wrote {results.files.document}")
