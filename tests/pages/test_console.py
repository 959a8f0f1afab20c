"""The queue's page over HTTP, on a real database: what it shows, what it hides, what it lets one do."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from html import unescape
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from psycopg import sql

from mailroom.console.chart import draw, scale
from mailroom.console.ledger import KEPT, MAX_COUNTED, STEP_S, Interval, Traffic, recent
from mailroom.console.pages import DECIDED, LOOKS
from mailroom.console.server import ConsoleError, ConsoleServer
from mailroom.console.snapshot import FRESH_S, Snapshot, Snapshots
from mailroom.demo.postgres import PostgresServer
from mailroom.errors import DatabaseError
from mailroom.operations.verdicts import Outcome, StoryVerdict
from mailroom.settings.collector import QueueSettings
from support import commands
from support.events import event, hand_out, send, tell, unrendered
from support.inbox import HttpAnswer, ask
from support.processes import PATIENCE_S, environment, without
from support.proxy import Proxy
from support.queue_sql import Db, claim, record, record_all, reserve, sign_up, sign_up_many

HOSTILE = "<script>alert(1)</script>"
FORM = {"content_type": "application/x-www-form-urlencoded"}


def settings(url: str) -> QueueSettings:
    return QueueSettings(url, "token_insert")


@pytest.fixture
def console(database: str) -> Iterator[ConsoleServer]:
    with ConsoleServer(settings(database)) as server:
        yield server


def page(server: ConsoleServer, path: str = "/") -> str:
    answer = ask(server.url, path)
    assert 200 == answer.status, answer.text
    return answer.text


def text(html: str) -> str:
    """What a reader sees, on one line."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def part(html: str, name: str) -> str:
    """From the part of this name on to the next."""
    return re.split(r"data-part", html.split(f'id="{name}"')[1])[1]


def tiles(server: ConsoleServer) -> dict[str, str]:
    found = re.findall(
        r'<dt>(.*?)</dt><dd class="value">(\S+?)[< ].*?<dd class="below">(.*?)</dd>', page(server)
    )
    return {name: f"{value} {below}" for name, value, below in found}


def post(server: ConsoleServer, path: str, body: str = "", **headers: str) -> HttpAnswer:
    return ask(server.url, path, "POST", body, **(FORM | headers))


def test_the_picture_counts_what_there_is(db: Db, console: ConsoleServer) -> None:
    sign_up_many(db, 3, "sent")
    record_all(db, "sent", message_id="0100-abc")
    sign_up(db, "refused")
    record_all(db, "rejected", detail="suppressed")
    sign_up_many(db, 2, "again")
    record_all(db, "unknown")
    sign_up(db, "held")
    claim(db)
    sign_up_many(db, 4, "waiting")
    db.execute("UPDATE tokens SET created_at = created_at - interval '3 minutes' WHERE id = 8")
    reserve(db, 1, 14)
    db.execute("SELECT mailroom.heartbeat('w1', '0.1', '')")
    db.execute("SELECT mailroom.heartbeat('w2', '0.1', 'throttled by to@example.com')")
    assert {
        "Waiting": "4 4 normal",
        "In flight": "1 claimed by a worker",
        "Retrying": "2 to be sent again",
        "Oldest": "3 not settled yet",
        "Sent": "3 3 in the last hour",
        "Rejected": "1 1 in the last hour",
        "Unknown": "2 2 in the last hour",
        "Dead": "1 to decide on",
    } == tiles(console)
    shown = text(page(console))
    assert "Workers in trouble" in shown
    assert ", limit 14 ·" in shown
    assert re.search(r"w1 up \d s · nothing in hand · 0.1", shown)
    assert "throttled by t…@example.com since" in shown
    assert "In the last 10 minutes 3 sent, 2 retried, 1 rejected, 0 expired or skipped" in page(console)
    assert "Dead letters 1" in shown


@pytest.mark.parametrize(
    ("rate", "shown"),
    [(1_000_000, ""), (999_999, ", limit 999,999"), (14, ", limit 14"), (0.5, ", limit 0.5")],
)
def test_the_limit_is_shown_in_whole_numbers_where_there_is_one(
    db: Db, console: ConsoleServer, rate: float, shown: str
) -> None:
    reserve(db, 1, rate)
    found = text(page(console))
    assert (True, bool(shown)) == (f"{shown} ·" in found, ", limit " in found)


def test_an_empty_queue_is_calm(console: ConsoleServer) -> None:
    shown = text(page(console))
    assert "All sent" in shown
    assert "No worker reported in the last hour." in shown
    assert "No deliveries yet." in shown
    assert "No worker:" not in shown


def test_mail_without_a_worker_is_reported(db: Db, console: ConsoleServer) -> None:
    sign_up_many(db, 2)
    shown = text(page(console))
    assert "No worker: 2 tokens to be mailed, and no `mailroom run` is alive" in shown


