"""Prints the calls that would be made to SES, each with a successful answer; sends nothing.

It writes one JSON object a line to standard output: ``{"call": …, "request": {…}, "response": {…}}``. The
output contains the links and codes of the mails, so keep it out of shared logs.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from mailroom.answers import Answer, Result
from mailroom.errors import OutputClosed, TemplateError
from mailroom.settings.sender import MAX_RATE, SenderSettings
from mailroom.templates.checks import usable
from mailroom.templates.mails import ses_name
from mailroom.templates.sources import CONSTANTS, TemplateFolder
from mailroom.transports.preparing import no_template
from mailroom.transports.ses import OPERATION, prepared, request
from mailroom.transports.ses_calls import RECIPIENTS_PER_CALL
from mailroom.wire import Message


class DebugTransport:
    """Prints instead of sending; a ``Transport``."""

    name = "debug"
    recipients_per_call = RECIPIENTS_PER_CALL

    def __init__(self, settings: SenderSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        # No constant is printed, so none has to be set.
        constants = dict.fromkeys(CONSTANTS, "") | dict(settings.templates.constants)
        self._folder = TemplateFolder(settings.templates.folder, constants)

    def check(self) -> None:
        """Check nothing: no mail is sent, so none can be lost."""

    def quota(self) -> float | None:
        """The highest rate that a setting may have."""
        return MAX_RATE

    def send(self, messages: Sequence[Message]) -> list[Answer]:
        """See ``Transport.send``."""
        action, locale = messages[0].action, messages[0].locale
        try:
            template = usable(self._folder, action, locale)
        except TemplateError as error:
            return [no_template(error)] * len(messages)
        ready = prepared(self._settings, messages, template.language)
        good = [one for one in ready if not isinstance(one, Answer)]
        statuses = [{"Status": "Success", "MessageId": f"debug-{uuid4()}"} for _ in good]
        name = ses_name(self._settings.templates.name_of(action), template.tag)
        if good:
            self._print(request(self._settings, action, name, good), {"Status": statuses})
        sent = iter(
            Answer(Result.SENT, message_id=status["MessageId"], template=name, language=template.language)
            for status in statuses
        )
        return [one if isinstance(one, Answer) else next(sent) for one in ready]

    def close(self) -> None:
        """Do nothing: no connection is open."""

    def _print(self, parameters: dict[str, Any], response: dict[str, Any]) -> None:
        call = {"call": OPERATION, "request": parameters, "response": response}
        line = (json.dumps(call, ensure_ascii=False) + "\n").encode()
        try:
            # Lines of several threads must not mix. The buffer does not see to it: a line may be longer.
            with self._lock:
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
        except (OSError, ValueError, AttributeError) as error:
            raise OutputClosed(
                f"cannot write to standard output: {error}",
                hint="connect it to a terminal, a file or a pipe that is read",
            ) from None
