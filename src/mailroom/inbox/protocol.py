"""uvicorn, as the inbox needs it: a server that ends at once, and connections that an answer may cut."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from typing import Any, Final

from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from mailroom.inbox.app import create_app
from mailroom.inbox.changes import Changes
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.smtp import SmtpInbox
from mailroom.web.server import Server

TASKS_END_S: Final = 5.0


class Protocol(H11Protocol):
    """Puts the connection into each request's state, as ``transport``."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}


class InboxHttpServer(Server):
    """Answers SMTP on a second socket, if there is one, and ends without waiting for clients.

    Args:
        app: the application.
        smtp: what answers on the second socket.
        smtp_socket: the second socket.
        options: uvicorn's.
    """

    def __init__(
        self, app: ASGIApp, smtp: SmtpInbox, smtp_socket: socket.socket | None, **options: Any
    ) -> None:
        super().__init__(app, ends_in_s=0, **options)
        self._smtp = smtp
        self._smtp_socket = smtp_socket

    async def main_loop(self) -> None:
        """Answer SMTP too, until the end."""
        if self._smtp_socket:
            loop = asyncio.get_running_loop()
            self.servers.append(await loop.create_server(self._smtp.connection, sock=self._smtp_socket))
        await super().main_loop()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 - uvicorn's
        """Cut the calls that are under way, where uvicorn would wait for them."""
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        self._smtp.abort()
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=TASKS_END_S)


def create_server(
    inbox: Inbox,
    told: Callable[[], None],
    smtp_socket: socket.socket | None,
    *,
    address: str,
    names: Iterable[str],
    keep_alive_s: int,
) -> Server:
    """A server for this inbox, at this address and by these names."""
    changes = Changes()

    def told_by_smtp() -> None:
        told()
        changes.notify()

    return InboxHttpServer(
        create_app(inbox, told, changes, address, names),
        SmtpInbox(inbox, told_by_smtp),
        smtp_socket,
        http=Protocol,
        timeout_keep_alive=keep_alive_s,
    )