def test_deliveries_are_masked_unless_asked_for(db: Db, console: ConsoleServer) -> None:
    token = sign_up(db, HOSTILE.replace("alert(1)", "1"))
    db.execute("UPDATE accounts SET login = %s, email = 'zoe.quiet@example.com'", [HOSTILE])
    record_all(db, "transient", detail="<b>no</b> mailbox zoe.quiet@example.com \x1b[31m")
    row = db.execute("SELECT encode(secret, 'hex'), code FROM tokens").fetchone()
    assert row
    for path in ("/", "/live", "/?outcome=retried"):
        html = page(console, path)
        assert "zoe.quiet" not in html
        assert "z…@example.com" in html
        assert "SES: &lt;b&gt;no&lt;/b&gt; mailbox z…@example.com  [31m" in html.replace("</span>", "")
        assert HOSTILE not in html
        assert html.count("<script") == (0 if path == "/live" else 1)
    shown = page(console, "/?addresses=1")
    assert "zoe.quiet@example.com" in shown
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown
    assert HOSTILE not in shown
    # The toggle is one view's: nothing remembers it.
    assert "set-cookie" not in ask(console.url, "/?addresses=1").headers
    assert "zoe.quiet" not in page(console)
    for path in ("/?addresses=1", f"/why?who={token}", "/dead"):
        html = page(console, path)
        assert row[0] not in html
        assert not re.search(rf"\b{row[1]}\b", html)


def test_deliveries_are_paged_and_filtered(db: Db, console: ConsoleServer) -> None:
    db.execute(
        "INSERT INTO mailroom.deliveries (token, attempt, outcome, result)"
        " SELECT g, 1, CASE WHEN g = 3 THEN 'rejected' ELSE 'sent' END, 'sent' FROM generate_series(1, 120) g"
    )
    seen: list[str] = []
    path = "/?addresses=1"
    while path:
        html = page(console, path)
        seen += re.findall(r'<tr role="row" data-id="(\d+)">', html)
        older = re.search(r'href="([^"]*)">Older', html)
        path = unescape(older[1]) if older else ""
        assert not path or "addresses=1" in path
    assert [str(number) for number in range(120, 0, -1)] == seen
    html = page(console, "/?outcome=rejected")
    assert ["3"] == re.findall(r'<tr role="row" data-id="(\d+)">', html)
    assert "Older</a>" not in html
    assert "No such deliveries." in page(console, "/?outcome=unknown")
    for wrong in ("/?outcome=other", "/?before=0", "/?before=x", f"/?before={2**63}", "/live?before=-1"):
        assert 404 == ask(console.url, wrong).status, wrong


def test_what_is_rare_is_looked_for_a_stretch_at_a_time(db: Db) -> None:
    db.execute(
        "INSERT INTO mailroom.deliveries (token, attempt, outcome)"
        " SELECT g, 1, CASE WHEN g = 5 THEN 'expired' ELSE 'sent' END FROM generate_series(1, 45000) g"
    )
    first = recent(db, "expired", None)
    assert ((), 25_001) == (first.rows, first.older)
    second = recent(db, "expired", first.older)
    assert ((), 5001) == (second.rows, second.older)
    third = recent(db, "expired", second.older)
    assert ([5], None) == ([row.token for row in third.rows], third.older)
    assert 50 == len(recent(db, "sent", 46_000_000).rows)


def test_the_story_of_a_mail(db: Db, console: ConsoleServer) -> None:
    token = sign_up(db, "zoe")
    record_all(db, "sent", message_id="0100-abc")
    assert f'href="/why?who={token}"' in page(console)
    for who in ("zoe", "ZOE%40example.com", str(token)):
        shown = text(page(console, f"/why?who={who}"))
        assert f"sent Token {token} , activation SES accepted it at" in shown
        assert "For zoe <z…@example.com>, whose account is provisioned." in shown
        assert "attempt 1, w: sent by SES as 0100-abc" in shown
    assert "no account or token matches 'nobody'" in text(page(console, "/why?who=nobody"))
    assert "Find a mail" in page(console, "/why?who=%00")
    assert HOSTILE not in page(console, f"/why?who={HOSTILE}")


def test_every_outcome_has_its_page(db: Db, console: ConsoleServer) -> None:
    allowed = db.execute(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'deliveries_outcome_check'"
    ).fetchall()
    assert set(Outcome) == set(re.findall(r"'(\w+)'", allowed[0][0]))
    tokens = {outcome: sign_up(db, outcome) for outcome in Outcome}
    for outcome, token in tokens.items():
        db.execute(
            "INSERT INTO mailroom.deliveries (token, attempt, outcome) VALUES (%s, 1, %s)", [token, outcome]
        )
    for path in ("/", "/live", "/?before=9", "/dead"):
        page(console, path)
    for outcome, token in tokens.items():
        for path in ("/", "/live"):
            assert f"/why?who={token}" in page(console, f"{path}?outcome={outcome}")
        assert outcome in text(page(console, f"/why?who={token}"))


