"""Measures how many of SES's events per second one ``mailroom events`` records.

The events wait in the inbox's queue, in SNS's envelope, in random order; every second one is a repetition.
Their mails are in the ledger. The time runs from the first deleted message to the last.
"""

from __future__ import annotations

import json
import random
import subprocess
import time
from datetime import UTC, datetime
from typing import Any, Final

import psutil
import psycopg

from bench import database
from bench.options import Options
from bench.programs import StoppedShort, environment, mailroom, peak_mb, running
from bench.tell import tell
from mailroom.inbox.event_queue import NAME
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.server import InboxServer

KINDS: Final[dict[str, dict[str, Any]]] = {
    "Send": {"send": {}},
    "Delivery": {"delivery": {"recipients": ["{email}"], "smtpResponse": "250 2.0.0 OK"}},
    "Bounce": {
        "bounce": {
            "bounceType": "Transient",
            "bounceSubType": "MailboxFull",
            "bouncedRecipients": [
                {"emailAddress": "{email}", "status": "4.2.2", "diagnosticCode": "smtp; 452 4.2.2 full"}
            ],
        }
    },
}
MAILED: Final = """
INSERT INTO mailroom.deliveries
    (token, fingerprint, attempt, outcome, result, provider, message_id, recipient)
SELECT id, mailroom.fingerprint(secret), 1, 'sent', 'sent', 'ses', 'message-' || id, email FROM tokens
RETURNING token, encode(fingerprint, 'hex'), recipient
"""
MAX_S: Final = 600.0


def measure(options: Options) -> dict[str, Any]:
    """One row."""
    mails = options.sized(25_000 // len(KINDS), 1000)
    with database.durable() as server:
        url = database.filled(server, "mailed", mails)
        with database.connected(url) as connection:
            texts = messages(connection)
            inbox = Inbox()
            for text in texts:
                inbox.queue.put(text)
            with InboxServer(inbox=inbox) as sqs:
                row = drained(url, sqs, len(texts))
            ((events,),) = connection.execute("SELECT count(*) FROM mailroom.events").fetchall()
            assert events == len(texts) // 2
    tell(f"{row['events']:,} events: {row['events_per_s']:,} a second, {row['cpu_us']} µs of CPU each")
    return {"rows": [row]}


def messages(connection: psycopg.Connection) -> list[str]:
    """Each event twice, in random order."""
    at = datetime.now(UTC).isoformat()
    texts = []
    for token, fingerprint, email in connection.execute(MAILED).fetchall():
        mail = {
            "timestamp": at,
            "source": "Acme <noreply@acme.example>",
            "messageId": f"message-{token}",
            "destination": [email],
            "headersTruncated": False,
            "commonHeaders": {"from": ["noreply@acme.example"], "to": [email], "subject": "Welcome"},
            "tags": {
                "ses:configuration-set": ["default"],
                "mailroom-token": [f"{token}-{fingerprint}"],
                "mailroom-attempt": ["1"],
                "mailroom-action": ["activation"],
            },
        }
        for kind, part in KINDS.items():
            event = json.dumps({"eventType": kind, "mail": mail} | part).replace("{email}", email)
            texts.append(json.dumps({"Type": "Notification", "Message": event, "Timestamp": at}))
    texts *= 2
    random.Random(50_000).shuffle(texts)  # noqa: S311 - the same order each time
    return texts


def drained(url: str, sqs: InboxServer, events: int) -> dict[str, Any]:
    variables = environment(url, EVENTS=NAME) | {
        "AWS_ENDPOINT_URL_SQS": sqs.url,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
    }
    queue = sqs.inbox.queue
    with running(mailroom("events"), variables) as process:
        deadline = time.monotonic() + MAX_S
        started = spent_s = 0.0
        while left := len(queue):
            if not started and left < events:
                started, events, spent_s = time.monotonic(), left, cpu_s(process)
            if process.poll() is not None or time.monotonic() > deadline:
                raise StoppedShort(f"mailroom events left {left:,} of {events:,} events")
            time.sleep(0.01)
        seconds = time.monotonic() - started
        spent_s = cpu_s(process) - spent_s
        peak = peak_mb(process)
    return {
        "events": events,
        "events_per_s": round(events / seconds),
        "cpu_us": round(1_000_000 * spent_s / events),
        "peak_mb": round(peak),
    }


def cpu_s(process: subprocess.Popen[bytes]) -> float:
    """The processor's time of a process until now."""
    times = psutil.Process(process.pid).cpu_times()
    return float(times.user + times.system)
