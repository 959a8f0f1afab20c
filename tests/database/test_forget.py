"""`mailroom forget` leaves no trace of an address, in no table and no file."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from mailroom.sender.rejected import Rejected, RejectedRow, read
from support import commands
from support.events import event, hand_out, of, tell
from support.processes import environment
from support.queue_sql import Db, claim, claimed_tokens, record, sign_up

ADDRESS = "Zoe@Bücher.example"
TRACES = ("zoe@bücher.example", "zoe@xn--bcher-kva.example")


def everything(db: Db) -> str:
    """All that the tables hold, as text in small letters."""
    tables = db.execute(
        "SELECT c.oid::regclass::text FROM pg_class c WHERE c.relkind = 'r' AND c.relnamespace IN"
        " ('mailroom'::regnamespace, 'public'::regnamespace)"
    ).fetchall()
    assert ("mailroom.deliveries",) in tables
    texts = [db.execute(f"SELECT x::text FROM {name} x".encode()).fetchall() for (name,) in tables]
    return "\n".join(text for rows in texts for (text,) in rows).lower()


def fill(db: Db) -> int:
    """Mails to zoe, in all their states, and mails to others; returns zoe's first token."""
    handed = hand_out(db)
    (token,) = handed.tokens
    db.execute("UPDATE accounts SET email = %s WHERE login = 'zoe'", [ADDRESS])
    db.execute("UPDATE tokens SET subject = 'zoe@bücher.example', ended_at = NULL, ended_as = NULL")
    record(db, handed, {token: "transient"}, recipient=ADDRESS, detail=f"450 <{TRACES[1]}> is busy")
    sign_up(db, "max")
    for lease in claim(db):
        record(
            db,
            lease,
            dict.fromkeys(lease.tokens, "sent"),
            message_ids=dict.fromkeys(lease.tokens, "m-1"),
            recipient="max@example.com",
            detail="as zoe@bücher.example does",
        )
    tell(
        db,
        of(handed, "bounced", type="permanent", recipient=TRACES[1], diagnostic=f"550 {TRACES[1]} unknown"),
        event("delivered", recipient="max@example.com", diagnostic=f"not {TRACES[0]}"),
        event("bounced", recipient="kim@example.com", type="permanent"),
    )
    texts = [f"{{{TRACES[0].upper()}", f"{TRACES[1]}", "{"]
    db.execute("SELECT mailroom.keep_unreadable(%s, %s)", [texts, ["a", "b", "c"]])
    db.execute("SELECT mailroom.suppress('eve@example.com', %s)", [f"knows {TRACES[0]}"])
    grant = "INSERT INTO mailroom.granted (token, action, recipient) VALUES (1, 'activation', %s)"
    db.execute(grant, [TRACES[0]])
    db.execute("SELECT mailroom.pause(%s)", [f"mail to {ADDRESS} fails"])
    db.execute("UPDATE mailroom.actions SET pause_reason = %s", [f"to {TRACES[1]}"])
    db.execute("SELECT mailroom.heartbeat('w', '1', %s)", [f"rejected {ADDRESS}"])
    return token


def forget(database: str, folder: Path, *arguments: str) -> tuple[int, str, str]:
    """What it prints. The sender's other settings are none of its business."""
    env = environment(database) | {"MAILROOM_SES_OUTPUT_PATH": str(folder), "MAILROOM_SEND_RATE": "fast"}
    done = commands.run("forget", *arguments, env=env)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("spelling", ["zoe@BÜCHER.example", "ZOE@xn--bcher-kva.example."])
def test_nothing_is_left(db: Db, database: str, tmp_path: Path, spelling: str) -> None:
    token = fill(db)
    file = Rejected(tmp_path)
    mail = f'{{"mails": [{{"email": "{ADDRESS}"}}]}}'
    file.add(
        [
            RejectedRow("rejected", "r", mail.encode()),
            RejectedRow("rejected", f"550 {TRACES[1]}", b"2,kim@example.com,kim"),
            RejectedRow("rejected", "r", b"2,max@example.com,max"),
        ]
    )
    for number, text in enumerate((f"to {TRACES[1]}", TRACES[0], "to nobody")):
        (tmp_path / f"ses_{number}_activation.http").write_text(text)
    assert all(trace in everything(db) for trace in TRACES)
    code, _, error = forget(database, tmp_path, spelling, "--yes")
    assert (65, True) == (code, "still has this address" in error)
    db.execute("DELETE FROM accounts WHERE login = 'zoe'")

    code, printed, _ = forget(database, tmp_path, spelling, "--yes")
    assert 0 == code
    left = everything(db)
    assert [] == [trace for trace in TRACES if trace in left]
    files = [path.read_text() for path in tmp_path.iterdir()]
    assert [] == [text for text in files for trace in TRACES if trace in text.lower()]
    counts = dict(line.split(": ") for line in printed.splitlines())
    assert counts == {
        "tokens": "0",
        "deliveries": "4",
        "events": "2",
        "unreadable events": "2",
        "suppressions": "2",
        "granted": "1",
        "reasons": "4",
        "rows of rejected.csv": "2",
        "saved answers": "2",
    }
    # What happened is still known, and what others got.
    assert [("retried", "450 <<forgotten>> is busy")] == db.execute(
        "SELECT outcome, detail FROM mailroom.deliveries WHERE token = %s AND outcome = 'retried'", [token]
    ).fetchall()
    assert "kim@example.com" in left
    assert "max@example.com" in left
    assert [b"2,max@example.com,max"] == [row.line for _, row in read(file.path)]
    assert 0o600 == file.path.stat().st_mode & 0o777