def test_every_verdict_has_its_page(db: Db, console: ConsoleServer) -> None:
    tokens = {verdict: sign_up(db, verdict.replace(" ", "-")) for verdict in StoryVerdict}
    held = claim(db, 100)
    assert list(tokens.values()) == [token for lease in held for token in lease.tokens]
    db.execute("DELETE FROM mailroom.leases")
    for verdict, row in {
        StoryVerdict.SENT: ("sent", "", ""),
        StoryVerdict.UNSETTLED: ("retried", "transient", ""),
        StoryVerdict.REJECTED: ("rejected", "rejected", ""),
        StoryVerdict.NOT_SENT: ("skipped", "", "suspended"),
        StoryVerdict.RENEWED: ("skipped", "by hand", "renewed as token 9"),
        StoryVerdict.DROPPED: ("skipped", "by hand", "dropped by hand"),
        StoryVerdict.SUPPRESSED: ("suppressed", "", "bounced"),
        StoryVerdict.RETRYING: ("retried", "transient", ""),
    }.items():
        db.execute(
            "INSERT INTO mailroom.deliveries (token, attempt, outcome, result, detail)"
            " VALUES (%s, 1, %s, %s, %s)",
            [tokens[verdict], *row],
        )
    db.execute(
        "UPDATE tokens SET send_at = now() + interval '1 hour' WHERE id = %s",
        [tokens[StoryVerdict.SCHEDULED]],
    )
    for verdict, worker in (
        (StoryVerdict.IN_FLIGHT, "w"),
        (StoryVerdict.RETRYING, ""),
        (StoryVerdict.SCHEDULED, "scheduled"),
    ):
        db.execute(
            "INSERT INTO mailroom.leases (lane, tokens, worker, generation, due_at)"
            " VALUES ('normal', ARRAY[%s::bigint], %s, 1, now() + interval '1 hour')",
            [tokens[verdict], worker],
        )
    for verdict in (
        StoryVerdict.DELIVERED,
        StoryVerdict.DELAYED,
        StoryVerdict.BOUNCED,
        StoryVerdict.COMPLAINED,
    ):
        db.execute(
            "INSERT INTO mailroom.deliveries (token, attempt, outcome, message_id)"
            " VALUES (%s, 1, 'sent', %s)",
            [tokens[verdict], verdict],
        )
        tell(db, event(verdict, message_id=verdict))
    tokens[StoryVerdict.WAITING] = sign_up(db, "waiting-again")
    shown = {
        verdict: re.findall(
            r'<span class="badge [a-z]*">([a-z ]+)</span>', page(console, f"/why?who={token}")
        )
        for verdict, token in tokens.items()
    }
    assert {verdict: [verdict] for verdict in StoryVerdict} == shown


def test_every_decision_is_shown(db: Db, console: ConsoleServer) -> None:
    for decision in DECIDED:
        assert "Token 7:" in text(page(console, f"/dead?decided=7.{decision.replace(' ', '-')}"))


def test_every_badge_has_a_look() -> None:
    assert {*Outcome, *StoryVerdict} == set(LOOKS)


def test_pause_and_resume(db: Db, console: ConsoleServer) -> None:
    assert 400 == post(console, "/pause", "reason=+").status
    answer = post(console, "/pause", "reason=a+wrong+%3Cb%3Etemplate")
    assert (303, "/") == (answer.status, answer.headers["location"])
    assert [("a wrong <b>template",)] == db.execute("SELECT pause_reason FROM jobs").fetchall()
    html = page(console)
    assert "a wrong &lt;b&gt;template" in html
    assert re.search(r"Paused since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC : a wrong", text(html))
    assert 'action="/resume"' in html
    assert 'action="/pause"' not in html
    sign_up(db, "zoe")
    assert "waiting" in text(page(console, "/why?who=zoe"))
    assert 303 == post(console, "/resume").status
    assert [(None,)] == db.execute("SELECT pause_reason FROM jobs").fetchall()
    assert 'action="/pause"' in page(console)
    assert 405 == ask(console.url, "/pause").status


