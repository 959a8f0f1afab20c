"""Calls a transport in threads, with a limit on the time that each call takes.

Promises: a call yields one answer for each message, also when the transport raises an error or never answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from mailroom.answers import Answer, Result, Scope
from mailroom.concurrency import in_thread
from mailroom.errors import MailroomError
from mailroom.logs import EventLogger, without_addresses
from mailroom.transports.redaction import shortened
from mailroom.transports.transport import CONNECT_TIMEOUT_S, Transport
from mailroom.wire import Message

MAX_WAITS: Final = 4

log = EventLogger("sender")


class Provider:
    """A transport, called without blocking the event loop.

    Args:
        transport: the transport.
        timeout_s: the limit of each wait of a call: to connect, to write, to read, and for the next chunk.

    Attributes:
        name: the transport's.
        recipients_per_call: the most messages that one call takes.
    """

    def __init__(self, transport: Transport, timeout_s: float) -> None:
        self._transport = transport
        self.name = transport.name
        self.recipients_per_call = transport.recipients_per_call
        # A call has several waits, each with its own limit; this is the limit of all of them together.
        self._longest_s = CONNECT_TIMEOUT_S + MAX_WAITS * timeout_s
        self._in_calls: set[int] = set()  # of id(): equal messages may be sent at the same time

    async def check(self) -> Answer | None:
        """See ``Transport.check``.

        Raises:
            MailroomError: the configuration would lose mails.
            TimeoutError: it takes too long.
        """
        async with asyncio.timeout(self._longest_s):
            return await in_thread(self._transport.check)

    async def quota(self) -> float | None:
        """See ``Transport.quota``; None also when it takes too long."""
        try:
            async with asyncio.timeout(self._longest_s):
                return await in_thread(self._transport.quota)
        except TimeoutError:
            return None

    async def send(self, messages: Sequence[Message]) -> list[Answer]:
        """Send the messages of one call; a call that takes too long yields UNKNOWN.

        Raises:
            MailroomError: the transport raised it.
        """
        self._in_calls.update(map(id, messages))
        # A cancellation leaves them in there: it is unknown whether they will be accepted.
        try:
            async with asyncio.timeout(self._longest_s):
                answers = await in_thread(self._answers, messages)
        except TimeoutError:
            detail = f"no complete answer within {self._longest_s:g} s"
            answers = [Answer(Result.UNKNOWN, detail, scope=Scope.ACCOUNT)] * len(messages)
        self._in_calls.difference_update(map(id, messages))
        return answers

    def is_under_way(self, message: Message) -> bool:
        """Whether a call for it has begun and has not been answered."""
        return id(message) in self._in_calls

    def close(self) -> None:
        """Close the transport, unless a thread still uses it."""
        if not self._in_calls:
            self._transport.close()

    def _answers(self, messages: Sequence[Message]) -> list[Answer]:
        """The transport's answers; a fault of it that some message causes is an answer for that message."""
        try:
            answers = self._transport.send(messages)
            if len(answers) == len(messages):
                return answers
            why = f"{len(answers)} answers for {len(messages)} messages"
        except MailroomError:
            raise
        except Exception as error:  # noqa: BLE001 - no message's content may end the sending
            why = f"{type(error).__name__}: {error}"
        why = shortened(why, [word for one in messages for word in (one.token, one.code)])
        log.error("transport_failed", transport=self.name, reason=without_addresses(why))
        failed = Answer(Result.FAILED, f"the transport failed: {why}", scope=Scope.CALL, is_ours=True)
        return [failed] * len(messages)
