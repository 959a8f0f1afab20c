"""Prints the calls that would be made to SES, and an answer that says yes; sends nothing.

One JSON object a line on standard output: ``{"call": …, "request": {…}, "response": {…}}``. It shows the
links and codes of the mails, for that is what one wants to see: keep it out of shared logs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from uuid import uuid4

from mailroom.outcomes import Outcome, Result
from mailroom.sender_settings import SenderSettings
from mailroom.transports.ses import OPERATION, RECIPIENTS_PER_CALL, request
from mailroom.wire import Message


class DebugTransport:
    """Prints instead of sending; a ``Transport``."""

    name = "debug"
    recipients_per_call = RECIPIENTS_PER_CALL

    def __init__(self, settings: SenderSettings) -> None:
        self._settings = settings

    def check(self) -> None:
        """Nothing is sent, so nothing can be dropped."""

    def quota(self) -> float | None:
        """There is none."""
        return None

    def send(self, messages: Sequence[Message]) -> list[Outcome]:
        """See ``Transport.send``."""
        statuses = [{"Status": "Success", "MessageId": f"debug-{uuid4()}"} for _ in messages]
        call = {
            "call": OPERATION,
            "request": request(self._settings, messages),
            "response": {"Status": statuses},
        }
        # One write, so that lines of several threads do not mix.
        sys.stdout.write(json.dumps(call, ensure_ascii=False) + "\n")
        sys.stdout.flush()
        return [Outcome(Result.SENT, message_id=status["MessageId"]) for status in statuses]

    def close(self) -> None:
        """Nothing is open."""