def test_dead_letters_are_retried_renewed_and_dropped(db: Db, console: ConsoleServer) -> None:
    first, second, third = (sign_up(db, name) for name in ("a", "b", "c"))
    record_all(db, "rejected", detail="blacklisted a@example.com")
    db.execute("UPDATE tokens SET expires_at = now() - interval '1 minute' WHERE id = %s", [second])
    html = page(console, "/dead")
    assert "blacklisted a…@example.com" in html
    assert [f"/dead/{third}/retry", f"/dead/{third}/drop"] == re.findall(
        rf'action="(/dead/{third}/.*?)"', html
    )
    assert [f"/dead/{second}/renew", f"/dead/{second}/drop"] == re.findall(
        rf'action="(/dead/{second}/.*?)"', html
    )
    told = []
    for token, deed in ((first, "retry"), (second, "renew"), (third, "drop"), (third, "drop")):
        answer = post(console, f"/dead/{token}/{deed}")
        assert 303 == answer.status
        told += re.findall(
            rf"Token {token}: (.*?) (?:Dead letters,|No dead)",
            text(page(console, answer.headers["location"])),
        )
    assert ["retried", "renewed as token 4", "dropped", "not a dead letter any more"] == told
    assert "No dead letters." in page(console, "/dead")
    assert [("by hand: in the console",)] == db.execute(
        "SELECT detail FROM mailroom.deliveries WHERE outcome = 'retried'"
    ).fetchall()
    for path in ("/dead/1/other", "/dead/x/drop", f"/dead/{'9' * 25}/drop"):
        assert 404 == post(console, path).status
    assert "Token" not in re.split("<section", page(console, "/dead?decided=1.Call+us"))[0]


def test_dead_letters_are_paged(db: Db, console: ConsoleServer) -> None:
    sign_up_many(db, 70)
    record_all(db, "rejected")
    html = page(console, "/dead")
    older = re.search(r'href="([^"]*)">Older', html)
    assert older
    rest = page(console, unescape(older[1]))
    assert (50, 20) == (html.count("/drop"), rest.count("/drop"))
    assert "Older</a>" not in rest
    for wrong in ("x", "2026-01-01_1", "2026-01-01T00:00:00Z_x", "_"):
        assert 404 == ask(console.url, f"/dead?before={wrong}").status


def test_read_only_shows_and_changes_nothing(db: Db, database: str) -> None:
    token = sign_up(db, "zoe")
    record_all(db, "rejected")
    with ConsoleServer(settings(database), read_only=True) as server:
        for path in ("/", "/dead", "/why?who=zoe"):
            assert 'method="post"' not in page(server, path)
        assert "read-only" in page(server)
        for path in ("/pause", "/resume", f"/dead/{token}/retry", f"/dead/{token}/drop"):
            answer = post(server, path, "reason=x")
            assert (403, True) == (answer.status, "read-only" in answer.text)
    assert [(None,)] == db.execute("SELECT paused_at FROM jobs").fetchall()
    assert [("rejected",)] == db.execute("SELECT outcome FROM mailroom.deliveries").fetchall()


def test_read_only_it_asks_nothing_that_writes_so_that_a_standby_will_do(db: Db, database: str) -> None:
    token = sign_up(db, "zoe")
    record_all(db, "rejected")
    name = sql.Identifier(db.info.dbname)
    db.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))
    with ConsoleServer(settings(database)) as server:
        assert "session is read-only" in page(server)
    with ConsoleServer(settings(database), read_only=True) as server:
        for path in ("/", "/?outcome=sent", "/?before=9", "/dead", f"/why?who={token}"):
            assert 'class="board"' in page(server, path)


def test_the_user_needs_the_functions_and_no_table(db: Db, database: str) -> None:
    token = sign_up(db, "zoe")
    record_all(db, "rejected")
    name = f"viewer_{db.info.dbname}"
    role = sql.Identifier(name)
    db.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
    try:
        db.execute(sql.SQL("GRANT USAGE ON SCHEMA mailroom TO {}").format(role))
        db.execute(sql.SQL("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA mailroom TO {}").format(role))
        url = psycopg.conninfo.make_conninfo(database, options=f"-c role={name}")
        with ConsoleServer(settings(url)) as server:
            for path in ("/", "/?before=9", "/dead", f"/why?who={token}"):
                assert 'class="board"' in page(server, path)
            for path in ("/pause", "/resume", f"/dead/{token}/retry"):
                assert 303 == post(server, path, "reason=x").status
    finally:
        db.execute(sql.SQL("DROP OWNED BY {}").format(role))
        db.execute(sql.SQL("DROP ROLE {}").format(role))


def test_nobody_may_call_the_functions_who_was_not_let(db: Db) -> None:
    found = db.execute(
        "SELECT p.proname FROM pg_proc p, aclexplode(p.proacl) x"
        " WHERE p.pronamespace = 'mailroom'::regnamespace AND x.grantee = 0 AND p.proname IN"
        " ('traffic', 'recent_deliveries', 'ledger_ends')"
    ).fetchall()
    assert [] == found


