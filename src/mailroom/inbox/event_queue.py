"""Holds the events that no client has deleted yet, as an SQS queue does.

A message that was received is invisible until it is deleted or its time is over. The queue is bounded by a
number of messages and by bytes; the oldest messages go first. Only one thread may use it.
"""

from __future__ import annotations

import heapq
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from sys import getsizeof
from typing import Final, NamedTuple

from mailroom.inbox.events import Event, Sending

NAME: Final = "mailroom-events"
MAX_MESSAGES: Final = 100_000
# The size of what clients wrote into the calls. The messages of ordinary mails stay far below it.
MAX_BYTES: Final = 128_000_000
SPARE_ENTRIES: Final = 10_000
# About what an event takes without the texts of its mail.
RECORD_BYTES: Final = 500


@dataclass(slots=True)
class Message:
    """A message: an event, or the text that a client sent.

    Attributes:
        number: counts messages from 1.
        sent_s: when it was put into the queue, in seconds since 1970.
        received: how often it was received.
        first_received_s: when that was first; 0 for never.
        visible_s: when it can be received again, on the queue's clock.
        size: about how many bytes it takes.
    """

    number: int
    content: Event | str
    sent_s: float
    visible_s: float
    size: int
    received: int = 0
    first_received_s: float = 0.0


class Depth(NamedTuple):
    """How many messages are visible, are hidden since they were received, and are not visible yet."""

    visible: int
    received: int
    delayed: int


class EventQueue:
    """The queue.

    Args:
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._messages: OrderedDict[int, Message] = OrderedDict()
        self._ready: list[int] = []
        self._later: list[tuple[float, int]] = []
        self._bytes = 0
        self._last = 0

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, content: Event | str, after_s: float = 0) -> Message:
        """Add a message that can be received after this time."""
        self._last += 1
        message = Message(self._last, content, time.time(), self._clock() + after_s, _size(content))
        self._messages[message.number] = message
        self._bytes += message.size
        if after_s > 0:
            heapq.heappush(self._later, (message.visible_s, message.number))
        else:
            heapq.heappush(self._ready, message.number)
        while len(self._messages) > MAX_MESSAGES or (self._bytes > MAX_BYTES and len(self._messages) > 1):
            self.delete(next(iter(self._messages)))
        if len(self._ready) + len(self._later) > 2 * len(self._messages) + SPARE_ENTRIES:
            self._sweep()
        return message

    def receive(self, most: int, visibility_s: float) -> list[Message]:
        """Return the oldest visible messages, which nobody else receives for this time."""
        now = self._clock()
        found: list[Message] = []
        self._appear(now)
        while self._ready and len(found) < most:
            message = self._messages.get(heapq.heappop(self._ready))
            if message is None:
                continue
            message.received += 1
            message.first_received_s = message.first_received_s or time.time()
            message.visible_s = now + visibility_s
            heapq.heappush(self._later, (message.visible_s, message.number))
            found.append(message)
        return found

    def delete(self, number: int) -> None:
        """Delete a message, if it is there."""
        if message := self._messages.pop(number, None):
            self._bytes -= message.size

    def next_s(self) -> float:
        """When the next invisible message becomes visible, on the queue's clock; infinity for never."""
        return self._later[0][0] if self._later else float("inf")

    def depth(self) -> Depth:
        """Count the messages."""
        now = self._clock()
        waiting = [message for message in self._messages.values() if message.visible_s > now]
        received = sum(message.received > 0 for message in waiting)
        return Depth(len(self._messages) - len(waiting), received, len(waiting) - received)

    def clear(self) -> None:
        """Delete all messages."""
        self._messages.clear()
        self._ready, self._later, self._bytes = [], [], 0

    def _appear(self, now: float) -> None:
        """Make the messages visible whose time is over; the entries of the deleted ones go too."""
        while self._later and self._later[0][0] <= now:
            visible_s, number = heapq.heappop(self._later)
            message = self._messages.get(number)
            if message and message.visible_s == visible_s:
                heapq.heappush(self._ready, number)

    def _sweep(self) -> None:
        """Drop the entries of deleted messages."""
        self._ready = [number for number in self._ready if number in self._messages]
        self._later = [entry for entry in self._later if entry[1] in self._messages]
        heapq.heapify(self._ready)
        heapq.heapify(self._later)


def _size(content: Event | str) -> int:
    if isinstance(content, str):
        return getsizeof(content)
    sending: Sending = content.sending
    return RECORD_BYTES + sum(map(len, sending.addresses)) + sum(map(len, chain(*sending.tags)))
