"""The queue's page: how a queue is, what became of its mails, and the hand brake, in a browser.

``ConsoleServer`` serves it. It reads over one connection of its own, at most once a second however
many look, and bounded work each time. It needs the extra ``http``.

Promises: no secret and no code is read; addresses are masked unless the viewer asks for them. While
the database is away the page says so, keeps the last picture, and comes back by itself.
"""

from mailroom.console.server import ConsoleError, ConsoleServer

__all__ = ["ConsoleError", "ConsoleServer"]