def test_another_sites_page_changes_nothing_and_sees_nothing(db: Db, console: ConsoleServer) -> None:
    for headers in ({"origin": "https://evil.example"}, {"sec_fetch_site": "cross-site"}):
        assert 403 == post(console, "/pause", "reason=x", **headers).status
    assert 421 == ask(console.url, "/", host="evil.example").status
    assert [(None,)] == db.execute("SELECT paused_at FROM jobs").fetchall()
    policy = ask(console.url, "/").headers
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy["content-security-policy"]
    assert ("no-referrer", "no-store") == (policy["referrer-policy"], policy["cache-control"])
    html = page(console)
    assert not re.search(
        r"<style|\sstyle=|\son\w+=|<script(?! src=\"/static/console.js\" defer></script>)", html
    )
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", html)


def test_whatever_is_asked_has_an_answer(console: ConsoleServer) -> None:
    assert 404 == ask(console.url, "/nothing").status
    assert 413 == post(console, "/pause", "reason=" + "x" * 20_000).status
    assert 400 == post(console, "/pause", b"\xff".decode("latin-1")).status
    assert 303 == post(console, "/pause", "reason=" + "%F0%9F%93%AE" * 600).status
    assert 200 == ask(console.url, "/why?who=%ff%fe%00" + "x" * 2000).status
    assert 200 == ask(console.url, "/static/console.js").status


@pytest.mark.slow
def test_many_viewers_cost_what_one_costs(console: ConsoleServer, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[None] = []
    take = Snapshots.take

    def counted(self: Snapshots, *arguments: Any) -> Snapshot:
        looks.append(None)
        return take(self, *arguments)

    monkeypatch.setattr(Snapshots, "take", counted)
    began = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: ask(console.url, "/live").status, range(300)))
    assert [200] * 300 == answers
    assert len(looks) - 1 <= time.monotonic() - began


@pytest.mark.slow
def test_whatever_it_asks_costs_no_more_with_a_long_ledger_and_backlog(db: Db) -> None:
    asked = [
        "mailroom.traffic('1 hour', 5, 1000)",
        "mailroom.recent_deliveries('expired', 3000, 1000, 51)",
        "mailroom.recent_deliveries(NULL, 3000, 9223372036854775807, 51)",
        "mailroom.ledger_ends()",
        "mailroom.pulse(1000)",
    ]

    def costs() -> list[int]:
        return [blocks(db, function) for function in asked]

    def more(count: int, login: str) -> None:
        sign_up_many(db, count, f"held{login}")
        claim(db, count, lease_tokens=50)
        sign_up_many(db, count, login)
        db.execute(
            "INSERT INTO mailroom.deliveries (token, attempt, outcome)"
            " SELECT g, 1, 'sent' FROM generate_series(1, %s) g",
            [count * 5],
        )

    more(2000, "few")
    few = costs()
    more(10_000, "many")
    for function, before, after in zip(asked, few, costs(), strict=True):
        assert after < 1.5 * before + 50, f"{function}: {before} blocks, then {after}"


