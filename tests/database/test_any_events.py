"""Events in any order, repeated at will, with any words: each fact is kept once, and takes effect once."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.events import TAKEN, tell
from support.queue_sql import Db, Handed, claim, expire_leases, record, sign_up_many

WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
ADDRESSES = st.sampled_from(
    [
        "zoe@example.com",
        "ZOE@Example.com",
        "max@bücher.example",
        "max@xn--bcher-kva.example",
        "",
        "nobody",
        "a@b@c",
    ]
)
SAID = ("kind", "message_id", "recipient", "at", "type", "subtype", "status", "diagnostic")
EVENTS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from([*TAKEN, "rejected", "rendering_failed"]),
        "message_id": st.sampled_from(["", "m-1", "m-2"]) | WORDS,
        "recipient": ADDRESSES | WORDS,
        "at": st.sampled_from(["2026-01-01T00:00:00Z", "2026-01-01T00:00:00.5Z"]),
        "type": st.sampled_from(["", "permanent", "transient", "undetermined"]),
    },
    optional={
        "subtype": WORDS,
        "status": WORDS,
        "diagnostic": WORDS,
        "token": st.integers(-3, 3) | st.integers(-(2**63), 2**63 - 1),
        "fingerprint": st.binary(min_size=8, max_size=8).map(bytes.hex),
        "attempt": st.integers(0, 3),
    },
)
UNTIMED = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])


def fact(event: dict[str, Any]) -> tuple[Any, ...]:
    """What makes an event another one."""
    return tuple(event.get(name, "") for name in SAID)


def suppresses(event: dict[str, Any]) -> bool:
    if event["recipient"].count("@") != 1 or not all(event["recipient"].split("@")):
        return False
    return event["kind"] == "complained" or (event["kind"], event["type"]) == ("bounced", "permanent")


def cut(events: list[dict[str, Any]], places: list[int]) -> Iterator[list[dict[str, Any]]]:
    """The events in batches."""
    for first, last in pairwise(sorted({0, len(events), *(place % (len(events) + 1) for place in places)})):
        yield events[first:last]


def test_each_fact_is_kept_once_and_takes_effect_once(db: Db) -> None:
    @UNTIMED
    @given(st.lists(EVENTS, min_size=1, max_size=8), st.randoms(), st.lists(st.integers(0, 99), max_size=4))
    def once(events: list[dict[str, Any]], chance: random.Random, places: list[int]) -> None:
        db.execute("TRUNCATE mailroom.events, mailroom.suppressions")
        repeated = events + chance.choices(events, k=len(events))
        chance.shuffle(repeated)
        answers = list(chain.from_iterable(tell(db, *batch) for batch in cut(repeated, places)))
        assert [event["kind"] for event in repeated] == [kind for kind, _, _ in answers]
        firsts: set[tuple[Any, ...]] = set()
        for event, (_, is_new, _) in zip(repeated, answers, strict=True):
            assert is_new == (fact(event) not in firsts)
            firsts.add(fact(event))
        assert [(len(firsts),)] == db.execute("SELECT count(*) FROM mailroom.events").fetchall()
        addresses = [event["recipient"] for event in events if suppresses(event)]
        for address in addresses:
            assert [(True,)] == db.execute("SELECT mailroom.suppressed(%s) IS NOT NULL", [address]).fetchall()
        ((forms,),) = db.execute(
            "SELECT count(DISTINCT mailroom.normal_address(a)) FROM unnest(%s::text[]) a", [addresses]
        ).fetchall()
        assert [(forms,)] == db.execute("SELECT count(*) FROM mailroom.suppressions").fetchall()

    once()


def test_each_lost_answer_is_settled_once_whatever_comes_first(db: Db) -> None:
    """A mail whose answer was lost is mailed again if, and only if, no event says that SES took it."""

    @settings(UNTIMED, max_examples=15)
    @given(
        st.lists(st.sampled_from([*TAKEN, "rejected"]), max_size=3),
        st.lists(st.sampled_from(["sent", "unknown", "transient"]), min_size=4, max_size=4),
        st.randoms(),
    )
    def settles(kinds: list[str], results: list[str], chance: random.Random) -> None:
        db.execute("TRUNCATE accounts, mailroom.deliveries, mailroom.events, mailroom.suppressions CASCADE")
        db.execute("TRUNCATE mailroom.leases")
        sign_up_many(db, len(results))
        (lease,) = claim(db)
        steps: list[Callable[[], object]] = [
            lambda: record(
                db,
                lease,
                dict(zip(lease.tokens, results, strict=True)),
                message_ids={token: f"m-{token}" for token in lease.tokens},
            )
        ]
        for number in range(len(results)):
            steps += [partial(tell, db, _about(lease, number, kind)) for kind in kinds]
        chance.shuffle(steps)
        for step in steps:
            step()
        expire_leases(db)
        again = {token for handed in claim(db) for token in handed.tokens}
        was_taken = bool(set(kinds) & set(TAKEN))
        expected = {
            token
            for token, result in zip(lease.tokens, results, strict=True)
            if result != "sent" and not was_taken
        }
        assert expected == again
        sent = Counter(
            token for (token,) in db.execute("SELECT token FROM mailroom.deliveries WHERE outcome = 'sent'")
        )
        assert set(sent.values()) <= {1}

    settles()


def _about(lease: Handed, number: int, kind: str) -> dict[str, Any]:
    """An event about one mail of a lease."""
    return {
        "kind": kind,
        "message_id": f"m-{lease.tokens[number]}",
        "recipient": "",
        "at": "2026-01-01T00:00:00Z",
        "token": lease.tokens[number],
        "fingerprint": lease.fingerprints[number].hex(),
        "attempt": lease.generation,
    }


@pytest.mark.slow
def test_thousands_of_events_a_second(db: Db, figures: Callable[[str], None]) -> None:
    """Half of them are repetitions. The bound is for a machine that others use; see docs/benchmarks.md."""
    sign_up_many(db, 5000)
    db.execute(
        "INSERT INTO mailroom.deliveries (token, fingerprint, attempt, outcome, message_id, recipient)"
        " SELECT id, mailroom.fingerprint(secret), 1, 'sent', 'm-' || id, email FROM tokens"
    )
    mailed = db.execute(
        "SELECT token, encode(fingerprint, 'hex'), recipient FROM mailroom.deliveries"
    ).fetchall()
    events = [
        {"kind": kind, "message_id": f"m-{token}", "recipient": email, "at": "2026-01-01T00:00:00Z"}
        | {"token": token, "fingerprint": mark, "attempt": 1}
        for token, mark, email in mailed
        for kind in ("sent", "delivered")
    ]
    events += events
    random.Random(1).shuffle(events)
    began = time.monotonic()
    answers = [tell(db, *events[first : first + 1000]) for first in range(0, len(events), 1000)]
    rate = len(events) / (time.monotonic() - began)
    figures(f"{rate:,.0f} events a second over one connection, half of them repeated")
    assert len(mailed) * 2 == sum(is_new for each in answers for _, is_new, _ in each)
    assert rate > 500
