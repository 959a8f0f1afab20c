"""Compares what it costs the producers to enqueue the job in the transaction of a sign-up.

pgbench's clients each insert one account per transaction, as fast as they can; the trigger on accounts adds
the token, and the trigger on tokens enqueues the job, or is Mailroom's own. The bare insert has an empty
body. No worker runs. The databases take turns for several rounds, and the median of each counts.
"""

from __future__ import annotations

from statistics import median
from typing import Any, Final

from bench import database
from bench.options import Options
from bench.peers.queues import Adapter, Peer, Queues, install
from bench.producers import SIGN_UP, prepare, run_clients
from bench.results import Rows
from bench.tell import tell

CLIENTS: Final = (8, 64)
BARE: Final = "the insert alone"
OURS: Final = "Mailroom"


def measure(options: Options) -> dict[str, Any]:
    """A row for each queue, with the rate of each number of clients."""
    seconds, rounds = options.sized((3, 3), (1, 1))
    rates: dict[tuple[int, str], list[float]] = {}
    queues = Queues()
    with database.durable() as server:
        script = server.folder / "sign_up.sql"
        script.write_text(SIGN_UP)
        script.chmod(0o644)
        names = {BARE: "bare", OURS: "ours"}
        prepare(database.make(server, "bare"), "empty")
        database.make(server, "ours")

        def make_one(peer: Peer, adapter: Adapter) -> Rows:
            queue = peer.name.partition(",")[0]  # the loops of SKIP LOCKED have the same producers
            if queue not in names:
                name = f"peer{len(names)}"
                install(database.make(server, name), adapter)
                names[queue] = name
            return []

        for _ in queues.measured(make_one):
            pass
        for number in range(rounds):
            # The order rotates, since writes that one leaves behind slow down the next.
            turn = number % len(names)
            for clients in CLIENTS:
                for name in [*names][turn:] + [*names][:turn]:
                    rate, _ = run_clients(server, names[name], clients, seconds, script)
                    rates.setdefault((clients, name), []).append(rate)
                tell(
                    f"{clients} clients: "
                    + ", ".join(f"{name} {rates[clients, name][-1]:,.0f}" for name in names)
                )
    rows = [{"name": name} | columns(rates, name) for name in names]
    return {"seconds": seconds, "rounds": rounds, "missing": queues.missing, "rows": rows}


def columns(rates: dict[tuple[int, str], list[float]], name: str) -> dict[str, Any]:
    """The rates of a queue, and their ratios to the bare insert's of the same round."""
    found: dict[str, Any] = {}
    for clients in CLIENTS:
        pairs = zip(rates[clients, name], rates[clients, BARE], strict=True)
        found[f"commits_per_s_{clients}"] = round(median(rates[clients, name]))
        found[f"ratio_{clients}"] = round(median(one / bare for one, bare in pairs), 3)
    return found