def blocks(db: Db, function: str) -> int:
    """How many blocks a function looks at, when it is called again."""
    for _ in range(2):
        row = db.execute(
            f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT * FROM {function}".encode()
        ).fetchone()
    assert row
    plan = row[0][0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def test_the_oldest_is_found_in_leases_stragglers_and_behind_the_cursor(db: Db, database: str) -> None:
    def oldest() -> float | None:
        row = db.execute("SELECT oldest_unsettled FROM mailroom.pulse(10000)").fetchone()
        assert row
        return None if row[0] is None else float(row[0])

    def age(login: str, minutes: int) -> None:
        db.execute(
            "UPDATE tokens SET created_at = now() - %s * interval '1 minute'"
            " WHERE account = (SELECT id FROM accounts WHERE login = %s)",
            [minutes, login],
        )

    assert oldest() is None
    with psycopg.connect(database) as late:
        sign_up(late, "late")
        sign_up(db, "held")
        claim(db)
        age("held", 3)
        assert 180 <= (oldest() or 0) < 200
        sign_up(db, "new")
        db.execute("SELECT mailroom.pause('x')")
        age("new", 5)
        assert 300 <= (oldest() or 0) < 320
        late.execute("UPDATE tokens SET created_at = now() - interval '9 minutes' WHERE id = 1")
    assert 540 <= (oldest() or 0) < 560
    db.execute("SELECT mailroom.resume('c')")
    for lease in claim(db):
        db.execute("SELECT mailroom.settle(%s, %s, NULL)", [lease.lease, lease.key])
    assert 180 <= (oldest() or 0) < 200
    db.execute("DELETE FROM mailroom.leases")
    assert oldest() is None


def test_traffic_counts_by_the_interval_and_remembers(db: Db) -> None:
    db.execute(
        "INSERT INTO mailroom.deliveries (token, attempt, outcome, at)"
        " SELECT g, 1, o, now() - b * interval '1 second' FROM generate_series(1, 3) g,"
        " (VALUES ('sent', 0), ('retried', 20), ('unknown', 20), ('rejected', 300), ('expired', 3000),"
        "         ('skipped', 3000), ('sent', 7000)) v (o, b)"
    )
    traffic = Traffic()
    traffic.look(db, 100.0)
    hour = [each for each in traffic.last(KEPT) if each]
    assert KEPT == len(hour)
    assert (3, 3, 3, 3, 6) == (
        sum(each.sent for each in hour),
        sum(each.retried for each in hour),
        sum(each.unknown for each in hour),
        sum(each.rejected for each in hour),
        sum(each.dropped for each in hour),
    )
    assert {timedelta(seconds=STEP_S)} == {after.at - before.at for before, after in pairwise(hour)}
    assert 0 == hour[-1].at.timestamp() % STEP_S
    # What was counted is not counted again, and not forgotten.
    db.execute("ALTER TABLE mailroom.deliveries DISABLE TRIGGER ALL")
    db.execute("DELETE FROM mailroom.deliveries")
    db.execute("INSERT INTO mailroom.deliveries (token, attempt, outcome) VALUES (1, 1, 'rejected')")
    traffic.look(db, 101.0)
    hour = [each for each in traffic.last(KEPT) if each]
    assert (3, 4) == (sum(each.sent for each in hour), sum(each.rejected for each in hour))


def test_what_was_too_much_to_count_is_not_known() -> None:
    def at(back: int, sent: int = 0) -> Interval:
        start = datetime(2026, 1, 1, tzinfo=UTC)
        return Interval(start + timedelta(seconds=STEP_S * back), sent=sent)

    traffic = Traffic()
    traffic.learn([at(0), at(1, 7), at(2, MAX_COUNTED - 8), at(3, 1)])
    assert [None, None, MAX_COUNTED - 8, 1] == [each and each.sent for each in traffic.last(4)]
    # What was known stays, and counts never fall.
    traffic.learn([at(1), at(2, 5), at(3, MAX_COUNTED - 5), at(4), at(5)])
    assert [None, None, MAX_COUNTED - 8, MAX_COUNTED - 5, 0, 0] == [
        each and each.sent for each in traffic.last(6)
    ]
    drawn = draw(traffic.last(6), STEP_S)
    assert "M0 0h5v100h-5zM5 0h5v100h-5z" == drawn.gaps


def test_the_chart_stacks_and_scales() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    chart = draw([Interval(start, sent=3, retried=1, unknown=1), Interval(start, rejected=10)], 5)
    assert (10, 10) == (chart.top, chart.width)
    assert "M0 70h4v30h-4z" == chart.paths["sent"]
    assert "M0 50h4v20h-4z" == chart.paths["retried"]
    assert "M5 0h4v100h-4z" == chart.paths["rejected"]
    assert "" == chart.paths["dropped"]
    assert [4, 4, 4, 10, 20, 40, 100, 2000] == [scale(most) for most in (0, 1, 4, 5, 11, 21, 99, 1234)]


def test_an_outage_is_shown_the_picture_stays_and_it_comes_back(own_server: PostgresServer) -> None:
    url = own_server.url()
    with psycopg.connect(url, autocommit=True) as db:
        sign_up_many(db, 3)
    with ConsoleServer(settings(url)) as server:
        assert "3 3 normal" == tiles(server)["Waiting"]
        own_server.stop()
        wait_for(lambda: "The database does not answer" in page(server))
        html = page(server)
        assert "3 3 normal" == tiles(server)["Waiting"]
        assert 'class="board stale"' in html
        assert "The numbers below are from" in html
        for path in ("/why?who=u1", "/dead", "/?before=5"):
            answer = ask(server.url, path)
            assert (503, True) == (answer.status, "PostgreSQL" in answer.text)
        assert 503 == post(server, "/resume").status
        own_server.start()
        wait_for(lambda: "The database does not answer" not in page(server))
        assert 'class="board"' in page(server)


@pytest.mark.slow
def test_a_deaf_database_keeps_nobody_waiting(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailroom.console.snapshot.PATIENCE_S", 0.3)
    monkeypatch.setattr("mailroom.console.reader.LIMIT_S", 1.5)
    info = psycopg.conninfo.conninfo_to_dict(database)
    with Proxy(int(str(info["port"]))) as proxy:
        url = psycopg.conninfo.make_conninfo(database, host="127.0.0.1", port=proxy.port)
        with ConsoleServer(settings(url)) as server:
            assert "All sent" in page(server)
            proxy.go_deaf()
            wait_for(lambda: "PostgreSQL has not answered yet" in page(server))
            wait_for(lambda: "All sent" in page(server))


def test_it_starts_before_the_database_does(own_server: PostgresServer) -> None:
    url = own_server.url()
    own_server.stop()
    with ConsoleServer(settings(url)) as server:
        html = page(server)
        assert "The database does not answer" in html
        assert "Not known yet." in html
        own_server.start()
        wait_for(lambda: "All sent" in page(server))


def test_what_waiting_does_not_fix_is_an_error(empty_database: str) -> None:
    with pytest.raises(DatabaseError) as caught, ConsoleServer(settings(empty_database)):
        pass
    assert "mailroom migrate up" in caught.value.hint


def test_a_taken_port_is_an_error_with_a_remedy(database: str) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConsoleError, match=r"cannot listen on 127\.0\.0\.1") as caught,
        ConsoleServer(settings(database), port=taken.getsockname()[1]),
    ):
        pass
    assert (69, "choose another with --port, or stop the process that listens there") == (
        caught.value.exit_code,
        caught.value.hint,
    )


