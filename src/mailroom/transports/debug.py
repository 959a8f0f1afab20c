"""Prints the calls that would be made to SES, and an answer that says yes; sends nothing.

One JSON object a line on standard output: ``{"call": …, "request": {…}, "response": {…}}``. It shows the
links and codes of the mails, for that is what one wants to see: keep it out of shared logs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from mailroom.answers import Answer, Result
from mailroom.errors import OutputClosed
from mailroom.settings.sender import MAX_RATE, SenderSettings
from mailroom.transports.ses import OPERATION, RECIPIENTS_PER_CALL, bad_addresses, request
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
        """As fast as it can be printed."""
        return MAX_RATE

    def send(self, messages: Sequence[Message]) -> list[Answer]:
        """See ``Transport.send``."""
        bad = bad_addresses(messages)
        good = [message for message, outcome in zip(messages, bad, strict=True) if outcome is None]
        statuses = [{"Status": "Success", "MessageId": f"debug-{uuid4()}"} for _ in good]
        if good:
            self._print(request(self._settings, good), {"Status": statuses})
        sent = iter([Answer(Result.SENT, message_id=status["MessageId"]) for status in statuses])
        return [outcome or next(sent) for outcome in bad]

    def close(self) -> None:
        """Nothing is open."""

    def _print(self, parameters: dict[str, Any], response: dict[str, Any]) -> None:
        call = {"call": OPERATION, "request": parameters, "response": response}
        line = (json.dumps(call, ensure_ascii=False) + "\n").encode()
        try:
            # One write, so that lines of several threads do not mix.
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
        except (OSError, ValueError, AttributeError) as error:
            raise OutputClosed(
                f"standard output takes nothing more: {error}",
                hint="send it to a terminal, a file or a reader",
            ) from None