def test_a_forgotten_address_stays_suppressed(db: Db, database: str, tmp_path: Path) -> None:
    db.execute("SELECT mailroom.suppress(%s, 'bounced')", [ADDRESS])
    assert 0 == forget(database, tmp_path, ADDRESS, "--yes")[0]
    listed = commands.run("suppressions", "list", env=environment(database)).stdout
    assert "(forgotten) " in listed
    assert (
        "address,reason,source,at\n"
        == commands.run("suppressions", "export", env=environment(database)).stdout
    )
    db.execute("INSERT INTO accounts (email, login) VALUES ('zoe@xn--bcher-kva.example', 'zoe')")
    assert [] == claimed_tokens(db)


def test_a_repeated_event_does_not_bring_the_address_back(db: Db, database: str, tmp_path: Path) -> None:
    bounce = event("bounced", type="permanent", recipient=ADDRESS)
    tell(db, bounce)
    assert 0 == forget(database, tmp_path, ADDRESS, "--yes")[0]
    assert [("bounced", False, False)] == tell(db, bounce)
    assert TRACES[0] not in everything(db)


def test_what_a_worker_and_ses_report_later_does_not_bring_the_address_back(
    db: Db, database: str, tmp_path: Path
) -> None:
    handed = hand_out(db)
    (token,) = handed.tokens
    db.execute("UPDATE accounts SET email = %s", [ADDRESS])
    db.execute("DELETE FROM accounts")
    assert 0 == forget(database, tmp_path, ADDRESS, "--yes")[0]
    record(
        db,
        handed,
        {token: "sent"},
        message_ids={token: "m-9"},
        recipient=ADDRESS,
        detail=f"250 <{TRACES[1]}> accepted",
    )
    late = of(handed, "complained", recipient=TRACES[1], message_id="m-9", diagnostic=f"550 {TRACES[1]}")
    untagged = event("delivered", recipient=TRACES[1], message_id="m-9")
    assert [("complained", True, True), ("delivered", True, True)] == tell(db, late, untagged)
    left = everything(db)
    for trace in TRACES:
        assert trace not in left
    assert 1 == len(db.execute("SELECT FROM mailroom.suppression_of(%s)", [ADDRESS]).fetchall())
    db.execute("INSERT INTO accounts (email, login) VALUES ('zoe@xn--bcher-kva.example', 'zoe')")
    assert [] == claimed_tokens(db)


def test_mails_to_nobody_in_particular_are_deleted(db: Db, database: str, tmp_path: Path) -> None:
    db.execute("UPDATE mailroom.actions SET account_status = NULL WHERE action = 'password_recovery'")
    db.execute("SELECT mailroom.send('password_recovery', 'zoe@example.com')")
    db.execute("SELECT mailroom.send('password_recovery', 'max@example.com')")
    code, printed, _ = forget(database, tmp_path / "none", "zoe@example.com", "--yes")
    assert (0, "tokens: 1") == (code, printed.splitlines()[0])
    assert [("max@example.com",)] == db.execute("SELECT email FROM tokens").fetchall()


@pytest.mark.parametrize("other", ["azoe@bücher.example", "zoe@bücher.example.org", "a.zoe@bücher.example"])
def test_others_whose_address_contains_it_are_kept(db: Db, database: str, tmp_path: Path, other: str) -> None:
    db.execute("SELECT mailroom.keep_unreadable(%s, %s)", [[other], ["r"]])
    Rejected(tmp_path).add([RejectedRow("rejected", other, b"x")])
    code, printed, _ = forget(database, tmp_path, ADDRESS, "--yes")
    assert (0, {"0"}) == (code, {line.split(": ")[1] for line in printed.splitlines()})


def test_a_user_of_an_adopted_table_is_deleted_first(db: Db, database: str, tmp_path: Path) -> None:
    sign_up(db, "zoe")
    db.execute("UPDATE tokens SET account = NULL, subject = '7', user_table = 'accounts'")
    db.execute("DELETE FROM accounts")
    code, _, error = forget(database, tmp_path, "zoe@example.com", "--yes")
    assert (65, True) == (code, "a user of an adopted table still has this address" in error)
    db.execute("UPDATE tokens SET ended_at = now(), ended_as = 'user deleted'")
    assert 0 == forget(database, tmp_path, "zoe@example.com", "--yes")[0]


def test_it_asks_first(database: str, tmp_path: Path) -> None:
    code, _, error = forget(database, tmp_path, ADDRESS)
    assert (64, True) == (code, "without a terminal it needs --yes" in error)
    code, _, error = forget(database, tmp_path, "nobody@", "--yes")
    assert (65, True) == (code, "is not an address" in error)


def test_only_words_can_be_erased_from_the_ledger(db: Db) -> None:
    hand_out(db)
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        db.execute("UPDATE mailroom.deliveries SET outcome = 'sent'")