@pytest.mark.parametrize("package", ["uvicorn", "starlette", "jinja2"])
def test_without_the_extra_it_says_so(database: str, package: str) -> None:
    done = without(package, "console", "--port", "0", variables=environment(database))
    assert 69 == done.returncode
    assert f"the package {package} is not installed\n" in done.stderr
    assert "mailroom-postgresql[http]" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_says_where_it_is_and_ends_in_order(database: str, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "mailroom", "console", "--port", "0"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(database),
    )
    try:
        assert process.stdout
        line = process.stdout.readline()
        found = re.fullmatch(r"The queue is shown at (http://127\.0\.0\.1:\d+)\n", line)
        assert found, line
        assert 200 == ask(found[1], "/").status
        process.send_signal(number)
        rest = process.communicate(timeout=PATIENCE_S)
        assert (0, ("", "")) == (process.returncode, rest)
    finally:
        process.kill()
        process.communicate()


def wait_for(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_ses_reported_is_counted_and_alarms(db: Db, console: ConsoleServer) -> None:
    tell(db, *(event("delivered", message_id=f"m-{n}") for n in range(95)))
    assert {"Delivered": "95 in the last day", "Bounced": "0 0 % for good; SES acts at 5 %"}.items() <= tiles(
        console
    ).items()
    assert "Alarm" not in text(page(console))
    tell(
        db,
        *(event("bounced", message_id=f"b-{n}", type="permanent") for n in range(5)),
        event("bounced", message_id="b", type="transient"),
        event("complained"),
        event("delayed"),
    )
    db.execute("SELECT mailroom.keep_unreadable('{x}', '{r}')")
    time.sleep(FRESH_S)
    assert {
        "Bounced": "6 5 % for good; SES acts at 5 %",
        "Complained": "1 1.1 %; SES acts at 0.1 %",
        "Delayed": "1 in the last day",
    }.items() <= tiles(console).items()
    shown = text(page(console))
    assert "Alarm: 5 % of the mails bounced for good, and SES acts at 5 %: check where" in shown
    assert "marked as spam" not in shown  # one complaint alone says nothing
    tell(db, event("complained", message_id="c-2"))
    time.sleep(FRESH_S)
    shown = text(page(console))
    assert "Alarm: 2.1 % of the mails were marked as spam, and SES acts at 0.1 %" in shown
    assert "1 message of the queue of events could not be read" in shown


def test_a_worker_that_reads_no_events_alarms(db: Db, database: str, console: ConsoleServer) -> None:
    why = "SQS: no queue for zoe@example.com"
    db.execute("SELECT mailroom.heartbeat('w1', '1', '', %s)", [why])
    db.execute("SELECT mailroom.heartbeat('w2', '1', '')")
    shown = text(page(console))
    assert re.search(
        r"Alarm: w1 has not read SES's events since [\d-]+ [\d:]+ UTC: SQS: no queue for z…@example.com;"
        r" `mailroom doctor --only events` checks the queue\.",
        shown,
    ), shown
    assert '<h1><span class="lamp bad" aria-hidden="true"></span>Alarm</h1>' in page(console)
    printed = commands.run("status", env=environment(database)).stdout
    assert "\nalarm      w1 has not read SES's events since " in printed
    assert 1 == printed.count("alarm ")
    since = "SELECT events_trouble_since FROM mailroom.workers WHERE worker = 'w1'"
    began = db.execute(since).fetchall()
    db.execute("SELECT mailroom.heartbeat('w1', '1', 'throttled', %s)", [why])
    assert began == db.execute(since).fetchall()
    db.execute("SELECT mailroom.heartbeat('w1', '1', 'throttled')")
    time.sleep(FRESH_S)
    assert [(None,)] == db.execute(since).fetchall()
    assert "Alarm" not in text(page(console))


def test_rows_tell_people_apart_with_dates_and_ids_to_copy(db: Db, console: ConsoleServer) -> None:
    sent = hand_out(db, "zoe")
    send(db, sent, "m-zoe")
    refused = hand_out(db, "zac")
    record(db, refused, dict.fromkeys(refused.tokens, "rejected"))
    db.execute("UPDATE tokens SET login = email WHERE login = 'zoe'")
    db.execute("UPDATE tokens SET subject = 'user-7' WHERE id = %s", [sent.tokens[0]])
    html = page(console)
    day = f"{datetime.now(UTC):%d %b }"
    for whose in ("user-7", "zac"):
        assert f'z…@example.com <span class="quiet small id">{whose}</span>' in html
    assert '<span class="mono quiet id">m-zoe</span>' in html
    assert f'<span class="id">{sent.tokens[0]}</span>' in html
    assert 2 == len(re.findall(rf"<time [^>]*>{day}\d\d:\d\d:\d\d</time>", html))
    dead = page(console, "/dead")
    assert 'z…@example.com <span class="quiet small id">zac</span>' in dead
    assert re.search(rf"<time [^>]*>{day}", dead)
    assert f'Token <span class="id">{sent.tokens[0]}</span>' in page(console, "/why?who=m-zoe")
    assert 'Message id: <span class="mono id">m-zoe</span>' in page(console, "/why?who=m-zoe")


def test_the_expired_dead_letters_of_a_page_are_renewed_with_the_others(
    db: Db, console: ConsoleServer
) -> None:
    tokens = [sign_up(db, login) for login in ("a", "b", "c")]
    record_all(db, "rejected")
    db.execute("UPDATE mailroom.actions SET renews = false")
    db.execute(
        "UPDATE tokens SET expires_at = now() - interval '3 h', created_at = now() - interval '4 h'"
        " WHERE id = %s",
        [tokens[0]],
    )
    html = page(console, "/dead")
    assert "Retry or renew these 3" in text(html)
    assert "expired 3 h ago" in text(html)
    (body,) = re.findall(r'name="tokens" value="([\d,]+)"', html)
    done = post(console, "/dead/retry", f"tokens={body.replace(',', '%2C')}")
    assert "/dead?retried=3.0" == done.headers["location"]
    assert "3 retried or renewed ." in text(page(console, "/dead?retried=3.0"))
    assert 3 == sum(len(lease.tokens) for lease in claim(db))


def test_a_paused_action_is_shown_and_resumed(db: Db, console: ConsoleServer) -> None:
    handed = hand_out(db)
    send(db, handed)
    tell(db, unrendered(handed))
    shown = text(page(console))
    assert "An action is paused" in shown
    assert "The action activation is paused since" in shown
    assert "correct the template, then `mailroom resume` and `mailroom dead retry`" in shown
    assert 303 == post(console, "/resume").status
    assert [] == db.execute("SELECT * FROM mailroom.paused_actions()").fetchall()


def test_a_deleted_person_is_found_by_the_former_address(db: Db, console: ConsoleServer) -> None:
    handed = hand_out(db)
    record(
        db,
        handed,
        {handed.tokens[0]: "sent"},
        message_ids={handed.tokens[0]: "m-1"},
        recipient="old@example.com",
    )
    db.execute("DELETE FROM accounts")
    assert "o…@example.com" in text(page(console))
    assert "Deleted; mail for <o…@example.com>." in text(page(console, "/why?who=OLD@example.com"))
    assert "Token 1" in text(page(console, "/why?who=m-1"))


def test_the_dead_letters_of_a_page_are_retried_at_once(db: Db, console: ConsoleServer) -> None:
    tokens = [sign_up(db, login) for login in ("a", "b", "c")]
    record_all(db, "rejected")
    db.execute("UPDATE accounts SET status = 'suspended' WHERE login = 'a'")
    html = page(console, "/dead")
    assert f'name="tokens" value="{tokens[2]},{tokens[1]}"' in html
    assert "Retry these 2" in text(html)
    done = post(console, "/dead/retry", f"tokens={tokens[2]}%2C{tokens[0]}")
    assert (303, "/dead?retried=1.1") == (done.status, done.headers["location"])
    shown = text(page(console, "/dead?retried=1.1"))
    assert "1 retried or renewed , 1 not, since they may not be mailed any more." in shown
    assert "Retry these" not in shown
    assert [tokens[2]] == [token for lease in claim(db) for token in lease.tokens]
    for body in ("", "tokens=x", "tokens=1%2C", "tokens=" + "1%2C" * 500 + "1"):
        assert 400 == post(console, "/dead/retry", body).status
